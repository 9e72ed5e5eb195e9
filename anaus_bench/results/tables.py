"""Records -> tables: one cell's folds, and all cells of a store beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anaus_bench.errors import PluginError
from anaus_bench.interfaces import Metric
from anaus_bench.planning.specs import ScoreSpec
from anaus_bench.registry import Registry
from anaus_bench.results.lineage import mask_scores
from anaus_bench.store import Record, Store

LABELS = ("method", "masks", "corpus", "backbone", "preset", "protocol", "seed", "settings")
# How well the masks fit the corpus's own ground truth, where it has one.
MASK_IOU = Metric("best_iou", "mask IoU")
PHANTOM_MARK = "generated phantoms, not comparable with published numbers"


@dataclass(frozen=True)
class Table:
    """A heading, columns and rows of text; `notes` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def fold_table(title: str, record: Record, metrics: Sequence[Metric]) -> Table:
    """Metrics of each fold, their mean and standard deviation, and pooled over all images."""
    result = record["result"]
    rows = [(f"fold {number + 1}", fold) for number, fold in enumerate(result["folds"])]
    lines = [(name, *(format_value(metric, values.get(metric.key)) for metric in metrics)) for name, values in rows]
    mean = ("mean ± sd", *(format_spread(metric, result) for metric in metrics))
    pooled = ("pooled", *(format_value(metric, result["pooled"].get(metric.key)) for metric in metrics))
    mark = (f"{PHANTOM_MARK}.",) if record["phantom"] else ()
    heading = f"{title} [phantom]" if record["phantom"] else title
    return Table(
        heading, ("", *(heading_of(metric) for metric in metrics)), (*lines, mean, pooled), (*mark, *result["notes"])
    )


def store_tables(store: Store, registry: Registry) -> list[Table]:
    """One table per task, real and phantom results apart; a row per cell, the headline metric best first."""
    chosen: dict[tuple[str, bool], list[Record]] = {}
    for record in store.records("score"):
        chosen.setdefault((_task(record), record["phantom"]), []).append(record)
    tables = []
    for (task, _), records in sorted(chosen.items()):
        try:
            tables.append(_task_table(records, store, registry.get("tasks", task).metrics))
        except PluginError as error:  # such as a task of a file that is not given this time
            tables.append(Table(task, ("not shown",), ((str(error),),)))
    return tables


def markdown(table: Table) -> str:
    """The table as GitHub-flavoured markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    ruler = line(["---"] + ["---:"] * (len(table.columns) - 1))
    notes = [f"\n{note}" for note in table.notes]
    return "\n".join([f"**{table.title}**", "", line(table.columns), ruler, *map(line, table.rows), *notes])


def heading_of(metric: Metric) -> str:
    """Title with its unit and an arrow towards the better side."""
    unit = " %" if metric.fraction else ""
    return f"{metric.title}{unit} {'↑' if metric.higher_is_better else '↓'}"


def format_value(metric: Metric, value: float | None) -> str:
    """One decimal, fractions as percent; `-` where undefined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value if metric.fraction else value:.1f}"


def format_spread(metric: Metric, result: Mapping[str, Any]) -> str:
    """Mean and standard deviation over folds."""
    return (
        f"{format_value(metric, result['mean'].get(metric.key))} ± {format_value(metric, result['sd'].get(metric.key))}"
    )


def _task(record: Record) -> str:
    return ScoreSpec.model_validate(record["spec"]).task.name


def _task_table(records: Sequence[Record], store: Store, metrics: Sequence[Metric]) -> Table:
    first = metrics[0]

    def rank(record: Record) -> float:
        value = float(record["result"]["mean"].get(first.key, math.nan))
        return math.inf if math.isnan(value) else -value if first.higher_is_better else value

    task, phantom = _task(records[0]), records[0]["phantom"]
    labels = [name for name in LABELS if any(record["labels"].get(name, "-") != "-" for record in records)]
    ious = {record["key"]: mask_scores(store, record).get(MASK_IOU.key) for record in records}
    quality = (MASK_IOU,) if any(iou is not None for iou in ious.values()) else ()
    rows = [
        (
            *(record["labels"].get(name, "-") for name in labels),
            record["key"][:8],
            *(format_value(metric, ious[record["key"]]) for metric in quality),
            *(format_spread(metric, record["result"]) for metric in metrics),
        )
        for record in sorted(records, key=rank)
    ]
    folds = sorted({len(record["result"]["folds"]) for record in records})
    mark = (f"{PHANTOM_MARK}.",) if phantom else ()
    return Table(
        f"{task} [phantom]" if phantom else task,
        (*labels, "key", *(heading_of(metric) for metric in (*quality, *metrics))),
        tuple(rows),
        (*mark, f"mean ± standard deviation over {'/'.join(map(str, folds))} folds."),
    )
