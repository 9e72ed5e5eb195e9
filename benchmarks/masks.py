"""How good and how fast the mask sources are: `python -m benchmarks.masks scores|unseen|sheet|speed --store FOLDER`.

All label maps are built by the toolkit's own stages, so that a killed run goes on and a second run reads its store.
Images are generated ones of four anatomies, each in the layout of a data set; with `--data-root busi=FOLDER`, `scores`
also measures all sources on real images. Where there are no SAM weights the source `sam`, and what LP-SAM starts from,
is a small network with random weights: the preset `demo`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from anaus_bench.cells.cell import Cell
from anaus_bench.cli.options import parse_roots
from anaus_bench.corpus.packed import open_corpus
from anaus_bench.execution.progress import ConsoleProgress
from anaus_bench.execution.runner import Runner
from anaus_bench.interfaces import Stage, StoredSource
from anaus_bench.machine.parallel import in_processes
from anaus_bench.planning.plan import pending
from anaus_bench.planning.planner import corpus_stage, masks_stage
from anaus_bench.registry import Registry
from anaus_bench.results.mask_sheets import draw_preview, score_table
from anaus_bench.results.tables import Table, markdown
from anaus_bench.settings.base import merge
from anaus_bench.simulator.phantoms import KINDS, clips
from anaus_bench.stages.inputs import ready_source
from anaus_bench.store import Store

# The data set whose phantoms stand for an anatomy; no other has masks of the lung.
ANATOMIES = {"breast": "udiat", "lung": "phantom", "thyroid": "tg3k", "heart": "camus"}
LUNG = {"data": {"phantom": {"anatomy": "lung"}}}
# LP-SAM's dimensions; those of the preset, but at 64 pixels: half the time a step.
NETWORK = {"side": 64, "depth": 3, "dim": 96, "heads": 4, "global_blocks": (0, 1, 2), "prompt_dim": 64}
PAIRS = 240  # images of each anatomy that LP-SAM is trained on
MEASURED = 60  # images of each anatomy whose masks are scored
TIMED = 16  # images

Overrides = Mapping[str, Any]


class Bench:
    """Builds masks in a store.

    Args:
        store: Folder of the artifacts.
        roots: Data set name -> folder of the user's.
        steps: Training steps of each of LP-SAM's two stages.
    """

    def __init__(self, store: Path, roots: Mapping[str, Path], steps: int) -> None:
        self.registry = Registry()
        self.store = Store(store)
        self.runner = Runner(self.registry, self.store, ConsoleProgress(Console(stderr=True)), "cpu")
        self.roots = roots
        self.steps = steps

    def built(self, source: str, corpus: str, overrides: Overrides, fitted: Stage | None = None) -> Stage:
        """The finished masks of a corpus by one source; those of LP-SAM by the state of `fitted`."""
        if fitted is None:
            stage = masks_stage(self._cell(corpus, overrides, source), self.registry, self.roots)
        else:
            packed = corpus_stage(self._cell(corpus, overrides), self.registry, self.roots)
            stage = replace(fitted, title=f"lpsam masks of {corpus}", inputs={**fitted.inputs, "corpus": packed})
        for waiting in pending([stage], self.store):
            self.runner.run(waiting)
        return stage

    def fitted(self, anatomies: Sequence[str], seed: int, trained: bool = True) -> Stage:
        """Masks of LP-SAM's training images of some anatomies, of patients that no measured corpus shows; not built.

        Untrained is one step at a learning rate that changes nothing.
        """
        pairs = _joined(anatomies)
        training = {"steps": [self.steps] * 2} if trained else {"steps": [1, 1], "lr": 1e-12}
        masks = {"pairs": pairs, "size": NETWORK, **training}
        overrides = merge(LUNG, {"phantom": {"seed": 1, "train": PAIRS}, "masks": masks})
        return masks_stage(self._cell(pairs, overrides, "lpsam", seed), self.registry, self.roots)

    def result(self, stage: Stage) -> dict[str, Any]:
        """What a finished stage returned."""
        record = self.store.record(stage.kind, stage.key)
        assert record is not None
        found: dict[str, Any] = record["result"]
        return found

    def folder(self, stage: Stage) -> Path:
        """Artifact of a finished stage."""
        return self.store.open(stage.kind, stage.key)

    def _cell(self, corpus: str, overrides: Overrides, source: str | None = None, seed: int = 0) -> Cell:
        return Cell("", "", source, corpus, seed=seed, preset="demo", overrides=overrides)


def _joined(anatomies: Sequence[str]) -> str:
    return "+".join(ANATOMIES[anatomy] for anatomy in anatomies)


def all_sources(bench: Bench, corpus: str, anatomies: Sequence[str]) -> dict[str, Stage]:
    """Name -> finished masks of a corpus at 256 pixels, of every source that makes them; LP-SAM knows `anatomies`."""
    overrides = merge(LUNG, {"corpus": {"size": 256}, "phantom": {"train": MEASURED}})
    fitted = bench.fitted(anatomies, seed=0)
    return {
        name: bench.built(name, corpus, overrides, fitted if name == "lpsam" else None)
        for name in bench.registry.names("mask_sources")
        if not issubclass(bench.registry.get("mask_sources", name), StoredSource)
    }


def scores(bench: Bench, anatomies: Sequence[str]) -> list[Table]:
    """Every source on phantoms of `anatomies`, and on BUSI where its folder is given."""
    corpora = {", ".join(anatomies): _joined(anatomies)} | ({"busi": "busi"} if "busi" in bench.roots else {})
    tables = []
    for title, corpus in corpora.items():
        stages = all_sources(bench, corpus, anatomies)
        by_iou = sorted(stages, key=lambda name: -bench.result(stages[name])["scores"]["best_iou"])
        table = score_table({name: stages[name] for name in by_iou}, bench.store)
        seconds = [f"{seconds_per_image(bench, stages[name]):.2g}" for name in by_iou]
        timed = ("CPU s/image ↓", *seconds)
        tables.append(replace(table, title=f"{title}: {table.title}", rows=(*table.rows, timed)))
    return tables


def seconds_per_image(bench: Bench, stage: Stage) -> float:
    """CPU seconds of the label maps alone on one thread: mean over a batch of images, evenly over the corpus."""
    torch.set_num_threads(1)
    corpus = open_corpus(bench.folder(stage.inputs["corpus"]))
    fit = bench.folder(stage.inputs["fit"]) if "fit" in stage.inputs else None
    source = ready_source(bench.registry.build(stage.spec["masks"]), fit, torch.device("cpu"))
    chosen = np.linspace(0, len(corpus) - 1, TIMED).astype(int)
    images = torch.from_numpy(corpus.images[chosen])[:, None]
    truth = torch.from_numpy(corpus.truth[chosen]) if corpus.truth is not None else None
    source.label_maps(images[:1], None if truth is None else truth[:1], ())  # what is built once is not counted
    start = time.process_time()
    source.label_maps(images, truth, ())
    return (time.process_time() - start) / len(images)


def unseen(bench: Bench, anatomies: Sequence[str], seeds: Sequence[int]) -> list[Table]:
    """LP-SAM tested on each of `anatomies` after training on the three others, beside untrained networks and controls.

    A structure's Dice is that of the region that overlaps it best, whatever class predicted it; per image the mean over
    its structures.
    """
    rows = []
    for anatomy in anatomies:
        corpus, others = ANATOMIES[anatomy], [other for other in ANATOMIES if other != anatomy]
        overrides = merge(LUNG, {"phantom": {"train": PAIRS}})
        for name, trained in (("lpsam, trained on the three others", True), ("lpsam, untrained", False)):
            stages = [bench.built("lpsam", corpus, overrides, bench.fitted(others, seed, trained)) for seed in seeds]
            rows.append((anatomy, name, *_row(bench, stages)))
        for name in ("sam", "mcg", "whole"):
            title = "sam, untrained" if name == "sam" else name
            rows.append((anatomy, title, *_row(bench, [bench.built(name, corpus, overrides)])))
    columns = ("unseen anatomy", "source", "Dice % ↑", "IoU % ↑", "per structure, Dice %", "regions", "single region %")
    spread = f"seeds {', '.join(map(str, seeds))} of LP-SAM" + (", mean ± sd over them" if len(seeds) > 1 else "")
    notes = (f"{PAIRS} images of each anatomy, {bench.steps} steps of each stage; {spread}.",)
    return [Table("LP-SAM on an unseen anatomy [phantom]", columns, tuple(rows), notes)]


def _row(bench: Bench, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Dice, IoU, Dice of each structure, regions and share of single regions, over the stages of all seeds."""
    corpus = open_corpus(bench.folder(stages[0].inputs["corpus"]))
    dices = [_dices(bench.folder(stage) / "regions.csv", corpus.structures) for stage in stages]
    ious = [bench.result(stage)["scores"]["best_iou"] for stage in stages]
    each = [
        f"{name} {100 * np.mean([np.nanmean(dice[:, number]) for dice in dices]):.0f}"
        for number, name in enumerate(corpus.structures)
    ]
    found = [bench.result(stage)["scores"] for stage in stages]
    return (
        _spread([float(np.nanmean(np.nanmean(dice, axis=1))) for dice in dices]),
        _spread(ious),
        ", ".join(each),
        f"{np.mean([one['regions'] for one in found]):.1f}",
        f"{100 * np.mean([one['single_region'] for one in found]):.0f}",
    )


