"""Segmentation by Mask R-CNN: fine-tune on a fold, store every detection, score one merged mask per image.

Recipe: the paper names Mask R-CNN and the weight decay; the rest follows the scripts the protocol stems from
(Meta-USCL: SGD, warm-up, steps) where they say something, else torchvision's and detectron2's common defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from anaus_bench import metrics
from anaus_bench.errors import MissingMask, StoreError
from anaus_bench.interfaces import Case, Fold, Metric, Scores, StageContext, Task
from anaus_bench.lazy import torch
from anaus_bench.protocols.batching import batch_indices, step_generator, steps_per_epoch
from anaus_bench.protocols.predictions import Instances, encode_rle, read_predictions, write_predictions
from anaus_bench.protocols.settings import TaskSettings
from anaus_bench.rows import write_rows
from anaus_bench.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from anaus_bench.nn.encoder import Encoder

PPV = Metric("ppv", "PPV")
SENSITIVITY = Metric("sensitivity", "Sens.")
DICE = Metric("dice", "Dice")
HAUSDORFF = Metric("hausdorff", "HD", higher_is_better=False, fraction=False)

FRACTIONS = ("ppv", "sensitivity", "dice", "iou")
DISTANCES = ("hausdorff", "hd95", "hausdorff_native")


class SegmentationSettings(TaskSettings):
    """Mask R-CNN fine-tuning; defaults as in downstream tables of the paper, completed as the descriptions say."""

    size: int = Field(
        512, ge=32, description="shortest side of the resized image, px; the longest is at most 1.67 times it"
    )
    smallest_anchor: float | None = Field(
        None, gt=0, description="anchor side at stride 4, px of the resized image, doubled per level; none: size / 16"
    )
    transfer: Literal["backbone", "backbone+fpn"] = Field(
        "backbone", description="what is taken from pre-training; the pyramid only from methods that train one"
    )
    trainable_layers: int = Field(
        3,
        ge=0,
        le=5,
        description="unfrozen parts of the backbone from the top: layer4, 3, 2, 1, stem (torchvision: 3); of a ViT the "
        "quarters of its blocks, stem",
    )
    norm: Literal["frozen", "bn", "gn"] = Field(
        "frozen",
        description="BatchNorm of the backbone: frozen as in the encoder, or trained (bn; needed from random weights); "
        "gn: frozen, with GroupNorm(32) in pyramid and heads; a ViT and its pyramid always have layer norm",
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd (Meta-USCL), or adamw as ViTDet trains transformers: with base_lr=1e-4, weight_decay=0.1",
    )
    base_lr: float = Field(0.005, gt=0, description="learning rate (Meta-USCL; the paper gives none)")
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum (Meta-USCL)")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay (App. A.1)")
    batch_size: int = Field(2, ge=1, description="images per step (Meta-USCL)")
    epochs: int = Field(30, ge=1, description="passes over the training images (Meta-USCL)")
    lr_step: int = Field(10, ge=1, description="epochs between decays of the learning rate (Meta-USCL)")
    lr_factor: float = Field(0.1, gt=0, le=1, description="factor of each decay (Meta-USCL)")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up (Meta-USCL)")
    warmup_start: float = Field(1e-3, gt=0, le=1, description="share of the learning rate at step 0 (Meta-USCL)")
    gradient_clip: float | None = Field(5.0, gt=0, description="largest norm of the gradient; none: not clipped")
    rois: int = Field(
        128, ge=1, description="regions per image that train the heads (libraries: 512, for many objects)"
    )
    proposals: int = Field(
        1000, ge=1, description="proposals per image after suppression (twice as many per level before)"
    )
    detections: int = Field(100, ge=1, description="detections stored per image at most (COCO's rule)")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    instances: Literal["components", "single"] = Field(
        "components",
        description="objects of a mask: its 8-connected components, or the whole foreground as one (Meta-USCL)",
    )
    min_area: int = Field(16, ge=1, description="components with fewer pixels are no training objects")
    merge: Literal["union", "top1"] = Field(
        "union",
        description="one mask per image: union of instances from score_threshold on, or the best one (Meta-USCL)",
    )
    score_threshold: float = Field(0.5, ge=0.05, le=1, description="least score of an instance in the union")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast trunks on CUDA, boxes and losses in fp32; a CPU is always fp32"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Meta-USCL's scripts, from which the paper's protocol stems.
        "official": {
            "size": 800,
            "smallest_anchor": 32.0,
            "norm": "bn",
            "weight_decay": 5e-4,
            "gradient_clip": None,
            "rois": 512,
            "proposals": 2000,
            "instances": "single",
            "merge": "top1",
        },
        "demo": {
            "folds": 2,
            "size": 96,
            "trainable_layers": 5,
            "norm": "bn",
            "base_lr": 0.02,
            "epochs": 12,
            "lr_step": 10,
            "warmup_epochs": 0.5,
            "rois": 32,
            "proposals": 100,
            "detections": 10,
        },
        "tiny": {
            "folds": 2,
            "size": 64,
            "trainable_layers": 5,
            "norm": "bn",
            "epochs": 1,
            "rois": 8,
            "proposals": 16,
            "detections": 3,
        },
    }


SegmentationSettingsT = TypeVar("SegmentationSettingsT", bound=SegmentationSettings)


class SegmentationTask(Task[SegmentationSettingsT]):
    """Fine-tunes Mask R-CNN on a fold and scores one merged mask per held-out image."""

    settings_class: ClassVar[type[SegmentationSettings]] = SegmentationSettings
    reference = "He et al., Mask R-CNN, ICCV 2017, arXiv:1703.06870"

    def fit(self, encoder: Encoder, fold: Fold, ctx: StageContext) -> None:
        """Trains on `fold.train`; writes `predictions.json` of `fold.test` and the training log `log.csv`.

        Raises:
            MissingMask: A case has no mask.
            SettingsError: The pyramid is to be transferred and the encoder has none.
            TrainingError: The loss is not finite.
        """
        from anaus_bench.protocols.maskrcnn import build_maskrcnn, run_trunks_in_bf16

        torch.manual_seed(stream(ctx.seed, "initial head"))
        model = build_maskrcnn(encoder, self.settings).to(ctx.device)
        if self.settings.precision == "bf16" and ctx.device.type == "cuda":
            run_trunks_in_bf16(model, ctx.device.type)
        log = _train(model, self._decode(fold.train, ctx), self.settings, ctx)
        write_rows(ctx.out / "log.csv", log)
        write_predictions(ctx.out, _predict(model, fold.test, ctx))

    def score(self, folds: Sequence[tuple[Fold, Path]]) -> Scores:
        """Metrics per image, their means per fold, and over all images the pixel-pooled (micro) and mean values.

        Per fold, `dice` is the mean of the images' and `dice_micro` that of the summed pixels; in `pooled`, `dice` is
        that of the summed pixels and `dice_image` the mean of the images'; so for `ppv`, `sensitivity` and `iou`.
        Distances are always means over images; `hausdorff_valid` is over the images where neither mask is empty (nan if
        there is none).

        Raises:
            StoreError: A held-out image has no prediction.
        """
        rows, means, dropped = [], [], 0
        for fold, folder in folds:
            predictions = read_predictions(folder)
            of_fold = []
            for case in fold.test:
                row, too_small = self._score_case(case, fold, _prediction_of(case, predictions, folder))
                of_fold.append(row)
                dropped += too_small
            means.append({**_image_means(of_fold), **{f"{key}_micro": value for key, value in _micro(of_fold).items()}})
            rows += of_fold
        overall = _image_means(rows)
        pooled = {key: value for key, value in overall.items() if key not in FRACTIONS}
        pooled |= {**_micro(rows), **{f"{key}_image": overall[key] for key in FRACTIONS}}
        return Scores(rows, means, pooled, self._notes(rows, dropped))

    def draw(self, case: Case, predictions: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
        """True and merged predicted mask (H, W) uint8 in {0, 1}, and the image's Dice."""
        instances = _prediction_of(case, read_predictions(predictions), predictions)
        (_, truth), predicted = self._read(case), self._merged(instances)
        dice = metrics.overlap(*metrics.pixel_counts(truth, predicted))["dice"]
        return truth.astype(np.uint8), predicted.astype(np.uint8), f"Dice {dice:.3f}"

    def foreground(self, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """What is segmented (H, W), of a mask with structure ids (H, W): all structures, unless a task narrows it."""
        return mask > 0

    def _read(self, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image (H, W) uint8 and its foreground (H, W)."""
        picture = case.read()
        if picture.mask is None:
            raise MissingMask(f"{case.sample.sample_id} has no mask; segmentation needs one for every image")
        return np.array(picture.image), self.foreground(picture.mask)

    def _decode(self, cases: Sequence[Case], ctx: StageContext) -> list[Example]:
        """Training examples on the device; every image is decoded once."""
        examples, dropped = [], 0
        with ctx.progress.track("decode", len(cases)) as tracker:
            for done, case in enumerate(cases, start=1):
                image, truth = self._read(case)
                labels, boxes, too_small = self._instances(truth)
                dropped += too_small
                examples.append(Example(*(torch.from_numpy(array).to(ctx.device) for array in (image, labels, boxes))))
                tracker.advance(done, images=1, waited=0.0)
        if dropped:
            ctx.progress.note(f"{dropped} mask components below {self.settings.min_area} px are no training objects")
        return examples

    def _instances(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:
        if self.settings.instances == "single":
            return *with_boxes(mask.astype(np.int32)), 0
        labels, dropped = components(mask, self.settings.min_area)
        return *with_boxes(labels), dropped

    def _merged(self, instances: Instances) -> NDArray[np.bool_]:
        return instances.merged(self.settings.merge, self.settings.score_threshold)

    def _score_case(self, case: Case, fold: Fold, instances: Instances) -> tuple[dict[str, Any], int]:
        _, truth = self._read(case)
        _, boxes, dropped = self._instances(truth)
        row = {
            "image_id": case.sample.sample_id,
            "group_id": case.sample.group_id,
            "fold": fold.number,
            **metrics.segmentation_scores(truth, self._merged(instances)),
            "n_pred": instances.kept(self.settings.merge, self.settings.score_threshold),
            "n_gt": len(boxes),
        }
        return row, dropped

    def _notes(self, rows: Sequence[Mapping[str, Any]], dropped: int) -> list[str]:
        side = metrics.DISTANCE_SIDE
        merge = "the best-scoring instance"
        if self.settings.merge == "union":
            merge = f"the union of instances with score >= {self.settings.score_threshold}"
        notes = [
            f"{len(rows)} images scored at their own size; the predicted mask is {merge}, mask probability >= 0.5",
            "PPV, sensitivity and Dice: per image, mean per fold; pooled values: of the pixels summed over all images",
            f"HD: full symmetric Hausdorff distance of surfaces in pixels, masks resized to {side}x{side} (nearest)",
            "empty masks: both empty scores 1 and HD 0; one empty scores 0 and HD the diagonal "
            f"({np.hypot(side, side):.1f} px)",
            f"HD penalised in {sum(row['hd_penalised'] for row in rows)} images; over the {len(_valid(rows))} images "
            f"where neither mask is empty it is {_image_means(rows)['hausdorff_valid']:.2f} px",
        ]
        if dropped:
            notes.append(
                f"{dropped} mask components below {self.settings.min_area} px are scored but were no training objects"
            )
        return notes


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


def components(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.int32], int]:
    """8-connected components of at least `min_area` pixels as ids from 1 (H, W), and how many were dropped."""
    from scipy.ndimage import label

    labels, count = label(mask, structure=np.ones((3, 3)))
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= min_area
    kept[0] = False
    ids = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return ids[labels], count - int(kept.sum())


def with_boxes(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The label map and its boxes (N, 4) float32 (x0, y0, x1, y1), where x1 and y1 lie one past the last pixel."""
    from scipy.ndimage import find_objects

    boxes = [(cols.start, rows.start, cols.stop, rows.stop) for rows, cols in find_objects(labels)]
    return labels, np.array(boxes, dtype=np.float32).reshape(-1, 4)


def learning_rate(settings: SegmentationSettings, epoch: float) -> float:
    """Learning rate at a fractional epoch: linear warm-up times decay by steps."""
    warmup = 1.0
    if epoch < settings.warmup_epochs:
        warmup = settings.warmup_start + (1 - settings.warmup_start) * epoch / settings.warmup_epochs
    return settings.base_lr * warmup * settings.lr_factor ** (int(epoch) // settings.lr_step)


def _train(
    model: nn.Module, examples: Sequence[Example], settings: SegmentationSettings, ctx: StageContext
) -> list[dict[str, float]]:
    from anaus_bench.loop import train

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.base_lr, settings.weight_decay
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, rate, weight_decay=decay)
    if settings.optimiser == "sgd":
        optimizer = torch.optim.SGD(trained, rate, momentum=settings.sgd_momentum, weight_decay=decay)
    per_epoch = steps_per_epoch(len(examples), settings.batch_size)
    model.train()

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
        batch=lambda number: {"indices": batch_indices(ctx.seed, number, len(examples), settings.batch_size)},
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


def _prediction_of(case: Case, predictions: Mapping[str, Instances], folder: Path) -> Instances:
    try:
        return predictions[case.sample.sample_id]
    except KeyError:
        raise StoreError(f"{folder} holds no prediction of {case.sample.sample_id!r}; run its stage again") from None


def _image_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means = {key: float(np.mean([row[key] for row in rows])) for key in (*FRACTIONS, *DISTANCES)}
    valid = [row["hausdorff"] for row in _valid(rows)]
    return {**means, "hausdorff_valid": float(np.mean(valid)) if valid else math.nan}


def _micro(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tp, fp, fn = (sum(row[key] for row in rows) for key in ("tp", "fp", "fn"))
    return metrics.overlap(tp, fp, fn)


def _valid(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of images where neither mask is empty."""
    return [r for r in rows if not r["hd_penalised"] and r["tp"] + r["fp"] and r["tp"] + r["fn"]]
