"""Trains the networks of an objective on a corpus."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch, make_batch
from anaus_bench.corpus.packed import PackedCorpus
from anaus_bench.distributed.group import own_rows, world_size
from anaus_bench.distributed.team import joined, processes
from anaus_bench.errors import LabelError, SettingsError
from anaus_bench.interfaces import Objective, StageContext
from anaus_bench.machine.files import write_rows
from anaus_bench.machine.parallel import batches
from anaus_bench.nn.encoder import Encoder
from anaus_bench.nn.synced_norm import synchronise
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.lars import LARS, parameter_groups
from anaus_bench.training.loop import Clock, train
from anaus_bench.training.schedules import warmup_cosine

RESIDENT_SHARE = 0.4  # of the free device memory: up to here the corpus is kept on the device


def pretrain(
    objective: Objective[Any],
    encoder: Encoder,
    corpus: PackedCorpus,
    label_maps: np.ndarray | None,
    kept: np.ndarray,
    settings: PretrainSettings,
    ctx: StageContext,
) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """Trains the encoder in place; gives all networks of the objective, and the facts for the record.

    Under `torchrun` all processes take part, each with an equal part of every batch: the stage must come here in all of
    them with the same arguments. Writes `log.csv`.

    Args:
        objective: Builds the networks around the encoder and gives the loss.
        encoder: What is trained; its networks end on `ctx.device`.
        corpus: The images.
        label_maps: (N, S, S) uint8 label maps aligned with the corpus, or None.
        kept: (n,) int64 rows of the corpus to train on.
        settings: The protocol.
        ctx: Gives the device, the seed and the folders.

    Raises:
        SettingsError: The batch cannot be dealt to the processes.
        LabelError: The objective needs class labels and no image kept has one.
        DataError: The corpus lacks what the method compares.
        TrainingError: A logged value is not finite.
    """
    if settings.batch % processes():
        raise SettingsError(
            f"pretrain.batch={settings.batch} cannot be dealt to {processes()} processes; set it to a multiple of them"
        )
    with joined(ctx.device):
        return _train(objective, encoder, corpus, label_maps, kept, settings, ctx)


class _Loss(nn.Module):
    """The networks with the loss as their forward, so that gradients can be averaged over processes."""

    def __init__(self, objective: Objective[Any], nets: nn.ModuleDict) -> None:
        super().__init__()
        self.objective, self.nets = objective, nets

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Objective.loss`."""
        return self.objective.loss(self.nets, batch)


def _train(
    objective: Objective[Any],
    encoder: Encoder,
    corpus: PackedCorpus,
    label_maps: np.ndarray | None,
    kept: np.ndarray,
    settings: PretrainSettings,
    ctx: StageContext,
) -> tuple[nn.ModuleDict, dict[str, Any]]:
    visible = dataclasses.replace(corpus, entries=tuple(corpus.entries[row] for row in kept))
    found, classes = objective.labels(visible)
    if "labels" in objective.needs and not (found >= 0).any():
        raise LabelError(
            f"objective {objective.name!r} needs class labels; no image of this corpus has one; pass another --corpus"
        )
    sampler = objective.sampler(visible, settings.batch, ctx.seed)
    facts = objective.corpus_facts(visible, ctx.seed)
    for name, text in facts.items():
        ctx.progress.note(f"  {name}: {text}")
    rows = torch.from_numpy(kept)
    steps = settings.steps or settings.epochs * sampler.steps_per_epoch
    nets = objective.build(encoder, len(classes)).to(ctx.device).train()
    if settings.sync_bn and world_size() > 1:
        synchronise(nets, ctx.device)
    if settings.channels_last:
        nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        for net in nets.values():
            net.compile()
    optimiser = _optimiser(nets, settings)
    compute = _averaged(_Loss(objective, nets))
    recipes = objective.views(settings.size)
    images = _resident(corpus.images, ctx.device)
    maps = None if label_maps is None else _resident(label_maps, ctx.device)
    boxes, labels = torch.from_numpy(corpus.boxes()), torch.full((len(corpus),), -1)
    labels[rows] = torch.from_numpy(found)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and ctx.device.type == "cuda")
    weights = [parameter for parameter in nets.parameters() if parameter.requires_grad]
    rate, decay = learning_rate(settings, steps), weight_decay(settings, steps)
    part = own_rows(settings.batch // world_size())
    clock = Clock()

    def batch_of(number: int) -> Batch:
        draw = sampler.draw(number, number / steps)
        drawn = rows[draw.images]
        return make_batch(images, maps, boxes, labels, drawn, recipes, ctx.seed, number, ctx.device, draw.weights, part)

    def step(number: int) -> Mapping[str, Tensor]:
        with clock:
            batch = batch_of(number)
        lr = rate(number) * objective.lr_factor(batch, number / steps)
        for group in optimiser.param_groups:
            group["lr"] = lr
            group["weight_decay"] = decay(number) if group["decayed"] else 0.0
        objective.before_forward(nets, number / steps)
        with torch.autocast(ctx.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss, logs = compute(batch)
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
        batch=lambda number: _tensors_of(batch_of(number)),
    )
    write_rows(ctx.out / "log.csv", log)
    return nets, {
        "images": len(visible),
        "processes": world_size(),
        "steps": steps,
        "epochs": round(steps / sampler.steps_per_epoch, 3),
        **({"corpus": facts} if facts else {}),
        "last": log[-1],
    }


def _tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    tensors = {"indices": batch.indices, "labels": batch.labels, "source": batch.source}
    for kind, held in (("view", batch.views), ("label_map", batch.label_maps)):
        tensors |= {f"{kind}{number}": value for number, value in enumerate(held)}
    return tensors


def _averaged(compute: nn.Module) -> nn.Module:
    """The same with its gradients averaged over the processes."""
    if world_size() == 1:
        return compute
    # Not every network has a part in every step. Buffers are alike in all processes, as what enters them was gathered,
    # but for the running statistics without `sync_bn`: those that are handed round here are the first process's.
    return nn.parallel.DistributedDataParallel(compute, find_unused_parameters=True)


def _optimiser(nets: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    groups = parameter_groups(nets, decay_norms=settings.decay_norms)
    momentum, decay = settings.sgd_momentum, settings.weight_decay
    if settings.optimiser == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, weight_decay=decay, convention=settings.lars)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=decay, nesterov=settings.nesterov)
    adam = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return adam(groups, lr=0.0, betas=settings.betas, weight_decay=decay)


def learning_rate(settings: PretrainSettings, steps: int) -> Callable[[int], float]:
    """Learning rate of each step."""
    peak = settings.base_lr * (settings.batch / 256 if settings.lr_scaling else 1)
    warmup = round(steps * min(settings.warmup_epochs / settings.epochs, 1.0))
    held = steps * settings.hold_epochs / settings.epochs

    def rate(step: int) -> float:
        if step < warmup or settings.schedule == "cosine":
            return warmup_cosine(step, steps, warmup, peak, settings.lr_end * peak)
        if settings.schedule == "constant":
            return peak
        if settings.schedule == "held_cosine":
            return peak * (1 + math.cos(math.pi * max(0.0, step - held) / steps)) / 2
        return peak * math.cos(7 * math.pi * step / (16 * steps))

    return rate


def weight_decay(settings: PretrainSettings, steps: int) -> Callable[[int], float]:
    """Weight decay of each step."""
    start = settings.weight_decay
    end = start if settings.weight_decay_end is None else settings.weight_decay_end
    return lambda step: warmup_cosine(step, steps, 0, start, end)


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
