"""The classification protocol on generated classes: what is trained, selection, resuming, storing, scoring."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anaus_bench.errors import LabelError, StoreError
from anaus_bench.interfaces import Case, Fold, Picture, Sample, StageContext
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.settings.base import resolve
from anaus_bench.tasks.classification import ACCURACY, ClassificationTask
from anaus_plugins.protocols.finetune import (
    BestEpoch,
    ClassificationSettings,
    build_classifier,
    cosine,
    split_validation,
)

CLASSES = ("dark", "bright")
TINY = resolve(ClassificationSettings, "task", "tiny")


class Shades(ClassificationTask[ClassificationSettings]):
    name = "shades"
    dataset = "shades"
    metrics = (ACCURACY,)


def shade_case(number: int, label: int | None = None, group: str | None = None) -> Case:
    """A dark or bright speckled picture."""
    label = number % 2 if label is None else label
    generator = np.random.default_rng(number)
    image = (60 + 120 * label) * generator.uniform(0.7, 1.3, size=(40, 56))
    sample = Sample(f"shade {number}.png", group or f"group {number}", f"shade {number}.png", label=label)
    return Case(sample, lambda: Picture(image.astype(np.uint8)))


def shade_fold(train: int = 16, test: int = 6) -> Fold:
    cases = [shade_case(number) for number in range(train + test)]
    return Fold(0, tuple(cases[:train]), tuple(cases[train:]), CLASSES)


def make_encoder(arch: str = "resnet18") -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(arch)
    encoder.card = EncoderCard(arch, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "random", "random")
    return encoder


def store(folder: Path, fold: Fold, probabilities: Sequence[Sequence[float]]) -> None:
    """Stores predictions as `fit` does."""
    folder.mkdir(exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "group_id", "fold", "y_true", *(f"p_{name}" for name in fold.classes)])
        for case, row in zip(fold.test, probabilities, strict=True):
            writer.writerow([case.sample.sample_id, case.sample.group_id, fold.number, case.sample.label, *row])


@pytest.mark.parametrize(
    ("arch", "trainable", "expected"),
    [
        ("resnet18", "linear", set()),
        ("resnet18", "last_block", {"layer4.1"}),
        ("resnet50", "last_block", {"layer4.2"}),
        ("resnet18", "last_stage", {"layer4.0", "layer4.1"}),
        ("resnet18", "last3_stages", {f"layer{stage}.{block}" for stage in (2, 3, 4) for block in (0, 1)}),
    ],
)
def test_gradients_are_left_to_the_trainable_part_and_the_head(arch: str, trainable: str, expected: set[str]) -> None:
    network = build_classifier(make_encoder(arch), 3, trainable)

    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    assert {name for name in trained if name.startswith("head.")} == {"head.weight", "head.bias"}
    body = {name.removeprefix("encoder.backbone.") for name in trained if not name.startswith("head.")}
    assert {".".join(name.split(".")[:2]) for name in body} == expected


def test_the_last_block_has_the_published_number_of_parameters() -> None:
    for arch, expected in (("resnet18", 4_720_640), ("resnet50", 4_462_592)):
        encoder = build_classifier(make_encoder(arch), 3, "last_block")["encoder"]
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == expected


def test_all_trains_the_whole_backbone() -> None:
    assert all(parameter.requires_grad for parameter in build_classifier(make_encoder(), 3, "all").parameters())


def test_the_learning_rate_follows_half_a_cosine_over_the_epochs() -> None:
    assert [cosine(0.01, epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.01 * (1 - 0.5**0.5) / 2]
    )


def test_separable_classes_are_learned(stage_context: Callable[..., StageContext]) -> None:
    settings = TINY.model_copy(update={"epochs": 8, "base_lr": 1e-3, "bn_mode": "eval"})
    ctx, fold = stage_context(), shade_fold()
    Shades(settings).fit(make_encoder(), fold, ctx)

    scores = Shades(settings).score([(fold, ctx.out)])

    assert scores.folds[0]["accuracy"] == scores.pooled["accuracy"] == 1.0
    assert (ctx.out / "log.csv").read_text().startswith("step,loss,accuracy")


@pytest.mark.parametrize(("bn_mode", "moves"), [("train", True), ("eval", False)])
def test_statistics_of_frozen_layers_move_in_train_mode_alone(
    bn_mode: str, moves: bool, stage_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    forward = torch.nn.BatchNorm2d.forward

    def observed(self: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            modes.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", observed)
    settings = TINY.model_copy(update={"bn_mode": bn_mode, "epochs": 1})
    Shades(settings).fit(make_encoder(), shade_fold(train=8, test=2), stage_context())

    assert set(modes) == {moves}


def test_fine_tuning_leaves_the_encoder_as_it_was(stage_context: Callable[..., StageContext]) -> None:
    encoder = make_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    Shades(TINY).fit(encoder, shade_fold(train=8, test=2), stage_context())

    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_killed_fold_resumes_to_the_same_predictions(
    select: str, stage_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TINY.model_copy(update={"select": select, "trainable": "linear", "epochs": 3})
    task, fold = Shades(settings), shade_fold()
    whole = stage_context("whole")
    task.fit(make_encoder(), fold, whole)

    killed = stage_context("killed", checkpoint_seconds=0.0)
    step, calls = torch.optim.Adam.step, []

    def fails_at_the_fourth(self: torch.optim.Adam, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", fails_at_the_fourth)
        with pytest.raises(Killed):
            task.fit(make_encoder(), fold, killed)
    torch.manual_seed(99)  # what another process would have
    task.fit(make_encoder(), fold, killed)

    for name in ("predictions.csv", "log.csv"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_the_first_of_equally_accurate_epochs_is_kept() -> None:
    network, best = torch.nn.Linear(1, 1), BestEpoch()
    for accuracy, weight in ((0.5, 1.0), (0.8, 2.0), (0.8, 3.0), (0.6, 4.0)):
        torch.nn.init.constant_(network.weight, weight)
        best.offer(accuracy, network)

    restored = BestEpoch()
    restored.load_state_dict(best.state_dict())

    assert restored.accuracy == 0.8
    assert restored.weights["weight"].item() == 2.0


def test_validation_takes_a_tenth_of_the_groups_of_each_class_and_splits_none() -> None:
    cases = [shade_case(number, label=number % 60 // 40, group=f"group {number // 2}") for number in range(60)]
    train, validation = split_validation(cases, seed=0)

    groups = [{case.sample.group_id for case in part} for part in (train, validation)]
    assert not groups[0] & groups[1]
    assert len(train) + len(validation) == 60
    assert [sum(case.sample.label == k for case in validation) for k in (0, 1)] == [4, 2]
    assert split_validation(cases, seed=0) == (train, validation)
    assert split_validation(cases, seed=1) != (train, validation)


def test_a_label_that_is_no_class_is_refused(stage_context: Callable[..., StageContext]) -> None:
    fold = dataclasses.replace(shade_fold(), test=(shade_case(0, label=2),))

    with pytest.raises(LabelError, match=r"has label 2; classification needs one of 0\.\.1"):
        Shades(TINY).fit(make_encoder(), fold, stage_context())


def test_scores_are_per_fold_and_of_the_summed_confusion_matrix(tmp_path: Path) -> None:
    folds = [
        Fold(0, (), (shade_case(0), shade_case(1)), CLASSES),
        Fold(1, (), (shade_case(2), shade_case(3), shade_case(4)), CLASSES),
    ]
    store(tmp_path / "0", folds[0], [[0.9, 0.1], [0.4, 0.6]])
    store(tmp_path / "1", folds[1], [[0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])

    scores = Shades(TINY).score([(fold, tmp_path / str(fold.number)) for fold in folds])

    assert [fold["accuracy"] for fold in scores.folds] == pytest.approx([1, 2 / 3])
    assert scores.pooled["accuracy"] == pytest.approx(4 / 5)
    assert scores.pooled["f1"] == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert scores.pooled["recall_dark"] == pytest.approx(2 / 3)
    assert scores.pooled["precision_bright"] == pytest.approx(2 / 3)
    assert [row["accuracy"] for row in scores.rows] == [1, 1, 0, 1, 1]
    assert [row["y_pred"] for row in scores.rows] == [0, 1, 1, 1, 0]
    assert any("[[2, 1], [0, 2]]" in note for note in scores.notes)


def test_group_scores_are_of_the_mean_probabilities(tmp_path: Path) -> None:
    cases = (shade_case(0, 0, "clip"), shade_case(2, 0, "clip"), shade_case(4, 0, "clip"), shade_case(1, 1, "other"))
    fold = Fold(0, (), cases, CLASSES)
    store(tmp_path, fold, [[0.9, 0.1], [0.45, 0.55], [0.45, 0.55], [0.1, 0.9]])

    scores = Shades(TINY).score([(fold, tmp_path)])

    assert scores.pooled["accuracy"] == 0.5
    assert scores.pooled["accuracy_group"] == 1.0


def test_absent_classes_are_left_out_of_means_and_counted(tmp_path: Path) -> None:
    fold = Fold(0, (), (shade_case(0), shade_case(2)), CLASSES)
    store(tmp_path, fold, [[0.9, 0.1], [0.8, 0.2]])

    scores = Shades(TINY).score([(fold, tmp_path)])

    assert scores.folds[0]["f1"] == 1.0
    assert np.isnan(scores.folds[0]["recall_bright"])
    assert any("absent from held-out folds: 1" in note for note in scores.notes)


def test_selection_on_the_test_fold_is_marked(tmp_path: Path) -> None:
    fold = Fold(0, (), (shade_case(0), shade_case(1)), CLASSES)
    store(tmp_path, fold, [[0.9, 0.1], [0.2, 0.8]])

    marked = Shades(resolve(ClassificationSettings, "task", "official")).score([(fold, tmp_path)])

    assert any("selected on the test fold" in note for note in marked.notes)
    assert not any("selected on" in note for note in Shades(TINY).score([(fold, tmp_path)]).notes)


def test_drawing_names_the_true_and_the_predicted_class(tmp_path: Path) -> None:
    fold = Fold(0, (), (shade_case(0),), CLASSES)
    store(tmp_path, fold, [[0.25, 0.75]])

    assert Shades(TINY).draw(shade_case(0), tmp_path) == (None, None, "dark, predicted bright (0.75)")
    with pytest.raises(StoreError, match=r"no prediction of 'shade 1\.png'"):
        Shades(TINY).draw(shade_case(1), tmp_path)
