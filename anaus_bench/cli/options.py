"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anaus_bench.cells.cell import CORPORA
from anaus_bench.errors import SettingsError, shown
from anaus_bench.execution.device import known_device
from anaus_bench.machine.home import expanded
from anaus_bench.nn.backbones import BACKBONES
from anaus_bench.settings.base import PRESETS

Masks = Annotated[str | None, typer.Option(help="Mask source, for methods that need one.")]
Corpus = Annotated[
    str | None, typer.Option(help="Data sets to pre-train on, joined by +. [default: that of the preset]")
]
Protocol = Annotated[str | None, typer.Option(help="How the encoder is used on the task. [default: that of the task]")]
Backbone = Annotated[str | None, typer.Option(help=f"{', '.join(BACKBONES)}. [default: that of the method]")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of pre-training and fine-tuning.")]
Preset = Annotated[str, typer.Option(help=f"Values the settings start from: {', '.join(PRESETS)}.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting; repeatable.")
]
DataRoot = Annotated[
    list[str] | None, typer.Option("--data-root", metavar="NAME=PATH", help="Folder of a data set; repeatable.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with plugins; repeatable.")]
StorePath = Annotated[Path, typer.Option(envvar="ANAUS_STORE", help="Folder of all artifacts and results.")]
Device = Annotated[str, typer.Option(callback=known_device, help="auto, cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else there.")]
MaskNames = Annotated[list[str], typer.Option("--masks", help="Mask source; repeat to see several side by side.")]
CorpusNames = Annotated[str, typer.Option("--corpus", help="Data sets, joined by +.")]
DEFAULT_STORE = Path("anaus-store")


def parse_roots(assignments: Sequence[str] | None) -> dict[str, Path]:
    """Data set name -> folder, from `NAME=PATH` words.

    Raises:
        SettingsError: A word without `=`, or one data set twice.
    """
    roots: dict[str, Path] = {}
    for text in assignments or ():
        name, equals, path = text.partition("=")
        name = CORPORA.get(name, name)
        if not (name and equals and path):
            raise SettingsError(f"--data-root {shown(text)} is no assignment; write --data-root NAME=PATH")
        if name in roots:
            raise SettingsError(
                f"--data-root gives {shown(name)} twice, {str(roots[name])!r} and {path!r}; leave one out"
            )
        roots[name] = expanded(path)
    return roots
