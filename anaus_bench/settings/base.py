"""Typed settings: frozen pydantic models whose unknown keys are refused with a suggestion.

A settings class holds the paper's values as its defaults and the other presets beside them, so that every value of a
plugin stands in the plugin's own file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import pydantic

from anaus_bench.errors import SettingsError, shown
from anaus_bench.settings.text import read_yaml

PRESETS = ("paper", "official", "native", "demo", "tiny")

MOST_NAMES = 16  # in the dotted name of a setting
_LOCATION = "location"

Location = Annotated[str, _LOCATION]
"""A setting that says where a file is. Results do not depend on it: the plugin's `identity` holds the file's digest."""


class Settings(pydantic.BaseModel):
    """Base of all settings.

    `presets` maps a preset's name to the values that differ from the defaults, which are the `paper` preset. A
    field's description is its documentation: meaning, unit, range, and the source (equation, section).
    """

    # Schemas are built at the first use, which listing plugins never comes to.
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


SettingsT = TypeVar("SettingsT", bound=Settings)


def resolve(
    cls: type[SettingsT], section: str, preset: str = "paper", overrides: Mapping[str, Any] | None = None
) -> SettingsT:
    """Settings of one section: defaults, then the preset's values, then the user's.

    Raises:
        SettingsError: An unknown key or a value out of range; the message names all offenders.
    """
    values = merge(cls.presets.get(preset, {}), overrides or {})
    try:
        return cls.model_validate(values)
    except pydantic.ValidationError as error:
        raise SettingsError("; ".join(_explain(cls, section, item) for item in error.errors())) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` in which the values of `over` win; nested mappings are merged."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Nested values of assignments such as `objective.temperature=0.2`; right sides are read as YAML.

    Raises:
        SettingsError: An assignment has no `=`, an empty name, too many of them, or a value that is no YAML; or two
            assignments set one value.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}  # name of a value -> the assignment that sets it
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names) or len(names) > MOST_NAMES:
            raise SettingsError(f"--set {shown(assignment)} is no assignment; write --set section.name=value")
        try:
            value = read_yaml(text)
        except SettingsError as error:
            raise SettingsError(f"--set {'.'.join(names)[:80]}: {error}") from None
        for leaf in flatten(value, f"{'.'.join(names)}."):
            for name, other in given.items():
                if f"{leaf}.".startswith(f"{name}.") or f"{name}.".startswith(f"{leaf}."):
                    raise SettingsError(
                        f"--set {shown(other)} and --set {shown(assignment)} set one value; leave one out"
                    )
            given[leaf] = assignment
        for name in reversed(names):
            value = {name: value}
        values = merge(values, value)
    return values


def location_names(settings: Settings) -> tuple[str, ...]:
    """Dotted names of those settings that say where a file is (`Location`)."""
    names: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        marks = (*field.metadata, *(mark for part in get_args(field.annotation) for mark in get_args(part)))
        if _LOCATION in marks:
            names.append(name)
        elif isinstance(value, Settings):
            names += [f"{name}.{below}" for below in location_names(value)]
    return tuple(names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_known(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuses names that are not known.

    Raises:
        SettingsError: The first unknown name, with the nearest known one.
    """
    for name in names:
        if name not in known:
            raise SettingsError(f"unknown {kind} {shown(name)}{did_you_mean(name, known)} (known: {', '.join(known)})")


def _explain(cls: type[Settings], section: str, item: Any) -> str:
    path = ".".join([section, *(str(part) for part in item["loc"])])
    if item["type"] != "extra_forbidden":
        reason = item["msg"].removeprefix("Value error, ")
        reason = f"{reason[:1].lower()}{reason[1:]}"
        together = not item["loc"]  # each is well by itself
        return f"settings of {section}: {reason}" if together else f"setting {path}={shown(item['input'])}: {reason}"
    model: Any = cls
    for part in item["loc"][:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    known = sorted(getattr(model, "model_fields", {}))
    hint = did_you_mean(str(item["loc"][-1]), known) or f" (known here: {', '.join(known)})"
    return f"unknown setting {shown(path)}{hint}"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings under their dotted names."""
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, below in value.items() for name, leaf in flatten(below, f"{prefix}{key}.").items()}
