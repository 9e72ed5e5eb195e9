"""Fine-tunes an encoder on all folds but one and predicts the one held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from anaus_bench.interfaces import StageContext, StageInputs
from anaus_bench.nn.encoder import load_encoder
from anaus_bench.registry import Registry
from anaus_bench.seeds import stream
from anaus_bench.stages.folds import open_task, read_folds


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes what the task's protocol stores: per-image predictions and the training log."""
    task, dataset, index = open_task(spec, inputs, registry)
    fold = read_folds(dataset, index, inputs.folders["folds"])[spec["fold"]]
    encoder = load_encoder(inputs.folders["pretrain"] / "encoder.safetensors")
    torch.manual_seed(stream(ctx.seed, "initial weights"))
    task.fit(encoder, fold, ctx)
    return {"train": len(fold.train), "test": len(fold.test)}
