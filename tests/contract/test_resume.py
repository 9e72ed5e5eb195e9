"""Every objective killed in mid-step goes on to the same encoder, bit for bit on the CPU."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anaus_bench.corpus.packed import write_index
from anaus_bench.interfaces import Objective, StageContext, StageInputs
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.planning.specs import PretrainSpec
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.stages.pretrain import run

STEPS, KILLED_AT = 3, 1  # steps in all, and the step that is killed
VARIANTS: tuple[tuple[str, bool, Mapping[str, Any]], ...] = (
    ("slotcon", True, {"stored_masks": "hard"}),
    ("slotcon", True, {"stored_masks": "guided"}),
    ("slotcon", False, {"redraw": True, "min_overlap": 0.5}),
    ("r2o", True, {"stored_masks": "prior"}),
    ("r2o", False, {"lr_clusters": 16}),
    ("usucl", False, {"sampling": "clips", "curriculum": "table"}),
)


def cases() -> list[tuple[str, bool, Mapping[str, Any]]]:
    """Each method that trains, with masks where it needs them; and its variants."""
    registry = Registry()
    classes = {name: registry.get("objectives", name) for name in registry.names("objectives")}
    plain = [(name, cls.takes_masks() == "needed", {}) for name, cls in classes.items() if cls.trains]
    return [*plain, *VARIANTS]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that the step under way did is saved."""


@pytest.fixture
def inputs(tmp_path: Path) -> StageInputs:
    """A packed corpus of clips with labels, and label maps of it."""
    corpus = synthetic_corpus(16)
    folders = {name: tmp_path / name for name in ("corpus", "masks")}
    for folder in folders.values():
        folder.mkdir()
    np.save(folders["corpus"] / "images.npy", corpus.images)
    np.save(folders["masks"] / "label_maps.npy", corpus.truth)  # type: ignore[arg-type]
    write_index(folders["corpus"], corpus.entries, corpus.structures, corpus.annotated, corpus.classes, corpus.phantom)
    return StageInputs(folders, {})


@pytest.mark.parametrize(
    ("name", "masked", "values"),
    cases(),
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, Mapping) else str(value),
)
def test_a_killed_run_goes_on_to_the_same_bits(
    inputs: StageInputs,
    stage_context: Callable[..., StageContext],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    masked: bool,
    values: Mapping[str, Any],
) -> None:
    torch.set_num_threads(1)
    registry = Registry()
    objective = registry.create("objectives", name, "tiny", values)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": STEPS})
    spec = PretrainSpec(
        objective=registry.spec("objectives", objective),
        backbone=objective.default_backbone("tiny"),
        init="random",
        seed=0,
        share=1.0,
        pretrain=settings.model_dump(mode="json", exclude={"init", "weights"}),
    )
    given = StageInputs({role: inputs.folders[role] for role in ("corpus", *(["masks"] if masked else []))}, {})
    folders = {}
    for label in ("whole", "killed"):
        ctx = stage_context(label, checkpoint_seconds=0 if label == "killed" else 60)
        folders[label] = ctx.out
        if label == "killed":
            with monkeypatch.context() as patch:
                kill_at(patch, registry.get("objectives", name), KILLED_AT / STEPS)
                with pytest.raises(Killed):
                    run(spec, given, ctx, registry)
            torch.manual_seed(99)  # what a new process would not share
        run(spec, given, ctx, Registry())

    assert "pre-train: resumed at step 1 of 3" in ctx.progress.notes  # type: ignore[attr-defined]
    first, second = (folder / "encoder.safetensors" for folder in folders.values())
    assert first.read_bytes() == second.read_bytes()
    logs = [list(csv.DictReader((folder / "log.csv").open())) for folder in folders.values()]
    assert logs[0] == logs[1]


def kill_at(patch: pytest.MonkeyPatch, cls: type[Objective[Any]], progress: float) -> None:
    """Kills the step at `progress` after its loss, when queues and centres have moved."""
    before, loss, now = cls.before_forward, cls.loss, [0.0]

    def watch(self: Objective[Any], nets: Any, at: float) -> None:
        now[0] = at
        before(self, nets, at)

    def kill(self: Objective[Any], nets: Any, batch: Any) -> Any:
        result = loss(self, nets, batch)
        if now[0] >= progress:
            raise Killed
        return result

    patch.setattr(cls, "before_forward", watch)
    patch.setattr(cls, "loss", kill)
