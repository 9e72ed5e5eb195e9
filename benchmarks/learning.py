"""What each objective learns from one small budget: probes of frozen encoders against random initialisation.

`python -m benchmarks.learning --folder FOLDER` pre-trains every installed objective with the toolkit's own stages
(phantoms -> corpus -> masks -> pretrain), all on one corpus of generated clips of breast, lung and heart, with the same
optimiser, batch and number of steps and from the same weights per seed. The frozen encoders are then probed on
generated patients of other cohorts:

* kind: a linear classifier of the global vector tells the eight kinds of patients apart (accuracy);
* structure: a linear classifier of patches tells which structure fills most of a patch (Dice, mean over structures).

A killed run goes on where it was, and a second one reads what the folder holds: the store and the finished probes.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from anaus_bench.cells.cell import Cell
from anaus_bench.corpus.packed import letterbox, open_corpus
from anaus_bench.corpus.pixels import normalise
from anaus_bench.corpus.view import View
from anaus_bench.execution.progress import SilentProgress
from anaus_bench.execution.runner import Runner
from anaus_bench.interfaces import Stage
from anaus_bench.machine.parallel import batches, in_processes
from anaus_bench.nn.backbones import RESNETS
from anaus_bench.nn.encoder import Encoder, load_encoder
from anaus_bench.planning.plan import pending
from anaus_bench.planning.planner import corpus_stage, make_plan
from anaus_bench.registry import Registry
from anaus_bench.results.tables import Table, markdown
from anaus_bench.simulator import heart, lung
from anaus_bench.simulator.phantoms import clips
from anaus_bench.store import Store

PRESET = "demo"
CORPUS = "phantom+butterfly+camus"  # breast, lung and heart, all of them clips: every objective finds its frames
TASK = "busi-cls"  # a cell has a task; no stage of it runs
MASKS, ORACLE = "felzenszwalb", "groundtruth"
# A single frame does not show an infarct of the heart.
KINDS = {"breast": ("benign", "malignant", "normal"), "lung": lung.KINDS, "heart": ("2ch", "4ch")}
STRUCTURES = ("lesion", *lung.STRUCTURES, *heart.STRUCTURES)
LEAST_PATCHES = 50  # of a structure in the test pictures; those that fill fewer are not scored
BATCH = 32  # pictures that an encoder is given at once
CALIBRATION = 960  # images of the corpus, drawn from all its data sets, that BatchNorm is calibrated on


@dataclass(frozen=True)
class Protocol:
    """What all rows of the table share.

    Attributes:
        steps: Optimiser steps of pre-training; the rest of its settings are those of the preset `demo`.
        images: Images of each of the corpus's data sets.
        generated: Side of the generated and of the packed images in pixels.
        side: Side of the probed pictures in pixels, that of the views of pre-training.
        patch: Side of a patch in pixels of those.
        train, test: Patients of each kind that the probes learn from and are scored on, one picture each.
        patches: Patches that the probe of structures learns from.
    """

    steps: int = 40
    images: int = 1440
    generated: int = 128
    side: int = 64
    patch: int = 4
    train: int = 40
    test: int = 60
    patches: int = 6000


@dataclass(frozen=True)
class Entrant:
    """A row of the table.

    Attributes:
        method: Objective; `random` for what the others start from.
        masks: Mask source, or None.
        backbone: Encoder architecture.
        calibrated: Whether BatchNorm's statistics are taken anew from the corpus, as a trained encoder's are.
    """

    method: str
    masks: str | None
    backbone: str
    calibrated: bool = False

    @property
    def name(self) -> str:
        """The method, for people."""
        return f"{self.method}, BatchNorm calibrated" if self.calibrated else self.method


def entrants(registry: Registry, methods: Sequence[str]) -> list[Entrant]:
    """Random initialisations of all backbones in use, then the objectives that train.

    Those that need masks have a row with masks that use no ground truth and one with the ground truth itself.
    """
    trained = []
    for name in methods:
        objective = registry.create("objectives", name, PRESET)
        if objective.trains:
            sources = (MASKS, ORACLE) if "masks" in objective.needs else (None,)
            trained += [Entrant(name, source, objective.default_backbone(PRESET)) for source in sources]
    backbones = dict.fromkeys([RESNETS[0], *(row.backbone for row in trained)])
    random = [Entrant("random", None, backbone) for backbone in backbones]
    random += [Entrant("random", None, backbone, calibrated=True) for backbone in backbones if backbone in RESNETS]
    return [*random, *trained]


# ---- pre-training ----------------------------------------------------------------------------------------------------


def cell_of(entrant: Entrant, seed: int, protocol: Protocol) -> Cell:
    """The cell whose pre-training is probed."""
    overrides = {
        "pretrain": {"steps": protocol.steps},
        "phantom": {"train": protocol.images, "size": protocol.generated},
        "corpus": {"size": protocol.generated},
    }
    return Cell(entrant.method, TASK, entrant.masks, CORPUS, entrant.backbone, seed, PRESET, overrides)


def pretrain_stage(cell: Cell, registry: Registry) -> Stage:
    """The pre-training stage of a cell."""
    (stage,) = [stage for stage in make_plan(cell, registry, {}).stages if stage.kind == "pretrain"]
    return stage


def calibrate(encoder: Encoder, pictures: NDArray[np.uint8]) -> None:
    """Replaces BatchNorm's running statistics by the mean of those of batches of pictures (N, S, S) uint8, in order."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    encoder.train()
    with torch.no_grad():
        for part in batches(len(pictures), BATCH):
            encoder.vector(_inputs(encoder, pictures[part]))


