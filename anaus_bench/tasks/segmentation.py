"""Segmentation: stored detections are merged into one mask per image, which is scored against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from anaus_bench.errors import MissingMask, StoreError
from anaus_bench.interfaces import Case, Fold, Metric, Scores, Task
from anaus_bench.metrics import segmentation as metrics
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.instances import Instances, components, read_predictions, with_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

PPV = Metric("ppv", "PPV")
SENSITIVITY = Metric("sensitivity", "Sens.")
DICE = Metric("dice", "Dice")
HAUSDORFF = Metric("hausdorff", "HD", higher_is_better=False, fraction=False)

FRACTIONS = ("ppv", "sensitivity", "dice", "iou")
DISTANCES = ("hausdorff", "hd95", "hausdorff_native")


class SegmentationSettings(TaskSettings):
    """What the objects of a mask are, and how detections become one mask."""

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

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **TaskSettings.presets,
        # Meta-USCL's scripts, from which the paper's protocol stems.
        "official": {"instances": "single", "merge": "top1"},
    }


SegmentationSettingsT = TypeVar("SegmentationSettingsT", bound=SegmentationSettings)


class SegmentationTask(Task[SegmentationSettingsT]):
    """Scores one merged mask per held-out image."""

    protocol = "maskrcnn"
    settings_class: ClassVar[type[SegmentationSettings]] = SegmentationSettings
    score_settings = ("merge", "score_threshold")

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
        (_, truth), predicted = self.read(case), self._merged(instances)
        dice = metrics.overlap(*metrics.pixel_counts(truth, predicted))["dice"]
        return truth.astype(np.uint8), predicted.astype(np.uint8), f"Dice {dice:.3f}"

    def foreground(self, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """What is segmented (H, W), of a mask with structure ids (H, W): all structures, unless a task narrows it."""
        return mask > 0

    def read(self, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image (H, W) uint8 of a case and its foreground (H, W).

        Raises:
            MissingMask: It has no mask.
        """
        picture = case.read()
        if picture.mask is None:
            raise MissingMask(f"{case.sample.sample_id} has no mask; segmentation needs one for every image")
        return np.array(picture.image), self.foreground(picture.mask)

    def objects(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:
        """Ids (H, W) from 1 of the objects of a mask (H, W), their boxes (N, 4), and how many were too small."""
        if self.settings.instances == "single":
            return *with_boxes(mask.astype(np.int32)), 0
        labels, dropped = components(mask, self.settings.min_area)
        return *with_boxes(labels), dropped

    def _merged(self, instances: Instances) -> NDArray[np.bool_]:
        return instances.merged(self.settings.merge, self.settings.score_threshold)

    def _score_case(self, case: Case, fold: Fold, instances: Instances) -> tuple[dict[str, Any], int]:
        _, truth = self.read(case)
        _, boxes, dropped = self.objects(truth)
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
