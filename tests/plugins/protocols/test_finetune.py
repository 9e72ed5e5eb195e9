"""Fine-tuning on generated classes: what is trained, selection, resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from anaus_bench.errors import LabelError
from anaus_bench.interfaces import StageContext
from anaus_bench.settings.base import resolve
from anaus_plugins.protocols.finetune import (
    BestEpoch,
    FineTuning,
    FineTuningSettings,
    build_classifier,
    cosine,
    split_validation,
)
from tests.toy_tasks import SHADES, run_fold, shade_case, shade_fold, toy_encoder

TINY = resolve(FineTuningSettings, "protocol", "tiny")


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
    network = build_classifier(toy_encoder(arch), 3, trainable)

    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    assert {name for name in trained if name.startswith("head.")} == {"head.weight", "head.bias"}
    body = {name.removeprefix("encoder.backbone.") for name in trained if not name.startswith("head.")}
    assert {".".join(name.split(".")[:2]) for name in body} == expected


def test_the_last_block_has_the_published_number_of_parameters() -> None:
    for arch, expected in (("resnet18", 4_720_640), ("resnet50", 4_462_592)):
        encoder = build_classifier(toy_encoder(arch), 3, "last_block")["encoder"]
        assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == expected


def test_all_trains_the_whole_backbone() -> None:
    assert all(parameter.requires_grad for parameter in build_classifier(toy_encoder(), 3, "all").parameters())


def test_the_learning_rate_follows_half_a_cosine_over_the_epochs() -> None:
    assert [cosine(0.01, epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005, 0.01 * (1 - 0.5**0.5) / 2]
    )


def test_separable_classes_are_learned(stage_context: Callable[..., StageContext]) -> None:
    settings = TINY.model_copy(update={"epochs": 8, "base_lr": 1e-3, "bn_mode": "eval"})
    ctx, fold = stage_context(), shade_fold()
    run_fold(FineTuning(settings), SHADES, fold, ctx)

    scores = SHADES.score([(fold, ctx.out)])

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
    run_fold(FineTuning(settings), SHADES, shade_fold(train=8, test=2), stage_context())

    assert set(modes) == {moves}


def test_fine_tuning_leaves_the_encoder_as_it_was(stage_context: Callable[..., StageContext]) -> None:
    encoder = toy_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    run_fold(FineTuning(TINY), SHADES, shade_fold(train=8, test=2), stage_context(), encoder)

    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("select", ["last", "val"])
def test_a_killed_fold_resumes_to_the_same_predictions(
    select: str, stage_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TINY.model_copy(update={"select": select, "trainable": "linear", "epochs": 3})
    protocol, fold = FineTuning(settings), shade_fold()
    whole = stage_context("whole")
    run_fold(protocol, SHADES, fold, whole)

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
            run_fold(protocol, SHADES, fold, killed)
    torch.manual_seed(99)  # what another process would have
    run_fold(protocol, SHADES, fold, killed)

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
        run_fold(FineTuning(TINY), SHADES, fold, stage_context())


def test_selection_on_the_test_fold_is_marked() -> None:
    (note,) = FineTuning(resolve(FineTuningSettings, "protocol", "official")).notes()

    assert "selected on the test fold" in note
    assert not FineTuning(TINY).notes()
