"""`masks`: builds, draws and measures the masks of a mask source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anaus_bench.cells.cell import Cell
from anaus_bench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    CorpusNames,
    DataRoot,
    Device,
    MaskNames,
    PluginFiles,
    Preset,
    Seed,
    Set,
    StorePath,
    parse_roots,
)
from anaus_bench.cli.printing import print_json, print_table, say
from anaus_bench.cli.stages import Workshop
from anaus_bench.errors import SettingsError
from anaus_bench.interfaces import Stage
from anaus_bench.registry import Registry
from anaus_bench.settings.base import parse_overrides
from anaus_bench.store import Store

masks_app = typer.Typer(no_args_is_help=True, help="Build and look at the masks of a mask source.")


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
    from anaus_bench.planning.planner import masks_stage

    registry = Registry(plugin or ())
    cell = Cell("", "", masks, corpus, seed=seed, preset=preset, overrides=parse_overrides(settings or ()))
    stage = masks_stage(cell, registry, parse_roots(data_root))
    Workshop(registry, Store(store), device, as_json).show(stage, as_json)


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
    from anaus_bench.results.mask_sheets import draw_preview

    shelf = Store(store)
    workshop = Workshop(Registry(plugin or ()), shelf, device)
    stages = _build_masks(masks, corpus, preset, seed, settings, data_root, workshop)
    draw_preview(stages, shelf, output, count)
    say(f"wrote {output}")


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
    from anaus_bench.results.mask_sheets import draw_scores, score_table

    shelf = Store(store)
    workshop = Workshop(Registry(plugin or ()), shelf, device, as_json)
    stages = _build_masks(masks, corpus, preset, seed, settings, data_root, workshop)
    if output is not None:
        draw_scores(stages, shelf, output)
    if as_json:
        records = {name: shelf.record(stage.kind, stage.key) or {} for name, stage in stages.items()}
        print_json({name: record["result"]["scores"] for name, record in records.items()})
        return
    print_table(score_table(stages, shelf))
    if output is not None:
        say(f"wrote {output}")


def _build_masks(
    names: Sequence[str],
    corpus: str,
    preset: str,
    seed: int,
    settings: Sequence[str] | None,
    data_root: Sequence[str] | None,
    workshop: Workshop,
) -> dict[str, Stage]:
    """The finished `masks` stage of each source."""
    from anaus_bench.planning.planner import masks_stage

    overrides, roots = parse_overrides(settings or ()), parse_roots(data_root)
    if len(names) > 1 and "masks" in overrides:
        raise SettingsError("--set masks.* belongs to one source, found several --masks; take them one at a time")
    workshop = dataclasses.replace(workshop, settings=overrides.get("executor"))
    stages = {}
    for name in names:
        cell = Cell("", "", name, corpus, seed=seed, preset=preset, overrides=overrides)
        stages[name] = masks_stage(cell, workshop.registry, roots)
        workshop.make(stages[name])
    return stages
