"""The command: parse, call the library, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from anaus_bench import distributed
from anaus_bench.backbones import BACKBONES
from anaus_bench.cell import CORE_SETTINGS, Cell
from anaus_bench.config import PRESETS, check_known, parse_overrides, resolve
from anaus_bench.errors import AnausError, PluginError, SettingsError
from anaus_bench.home import expanded
from anaus_bench.plan import Plan, cell_title, make_plan, pending, why
from anaus_bench.registry import KINDS, Registry
from anaus_bench.store import Store

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Look at, check and pack data sets.")
masks_app = typer.Typer(no_args_is_help=True, help="Build and look at the masks of a mask source.")
app.add_typer(data_app, name="data")
app.add_typer(masks_app, name="masks")

# What a user calls a kind of plugin -> the registry's name.
WORDS = {
    "masks": "mask_sources",
    "methods": "objectives",
    "tasks": "tasks",
    "datasets": "datasets",
    "executors": "executors",
}

# Columns of `list` beside name and description.
_LISTED = {
    "masks": ("needs",),
    "methods": ("masks", "corpus must have"),
    "tasks": ("data set",),
    "datasets": ("classes", "masks of"),
    "executors": (),
}
MASKS_RULE = (
    "masks: `needed` and `optional` go with every source of `list masks`; where they are optional, the method groups "
    "pixels itself without --masks; with `none`, --masks is refused. `show method NAME` says what masks become, and "
    "what the method does where a corpus lacks labels, views or long clips."
)

Masks = Annotated[str | None, typer.Option(help="Mask source, for methods that need one.")]
Corpus = Annotated[
    str | None, typer.Option(help="Data sets to pre-train on, joined by +. [default: that of the preset]")
]
Backbone = Annotated[str | None, typer.Option(help=f"{', '.join(BACKBONES)}. [default: that of the method]")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of pre-training and fine-tuning.")]
Preset = Annotated[str, typer.Option(help=f"Values the settings start from: {', '.join(PRESETS)}.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting; repeatable.")
]
DataRoot = Annotated[
    list[str] | None, typer.Option("--data-root", metavar="NAME=PATH", help="Folder of a data set; repeatable.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with plugins; repeatable.")]
StorePath = Annotated[Path, typer.Option(envvar="ANAUS_STORE", help="Folder of all artifacts and results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else there.")]
MaskNames = Annotated[list[str], typer.Option("--masks", help="Mask source; repeat to see several side by side.")]
CorpusNames = Annotated[str, typer.Option("--corpus", help="Data sets, joined by +.")]
DEFAULT_STORE = Path("anaus-store")


@app.command()
def run(
    method: Annotated[str, typer.Option(help="Pre-training method; see `anaus-bench list methods`.")],
    task: Annotated[str, typer.Option(help="Downstream task; see `anaus-bench list tasks`.")],
    masks: Masks = None,
    corpus: Corpus = None,
    backbone: Backbone = None,
    seed: Seed = 0,
    preset: Preset = "paper",
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    executor: Annotated[str, typer.Option(help="What runs the stages.")] = "local",
    device: Device = "auto",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Run one cell of the benchmark: masks, pre-training, all folds, scores, pictures. Only what is missing is run."""
    registry = Registry(plugin or ())
    cell = Cell(method, task, masks, corpus, backbone, seed, preset, parse_overrides(settings or ()))
    plan = make_plan(cell, registry, parse_roots(data_root))
    shelf = Store(store)
    waiting = plan.pending(shelf)
    say = Console(stderr=True)
    _announce(say, plan, waiting, shelf, as_json)
    started = time.monotonic()
    if waiting:
        _execute(waiting, registry, shelf, executor, device, say, as_json, cell.overrides.get("executor"))
    record = shelf.record(plan.score.kind, plan.score.key)
    assert record is not None
    metrics = registry.get("tasks", task).metrics
    panel = shelf.folder(plan.panel.kind, plan.panel.key) / "panel.png"
    from anaus_bench.tables import fold_table, mask_scores

    if as_json:
        _print_json(
            {
                "cell": {**plan.score.labels, "task": task},
                "key": plan.score.key,
                "phantom": record["phantom"],
                **record["result"],
                "mask_scores": mask_scores(shelf, record),
                "folders": {stage.title: str(shelf.folder(stage.kind, stage.key)) for stage in plan.stages},
                "panel": str(panel),
                "stages_run": len(waiting),
            }
        )
        return
    _print_table(fold_table(cell_title(cell), record, metrics))
    out = Console()
    out.print(f"\npictures   {panel}", soft_wrap=True, highlight=False)
    out.print(f"per image  {shelf.folder('score', plan.score.key) / 'images.csv'}", soft_wrap=True, highlight=False)
    pretrain = next(stage for stage in plan.stages if stage.kind == "pretrain")
    out.print(
        f"encoder    {shelf.folder('pretrain', pretrain.key) / 'encoder.safetensors'}", soft_wrap=True, highlight=False
    )
    say.print(f"{len(waiting)} stages run in {time.monotonic() - started:.1f} s", highlight=False)