def _dices(table: Path, structures: Sequence[str]) -> NDArray[np.float64]:
    """(N, K) Dice of each structure of each image that has any; nan where it is absent."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = [f"best_iou_{number}" for number in range(1, len(structures) + 1)]
    ious: NDArray[np.float64] = np.array([[float(row.get(key) or "nan") for key in keys] for row in rows])
    ious = ious[np.isfinite(ious).any(axis=1)]
    dices: NDArray[np.float64] = 2 * ious / (1 + ious)
    return dices


def _spread(values: Sequence[float]) -> str:
    text = f"{100 * np.mean(values):.1f}"
    return f"{text} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else text


def sheet(bench: Bench, anatomies: Sequence[str], path: Path) -> None:
    """Draws an image of each anatomy with the regions of every source."""
    draw_preview(all_sources(bench, _joined(anatomies), anatomies), bench.store, path, len(anatomies))
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the bytes


def speed(bench: Bench) -> list[Table]:
    """Seconds per image of the generic sources by size, and what a second process gains."""
    rows = []
    for name in ("mcg", "kmeans", "felzenszwalb", "slic"):
        seconds = [_mean_seconds(name, size) for size in (256, 512)]
        one, two = (_images_per_second(name, processes) for processes in (1, 2))
        rows.append((name, *(f"{taken:.2f}" for taken in seconds), f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}"))
    stage = bench.built("grid", "udiat", {"phantom": {"train": PAIRS}})
    maps = bench.folder(stage) / "label_maps.npy"
    bytes_each = maps.stat().st_size / np.load(maps, mmap_mode="r").size
    columns = ("source", "CPU s/image at 256", "at 512", "images/s, 1 process", "2 processes", "ratio")
    notes = (f"images/s at 512 pixels; label maps take {bytes_each:.4f} bytes a pixel.",)
    return [Table("speed of the generic sources", columns, tuple(rows), notes)]


@functools.lru_cache(maxsize=2)
def pictures(size: int) -> torch.Tensor:
    """(8, 1, size, size) uint8: two images of each anatomy."""
    made = [
        clip.images
        for anatomy, kinds in KINDS.items()
        for clip in clips(anatomy, "benchmark", kinds[:2], frames=1, size=size, seed=0)
    ]
    return torch.from_numpy(np.concatenate(made))[:, None]


def _mean_seconds(name: str, size: int) -> float:
    torch.set_num_threads(1)
    images = pictures(size)
    source = _source(name)
    source.segment(images[:1])
    start = time.process_time()
    source.segment(images)
    return (time.process_time() - start) / len(images)


def _images_per_second(name: str, processes: int) -> float:
    """Of worker processes on as many cores, from the first image to the last: starting them is not counted."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everywhere)[:processes])
    try:
        times = np.array(list(in_processes(functools.partial(_timed, name), range(48))))
    finally:
        os.sched_setaffinity(0, everywhere)
    return float(len(times) / (times[:, 1].max() - times[:, 0].min()))


