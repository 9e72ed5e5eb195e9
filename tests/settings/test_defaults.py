"""Every default is the value of an independent list, which names its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from anaus_bench.registry import KINDS, Registry
from anaus_bench.settings.base import Settings

TABLES = Path(__file__).with_name("defaults.yaml")
LIST: Mapping[str, Mapping[str, tuple[Any, str]]] = yaml.safe_load(TABLES.read_text())


def classes() -> dict[str, type[Settings]]:
    """Settings classes of the package with fields of their own, by name."""
    registry = Registry()
    for kind in KINDS:
        for name in registry.names(kind):
            registry.get(kind, name)
    found = [cls for cls in below(Settings) if cls.__module__.startswith(("anaus_bench.", "anaus_plugins."))]
    return {cls.__name__: cls for cls in found if own_fields(cls)}


def below(cls: type[Settings]) -> Iterator[type[Settings]]:
    for child in cls.__subclasses__():
        yield child
        yield from below(child)


def own_fields(cls: type[Settings]) -> dict[str, Any]:
    """JSON values of the defaults that a class defines or redefines; sections of it have tables of their own."""
    values = cls.model_validate({})
    own = [name for name in cls.__annotations__ if name in cls.model_fields]
    return {
        name: value
        for name, value in values.model_dump(mode="json", include=set(own)).items()
        if not isinstance(getattr(values, name), Settings)
    }


CLASSES = classes()


def test_every_settings_class_has_its_table() -> None:
    assert sorted(CLASSES) == sorted(LIST)


@pytest.mark.parametrize("name", LIST)
def test_defaults_are_those_of_their_sources(name: str) -> None:
    table = LIST[name]

    assert own_fields(CLASSES[name]) == {field: value for field, (value, _) in table.items()}
    assert all(source for _, source in table.values())
