"""Predicts the held-out images of one fold."""

from __future__ import annotations

from typing import Any

from anaus_bench.interfaces import Protocol, StageContext, StageInputs
from anaus_bench.nn.encoder import Encoder
from anaus_bench.nn.network import load_state, read_card
from anaus_bench.planning.specs import PredictSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.finetune import fine_tune
from anaus_bench.stages.inputs import open_fold


def run(spec: PredictSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes predictions in the task's format; trains the network before if none was kept."""
    task, fold = open_fold(spec, inputs, registry)
    protocol: Protocol[Any, Any] = registry.build(spec.protocol)
    if "finetune" in inputs.folders:
        path = inputs.folders["finetune"] / "network.safetensors"
        card = read_card(path)
        network = protocol.build(Encoder.of(card.encoder), card.classes)
        load_state(path, network)
        network.to(ctx.device)
    else:
        network, _ = fine_tune(protocol, task, fold, inputs, ctx)
    protocol.predict(network, fold, task, ctx)
    return {"test": len(fold.test)}
