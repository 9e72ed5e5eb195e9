from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import Field

from anaus_bench.errors import SettingsError
from anaus_bench.settings.base import Settings, did_you_mean, merge, parse_overrides, resolve


class Inner(Settings):
    alpha: float = Field(0.15, ge=0, le=1)
    beta: float = 0.2


class Outer(Settings):
    temperature: float = Field(0.1, gt=0)
    inner: Inner = Inner()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": {"inner": {"beta": 0.0}}}


def test_defaults_are_the_paper_preset() -> None:
    assert resolve(Outer, "objective") == Outer()


def test_the_users_values_win_over_the_presets_and_leave_the_rest() -> None:
    settings = resolve(Outer, "objective", "demo", {"inner": {"alpha": 0.5}})

    assert settings.inner == Inner(alpha=0.5, beta=0.0)
    assert settings.temperature == 0.1


def test_an_unknown_key_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"'objective.temprature'; did you mean 'temperature'"):
        resolve(Outer, "objective", overrides={"temprature": 0.2})


def test_an_unknown_nested_key_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"'objective.inner.alfa'; did you mean 'alpha'"):
        resolve(Outer, "objective", overrides={"inner": {"alfa": 0.2}})


def test_a_value_out_of_range_names_the_setting_and_the_value() -> None:
    with pytest.raises(SettingsError, match=r"objective.temperature=0: input should be greater than 0"):
        resolve(Outer, "objective", overrides={"temperature": 0})


def test_assignments_become_nested_values_read_as_yaml() -> None:
    values = parse_overrides(
        ["objective.temperature=0.2", "objective.inner.beta=1", "masks.names=[a, b]", "pretrain.steps=null"]
    )

    assert values == {
        "objective": {"temperature": 0.2, "inner": {"beta": 1}},
        "masks": {"names": ["a", "b"]},
        "pretrain": {"steps": None},
    }


@pytest.mark.parametrize("text", ["objective.temperature", "=1", "objective..x=1", "a=[1"])
def test_a_word_that_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_overrides([text])


def test_merge_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1}}

    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_no_suggestion_for_a_name_like_nothing() -> None:
    assert did_you_mean("zzz", ["byol", "anaus"]) == ""