@app.command()
def plan(
    method: Annotated[str, typer.Option(help="Pre-training method.")],
    task: Annotated[str, typer.Option(help="Downstream task.")],
    masks: Masks = None,
    corpus: Corpus = None,
    backbone: Backbone = None,
    seed: Seed = 0,
    preset: Preset = "paper",
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    plugin: PluginFiles = None,
    explain: Annotated[bool, typer.Option("--why", help="Name the fields that make each missing stage new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the stages of a cell: which are in the store, which would run, and why."""
    registry = Registry(plugin or ())
    cell = Cell(method, task, masks, corpus, backbone, seed, preset, parse_overrides(settings or ()))
    made = make_plan(cell, registry, parse_roots(data_root))
    shelf = Store(store)
    waiting = {stage.key for stage in made.pending(shelf)}
    rows = []
    for stage in made.stages:
        state = "to run" if stage.key in waiting else "done" if shelf.record(stage.kind, stage.key) else "not needed"
        if state == "to run" and shelf.is_interrupted(stage.kind, stage.key):
            state = "to resume"
        rows.append((stage, state))
    if as_json:
        stages = [
            {
                "kind": stage.kind,
                "key": stage.key,
                "title": stage.title,
                "state": state,
                "inputs": {role: below.key for role, below in stage.inputs.items()},
                "spec": stage.spec,
                **({"why": why(stage, shelf)} if explain and stage.key in waiting else {}),
            }
            for stage, state in rows
        ]
        _print_json({"cell": {**made.score.labels, "task": task}, "stages": stages, "notes": list(made.notes)})
        return
    table = _grid(cell_title(cell), ("stage", "key", "what", "state"))
    for stage, state in rows:
        table.add_row(stage.kind, stage.key, stage.title, state)
    out = Console()
    out.print(table)
    for note in made.notes:
        out.print(f"note: {note}", highlight=False, markup=False)
    if explain:
        for stage, _ in rows:
            if stage.key in waiting:
                out.print(f"\n{stage.kind} {stage.key} is new:", highlight=False)
                for line in why(stage, shelf):
                    out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


@app.command("list")
def list_plugins(
    what: Annotated[str | None, typer.Argument(help=f"One of {', '.join(WORDS)}; all by default.")] = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins; a broken one is named and harms nothing."""
    if what is not None:
        check_known("kind", [what], list(WORDS))
    registry = Registry(plugin or ())
    found = {word: _listed(registry, WORDS[word]) for word in ([what] if what else WORDS)}
    if as_json:
        _print_json(found)
        return
    out = Console()
    for word, rows in found.items():
        columns = ("name", "what", *_LISTED[word])
        table = _grid(word, columns)
        for row in rows:
            shown = row if "error" not in row else row | {"what": f"broken: {row['error']}"}
            table.add_row(*(shown.get(column, "") for column in columns))
        out.print(table)
        if word == "methods":
            out.print(MASKS_RULE, style="dim", highlight=False, markup=False)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="method, masks, task, dataset, executor or core.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin, or of a section of the core's settings.")],
    preset: Preset = "paper",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show a plugin: what it is, its source, and every setting with its value, default and meaning."""
    check_known("preset", [preset], PRESETS)
    registry = Registry(plugin or ())
    head: dict[str, Any]
    if kind == "core":
        check_known("section", [name], list(CORE_SETTINGS))
        cls, section = CORE_SETTINGS[name], name
        head = {"name": name, "what": _first_line(cls)}
        values = resolve(cls, section, preset)
    else:
        words = {word.removesuffix("s") if word != "masks" else word: registered for word, registered in WORDS.items()}
        check_known("kind", [kind], [*words, "core"])
        found = registry.create(words[kind], name, preset)
        cls, values = found.settings_class, found.settings
        section = f"data.{name}" if kind == "dataset" else KINDS[words[kind]][1]
        head = {
            "name": name,
            "what": _first_line(type(found)),
            "version": found.version,
            "reference": found.reference,
            **found.describe(),
            **(_method_facts(found) if kind == "method" else {}),
        }
    rows = list(_settings_rows(cls, values, section))
    if as_json:
        _print_json(head | {"preset": preset, "settings": rows})
        return
    out = Console()
    facts = RichTable.grid(padding=(0, 2))
    for key, value in head.items():
        for line in [f"{name}: {text}" for name, text in value.items()] if isinstance(value, dict) else [value]:
            if line:
                facts.add_row(key, Text(str(line)))
    out.print(facts)
    if not rows:
        return
    table = _grid(f"settings, preset {preset}", ("--set", "value", "default", "meaning"))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row["key"], str(row["value"]), str(row["default"]), row["description"])
    out.print(table)


@app.command()
def table(
    store: StorePath = DEFAULT_STORE,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show all results of a store: one table per task, phantoms apart from real data."""
    from anaus_bench.tables import markdown, mask_scores, store_tables

    check_known("format", [form], ["terminal", "markdown"])
    shelf = Store(store)
    if as_json:
        kept = ("key", "labels", "phantom", "result")
        records = shelf.records("score")
        _print_json(
            [{key: record[key] for key in kept} | {"mask_scores": mask_scores(shelf, record)} for record in records]
        )
        return
    tables = store_tables(shelf, Registry(plugin or ()))
    if not tables:
        raise SettingsError(f"store {str(store)!r} has no results yet; run a cell with `anaus-bench run`")
    for number, made in enumerate(tables):
        if form == "markdown":
            print(("\n" if number else "") + markdown(made))
        else:
            _print_table(made)


@app.command()
def export(
    key: Annotated[str, typer.Argument(help="Key of a pretrain stage (see `plan`), or how it begins.")],
    to: Annotated[str, typer.Option(help="safetensors, torchvision, timm, detectron2 or onnx.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. [default: METHOD-BACKBONE-KEY]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    store: StorePath = DEFAULT_STORE,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Write an encoder for another library, with a model card; its outputs are checked with that library."""
    from anaus_bench.export import export as export_encoder

    exported = export_encoder(key, to, output, Store(store), Registry(plugin or ()), replace=force)
    if as_json:
        _print_json(vars(exported))
        return
    rows = {"weights": exported.weights, "card": exported.card, "verified": exported.verdict}
    for name, value in rows.items():
        Console().print(f"{name:10} {value}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def doctor(
    store: StorePath = DEFAULT_STORE,
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation: versions, devices, plugins, data sets, weights, and every artifact of the store."""
    from anaus_bench.doctor import examine

    findings = examine(Registry(plugin or ()), Store(store), parse_roots(data_root))
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        grid = _grid(None, ("", "what", "found"))
        for finding in findings:
            grid.add_row({"ok": "ok", "note": "-", "bad": "BAD"}[finding.state], finding.what, finding.found)
        Console().print(grid)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


@data_app.command("info")
def data_info(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """What a data set is, its licence, how to get it, and what is there of it."""
    from anaus_bench.plan import data_folder

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
        _print_json(facts)
        return
    for key, value in facts.items():
        if value not in ("", None):
            Console().print(f"{key:18} {value}", highlight=False, markup=False, soft_wrap=True)


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    data_root: DataRoot = None,
    full: Annotated[bool, typer.Option("--full", help="Read every file again, whatever was kept of it.")] = False,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check a data set: layout and names, then every image and mask; says what is wrong with the first offenders."""
    from anaus_bench.data.facts import reading_again
    from anaus_bench.data.verify import verify
    from anaus_bench.plan import find_data

    dataset = _dataset(Registry(plugin or ()), name)
    with reading_again(full) as changed:
        index = find_data(dataset, parse_roots(data_root), skips_unreadable=True)
    report = verify(dataset, index, _progress(Console(stderr=True), as_json), changed)
    if as_json:
        _print_json(report.as_dict())
    else:
        for line in report.lines():
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
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
    from anaus_bench.plan import corpus_stage

    registry = Registry(plugin or ())
    cell = Cell("", "", corpus=names, preset=preset, overrides=parse_overrides(settings or ()))
    stage = corpus_stage(cell, registry, parse_roots(data_root))
    _run_stage(stage, registry, Store(store), "cpu", as_json)


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
    from anaus_bench.plan import find_data
    from anaus_bench.stages.folds import deal

    dataset = _dataset(Registry(plugin or ()), name)
    index = find_data(dataset, parse_roots(data_root))
    content = deal(dataset, index, index.samples, folds, seed)
    output.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    rows = list(content["samples"].values())
    grid = _grid(f"{name}: {content['protocol']} folds", ("fold", "images", "groups", *(dataset.classes or ())))
    for fold in sorted({row["fold"] for row in rows}):
        inside = [row for row in rows if row["fold"] == fold]
        classes = (str(sum(row["label"] == label for row in inside)) for label in range(len(dataset.classes)))
        groups = str(len({row["group"] for row in inside}))
        grid.add_row("fixed test" if fold < 0 else str(fold + 1), str(len(inside)), groups, *classes)
    Console().print(grid)
    for warning in content["warnings"]:
        Console().print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    Console().print(f"wrote {output}", highlight=False, soft_wrap=True)


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
    from anaus_bench.data.audit import audit, part_of
    from anaus_bench.data.near_duplicates import image_hashes
    from anaus_bench.plan import find_data

    check_known("data set", test or (), names)
    registry, roots = Registry(plugin or ()), parse_roots(data_root)
    parts = {}
    for name in names:
        dataset = _dataset(registry, name)
        index = find_data(dataset, roots)
        parts[name] = part_of(index, image_hashes(dataset, index), dataset.groups(index))
    found = audit(parts, test or ())
    if as_json:
        _print_json(found)
        return
    out = Console()
    for name, part in found["parts"].items():
        text = (
            f"{name}: {part['images']} images, {part['near_duplicate_images']} of them in "
            f"{part['near_duplicate_groups']} groups of near-duplicates "
            f"(at most {found['distance']} of {found['bits']} bits)"
        )
        out.print(text, highlight=False, soft_wrap=True)
        for what in ("across_classes", "across_groups"):
            _print_near(out, what.replace("_", " "), part[what])
    for pair, between in found["between"].items():
        corpus, tested = pair.split("|")
        text = f"{corpus} holds {between['images']} images of {tested} ({100 * between['share']:.1f} %)"
        out.print(text, highlight=False, soft_wrap=True)
        for ours, theirs, bits in between["examples"]:
            out.print(f"  {ours} ~ {theirs} ({bits} bits)", highlight=False, markup=False, soft_wrap=True)
        for ours, theirs in between["clips"]:
            out.print(f"  clip {ours} = {theirs}", highlight=False, markup=False, soft_wrap=True)


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
    text = f"wrote {images} generated images to {output}; use them with --data-root {name}={output}"
    Console().print(text, highlight=False, soft_wrap=True)


@masks_app.command("build")
def masks_build(
    masks: Annotated[str, typer.Option(help="Mask source.")],
    corpus: Annotated[str, typer.Option(help="Data sets, joined by +.")],
    preset: Preset = "paper",
    seed: Seed = 0,
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    device: Device = "auto",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Fit a mask source if it is learned, and build its label maps of a corpus."""
    from anaus_bench.plan import masks_stage

    registry = Registry(plugin or ())
    cell = Cell("", "", masks, corpus, seed=seed, preset=preset, overrides=parse_overrides(settings or ()))
    stage = masks_stage(cell, registry, parse_roots(data_root))
    _run_stage(stage, registry, Store(store), device, as_json)


@masks_app.command("preview")
def masks_preview(
    masks: MaskNames,
    corpus: CorpusNames,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("masks.png"),
    count: Annotated[int, typer.Option(min=1, max=40, help="Number of images.")] = 8,
    preset: Preset = "paper",
    seed: Seed = 0,
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    device: Device = "auto",
    plugin: PluginFiles = None,
) -> None:
    """Draw a sheet: images of a corpus and the regions of each mask source side by side. Builds what is missing."""
    from anaus_bench.preview import draw_preview

    shelf = Store(store)
    stages = _build_masks(masks, corpus, preset, seed, settings, data_root, shelf, device, plugin, False)
    draw_preview(stages, shelf, output, count)
    Console().print(f"wrote {output}", highlight=False, soft_wrap=True)


@masks_app.command("score")
def masks_score(
    masks: MaskNames,
    corpus: CorpusNames,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG with a bar plot.")] = None,
    preset: Preset = "paper",
    seed: Seed = 0,
    settings: Set = None,
    data_root: DataRoot = None,
    store: StorePath = DEFAULT_STORE,
    device: Device = "auto",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Measure mask sources: against ground truth where the corpus has it, and by themselves. Builds what is missing."""
    from anaus_bench.preview import draw_scores, score_table

    shelf = Store(store)
    stages = _build_masks(masks, corpus, preset, seed, settings, data_root, shelf, device, plugin, as_json)
    if output is not None:
        draw_scores(stages, shelf, output)
    if as_json:
        records = {name: shelf.record(stage.kind, stage.key) or {} for name, stage in stages.items()}
        _print_json({name: record["result"]["scores"] for name, record in records.items()})
        return
    _print_table(score_table(stages, shelf))
    if output is not None:
        Console().print(f"wrote {output}", highlight=False, soft_wrap=True)


def parse_roots(assignments: Sequence[str] | None) -> dict[str, Path]:
    """Data set name -> folder, from `NAME=PATH` words.

    Raises:
        SettingsError: A word without `=`.
    """
    roots = {}
    for text in assignments or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise SettingsError(f"--data-root {text!r} is no assignment; write --data-root NAME=PATH")
        roots[name] = expanded(path)
    return roots


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: user errors are one line on standard error and exit code 2; see `distributed` for `torchrun`."""
    # SIGTERM (a scheduler's preemption) leaves the same resumable state as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with distributed.team():
            if distributed.is_first():
                app(args=arguments)
            else:
                from anaus_bench.execute import follow

                follow()
    except AnausError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        text = (
            f"error: {str(error.filename)!r} cannot be read or written ({error.strerror}); check --store and --output"
        )
        Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def _execute(
    stages: Sequence[Any],
    registry: Registry,
    store: Store,
    executor: str,
    device: str,
    say: Console,
    quiet: bool,
    values: Any,
) -> None:
    from anaus_bench.execute import Runner

    engine = registry.create("executors", executor, overrides=values)
    runner = Runner(registry, store, _progress(say, quiet), device)
    try:
        engine.run(stages, runner)
    except KeyboardInterrupt:
        left = len(stages) - len(runner.done)
        say.print(
            f"interrupted: {len(runner.done)} stages finished, {left} to go; all is kept in {str(store.root)!r}. "
            "Run the same command again to go on",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def _build_masks(
    names: Sequence[str],
    corpus: str,
    preset: str,
    seed: int,
    settings: Sequence[str] | None,
    data_root: Sequence[str] | None,
    store: Store,
    device: str,
    plugin: Sequence[Path] | None,
    quiet: bool,
) -> dict[str, Any]:
    """The finished `masks` stage of each source."""
    from anaus_bench.plan import masks_stage

    registry, say = Registry(plugin or ()), Console(stderr=True)
    overrides, roots = parse_overrides(settings or ()), parse_roots(data_root)
    if len(names) > 1 and "masks" in overrides:
        raise SettingsError("--set masks.* belongs to one source, found several --masks; take them one at a time")
    stages = {}
    for name in names:
        cell = Cell("", "", name, corpus, seed=seed, preset=preset, overrides=overrides)
        stages[name] = masks_stage(cell, registry, roots)
        _execute(
            pending([stages[name]], store), registry, store, "local", device, say, quiet, overrides.get("executor")
        )
    return stages


def _run_stage(stage: Any, registry: Registry, store: Store, device: str, as_json: bool) -> None:
    """Runs one stage with all it rests on and says where its artifact is."""
    say = Console(stderr=True)
    _execute(pending([stage], store), registry, store, "local", device, say, as_json, None)
    record = store.record(stage.kind, stage.key)
    assert record is not None
    folder = store.folder(stage.kind, stage.key)
    if as_json:
        _print_json({"key": stage.key, "folder": str(folder), "phantom": record["phantom"], **record["result"]})
        return
    out = Console()
    result = dict(record["result"])
    scores = {name: f"{value:.4g}" for name, value in result.pop("scores", {}).items()}
    for name, value in {**result, **scores, "folder": folder}.items():
        out.print(f"{name:22} {value}", highlight=False, markup=False, soft_wrap=True)


def _announce(say: Console, plan: Plan, waiting: Sequence[Any], store: Store, quiet: bool) -> None:
    if quiet:
        return
    total = len(plan.stages)
    say.print(
        f"{cell_title(plan.cell)}, preset {plan.cell.preset}: {len(waiting)} of {total} stages to run, store "
        f"{str(store.root)!r}",
        highlight=False,
        soft_wrap=True,
    )
    for note in plan.notes:
        say.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _progress(say: Console, quiet: bool) -> Any:
    from anaus_bench.progress import ConsoleProgress, SilentProgress

    return SilentProgress() if quiet else ConsoleProgress(say)


def _listed(registry: Registry, kind: str) -> list[dict[str, str]]:
    rows = []
    for name in registry.names(kind):
        try:
            cls = registry.get(kind, name)
        except PluginError as error:
            rows.append({"name": name, "error": str(error)})
            continue
        rows.append({"name": name, "what": getattr(cls, "title", None) or _first_line(cls), **_traits(kind, cls)})
    return rows


def _traits(kind: str, cls: Any) -> dict[str, str]:
    """The further columns of `list`."""
    if kind == "objectives":
        needs = sorted(cls.needs - {"masks"})
        return {"masks": cls.takes_masks(), "corpus must have": ", ".join(needs) if cls.trains else "not used"}
    if kind == "mask_sources":
        traits = {"a fit": cls.learned, "ground truth": cls.needs_truth, "stored label maps": cls.stored}
        return {"needs": ", ".join(name for name, applies in traits.items() if applies)}
    if kind == "datasets":
        return {"classes": ", ".join(cls.classes), "masks of": ", ".join(cls.structures)}
    return {"data set": cls.dataset} if kind == "tasks" else {}


def _method_facts(objective: Any) -> dict[str, Any]:
    """What `show` says of a method: which masks it takes, what it does where a corpus lacks something, its recipes."""
    masks = {"needed": "needed", "optional": "optional", "none": "none; --masks is refused"}[objective.takes_masks()]
    return {
        "masks": f"{masks}: {objective.masks_become}" if objective.masks_become else masks,
        "needs": ", ".join(sorted(objective.needs)),
        "backbones": ", ".join(objective.backbones),
        "without": dict(objective.without),
        "recipe": {
            preset: " ".join(f"pretrain.{name}={value}" for name, value in values.items())
            for preset, values in objective.recipes.items()
        },
    }


def _dataset(registry: Registry, name: str) -> Any:
    return registry.create("datasets", name)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""


def _print_near(out: Console, what: str, found: Any) -> None:
    """Near-duplicates across something, with their first examples."""
    out.print(f"  {what}: {found['pairs']} pairs, {found['images']} images", highlight=False)
    for first, second, here, there, bits in found["examples"]:
        text = f"    {first} ({here}) ~ {second} ({there}), {bits} bits"
        out.print(text, highlight=False, markup=False, soft_wrap=True)


def _settings_rows(cls: Any, values: Any, section: str) -> Any:
    """Rows of a settings class, nested settings unfolded."""
    for name, field in cls.model_fields.items():
        value = getattr(values, name)
        if hasattr(type(value), "model_fields"):
            yield from _settings_rows(type(value), value, f"{section}.{name}")
            continue
        default = field.get_default(call_default_factory=True)
        yield {
            "key": f"{section}.{name}",
            "value": value if not hasattr(value, "model_dump") else value.model_dump(),
            "default": default,
            "description": field.description or "",
        }


def _grid(title: str | None, columns: Sequence[str]) -> RichTable:
    grid = RichTable(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    return grid


def _print_table(made: Any) -> None:
    grid = RichTable(title=Text(made.title), title_justify="left", header_style="bold")
    for number, column in enumerate(made.columns):
        grid.add_column(column, justify="left" if number == 0 else "right")
    for row in made.rows:
        grid.add_row(*row)
    out = Console()
    out.print(grid)
    for note in made.notes:
        out.print(note, highlight=False, markup=False, style="dim")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))