# ---- pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures of generated patients, one of each.

    Attributes:
        images: (N, S, S) uint8.
        kinds: (N,) int64, numbered through the anatomies.
        structures: (N, S / patch, S / patch) int64: what fills most of each patch, 0 = none, k = `STRUCTURES[k-1]`.
    """

    images: NDArray[np.uint8]
    kinds: NDArray[np.int64]
    structures: NDArray[np.int64]


@functools.lru_cache(maxsize=2)
def pictures(cohort: str, patients: int, generated: int, side: int, patch: int) -> Pictures:
    """`patients` of each kind; no two cohorts share one, nor does a corpus."""
    images, kinds, labels = [], [], []
    for anatomy, names in KINDS.items():
        first = sum(len(KINDS[before]) for before in list(KINDS)[: list(KINDS).index(anatomy)])
        for clip in clips(anatomy, cohort, names * patients, frames=1, size=generated, seed=0):
            ids = np.array([0, *(1 + STRUCTURES.index(name) for name in clip.structures)], dtype=np.uint8)
            images.append(letterbox(clip.images[0], side, labels=False)[0])
            labels.append(letterbox(ids[clip.labels[0]], side, labels=True)[0])
            kinds.append(first + names.index(clip.kind))
    return Pictures(np.stack(images), np.array(kinds), patch_majority(np.stack(labels), patch))


def patch_majority(labels: NDArray[np.uint8], patch: int) -> NDArray[np.int64]:
    """Most frequent id of each patch (N, H / patch, W / patch) of label maps (N, H, W); the lowest of equals."""
    count, height, width = labels.shape
    blocks = labels.reshape(count, height // patch, patch, width // patch, patch)
    votes = np.stack([(blocks == number).sum(axis=(2, 4)) for number in range(int(labels.max()) + 1)])
    most: NDArray[np.int64] = votes.argmax(axis=0)
    return most


# ---- probes ----------------------------------------------------------------------------------------------------------


def features(
    encoder: Encoder, images: NDArray[np.uint8], patch: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Global vectors (N, D) and patch features (N, S / patch, S / patch, E) of images (N, S, S).

    BatchNorm is in eval mode. A patch has the backbone's maps of its own stride and of coarser ones, resampled
    bilinearly to the grid of patches.
    """
    grid = images.shape[-1] // patch
    vectors, patches = [], []
    encoder.eval()
    with torch.no_grad():
        for part in batches(len(images), BATCH):
            maps = encoder.stages(_inputs(encoder, images[part]))
            resampled = [F.interpolate(one, (grid, grid), mode="bilinear") for one in maps if one.shape[-1] <= grid]
            vectors.append(maps[-1].mean(dim=(2, 3)))
            patches.append(torch.cat(resampled, dim=1).permute(0, 2, 3, 1))
    return torch.cat(vectors).numpy(), torch.cat(patches).numpy()


