"""Mask R-CNN on a ResNet-18 with a pyramid: steps of its fine-tuning and its predictions, as the protocol makes them.

All at the protocol's recipe but for the batch. Weights are random and images generated, with one or two objects each.
An untrained network finds as many objects as may be stored, so prediction is timed at its slowest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from anaus_bench.interfaces import Case, Fold, Picture, Protocol
from anaus_bench.kit.synthetic import SIDE, synthetic_fold, synthetic_task
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.registry import Registry
from benchmarks.speed.counting import COUNTED, Rounds, counted
from benchmarks.speed.timing import clock
from benchmarks.speed.training import Enough, Run, context

SIZE, BATCHES = 512, (2, 8, 16)  # the recipe's side; its batch, and larger ones
PREDICTED = 2  # images per repeat


def train(run: Run, preset: str = "paper") -> dict[str, Any]:
    """A row of the table: steps and images per second of training, and what a step does."""
    row: dict[str, Any] = {"what": "train", "batch": run.batch, "size": run.size}
    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        with Rounds(run, f"detector, batch {run.batch}") as rounds:
            _fit(run, rounds, preset)
    except torch.cuda.OutOfMemoryError:
        return row | {"note": f"not measured: batch {run.batch} does not fit the device"}
    memory = {"GB": torch.cuda.max_memory_allocated(run.device) / 1e9} if on_gpu else {}
    return row | {"steps/s": 1 / rounds.seconds, "images/s": run.batch / rounds.seconds, **rounds.columns(), **memory}


def _fit(run: Run, rounds: Rounds, preset: str) -> None:
    """Trains until enough was seen; a step is done when its optimiser is, and every epoch is one step."""
    protocol, network = _untrained(run, preset, {"batch_size": run.batch, "epochs": rounds.steps})
    fold = Fold(0, tuple(cases(run.batch, run.size)), ())
    handle = register_optimizer_step_post_hook(lambda *_: rounds.step_done())
    try:
        with tempfile.TemporaryDirectory() as folder:
            protocol.fit(network, fold, synthetic_task(protocol.task_class), context(Path(folder), run))
    except Enough:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"the training ended before its {rounds.steps} steps were seen: not each is one of an optimiser")


def predict(run: Run, preset: str = "paper") -> dict[str, Any]:
    """A row of the table: images per second of prediction, its files included, and what an image takes."""
    protocol, network = _untrained(run, preset, {})
    task, now = synthetic_task(protocol.task_class), clock(run.device)
    pool = cases(PREDICTED * run.repeats, run.size)
    with tempfile.TemporaryDirectory() as folder:
        ctx = context(Path(folder), run)

        def predicted(count: int) -> None:
            protocol.predict(network, Fold(0, (), tuple(pool[:count])), task, ctx)

        predicted(1)
        start = now()
        predicted(len(pool))
        seconds = (now() - start) / len(pool)
        with counted(run, "detector, prediction") as counts:
            predicted(COUNTED)
    row = {"what": "predict, per image", "batch": 1, "size": run.size}
    return row | {"images/s": 1 / seconds, **counts.per(COUNTED)}


def cases(count: int, size: int) -> Sequence[Case]:
    """Generated images with masks, enlarged to about `size` pixels."""
    return [_enlarged(case, max(1, size // SIDE)) for case in synthetic_fold(2 * count).train[:count]]


def _enlarged(case: Case, factor: int) -> Case:
    picture, block = case.read(), np.ones((factor, factor), dtype=np.uint8)
    assert picture.mask is not None
    large = Picture(np.kron(picture.image, block), np.kron(picture.mask, block))
    return replace(case, read=lambda: large)


def _untrained(run: Run, preset: str, values: dict[str, Any]) -> tuple[Protocol[Any, Any], nn.Module]:
    """The protocol, and its network on the device."""
    settings = {"size": run.size, "precision": run.precision, **values}
    protocol: Protocol[Any, Any] = Registry().create("protocols", "maskrcnn", preset, settings)
    torch.manual_seed(0)
    encoder = Encoder.of(EncoderCard("resnet18", 32, (0.5,) * 3, (0.25,) * 3, "random", "random"))
    return protocol, protocol.build(encoder, ()).to(run.device)
