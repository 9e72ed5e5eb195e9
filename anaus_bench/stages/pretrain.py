"""Pre-trains an encoder with an objective; the encoder is what survives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anaus_bench.cell import PretrainSettings
from anaus_bench.data.corpus import PackedCorpus, open_corpus
from anaus_bench.data.views import View, make_batch
from anaus_bench.errors import CountMismatch, LabelError
from anaus_bench.interfaces import Objective, StageContext, StageInputs
from anaus_bench.loop import Clock, step_seed, train, write_log
from anaus_bench.nn.encoder import Encoder, EncoderCard, load_imagenet, save_encoder
from anaus_bench.nn.lars import LARS, parameter_groups
from anaus_bench.nn.schedules import warmup_cosine
from anaus_bench.registry import Registry

RESIDENT_SHARE = 0.4  # of the free device memory: up to here the corpus is kept on the device


def run(spec: Mapping[str, Any], inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `encoder.safetensors` and, where there was training, `log.csv`."""
    objective: Objective[Any] = registry.build(spec["objective"])
    torch.manual_seed(step_seed(ctx.seed, 0))
    encoder = Encoder(spec["backbone"], objective.pyramid())
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
        result |= _train(objective, encoder, corpus, label_maps, settings, ctx)
        result["phantom"] = corpus.phantom
    card = EncoderCard(encoder.arch, objective.pyramid(), view.mean, view.std, objective.name, start, result["phantom"])
    save_encoder(ctx.out / "encoder.safetensors", encoder, card)
    return result


def _train(
    objective: Objective[Any],
    encoder: Encoder,
    corpus: PackedCorpus,
    label_maps: np.ndarray | None,
    settings: PretrainSettings,
    ctx: StageContext,
) -> dict[str, Any]:
    """Trains the encoder in place."""
    per_epoch = len(corpus) // settings.batch
    if per_epoch == 0:
        raise CountMismatch(
            f"corpus has {len(corpus)} images, fewer than one batch of {settings.batch}; lower pretrain.batch"
        )
    if "labels" in objective.needs and corpus.labels().max() < 0:
        raise LabelError(f"objective {objective.name!r} needs class labels; no image of this corpus has one")
    steps = settings.steps or settings.epochs * per_epoch
    nets = objective.build(encoder, len(corpus.classes)).to(ctx.device).train()
    if settings.channels_last:
        nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        for net in nets.values():
            net.compile()
    optimiser = _optimiser(nets, settings)
    recipes = objective.views(settings.size)
    images, maps = _resident(corpus.images, ctx.device), _resident(label_maps, ctx.device)
    boxes, labels = torch.from_numpy(corpus.boxes()), torch.from_numpy(corpus.labels())
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and ctx.device.type == "cuda")
    peak = settings.base_lr * settings.batch / 256
    warmup = round(steps * min(settings.warmup_epochs / settings.epochs, 1.0))
    draw = _epoch_draws(len(corpus), settings.batch, ctx.seed)
    clock = Clock()

    def step(number: int) -> Mapping[str, Tensor]:
        with clock:
            batch = make_batch(images, maps, boxes, labels, draw(number), recipes, ctx.seed, number, ctx.device)
        for group in optimiser.param_groups:
            group["lr"] = warmup_cosine(number, steps, warmup, peak)
        objective.before_forward(nets, number / steps)
        with torch.autocast(ctx.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss, logs = objective.loss(nets, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
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
    write_log(ctx.out / "log.csv", log)
    return {"images": len(corpus), "steps": steps, "epochs": round(steps / per_epoch, 3), "last": log[-1]}


def _optimiser(nets: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    groups = parameter_groups(nets)
    momentum, decay = settings.sgd_momentum, settings.weight_decay
    if settings.optimiser == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, weight_decay=decay, convention=settings.lars)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay)


def _epoch_draws(count: int, batch: int, seed: int) -> Callable[[int], Tensor]:
    """Indices of a step: consecutive parts of a permutation per epoch, a function of (seed, step)."""
    per_epoch = count // batch
    held: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(step: int) -> Tensor:
        nonlocal held
        epoch, part = divmod(step, per_epoch)
        if held[0] != epoch:
            generator = torch.Generator().manual_seed(step_seed(~seed, epoch))
            held = epoch, torch.randperm(count, generator=generator)
        return held[1][part * batch : (part + 1) * batch]

    return draw


def _resident(array: np.ndarray | None, device: torch.device) -> Tensor | np.ndarray | None:
    """The array on the device if it fits there, else as it is: batches are then read from the memory map."""
    if array is None or device.type != "cuda":
        return array
    free, _ = torch.cuda.mem_get_info(device)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device) if array.nbytes < RESIDENT_SHARE * free else array
