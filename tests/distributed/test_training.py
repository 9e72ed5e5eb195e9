"""Two processes pre-train as one does on the whole batch, stop together and go on together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anaus_bench.corpus.batch import Batch
from anaus_bench.distributed.team import team
from anaus_bench.errors import SettingsError, TrainingError
from anaus_bench.interfaces import StageContext
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import Registry
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.pretraining import pretrain
from anaus_plugins.objectives.byol import BYOL, BYOLSettings
from tests.conftest import RecordedProgress

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")

PROCESSES = 2
STEPS = 3
SETTINGS = PretrainSettings(
    size=64, batch=8, steps=STEPS, epochs=1, warmup_epochs=0, optimiser="sgd", base_lr=1e-4, lr_scaling=False
)
Method = tuple[str, Mapping[str, Any], bool]
# Name, settings beside those of `tiny`, whether it is given masks. R2O's K-means is that of each process's images.
FEW: list[Method] = [
    ("anaus", {}, True),
    ("byol", {}, False),
    ("mocov2", {}, False),
    ("simclr", {}, False),
]
OTHERS: list[Method] = [
    (
        "anaus",
        {"pairing": "independent", "loss": "detcon", "context": {"photometric": "shared", "pool": "masks"}},
        True,
    ),
    ("awcl", {}, False),
    ("densecl", {}, False),
    ("detcon", {}, True),
    ("detcon", {"variant": "s"}, True),
    ("dino", {}, False),
    ("fixmatch", {}, False),
    ("ivpp", {"base": "barlow"}, False),
    ("mocov2", {"bn_splits": 1}, False),
    ("r2o", {"stored_masks": "replace"}, True),
    ("slotcon", {}, False),
    ("slotcon", {}, True),
    ("supervised", {}, False),
    ("uscl", {}, False),
    ("usfmae", {}, False),
    ("usucl", {}, False),
    ("vicreg", {}, False),
]


def smooth(module: nn.Module) -> Any:
    """The networks without ReLU and max-pooling, at whose kinks rounding decides where a gradient goes."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.GELU())
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        else:
            smooth(child)
    return module


def train(objective: Any, masked: bool, folder: Path, checkpoint_seconds: float = 60.0) -> dict[str, Any]:
    """The encoder's state before and after, and the facts."""
    torch.manual_seed(0)
    encoder = Encoder(objective.default_backbone("tiny"), objective.finest_stride())
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    build = objective.build
    objective.build = lambda *arguments: smooth(build(*arguments))
    corpus = synthetic_corpus(24)
    out = folder / os.environ.get("RANK", "0")
    out.mkdir(parents=True, exist_ok=True)
    ctx = StageContext(out, folder, torch.device("cpu"), 0, RecordedProgress(), checkpoint_seconds)
    _, facts = pretrain(objective, encoder, corpus, corpus.truth if masked else None, np.arange(24), SETTINGS, ctx)
    return {"start": start, "end": encoder.state_dict(), "facts": facts}


def train_all(methods: list[Method], folder: Path) -> list[dict[str, Any]]:
    registry = Registry()
    return [
        train(registry.create("objectives", name, "tiny", values), masked, folder / str(number))
        for number, (name, values, masked) in enumerate(methods)
    ]


class Troubled(BYOL):
    """BYOL in whose second process something happens in step 1."""

    trouble = "none"

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if dist.is_initialized() and dist.get_rank() == 1 and batch.step == 1:
            if self.trouble == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            elif self.trouble == "fail":
                raise TrainingError("out of luck")
        return super().loss(nets, batch)


def train_troubled(trouble: str, folder: Path) -> Any:
    objective = Troubled(BYOLSettings(**BYOLSettings.presets["tiny"]))
    objective.trouble = trouble
    return train(objective, False, folder)


def train_with_an_eager_second(folder: Path) -> Any:
    """Fails in step 1; the first process saves once an hour, and the second one knows nothing of it."""
    objective = Troubled(BYOLSettings(**BYOLSettings.presets["tiny"]))
    objective.trouble = "fail"
    return train(objective, False, folder, 0.0 if os.environ["RANK"] == "1" else 3600.0)


