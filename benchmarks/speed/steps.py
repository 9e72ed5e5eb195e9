"""Training steps against the encoder passes they cannot avoid, as ratios in one run.

A step is that of `anaus_bench.training.pretraining` with its default optimiser: views, loss, backward, optimiser,
moving averages. Its passes are those that its loss asks of the encoders, run bare: with gradients forward and backward,
without them forward, all of them before one backward pass, at the same sizes, precision and memory format.

`ratio` sets the step against the passes of the encoders, `of networks` against those of encoders and heads (projectors,
predictors, a decoder): large heads are of the method, and are in the second. `ratio at 192` and `of networks at 192`
are computed, not measured: optimiser and moving averages, whose cost does not grow with the batch, are spread over 192.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import AnausError, PluginError
from anaus_bench.interfaces import Objective
from anaus_bench.registry import Registry
from benchmarks.speed.passes import Call, bare, recorded, views
from benchmarks.speed.training import Run, alternate, taken

PROTOCOL_BATCH = 192  # of pre-training
LIMIT, LIMIT_OF_LARGE_HEADS = 1.10, 1.15
LARGE_HEADS = 0.25  # of the encoder's weights


def trained(registry: Registry) -> list[str]:
    """Names of all installed objectives that train."""
    return [name for name in registry.names("objectives") if registry.get("objectives", name).trains]


def measure(name: str, objective: Objective[Any], run: Run) -> dict[str, Any]:
    """A row of the table: passes, median seconds, medians of the rounds' ratios; or why there is none."""
    row: dict[str, Any] = {"method": name}

    def others(nets: nn.ModuleDict, batch: Batch) -> list[Callable[[], object]]:
        objective.before_forward(nets, 0.5)  # nothing is frozen there
        with recorded(nets) as calls:
            objective.loss(nets, batch)
        if not any(call.in_encoder for call in calls):
            raise PluginError(f"the loss of {name!r} calls no part of its encoder")
        row.update(described(calls, len(batch.labels)))
        row["limit"] = _limit(nets)
        return [bare([call for call in calls if call.in_encoder is kind], run.autocast) for kind in (True, False)]

    try:
        run = taken(objective, run)
        found = alternate(objective, run, others)
    except AnausError as error:
        return row | {"note": f"not measured: {error}"}
    except torch.cuda.OutOfMemoryError:
        return row | {"note": f"not measured: batch {run.batch} does not fit the device"}
    passes, in_heads = zip(*found.others, strict=True)
    networks = [sum(both) for both in found.others]
    step = statistics.median(found.steps)
    spread = 1 - run.batch / PROTOCOL_BATCH
    steps_at_192 = [seconds - spread * update for seconds, update in zip(found.steps, found.updates, strict=True)]
    return row | {
        "batch": run.batch,
        "step s": step,
        "passes s": statistics.median(passes),
        "heads s": statistics.median(in_heads),
        "update s": statistics.median(found.updates),
        "ratio": _ratio(found.steps, passes),
        "ratio at 192": _ratio(steps_at_192, passes),
        "of networks": _ratio(found.steps, networks),
        "of networks at 192": _ratio(steps_at_192, networks),
        "items/s": run.batch / step,
    }


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(above / below for above, below in zip(over, under, strict=True))


def described(calls: list[Call], items: int) -> dict[str, str]:
    """Views per item that pass with and without gradients, such as `2 x 224 + 8 x 96`."""
    return {
        title: _listed(views(calls, items, with_gradient=with_gradient))
        for title, with_gradient in (("with gradient", True), ("without", False))
    }


def _listed(counts: Mapping[int, float]) -> str:
    return " + ".join(f"{number:g} x {side}" for side, number in counts.items()) or "none"


def _limit(nets: nn.ModuleDict) -> float:
    def weights(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    encoder = weights(nets["encoder"])
    return LIMIT_OF_LARGE_HEADS if weights(nets) - encoder > LARGE_HEADS * encoder else LIMIT
