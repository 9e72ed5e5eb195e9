"""Pre-trains an encoder with an objective; the encoder is what survives."""

from __future__ import annotations

from typing import Any

import torch

from anaus_bench.corpus.labels import share_of_clips
from anaus_bench.corpus.packed import open_corpus
from anaus_bench.corpus.view import View
from anaus_bench.datasets.audit import without_overlap
from anaus_bench.interfaces import Objective, StageContext, StageInputs
from anaus_bench.machine.artifacts import read_array
from anaus_bench.nn.encoder import Encoder, EncoderCard, save_encoder
from anaus_bench.planning.specs import PretrainSpec
from anaus_bench.registry import Registry
from anaus_bench.seeds import stream
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.pretraining import pretrain


def run(spec: PretrainSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `encoder.safetensors` and, where there was training, `log.csv`."""
    objective: Objective[Any] = registry.build(spec.objective)
    torch.manual_seed(stream(ctx.seed, "initial weights"))
    encoder = Encoder(spec.backbone, objective.finest_stride())
    start = "random"
    if spec.init == "imagenet":
        objective.load_imagenet(encoder, spec.weights_file or "")
        start = f"imagenet {(spec.weights or '')[:12]}"
    result: dict[str, Any] = {"initialisation": start, "phantom": False, **objective.describe()}
    view = View()
    if objective.trains:
        corpus = open_corpus(inputs.folders["corpus"])
        masks = inputs.folders.get("masks")
        label_maps = read_array(masks / "label_maps.npy", corpus.images.shape) if masks else None
        settings = PretrainSettings.model_validate(spec.pretrain)
        view = objective.views(settings.size)[0]
        kept = share_of_clips(corpus, without_overlap(corpus, inputs.folders.get("audit")), spec.share, ctx.seed)
        _, facts = pretrain(objective, encoder, corpus, label_maps, kept, settings, ctx)
        result |= facts
        result["phantom"] = corpus.phantom or inputs.phantom
    card = EncoderCard(
        encoder.arch, objective.finest_stride(), view.mean, view.std, objective.name, start, result["phantom"]
    )
    save_encoder(ctx.out / "encoder.safetensors", encoder, card)
    return result
