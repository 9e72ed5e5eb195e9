"""Pre-trains an encoder with an objective; the encoder is what survives."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anaus_bench.cell import PretrainSettings
from anaus_bench.data.corpus import PackedCorpus, open_corpus
from anaus_bench.data.views import View, make_batch
from anaus_bench.errors import LabelError
from anaus_bench.interfaces import Objective, StageContext, StageInputs, batches
from anaus_bench.loop import Clock, train
from anaus_bench.nn.encoder import Encoder, EncoderCard, load_imagenet, save_encoder
from anaus_bench.nn.lars import LARS, parameter_groups
from anaus_bench.nn.schedules import warmup_cosine
from anaus_bench.registry import Registry
from anaus_bench.rows import write_rows
from anaus_bench.seeds import step_seed

RESIDENT_SHARE = 0.4  # of the free device memory: up to here the corpus is kept on the device


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `encoder.safetensors` and, where there was training, `log.csv`."""
    objective: Objective[Any] = registry.build(spec["objective"])
    torch.manual_seed(step_seed(ctx.seed, 0))
    encoder = Encoder(spec["backbone"], objective.finest_stride())
    start = "random"
    if spec["init"] == "imagenet":
        load_imagenet(encoder, spec["weights_source"])
        start = f"imagenet {spec['weights'][:12]}"
    result: dict[str, Any] = {"initialisation": start, "phantom": False}
    view = View()
    if objective.trains:
        corpus = open_corpus(inputs.folders["corpus"])
        masks = inputs.folders.get("masks")
        label_maps = np.load(masks / "label_maps.npy", mmap_mode="r") if masks is not None else None
        settings = PretrainSettings.model_validate(spec["pretrain"])
        view = objective.views(settings.size)[0]
        kept = np.arange(len(corpus))
        if "audit" in inputs.folders:
            overlapping = json.loads((inputs.folders["audit"] / "audit.json").read_text())["rows"]
            kept = np.delete(kept, overlapping)
        result |= _train(objective, encoder, corpus, label_maps, kept, settings, ctx)
        result["phantom"] = corpus.phantom or inputs.phantom
    card = EncoderCard(
        encoder.arch, objective.finest_stride(), view.mean, view.std, objective.name, start, result["phantom"]
    )
    save_encoder(ctx.out / "encoder.safetensors", encoder, card)
    return result


def _train(
    objective: Objective[Any],
    encoder: Encoder,
    corpus: PackedCorpus,
    label_maps: np.ndarray | None,
    kept: np.ndarray,
    settings: PretrainSettings,
    ctx: StageContext,
) -> dict[str, Any]:
    """Trains the encoder in place on the rows `kept` of the corpus."""
    visible = dataclasses.replace(corpus, entries=tuple(corpus.entries[row] for row in kept))
    if "labels" in objective.needs and visible.labels().max() < 0:
        raise LabelError(f"objective {objective.name!r} needs class labels; no image of this corpus has one")
    sampler = objective.sampler(visible, settings.batch, ctx.seed)
    rows = torch.from_numpy(kept)
    steps = settings.steps or settings.epochs * sampler.steps_per_epoch
    nets = objective.build(encoder, len(corpus.classes)).to(ctx.device).train()
    if settings.channels_last:
        nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        for net in nets.values():
            net.compile()
    optimiser = _optimiser(nets, settings)
    recipes = objective.views(settings.size)
    images = _resident(corpus.images, ctx.device)
    maps = None if label_maps is None else _resident(label_maps, ctx.device)
    boxes, labels = torch.from_numpy(corpus.boxes()), torch.from_numpy(corpus.labels())
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and ctx.device.type == "cuda")
    weights = [parameter for parameter in nets.parameters() if parameter.requires_grad]
    rate = _learning_rate(settings, steps)
    clock = Clock()

    def step(number: int) -> Mapping[str, Tensor]:
        with clock:
            draw = sampler.draw(number, number / steps)
            batch = make_batch(
                images, maps, boxes, labels, rows[draw.images], recipes, ctx.seed, number, ctx.device, draw.weights
            )
        for group in optimiser.param_groups:
            group["lr"] = rate(number)
        objective.before_forward(nets, number / steps)
        with torch.autocast(ctx.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss, logs = objective.loss(nets, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(weights, settings.clip)
        optimiser.step()
        objective.after_step(nets, (number + 1) / steps)
        return {"loss": loss, **logs}

    log = train(
        ctx,
        label="pre-train",
        steps=steps,
        step=step,
        stateful={"nets": nets, "optimiser": optimiser},
        images_per_step=settings.batch,
        clock=clock,
    )
    write_rows(ctx.out / "log.csv", log)
    return {
        "images": len(visible),
        "steps": steps,
        "epochs": round(steps / sampler.steps_per_epoch, 3),
        "last": log[-1],
    }


def _optimiser(nets: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    groups = parameter_groups(nets)
    momentum, decay = settings.sgd_momentum, settings.weight_decay
    if settings.optimiser == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, weight_decay=decay, convention=settings.lars)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=decay, nesterov=settings.nesterov)
    adam = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return adam(groups, lr=0.0, betas=settings.betas, weight_decay=decay)


def _learning_rate(settings: PretrainSettings, steps: int) -> Callable[[int], float]:
    """Learning rate of each step."""
    peak = settings.base_lr * (settings.batch / 256 if settings.lr_scaling else 1)
    warmup = round(steps * min(settings.warmup_epochs / settings.epochs, 1.0))

    def rate(step: int) -> float:
        if step < warmup or settings.schedule == "cosine":
            return warmup_cosine(step, steps, warmup, peak, settings.lr_end * peak)
        if settings.schedule == "constant":
            return peak
        return peak * math.cos(7 * math.pi * step / (16 * steps))

    return rate


def _resident(array: np.ndarray, device: torch.device) -> Tensor | np.ndarray:
    """The array on the device if it fits there, else as it is: batches are then read from the memory map."""
    if device.type != "cuda":
        return array
    free, _ = torch.cuda.mem_get_info(device)
    if array.nbytes >= RESIDENT_SHARE * free:
        return array
    held = torch.empty(array.shape, dtype=torch.uint8, device=device)
    for part in batches(len(array), 4096):
        held[part] = torch.tensor(array[part], device=device)
    return held