def linear_predictions(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], inverse_penalty: float
) -> NDArray[np.int64]:
    """Predictions (M,) for `test` (M, D) of logistic regression on standardised features `train` (N, D)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegression(C=inverse_penalty, max_iter=1000, tol=1e-3)
    found: NDArray[np.int64] = make_pipeline(StandardScaler(), classifier).fit(train, labels).predict(test)
    return found


def dice_by_structure(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, float]:
    """Dice of each structure over all patches together, of those with `LEAST_PATCHES` in the truth."""
    scores = {}
    for number, name in enumerate(STRUCTURES, start=1):
        found, there = predicted == number, truth == number
        if there.sum() >= LEAST_PATCHES:
            scores[name] = float(2 * (found & there).sum() / (found.sum() + there.sum()))
    return scores


def probe(encoder: Encoder, train: Pictures, test: Pictures, patches: int) -> dict[str, Any]:
    """Accuracy of kinds, Dice of structures and their mean."""
    patch = train.images.shape[-1] // train.structures.shape[-1]
    vectors, cells = features(encoder, train.images, patch)
    test_vectors, test_cells = features(encoder, test.images, patch)
    kinds = linear_predictions(vectors, train.kinds, test_vectors, inverse_penalty=0.1)
    chosen = np.random.default_rng(0).permutation(train.structures.size)[:patches]
    width = cells.shape[-1]
    structures = linear_predictions(
        cells.reshape(-1, width)[chosen],
        train.structures.ravel()[chosen],
        test_cells.reshape(-1, width),
        inverse_penalty=0.01,
    )
    scores = dice_by_structure(structures, test.structures.ravel())
    accuracy = float((kinds == test.kinds).mean())
    return {"accuracy": accuracy, "dice": float(np.mean(list(scores.values()))), "structures": scores}


def _inputs(encoder: Encoder, images: NDArray[np.uint8]) -> torch.Tensor:
    """(N, 3, S, S) float32 of images (N, S, S), normalised as in pre-training."""
    assert encoder.card is not None
    mean, std = encoder.card.mean, encoder.card.std
    recipe = View(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))
    return normalise(torch.from_numpy(np.array(images))[:, None].float() / 255, recipe)


# ---- the run ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, protocol: Protocol, job: tuple[Entrant, int]) -> dict[str, Any]:
    """Probes of one entrant (and seed) and, if it was trained, its loss; from `folder` if it holds them."""
    entrant, seed = job
    torch.set_num_threads(1)
    registry, store = Registry(), Store(folder / "store")
    cell = cell_of(entrant, seed, protocol)
    stage = pretrain_stage(cell, registry)
    kept = folder / "probes" / f"{stage.key}-{_suffix(entrant, protocol)}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    packed = {section: values for section, values in cell.overrides.items() if section != "pretrain"}
    corpus = corpus_stage(replace(cell, overrides=packed), registry, {})
    runner = Runner(registry, store, SilentProgress(), "cpu")
    for waiting in pending([corpus, stage], store):
        runner.run(waiting)
    encoder = load_encoder(store.open("pretrain", stage.key) / "encoder.safetensors")
    if entrant.calibrated:
        calibrate(encoder, _drawn(open_corpus(store.open("corpus", corpus.key)).images, protocol.side))
    shape = (protocol.generated, protocol.side, protocol.patch)
    train, test = pictures("learning train", protocol.train, *shape), pictures("learning test", protocol.test, *shape)
    found = probe(encoder, train, test, protocol.patches) | {"loss": _losses(store.folder("pretrain", stage.key))}
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found, indent=1))
    os.replace(partial, kept)
    return found


def _suffix(entrant: Entrant, protocol: Protocol) -> str:
    """What a probe depends on beside the encoder."""
    shape = f"{protocol.side}-{protocol.patch}-{protocol.train}-{protocol.test}-{protocol.patches}"
    return f"{shape}-calibrated{CALIBRATION}" if entrant.calibrated else shape


def _drawn(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """`CALIBRATION` of the corpus's images in random order, at the size of the probed pictures."""
    rows = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    return np.stack([letterbox(np.asarray(images[row]), side, labels=False)[0] for row in rows])


