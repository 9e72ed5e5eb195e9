"""Speed figures: `python -m benchmarks.speed [PART ...]` prints JSON, with `--markdown` the tables of `docs/speed.md`.

Ratios are of one run each; see the module of each part.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from anaus_bench.registry import Registry
from benchmarks.speed import detector, lightly_peers, masks, memory, phases, prepare, steps, views
from benchmarks.speed.timing import machine
from benchmarks.speed.training import Run

PARTS = ["steps", "phases", "memory", "peers", "views", "prepare", "masks", "detector"]

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    registry, default = Registry(), Run()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=default.batch, help="items per training step")
    parser.add_argument("--size", type=int, default=default.size, help="side of the views")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="rounds, of which the median is taken")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=default.precision)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="objectives; by default all that train")
    parser.add_argument("--detector-size", type=int, default=detector.SIZE, help="shortest side of its images")
    parser.add_argument("--detector-batches", type=int, nargs="+", default=detector.BATCHES, help="images per step")
    parser.add_argument("--profile", action="store_true", help="phases, detector: print the slowest kernels")
    parser.add_argument("--markdown", action="store_true", help="print tables")
    given = parser.parse_args(arguments)
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")

    run = Run(given.batch, given.size, given.repeats, torch.device(given.device), given.precision, given.profile)
    detecting = replace(run, size=given.detector_size)
    objectives = {name: registry.create("objectives", name) for name in given.methods or steps.trained(registry)}
    measures: dict[str, list[Callable[[], Row]]] = {
        "steps": [partial(steps.measure, name, objective, run) for name, objective in objectives.items()],
        "phases": [partial(phases.measure, name, objective, run) for name, objective in objectives.items()],
        "memory": [
            *(partial(memory.measure, name, objective, run) for name, objective in objectives.items()),
            *(partial(memory.pairwise, nce, run.device) for nce in memory.PAIRWISE),
        ],
        "peers": [partial(lightly_peers.measure, name, run) for name in lightly_peers.OURS],
        "views": [partial(views.measure, repeats=run.repeats)],
        "prepare": [prepare.measure],
        "masks": [partial(masks.measure, repeats=run.repeats, device=given.device)],
        "detector": [
            *(partial(detector.train, replace(detecting, batch=batch)) for batch in given.detector_batches),
            partial(detector.predict, detecting),
        ],
    }
    found: dict[str, list[Row]] = {}
    for part in given.parts or PARTS:
        found[part] = []
        for measure in measures[part]:
            found[part].append(measure())
            print(f"{part}: {len(found[part])} of {len(measures[part])}", file=sys.stderr)
    settings = {name: getattr(given, name) for name in ("batch", "size", "repeats", "precision")}
    facts = {"date": datetime.date.today().isoformat(), **machine(run.device), **settings}
    if not given.markdown:
        print(json.dumps({**facts, **found}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for part, rows in found.items():
        print(f"\n### {part}\n\n{table(rows)}")


def table(rows: Sequence[Row]) -> str:
    """A markdown table with the keys of the rows as its columns, in the order in which they first occur."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
