"""The user's settings by section, and which of them were read: a setting that nothing reads is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anaus_bench.cells.cell import Cell
from anaus_bench.errors import SettingsError
from anaus_bench.registry import KINDS, Registry
from anaus_bench.settings.base import SettingsT, check_known, resolve
from anaus_bench.settings.core import CORE_SETTINGS


class Sections:
    """Makes plugins and the core's settings from what the user gave.

    Args:
        cell: Its preset and settings.
        registry: Where plugins are found.

    Attributes:
        given: Name of a section, such as `objective` or `data.busi` -> the user's values.

    Raises:
        SettingsError: An unknown section or data set, or a value where a section was expected.
    """

    def __init__(self, cell: Cell, registry: Registry) -> None:
        self.preset, self.registry = cell.preset, registry
        known = [*CORE_SETTINGS, *(section for _, section in KINDS.values())]
        check_known("section of settings", cell.overrides, known)
        self.given = {name: _section(name, values) for name, values in cell.overrides.items() if name != "data"}
        named = _section("data", cell.overrides.get("data", {}))
        check_known("data set", named, registry.names("datasets"))
        self.given |= {f"data.{name}": _section(f"data.{name}", values) for name, values in named.items()}
        self._read = {"executor"}  # which the command reads

    def read(self, name: str) -> Mapping[str, Any]:
        """The user's values of a section."""
        self._read.add(name)
        return self.given.get(name, {})

    def create(self, kind: str, name: str) -> Any:
        """A plugin with the user's settings.

        Raises:
            AnausError: As `Registry.create`.
        """
        section = KINDS[kind][1]
        values = self.read(f"{section}.{name}" if kind == "datasets" else section)
        return self.registry.create(kind, name, self.preset, values)

    def core(self, cls: type[SettingsT]) -> SettingsT:
        """Settings that no plugin owns, with the user's values."""
        (section,) = (name for name, known in CORE_SETTINGS.items() if known is cls)
        return resolve(cls, section, self.preset, self.read(section))

    def refuse_unread(self) -> None:
        """Refuses what was given and never read.

        Raises:
            SettingsError: Such sections.
        """
        sections = self.given.keys() - self._read
        unread = sorted(f"{section}.{name}" for section in sections for name in self.given[section])
        if unread:
            raise SettingsError(
                f"--set {', '.join(unread)}: nothing in this cell reads that; leave it out (read here: "
                f"{', '.join(sorted(self._read))})"
            )


def _section(name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise SettingsError(f"--set {name}={values!r}: {name} is a section; write --set {name}.NAME=VALUE")
    return values
