"""Mask R-CNN (He et al., 2017) around a pre-trained backbone: fine-tuned on a fold, every detection is stored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Case, Fold, Protocol, StageContext
from anaus_bench.lazy import torch
from anaus_bench.nn.backbones import PARAMETERS
from anaus_bench.rows import write_rows
from anaus_bench.tasks.instances import Instances, encode_rle, write_predictions
from anaus_bench.tasks.segmentation import SegmentationTask
from anaus_bench.training.batching import batch_indices, step_generator, steps_per_epoch
from anaus_plugins.protocols.maskrcnn.settings import MaskRCNNSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from anaus_bench.nn.encoder import Encoder

HEADS_AND_PYRAMID = 19_800_000
"""About how many parameters stand beside a backbone."""


class MaskRCNN(Protocol[MaskRCNNSettings, SegmentationTask[Any]]):
    """Detects and segments the objects of a mask, on torchvision's parts."""

    name = "maskrcnn"
    task_class = SegmentationTask
    settings_class = MaskRCNNSettings
    reference = "He et al., Mask R-CNN, ICCV 2017, arXiv:1703.06870"

    def build(self, encoder: Encoder, classes: tuple[str, ...]) -> nn.Module:
        """A detector of one foreground class with the encoder's backbone and, if transferred, pyramid.

        Raises:
            SettingsError: The pyramid is to be transferred and the encoder has none.
        """
        from anaus_plugins.protocols.maskrcnn.model import build_maskrcnn

        return build_maskrcnn(encoder, self.settings)

    def fit(self, network: nn.Module, fold: Fold, task: SegmentationTask[Any], ctx: StageContext) -> None:
        """Trains on `fold.train`.

        Raises:
            MissingMask: A case has no mask.
            TrainingError: The loss is not finite.
        """
        examples = decode(fold.train, task, ctx)
        with self._precision(network, ctx):
            write_rows(ctx.out / "log.csv", _train(network, examples, self.settings, ctx))

    def predict(self, network: nn.Module, fold: Fold, task: SegmentationTask[Any], ctx: StageContext) -> None:
        """Writes `predictions.json`: every detection in each held-out image."""
        with self._precision(network, ctx):
            write_predictions(ctx.out, _predict(network, fold.test, ctx))

    def parameters(self, backbone: str) -> int:
        """Those of the backbone, pyramid and heads."""
        return PARAMETERS[backbone] + HEADS_AND_PYRAMID

    def _precision(self, network: nn.Module, ctx: StageContext) -> AbstractContextManager[None]:
        from anaus_plugins.protocols.maskrcnn.model import trunks_in_bf16

        bf16 = self.settings.precision == "bf16" and ctx.device.type == "cuda"
        return trunks_in_bf16(network, ctx.device.type) if bf16 else nullcontext()


@dataclass(frozen=True)
class Example:
    """A training image (H, W) uint8, its instance ids (H, W) int32 (0 = none) and boxes (N, 4) float32."""

    image: Tensor
    instances: Tensor
    boxes: Tensor

    def target(self, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (3, H, W) float32 in [0, 1] and target as torchvision takes them, mirrored if `flip`."""
        count, width = len(self.boxes), self.image.shape[1]
        ids = torch.arange(1, count + 1, device=self.image.device)
        masks, boxes = self.instances == ids[:, None, None], self.boxes
        image = (self.image.float() / 255).expand(3, -1, -1)
        if flip:
            image, masks = image.flip(-1), masks.flip(-1)
            x0, y0, x1, y1 = boxes.unbind(dim=1)
            boxes = torch.stack([width - x1, y0, width - x0, y1], dim=1)
        return image, {"boxes": boxes, "labels": torch.ones_like(ids), "masks": masks.to(torch.uint8)}


def decode(cases: Sequence[Case], task: SegmentationTask[Any], ctx: StageContext) -> list[Example]:
    """Training examples on the device; every image is decoded once.

    Raises:
        MissingMask: A case has no mask.
    """
    examples, dropped = [], 0
    with ctx.progress.track("decode", len(cases)) as tracker:
        for done, case in enumerate(cases, start=1):
            image, truth = task.read(case)
            labels, boxes, too_small = task.objects(truth)
            dropped += too_small
            examples.append(Example(*(torch.from_numpy(array).to(ctx.device) for array in (image, labels, boxes))))
            tracker.advance(done, images=1, waited=0.0)
    if dropped:
        ctx.progress.note(f"{dropped} mask components below {task.settings.min_area} px are no training objects")
    return examples


def learning_rate(settings: MaskRCNNSettings, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up times decay by steps."""
    warmup = 1.0
    if epoch < settings.warmup_epochs:
        warmup = settings.warmup_start + (1 - settings.warmup_start) * epoch / settings.warmup_epochs
    return settings.base_lr * warmup * settings.lr_factor ** (int(epoch) // settings.lr_step)


def _train(
    model: nn.Module, examples: Sequence[Example], settings: MaskRCNNSettings, ctx: StageContext
) -> list[dict[str, float]]:
    from anaus_bench.training.loop import train

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.base_lr, settings.weight_decay
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, rate, weight_decay=decay)
    if settings.optimiser == "sgd":
        optimizer = torch.optim.SGD(trained, rate, momentum=settings.sgd_momentum, weight_decay=decay)
    per_epoch = steps_per_epoch(len(examples), settings.batch_size)
    model.train()
    for module in model.modules():
        # Statistics of a frozen layer belong to its weights; batches of two would only blur them.
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()

    def step(number: int) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, number / per_epoch)
        chosen = batch_indices(ctx.seed, number, len(examples), settings.batch_size).tolist()
        flips = torch.rand(len(chosen), generator=step_generator(ctx.seed, number)) < settings.flip
        pairs = [examples[index].target(flip) for index, flip in zip(chosen, flips.tolist(), strict=True)]
        losses: dict[str, Tensor] = model([image for image, _ in pairs], [target for _, target in pairs])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
        optimizer.step()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    return train(
        ctx,
        label="mask r-cnn",
        steps=settings.epochs * per_epoch,
        step=step,
        stateful={"model": model, "optimizer": optimizer},
        images_per_step=settings.batch_size,
    )


def _predict(model: nn.Module, cases: Sequence[Case], ctx: StageContext) -> list[Instances]:
    """Detections of each case at its own size, one image at a time."""
    predictions = []
    model.eval()
    with ctx.progress.track("predict", len(cases)) as tracker, torch.inference_mode():
        for done, case in enumerate(cases, start=1):
            image = torch.from_numpy(np.array(case.read().image)).to(ctx.device)
            (output,) = model([(image.float() / 255).expand(3, -1, -1)])
            masks = (output["masks"][:, 0] >= 0.5).cpu().numpy()
            predictions.append(
                Instances(
                    image_id=case.sample.sample_id,
                    height=image.shape[0],
                    width=image.shape[1],
                    boxes=output["boxes"].tolist(),
                    scores=output["scores"].tolist(),
                    labels=output["labels"].tolist(),
                    masks=[encode_rle(mask) for mask in masks],
                )
            )
            tracker.advance(done, images=1, waited=0.0)
    return predictions


@hookimpl
def anaus_protocols() -> list[type[Protocol[Any, Any]]]:
    """The protocol of this module."""
    return [MaskRCNN]
