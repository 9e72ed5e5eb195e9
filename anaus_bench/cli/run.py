"""`run` and `plan`: one cell of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from anaus_bench.cells.cell import Cell, cell_title
from anaus_bench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    Backbone,
    Corpus,
    DataRoot,
    Device,
    Masks,
    PluginFiles,
    Preset,
    Protocol,
    Seed,
    Set,
    StorePath,
    parse_roots,
)
from anaus_bench.cli.printing import print_grid, print_json, print_table, say, warn
from anaus_bench.cli.stages import Workshop
from anaus_bench.interfaces import Stage
from anaus_bench.planning.plan import Plan
from anaus_bench.registry import Registry
from anaus_bench.settings.base import parse_overrides
from anaus_bench.store import Store

# What `plan` calls states of the store, if a stage is needed.
STATES = {"resumable": "to resume", "absent": "to run"}


def run(
    method: Annotated[str, typer.Option(help="Pre-training method; see `anaus-bench list methods`.")],
    task: Annotated[str, typer.Option(help="Downstream task; see `anaus-bench list tasks`.")],
    masks: Masks = None,
    protocol: Protocol = None,
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
    from anaus_bench.planning.planner import make_plan
    from anaus_bench.results.lineage import mask_scores
    from anaus_bench.results.tables import fold_table

    registry = Registry(plugin or ())
    cell = Cell(method, task, masks, corpus, backbone, seed, preset, parse_overrides(settings or ()), protocol)
    plan = make_plan(cell, registry, parse_roots(data_root))
    shelf = Store(store)
    waiting = plan.pending(shelf)
    if not as_json:
        _announce(plan, waiting, shelf)
    started = time.monotonic()
    if waiting:
        Workshop(registry, shelf, device, as_json, executor, cell.overrides.get("executor")).run(waiting)
    record = shelf.record(plan.score.kind, plan.score.key)
    assert record is not None
    metrics = registry.get("tasks", task).metrics
    panel = shelf.folder(plan.panel.kind, plan.panel.key) / "panel.png"
    if as_json:
        print_json(
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
    print_table(fold_table(cell_title(cell), record, metrics))
    say()
    say(f"pictures   {panel}")
    say(f"per image  {shelf.folder('score', plan.score.key) / 'images.csv'}")
    pretrain = next(stage for stage in plan.stages if stage.kind == "pretrain")
    say(f"encoder    {shelf.folder('pretrain', pretrain.key) / 'encoder.safetensors'}")
    warn(f"{len(waiting)} stages run in {time.monotonic() - started:.1f} s")


def plan(
    method: Annotated[str, typer.Option(help="Pre-training method.")],
    task: Annotated[str, typer.Option(help="Downstream task.")],
    masks: Masks = None,
    protocol: Protocol = None,
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
    from anaus_bench.planning.planner import make_plan
    from anaus_bench.planning.why import why

    registry = Registry(plugin or ())
    cell = Cell(method, task, masks, corpus, backbone, seed, preset, parse_overrides(settings or ()), protocol)
    made = make_plan(cell, registry, parse_roots(data_root))
    shelf = Store(store)
    waiting = {stage.key for stage in made.pending(shelf)}
    rows = []
    for stage in made.stages:
        found = shelf.state(stage.kind, stage.key)
        state = STATES.get(found, found) if stage.key in waiting or found not in STATES else "not needed"
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
        cell_facts = {"cell": {**made.score.labels, "task": task}, "network_bytes": made.network_bytes}
        print_json({**cell_facts, "stages": stages, "notes": list(made.notes)})
        return
    cells = [(stage.kind, stage.key, stage.title, state) for stage, state in rows]
    print_grid(cell_title(cell), ("stage", "key", "what", "state"), cells)
    for note in made.notes:
        say(f"note: {note}")
    if made.network_bytes:
        kept = f"the fine-tuned networks take about {made.network_bytes / 2**20:.0f} MiB"
        say(f"note: {kept}; --set finetune.keep=predictions keeps none")
    if explain:
        for stage, _ in rows:
            if stage.key in waiting:
                say()
                say(f"{stage.kind} {stage.key} is new:")
                for line in why(stage, shelf):
                    say(f"  {line}")


def _announce(plan: Plan, waiting: Sequence[Stage], store: Store) -> None:
    warn(
        f"{cell_title(plan.cell)}, preset {plan.cell.preset}: {len(waiting)} of {len(plan.stages)} stages to run, "
        f"store {str(store.root)!r}"
    )
    for note in plan.notes:
        warn(f"note: {note}")
