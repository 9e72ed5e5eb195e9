from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import Field

from anaus_bench.errors import SettingsError, escape
from anaus_bench.settings.base import Settings, did_you_mean, merge, parse_overrides, resolve
from anaus_bench.settings.core import PretrainSettings


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.b=1", "a.b=1"], "'a.b=1' and --set 'a.b=1' set one value; leave one out"),
        (["a.b=1", "a={b: 2}"], "set one value"),
        (["a={b: {c: 2}}", "a.b=1"], "set one value"),
        (["a={b: 1, b: 2}"], "the key 'b' stands there twice"),
        (["a=&x [*x]"], "anchors and aliases are not read"),
        (["a=!!python/name:os.system x"], "tags are not read"),
        (["a=" + "[" * 5000], "nested more than 16 deep"),
        (["a=" + "{a: " * 30 + "1" + "}" * 30], "nested more than 16 deep"),
        ([".".join("a" * 3000) + "=1"], "is no assignment; write --set section.name=value"),
        (["a={1: 2}"], "a key must be a string"),
        (["a=" + "9" * 5000], "a number of more than 100 digits"),
        (["a=0x" + "f" * 90], "a whole number beyond 64 bits"),
        (["a=0b_"], "'0b_' is no number"),
        (["a=" + "b" * 20_000], "too long a value; at most 10000 characters"),
        (["a=\x1b[31m"], "it holds a control code"),
        (["a=\udcff"], "it holds a control code"),
        (["a=1\n--- 2"], "is no YAML"),
    ],
    ids=range(17),
)
def test_a_value_that_is_bounded_by_nothing_is_refused_in_one_short_line(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_overrides(words)

    assert message in str(refused.value)
    assert len(str(refused.value)) < 600
    assert escape(str(refused.value)) == str(refused.value)


def test_parts_of_one_section_may_be_set_one_by_one() -> None:
    assert parse_overrides(["a={b: 1}", "a.c=2", "a.bb=3"]) == {"a": {"b": 1, "c": 2, "bb": 3}}


def test_dates_and_merges_are_the_strings_that_json_would_hold() -> None:
    values = parse_overrides(["a=2020-13-45", "b={<<: 1}", "c==", "d=1e-3"])

    assert values == {"a": "2020-13-45", "b": {"<<": 1}, "c": "=", "d": "1e-3"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": [2, 3]}, r"pretrain.betas.0=2: input should be less than 1; setting pretrain.betas.1=3"),
        ({"nesterov": True}, r"settings of pretrain: nesterov=true is of optimiser=sgd .* found optimiser=lars"),
        ({"nesterov": True, "optimiser": "sgd", "sgd_momentum": 0}, r"found optimiser=sgd and sgd_momentum=0; set"),
    ],
)
def test_pretraining_settings_that_torch_would_refuse_are_refused_when_they_are_read(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(PretrainSettings, "pretrain", overrides=values)
