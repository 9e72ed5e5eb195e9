"""Where images come from: the data sets and corpora of a cell, each looked at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anaus_bench.cells.cell import Cell
from anaus_bench.datasets.roots import data_folder, find_data
from anaus_bench.interfaces import Dataset, Stage
from anaus_bench.planning.sections import Sections
from anaus_bench.planning.specs import CorpusSpec, DatasetSpec, PhantomsSpec, stage_of
from anaus_bench.settings.core import CorpusSettings, PhantomSettings


@dataclass(frozen=True)
class Source:
    """Where the images of a data set come from.

    Attributes:
        spec: The data set, with the fingerprint of its files where they are the user's.
        images: How many there are; about as many, where they are generated.
        generated: The stage that makes its images, or None.
        folder: The user's folder, or None.
    """

    spec: DatasetSpec
    images: int
    generated: Stage | None = None
    folder: Path | None = None

    def inputs(self, role: str) -> dict[str, Stage]:
        """What a stage that reads the images rests on."""
        return {role: self.generated} if self.generated else {}

    @property
    def roots(self) -> dict[str, str]:
        """Where a stage finds the user's folder."""
        return {self.spec.name: str(self.folder)} if self.folder else {}


class Sources:
    """The data sets and corpora of a cell.

    Args:
        cell: Whose they are.
        roots: Data set name -> folder of the user's.
        sections: The user's settings.
        notes: Takes what the user should know.
    """

    def __init__(self, cell: Cell, roots: Mapping[str, Path], sections: Sections, notes: list[str]) -> None:
        self.cell, self.roots, self.sections, self.notes = cell, roots, sections, notes
        self._found: dict[tuple[str, str], Source] = {}
        self._corpora: dict[tuple[str, ...], Stage] = {}

    def corpus(self, names: Sequence[str]) -> Stage:
        """Packs data sets into one corpus; the same one in whatever order they are named."""
        key = tuple(sorted(names))
        if key not in self._corpora:
            self._corpora[key] = self._pack({name: self.source(name, "train") for name in key})
        return self._corpora[key]

    def _pack(self, sources: Mapping[str, Source]) -> Stage:
        settings, count = self.sections.core(CorpusSettings), sum(source.images for source in sources.values())
        size = settings.size
        if (gigabytes := count * size**2 / 1e9) >= 1:
            self.notes.append(
                f"corpus {'+'.join(sources)}: {count} images packed at up to {size} pixels are {gigabytes:.1f} GB, "
                "and label maps of them as much again; corpus.size sets the side"
            )
        specs = {name: source.spec for name, source in sources.items()}
        spec = CorpusSpec(size=size, datasets=specs, unreadable=settings.unreadable)
        inputs = {role: stage for name, source in sources.items() for role, stage in source.inputs(name).items()}
        roots = {name: folder for source in sources.values() for name, folder in source.roots.items()}
        return stage_of(spec, f"pack {'+'.join(sources)}", inputs=inputs, roots=roots)

    def source(self, name: str, role: str) -> Source:
        """A data set to pre-train on or to fit on (`train`), or of a `task`: the two never share a patient."""
        if (name, role) not in self._found:
            self._found[name, role] = self._find(name, role)
        return self._found[name, role]

    def _find(self, name: str, role: str) -> Source:
        dataset: Dataset[Any] = self.sections.create("datasets", name)
        spec = DatasetSpec(**dict(self.sections.registry.spec("datasets", dataset)))
        if not self.is_generated(name):
            skips = role == "train" and self.sections.core(CorpusSettings).unreadable == "skip"
            index = find_data(dataset, self.roots, skips_unreadable=skips)
            self.notes += [f"{name}: {warning}" for warning in index.warnings]
            self.notes += [f"{name}: left out: {reason}" for reason in index.unreadable.values()]
            folder = data_folder(name, self.roots)
            return Source(spec.model_copy(update={"fingerprint": index.fingerprint}), len(index.samples), folder=folder)
        if "ANAUS_DATA" in os.environ and (folder := data_folder(name, {})):
            self.notes.append(
                f"{name}: preset {self.cell.preset} generates phantoms; the folder {str(folder)!r} under ANAUS_DATA is "
                f"not used unless --data-root {name}={folder} names it"
            )
        phantom = self.sections.core(PhantomSettings)
        seed = 2 * phantom.seed + (role == "task")
        generate = PhantomsSpec(dataset=spec, count=getattr(phantom, role), size=phantom.size, seed=seed)
        title = f"generate images of {name} for the {'task' if role == 'task' else 'corpus'}"
        return Source(spec, generate.count, generated=stage_of(generate, title))

    def is_generated(self, name: str) -> bool:
        """Whether the data set is made of phantoms: those presets generate whatever has no folder of the user's."""
        return name not in self.roots and (self.cell.on_phantoms or name == "phantom")
