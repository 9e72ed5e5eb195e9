"""Fine-tunes an encoder on all folds but one; the network is what survives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anaus_bench.interfaces import Fold, Protocol, StageContext, StageInputs, Task
from anaus_bench.nn.encoder import load_encoder
from anaus_bench.nn.network import NetworkCard, save_network
from anaus_bench.planning.specs import FinetuneSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import open_fold


def run(spec: FinetuneSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `network.safetensors` and the training log."""
    task, fold = open_fold(spec, inputs, registry)
    network, card = fine_tune(registry.build(spec.protocol), task, fold, inputs, ctx)
    save_network(ctx.out / "network.safetensors", network, card)
    return {"train": len(fold.train)}


def fine_tune(
    protocol: Protocol[Any, Any], task: Task[Any], fold: Fold, inputs: StageInputs, ctx: StageContext
) -> tuple[nn.Module, NetworkCard]:
    """The network of a fold, on the device of the stage, and what is to be known of it."""
    encoder = load_encoder(inputs.folders["pretrain"] / "encoder.safetensors")
    assert encoder.card is not None
    torch.manual_seed(ctx.seed)
    network = protocol.build(encoder, fold.classes).to(ctx.device)
    protocol.fit(network, fold, task, ctx)
    return network, NetworkCard(encoder.card, protocol.name, task.name, fold.number, fold.classes, inputs.phantom)
