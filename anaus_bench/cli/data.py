"""`data`: looks at, checks, packs, splits, audits and generates data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from anaus_bench.cells.cell import Cell
from anaus_bench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    DataRoot,
    PluginFiles,
    Preset,
    Seed,
    Set,
    StorePath,
    parse_roots,
)
from anaus_bench.cli.printing import print_grid, print_json, say
from anaus_bench.cli.stages import Workshop
from anaus_bench.errors import SettingsError
from anaus_bench.registry import Registry
from anaus_bench.settings.base import check_known, parse_overrides
from anaus_bench.store import Store

data_app = typer.Typer(no_args_is_help=True, help="Look at, check and pack data sets.")


@data_app.command("info")
def data_info(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """What a data set is, its licence, how to get it, and what is there of it."""
    from anaus_bench.datasets.roots import data_folder

    dataset = _dataset(Registry(plugin or ()), name)
    folder = data_folder(name, parse_roots(data_root))
    facts = {
        "name": name,
        "title": dataset.title,
        "licence": dataset.licence,
        "address": dataset.url,
        "how to get": dataset.how_to_get,
        "reference": dataset.reference,
        "classes": ", ".join(dataset.classes),
        "structures": ", ".join(dataset.structures),
        "documented images": dataset.expected_count,
        "folder": str(folder) if folder else "none given",
    }
    if folder:
        index = dataset.scan(folder)
        facts |= {"images": len(index.samples), "fingerprint": index.fingerprint, "generated": index.phantom}
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if value not in ("", None):
            say(f"{key:18} {value}")


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    data_root: DataRoot = None,
    full: Annotated[bool, typer.Option("--full", help="Read every file again, whatever was kept of it.")] = False,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check a data set: layout and names, then every image and mask; says what is wrong with the first offenders."""
    from anaus_bench.datasets.facts import reading_again
    from anaus_bench.datasets.roots import find_data
    from anaus_bench.datasets.verify import verify
    from anaus_bench.execution.progress import console_progress

    dataset = _dataset(Registry(plugin or ()), name)
    with reading_again(full) as changed:
        index = find_data(dataset, parse_roots(data_root), skips_unreadable=True)
    report = verify(dataset, index, console_progress(Console(stderr=True), as_json), changed)
    if as_json:
        print_json(report.as_dict())
    else:
        for line in report.lines():
            say(line)
    if report.offenders:
        raise typer.Exit(2)


@data_app.command("prepare")
def data_prepare(
    names: Annotated[str, typer.Argument(help="Data sets of the corpus, joined by +.")],
    preset: Preset = "paper",
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Pack data sets into the memory-mapped corpus that pre-training reads."""
    from anaus_bench.planning.planner import corpus_stage

    registry = Registry(plugin or ())
    cell = Cell("", "", corpus=names, preset=preset, overrides=parse_overrides(settings or ()))
    stage = corpus_stage(cell, registry, parse_roots(data_root))
    Workshop(registry, Store(store), "cpu", as_json).show(stage, as_json)


@data_app.command("folds")
def data_folds(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("folds.json"),
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    seed: Seed = 0,
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
) -> None:
    """Write the folds of a data set: the published ones where they exist, else grouped and stratified."""
    from anaus_bench.datasets.folds import deal
    from anaus_bench.datasets.roots import find_data

    dataset = _dataset(Registry(plugin or ()), name)
    index = find_data(dataset, parse_roots(data_root))
    content = deal(dataset, index, index.samples, folds, seed)
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    rows = list(content["samples"].values())
    table = []
    for fold in sorted({row["fold"] for row in rows}):
        inside = [row for row in rows if row["fold"] == fold]
        classes = (str(sum(row["label"] == label for row in inside)) for label in range(len(dataset.classes)))
        groups = str(len({row["group"] for row in inside}))
        table.append(("fixed test" if fold < 0 else str(fold + 1), str(len(inside)), groups, *classes))
    print_grid(f"{name}: {content['protocol']} folds", ("fold", "images", "groups", *dataset.classes), table)
    for warning in content["warnings"]:
        say(f"warning: {warning}")
    say(f"wrote {output}")


@data_app.command("audit")
def data_audit(
    names: Annotated[
        list[str], typer.Argument(help="Data sets; each with --test is compared with each of the others.")
    ],
    test: Annotated[list[str] | None, typer.Option(help="Which of them are tested on; repeatable.")] = None,
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Find leaks: near-duplicates inside data sets (classes, groups), and between a corpus and a test set."""
    from anaus_bench.datasets.audit import audit, part_of
    from anaus_bench.datasets.near_duplicates import image_hashes
    from anaus_bench.datasets.roots import find_data

    check_known("data set", test or (), names)
    registry, roots = Registry(plugin or ()), parse_roots(data_root)
    parts = {}
    for name in names:
        dataset = _dataset(registry, name)
        index = find_data(dataset, roots)
        parts[name] = part_of(index, image_hashes(dataset, index), dataset.groups(index))
    found = audit(parts, test or ())
    if as_json:
        print_json(found)
        return
    for name, part in found["parts"].items():
        say(
            f"{name}: {part['images']} images, {part['near_duplicate_images']} of them in "
            f"{part['near_duplicate_groups']} groups of near-duplicates "
            f"(at most {found['distance']} of {found['bits']} bits)"
        )
        for what in ("across_classes", "across_groups"):
            _print_near(what.replace("_", " "), part[what])
    for pair, between in found["between"].items():
        corpus, tested = pair.split("|")
        say(f"{corpus} holds {between['images']} images of {tested} ({100 * between['share']:.1f} %)")
        for ours, theirs, bits in between["examples"]:
            say(f"  {ours} ~ {theirs} ({bits} bits)")
        for ours, theirs in between["clips"]:
            say(f"  clip {ours} = {theirs}")


@data_app.command("demo")
def data_demo(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, which must not exist yet.")],
    count: Annotated[int, typer.Option(min=4, help="About how many images.")] = 60,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side in pixels.")] = 256,
    seed: Seed = 0,
    plugin: PluginFiles = None,
) -> None:
    """Generate phantoms in a data set's official layout, marked as such, to try a cell without the data."""
    dataset = _dataset(Registry(plugin or ()), name)
    if output.exists():
        raise SettingsError(f"{str(output)!r} exists; give --output a folder that does not")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dataset.write_phantoms(partial, count, size, seed)
    partial.rename(output)
    images = len(dataset.scan(output).samples)
    say(f"wrote {images} generated images to {output}; use them with --data-root {name}={output}")


def _dataset(registry: Registry, name: str) -> Any:
    return registry.create("datasets", name)


def _print_near(what: str, found: Any) -> None:
    """Near-duplicates across something, with their first examples."""
    say(f"  {what}: {found['pairs']} pairs, {found['images']} images")
    for first, second, here, there, bits in found["examples"]:
        say(f"    {first} ({here}) ~ {second} ({there}), {bits} bits")
