"""Weights of the user's: prefixes of wrappers come off, and what no training leaves behind is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.machine import home
from anaus_bench.nn.encoder import Encoder, load_imagenet
from anaus_bench.nn.weights import read_state, unwrapped, weights_folder


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "backbone.", "module.encoder_q.", "model.", "model.backbone.", "module.encoder.module."],
)
def test_what_wrappers_put_before_the_names_is_taken_off_and_said(
    prefix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    safetensors.torch.save_file({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    encoder = Encoder("resnet18")

    with pytest.warns(UserWarning, match=f"begin with '{prefix}'"):
        load_imagenet(encoder, str(tmp_path / "a.safetensors"))

    assert all(torch.equal(value, state[name]) for name, value in encoder.backbone.state_dict().items())


def test_of_two_networks_in_a_file_the_one_that_is_trained_is_taken(state: dict[str, Tensor]) -> None:
    both = {f"module.encoder_k.{name}": value + 1 for name, value in state.items()}
    both |= {f"module.encoder_q.{name}": value for name, value in state.items()}

    with pytest.warns(UserWarning, match="encoder_q"):
        found = unwrapped(both, state, "moco.pth")

    assert torch.equal(found["conv1.weight"], state["conv1.weight"])


def test_names_that_fit_are_left_alone(state: dict[str, Tensor], recwarn: pytest.WarningsRecorder) -> None:
    assert unwrapped(state, state, "a.pth") is state
    assert not recwarn.list


def test_a_network_that_does_not_fit_is_summarised(state: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file({f"stem.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")

    with pytest.raises(
        WeightsError, match=r"100 of 120 tensors missing, such as 'conv1\.weight'; 122 of 122 tensors un"
    ):
        load_imagenet(Encoder("resnet18"), str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("bn1.running_var", -1.0, "negative variances"),
        ("conv1.weight", float("nan"), "no finite numbers"),
        ("fc.bias", float("inf"), "no finite numbers"),
    ],
)
def test_numbers_that_no_training_leaves_behind_are_refused(
    name: str, value: float, match: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({**state, name: torch.full_like(state[name], value)}, tmp_path / "a.pth")

    with pytest.raises(WeightsError, match=match):
        read_state(tmp_path / "a.pth")


def test_a_checkpoint_with_its_arguments_names_the_safe_way_out(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")

    with pytest.raises(WeightsError, match=r"arguments of its training.*save its state dict alone"):
        read_state(tmp_path / "a.pth")


def test_without_a_home_only_what_needs_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ANAUS_CACHE", "ANAUS_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(Path, "expanduser", lambda self: unknown())

    assert home.cache_folder() is None
    with pytest.raises(WeightsError, match="set ANAUS_WEIGHTS"):
        weights_folder()
    with pytest.raises(SettingsError, match="no such home folder"):
        home.expanded("~/a")
    monkeypatch.setenv("ANAUS_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