def _losses(folder: Path) -> list[float]:
    """Loss of the first and of the last steps logged; empty without training."""
    log = folder / "log.csv"
    if not log.exists():
        return []
    with log.open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return [losses[0], losses[-1]]


def table(found: Mapping[Entrant, Sequence[Mapping[str, Any]]], protocol: Protocol) -> Table:
    """A row per entrant: mean ± sd over seeds, and the gains over the random initialisations."""
    rows = []
    for entrant, runs in found.items():
        starts = [found.get(Entrant("random", None, entrant.backbone, calibrated)) for calibrated in (False, True)]
        cells = [entrant.name, entrant.masks or "-", entrant.backbone]
        for key in ("accuracy", "dice"):
            cells += [_spread(runs, key), " / ".join(_gain(runs, start, key) for start in starts)]
        losses = np.array([run["loss"] for run in runs if run["loss"]])
        cells.append(f"{losses[:, 0].mean():.3g} → {losses[:, 1].mean():.3g}" if len(losses) else "-")
        rows.append(tuple(cells))
    (first, *_) = found.values()
    count = sum(map(len, KINDS.values()))
    notes = (
        f"{protocol.steps} steps; mean ± sd over {len(first)} seeds; gain: mean difference in points to the same "
        "seed's random initialisation / to it with BatchNorm calibrated; loss: of the first and last steps logged.",
        f"kind: {count} kinds, chance {100 / count:.1f} %, {count * protocol.test} test patients. structure: Dice over "
        f"{', '.join(first[0]['structures'])}.",
    )
    columns = ("method", "masks", "backbone", "kind, acc. % ↑", "gain", "structure, Dice % ↑", "gain", "loss")
    return Table("what a small budget teaches [phantom]", columns, tuple(rows), notes)


def _spread(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = 100 * np.array([run[key] for run in runs])
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def _gain(runs: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]] | None, key: str) -> str:
    if start is None or runs is start:
        return "-"
    return f"{100 * np.mean([run[key] - before[key] for run, before in zip(runs, start, strict=True)]):+.1f}"


def main() -> None:
    """Prints the table as markdown."""
    default = Protocol()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="store and finished probes; made if need be")
    parser.add_argument("--methods", nargs="+", help="objectives; all that train by default")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=default.steps, help="optimiser steps of pre-training")
    given = parser.parse_args()
    # Read by the worker processes when they start: one thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    registry, protocol = Registry(), Protocol(steps=given.steps)
    rows = entrants(registry, given.methods or registry.names("objectives"))
    jobs = [(row, seed) for seed in range(given.seeds) for row in rows]
    found: dict[Entrant, list[dict[str, Any]]] = {row: [] for row in rows}
    work = functools.partial(measure, given.folder, protocol)
    for (row, seed), result in zip(jobs, in_processes(work, jobs), strict=True):
        found[row].append(result)
        scores = f"accuracy {result['accuracy']:.3f}, Dice {result['dice']:.3f}"
        print(f"seed {seed}, {row.name}, {row.masks or '-'}, {row.backbone}: {scores}", file=sys.stderr, flush=True)
    print(markdown(table(found, protocol)))


if __name__ == "__main__":
    main()