def take_part(rank: int, port: int, call: Any, *arguments: Any) -> str:
    """How `call(*arguments)` ends in a process of two; its result is in the last argument, `<port>-<rank>.pt`."""
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    try:
        with team():
            torch.save(call(*arguments), arguments[-1] / f"{port}-{rank}.pt")
        return "done"
    except (SystemExit, TrainingError, SettingsError) as stop:
        return f"{type(stop).__name__}: {stop}"
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def in_other(rank: int, tasks: Any, answers: Any) -> None:
    for task in iter(tasks.get, None):
        answers.put(take_part(rank, *task))


class Pair:
    """This process and another one."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.tasks, self.answers = context.Queue(), context.Queue()
        self.other = context.Process(target=in_other, args=(1, self.tasks, self.answers))
        self.other.start()

    def __call__(self, call: Any, *arguments: Any) -> tuple[list[str], list[Any]]:
        """How `call` ended in both, and the results of those where it was done."""
        with socket.socket() as server:
            server.bind(("localhost", 0))
            port = server.getsockname()[1]
        before = dict(os.environ)
        try:
            self.tasks.put((port, call, *arguments))
            ends = [take_part(0, port, call, *arguments), self.answers.get(timeout=120)]
        finally:
            os.environ.clear()
            os.environ.update(before)
        files = [arguments[-1] / f"{port}-{rank}.pt" for rank in range(PROCESSES)]
        return ends, [torch.load(file, weights_only=True) for file in files if file.exists()]


@pytest.fixture
def pair() -> Any:
    both = Pair()
    yield both
    both.tasks.put(None)
    both.other.join(60)


@pytest.mark.parametrize("methods", [FEW, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "others"])
def test_two_processes_make_the_encoder_that_one_makes(pair: Pair, tmp_path: Path, methods: list[Method]) -> None:
    (tmp_path / "pair").mkdir()
    ends, results = pair(train_all, methods, tmp_path / "pair")

    assert ends == ["done", "done"]
    alone = train_all(methods, tmp_path / "alone")
    for number, method in enumerate(methods):
        expected = alone[number]
        for found in (result[number] for result in results):
            assert (expected["facts"]["processes"], found["facts"]["processes"]) == (1, PROCESSES)
            for name, value in expected["facts"]["last"].items():
                if name in ("loss", "contrast", "context", "grouping"):
                    assert found["facts"]["last"][name] == pytest.approx(value, rel=1e-4), method
            update = flat(expected["end"]) - flat(expected["start"])
            difference = flat(found["end"]) - flat(expected["end"])
            assert difference.norm() < 1e-3 * update.norm(), method
            for name, value in expected["end"].items():
                tolerance = 1e-4 if "running_" in name else 1e-5
                assert torch.allclose(found["end"][name], value, atol=tolerance, rtol=1e-3), (method, name)


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """All weights, without the running statistics."""
    return torch.cat([value.double().flatten() for name, value in state.items() if "running_" not in name])


def test_processes_stop_after_the_same_step_go_on_to_the_same_bits_and_fail_together(
    pair: Pair, tmp_path: Path
) -> None:
    for name in ("whole", "stopped", "failed"):
        (tmp_path / name).mkdir()
    _, whole = pair(train_troubled, "none", tmp_path / "whole")

    stopped, _ = pair(train_troubled, "interrupt", tmp_path / "stopped")
    saved = torch.load(tmp_path / "stopped" / "pre-train.pt", weights_only=True)
    resumed, results = pair(train_troubled, "interrupt", tmp_path / "stopped")
    failed, _ = pair(train_troubled, "fail", tmp_path / "failed")

    assert stopped == ["SystemExit: 130", "SystemExit: 130"]
    assert saved["run"]["done"] == 2
    assert resumed == ["done", "done"]
    for found, expected in zip(results, whole, strict=True):
        assert found["facts"]["last"] == pytest.approx(expected["facts"]["last"], rel=1e-12)
        assert all(torch.equal(found["end"][name], value) for name, value in expected["end"].items())
    assert failed == ["SystemExit: 1", "TrainingError: out of luck"]


def test_the_process_that_saves_says_when(pair: Pair, tmp_path: Path) -> None:
    ends, _ = pair(train_with_an_eager_second, tmp_path)

    assert ends[1] == "TrainingError: out of luck"
    assert not (tmp_path / "pre-train.pt").exists()


def test_a_batch_that_cannot_be_dealt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=r"pretrain.batch=8 cannot be dealt to 3 processes; set it to a multiple"):
        train_troubled("none", tmp_path)
