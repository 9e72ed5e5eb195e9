"""Pre-training on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anaus_bench.corpus.batch import make_batch
from anaus_bench.corpus.view import Solarise, View
from anaus_bench.interfaces import StageContext
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training import pretraining
from tests.cuda.conftest import CPU, Placement, deterministic, killed_in_step

pytestmark = pytest.mark.cuda

REGISTRY = Registry()
CLASSES = {name: REGISTRY.get("objectives", name) for name in REGISTRY.names("objectives")}
TRAINED = [(name, cls.takes_masks() == "needed") for name, cls in CLASSES.items() if cls.trains]
WITH_MASKS = [(name, True) for name, cls in CLASSES.items() if cls.takes_masks() == "optional"]
CORPUS = synthetic_corpus(16)


def trained(name: str, masked: bool, ctx: StageContext, steps: int) -> tuple[nn.ModuleDict, dict[str, Tensor], float]:
    """The networks after a few steps, the encoder's state before them, and the last loss."""
    torch.manual_seed(0)
    objective = REGISTRY.create("objectives", name, "tiny")
    encoder = Encoder(objective.default_backbone("tiny"), objective.finest_stride())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": steps})
    maps = CORPUS.truth if masked else None
    nets, facts = pretraining.pretrain(objective, encoder, CORPUS, maps, np.arange(len(CORPUS)), settings, ctx)
    return nets, before, facts["last"]["loss"]


@pytest.mark.parametrize(("name", "masked"), TRAINED + WITH_MASKS)
def test_two_steps_of_an_objective_move_its_encoder_on_the_device_and_touch_no_other(
    name: str, masked: bool, device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with Placement() as placement:
        nets, before, loss = trained(name, masked, context_on(device), steps=2)

    assert math.isfinite(loss)
    assert {value.device for value in nets.state_dict().values()} == {device}
    assert placement.devices <= {CPU, device}
    after = nets["encoder"].state_dict()
    assert any(not torch.equal(before[key], after[key].cpu()) for key in before)


@pytest.mark.parametrize(("name", "masked"), [("anaus", True), ("byol", False)])
def test_an_objective_stays_on_a_device_that_is_not_the_current_one(
    name: str, masked: bool, other_device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with Placement() as placement:
        nets, _, _ = trained(name, masked, context_on(other_device), steps=1)

    assert {value.device for value in nets.state_dict().values()} == {other_device}
    assert placement.devices <= {CPU, other_device}


@pytest.mark.parametrize(("name", "masked"), [("anaus", True), ("byol", False)])
def test_a_killed_pre_training_goes_on_to_the_same_bits_with_deterministic_algorithms(
    name: str, masked: bool, device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    with deterministic():
        whole, _, _ = trained(name, masked, context_on(device, "whole"), steps=3)
        with killed_in_step(1):
            trained(name, masked, context_on(device, "killed", checkpoint_seconds=0), steps=3)
        ctx = context_on(device, "killed")
        resumed, _, _ = trained(name, masked, ctx, steps=3)

    assert "pre-train: resumed at step 1 of 3" in ctx.progress.notes  # type: ignore[attr-defined]
    again = resumed.state_dict()
    assert [key for key, value in whole.state_dict().items() if not torch.equal(value, again[key])] == []


def test_a_corpus_on_the_device_and_a_streamed_one_give_the_same_batches(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "images.npy", CORPUS.images)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    rows, recipes = torch.tensor([3, 0, 9, 3]), (View(32), View(32, operations=(Solarise(0.5),)))

    batches = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(pretraining, "RESIDENT_SHARE", share)
        held, maps = (pretraining._resident(array, device) for array in (images, CORPUS.truth))  # type: ignore[arg-type]
        assert isinstance(held, Tensor) is (share > 0 and device.type == "cuda")
        batches.append(
            make_batch(held, maps, CORPUS.boxes(), CORPUS.labels(), rows, recipes, seed=0, step=5, device=device)
        )

    resident, streamed = batches
    for one, other in (
        *zip(resident.views, streamed.views, strict=True),
        *zip(resident.label_maps, streamed.label_maps, strict=True),
        (resident.source, streamed.source),
        (resident.labels, streamed.labels),
    ):
        assert one.device == other.device == device
        assert torch.equal(one, other)
