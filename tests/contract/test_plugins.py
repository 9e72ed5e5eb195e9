"""Every installed plugin keeps the contract of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from anaus_bench.interfaces import Task
from anaus_bench.kit.check import check_dataset, check_description, check_mask_source, check_objective, check_protocol
from anaus_bench.kit.synthetic import silent_context
from anaus_bench.registry import Registry
from anaus_bench.settings.base import PRESETS, resolve
from anaus_bench.settings.core import PretrainSettings

REGISTRY = Registry()


@pytest.mark.parametrize("name", REGISTRY.names("objectives"))
def test_objective(name: str) -> None:
    check_objective(REGISTRY.create("objectives", name, "tiny"))


@pytest.mark.parametrize(
    "name", [name for name in REGISTRY.names("mask_sources") if not REGISTRY.get("mask_sources", name).stored]
)
def test_mask_source(name: str, tmp_path: Path) -> None:
    check_mask_source(REGISTRY.create("mask_sources", name, "tiny"), silent_context(tmp_path))


@pytest.mark.parametrize("name", REGISTRY.names("datasets"))
def test_dataset(name: str, tmp_path: Path) -> None:
    check_dataset(REGISTRY.create("datasets", name), tmp_path)


@pytest.mark.parametrize("name", REGISTRY.names("protocols"))
def test_protocol(name: str, tmp_path: Path) -> None:
    check_protocol(REGISTRY.create("protocols", name, "tiny"), silent_context(tmp_path))


@pytest.mark.parametrize("name", REGISTRY.names("tasks"))
def test_task(name: str) -> None:
    task: Task[object] = REGISTRY.create("tasks", name, "tiny")  # type: ignore[type-var]

    check_description(task)
    assert task.metrics
    assert task.dataset in REGISTRY.names("datasets")
    assert isinstance(task, REGISTRY.get("protocols", task.protocol).task_class)
    assert {*task.split_settings, *task.score_settings} <= set(type(task.settings).model_fields)
    assert task.settings.folds >= 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", REGISTRY.names("objectives"))
def test_the_recipes_of_an_objective_are_valid_settings_of_pre_training(name: str) -> None:
    recipes = REGISTRY.get("objectives", name).recipes

    assert set(recipes) <= set(PRESETS)
    for preset in PRESETS:
        resolve(PretrainSettings, "pretrain", preset, recipes.get(preset))
