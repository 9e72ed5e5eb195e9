"""The task plugins: which images take part and what they report."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anaus_bench.interfaces import Sample
from anaus_bench.settings.base import PRESETS, resolve
from anaus_plugins.tasks.busi_cls import BUSIClassification
from anaus_plugins.tasks.busi_seg import BUSISegmentation, BUSISegmentationSettings
from anaus_plugins.tasks.udiat import UDIAT

TASKS = (UDIAT, BUSISegmentation, BUSIClassification)
SAMPLES = [
    Sample(f"{name}/{name} (1).png", name, f"{name}/{name} (1).png", label=label)
    for label, name in enumerate(("benign", "malignant", "normal"))
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_valid_settings(task: type, preset: str) -> None:
    settings = resolve(task.settings_class, "task", preset)  # type: ignore[attr-defined]

    assert settings.folds == (2 if preset in ("demo", "tiny") else 5)  # type: ignore[attr-defined]


def test_breast_segmentation_leaves_normal_images_out_unless_asked() -> None:
    without = BUSISegmentation(BUSISegmentationSettings())
    included = BUSISegmentation(BUSISegmentationSettings(include_normal=True))

    assert without.select(SAMPLES) == SAMPLES[:2]
    assert included.select(SAMPLES) == SAMPLES


def test_breast_classification_takes_all_three_classes() -> None:
    assert BUSIClassification(BUSIClassification.settings_class()).select(SAMPLES) == SAMPLES


def test_columns_start_with_the_headline_metric() -> None:
    columns = {task.name: [metric.title for metric in task.metrics] for task in TASKS}

    assert columns == {
        "udiat": ["Dice", "PPV", "Sens.", "HD"],
        "busi-seg": ["Dice", "HD", "PPV", "Sens."],
        "busi-cls": ["Acc.", "F1"],
    }


def test_task_modules_import_no_heavy_library() -> None:
    names = ", ".join(task.__module__ for task in TASKS)
    heavy = ("torch", "torchvision", "scipy", "sklearn", "skimage", "matplotlib")
    code = f"import sys, {names}; print([name for name in {heavy} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