def _timed(name: str, number: int) -> tuple[float, float]:
    """When one image was begun and finished, on the clock that all processes share."""
    torch.set_num_threads(1)
    images, source = pictures(512), _source(name)
    start = time.monotonic()
    source.segment(images[number % len(images)][None])
    return start, time.monotonic()


@functools.lru_cache(maxsize=1)
def _source(name: str) -> Any:
    return Registry().create("mask_sources", name, "demo")


def main() -> None:
    """Prints the tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["scores", "unseen", "sheet", "speed"])
    parser.add_argument("--store", type=Path, required=True, help="folder of all artifacts")
    parser.add_argument("--data-root", action="append", metavar="NAME=PATH", help="folder of a data set; repeatable")
    parser.add_argument("--steps", type=int, default=600, help="steps of each of LP-SAM's two training stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of LP-SAM, for unseen")
    parser.add_argument("--anatomies", nargs="+", choices=ANATOMIES, default=list(ANATOMIES))
    parser.add_argument("--output", type=Path, default=Path("masks.png"), help="picture of the sheet")
    given = parser.parse_args()
    bench = Bench(given.store, parse_roots(given.data_root), given.steps)
    if given.what == "sheet":
        sheet(bench, given.anatomies, given.output)
    else:
        tables = {
            "scores": lambda: scores(bench, given.anatomies),
            "unseen": lambda: unseen(bench, given.anatomies, given.seeds),
            "speed": lambda: speed(bench),
        }[given.what]()
        print("\n\n".join(map(markdown, tables)))


if __name__ == "__main__":
    main()
