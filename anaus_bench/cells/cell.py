"""A cell of the benchmark: method x masks x backbone x corpus x task x seed, and the settings that no plugin owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anaus_bench.errors import SettingsError
from anaus_bench.settings.base import flatten

# The paper's short names.
CORPORA = {"bf": "butterfly", "cm": "camus"}


@dataclass(frozen=True)
class Cell:
    """What a user asks for.

    Attributes:
        method: Name of an objective.
        task: Name of a task.
        masks: Name of a mask source, or None.
        corpus: Data sets to pre-train on, joined by `+`; None: that of the preset.
        backbone: Encoder architecture; None: that of the method.
        seed: Seed of pre-training and fine-tuning.
        preset: Which values the settings start from.
        overrides: Section -> values of the user's.
        protocol: Name of a protocol; None: that of the task.
    """

    method: str
    task: str
    masks: str | None = None
    corpus: str | None = None
    backbone: str | None = None
    seed: int = 0
    preset: str = "paper"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None

    @property
    def on_phantoms(self) -> bool:
        """Whether data sets without a folder are generated."""
        return self.preset in ("demo", "tiny")

    def corpus_names(self) -> list[str]:
        """Names of the corpus's data sets, sorted; the paper's corpus is `bf+cm`.

        Raises:
            SettingsError: One is named twice.
        """
        corpus = self.corpus or ("phantom" if self.on_phantoms else "bf+cm")
        names = sorted(CORPORA.get(name.strip(), name.strip()) for name in corpus.split("+"))
        if len(set(names)) < len(names):
            raise SettingsError(f"--corpus {corpus!r} names a data set twice; name each once")
        return names


def cell_title(cell: Cell) -> str:
    """Method, masks, task and protocol in a few words."""
    masks = f" with {cell.masks} masks" if cell.masks else ""
    protocol = f" by {cell.protocol}" if cell.protocol else ""
    return f"{cell.method}{masks} on {cell.task}{protocol}"


def cell_labels(cell: Cell, trains: bool) -> dict[str, str]:
    """What a table calls a cell, column by column."""
    changed = flatten({section: values for section, values in cell.overrides.items() if section != "executor"})
    return {
        "method": cell.method,
        "masks": cell.masks or "-",
        "corpus": "+".join(cell.corpus_names()) if trains else "-",
        "backbone": str(cell.backbone),
        "preset": cell.preset,
        "protocol": cell.protocol or "-",
        "seed": str(cell.seed),
        "settings": " ".join(f"{name}={value}" for name, value in sorted(changed.items())) or "-",
    }
