"""The user's settings by section, and which of them were read: a setting that nothing reads is a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anaus_bench.errors import SettingsError
from anaus_bench.registry import KINDS
from anaus_bench.settings.base import check_known
from anaus_bench.settings.core import CORE_SETTINGS


class Sections:
    """Settings by the name of their section, such as `objective` or `data.busi`.

    Args:
        overrides: Section -> values, as `parse_overrides` gives them.
        datasets: Names of the data sets that `data` may hold.

    Raises:
        SettingsError: An unknown section or data set, or a value where a section was expected.
    """

    def __init__(self, overrides: Mapping[str, Any], datasets: Sequence[str]) -> None:
        check_known("section of settings", overrides, [*CORE_SETTINGS, *(section for _, section in KINDS.values())])
        self.given = {name: _section(name, values) for name, values in overrides.items() if name != "data"}
        named = _section("data", overrides.get("data", {}))
        check_known("data set", named, datasets)
        self.given |= {f"data.{name}": _section(f"data.{name}", values) for name, values in named.items()}
        self._read = {"executor"}  # which the command reads

    def read(self, name: str) -> Mapping[str, Any]:
        """The user's values of a section."""
        self._read.add(name)
        return self.given.get(name, {})

    def refuse_unread(self) -> None:
        """Refuses what was given and never read.

        Raises:
            SettingsError: Such sections.
        """
        unread = sorted(
            f"{section}.{name}" for section in self.given.keys() - self._read for name in self.given[section]
        )
        if unread:
            raise SettingsError(
                f"--set {', '.join(unread)}: nothing in this cell reads that; leave it out (read here: "
                f"{', '.join(sorted(self._read))})"
            )


def _section(name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise SettingsError(f"--set {name}={values!r}: {name} is a section; write --set {name}.NAME=VALUE")
    return values
