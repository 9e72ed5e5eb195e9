"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anaus_bench.errors import SettingsError
from anaus_bench.nn.backbones import BACKBONES
from anaus_bench.settings.base import PRESETS

Masks = Annotated[str | None, typer.Option(help="Mask source, for methods that need one.")]
Corpus = Annotated[
    str | None, typer.Option(help="Data sets to pre-train on, joined by +. [default: that of the preset]")
]
Protocol = Annotated[str | None, typer.Option(help="How the encoder is used on the task. [default: that of the task]")]
Backbone = Annotated[str | None, typer.Option(help=f"{', '.join(BACKBONES)}. [default: that of the method]")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of pre-training and fine-tuning.")]
Preset = Annotated[str, typer.Option(help=f"Values the settings start from: {', '.join(PRESETS)}.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change a setting; repeatable.")
]
DataRoot = Annotated[
    list[str] | None, typer.Option("--data-root", metavar="NAME=PATH", help="Folder of a data set; repeatable.")
]
PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="Python file with plugins; repeatable.")]
StorePath = Annotated[Path, typer.Option(envvar="ANAUS_STORE", help="Folder of all artifacts and results.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else there.")]
MaskNames = Annotated[list[str], typer.Option("--masks", help="Mask source; repeat to see several side by side.")]
CorpusNames = Annotated[str, typer.Option("--corpus", help="Data sets, joined by +.")]
DEFAULT_STORE = Path("anaus-store")


def parse_roots(assignments: Sequence[str] | None) -> dict[str, Path]:
    """Data set name -> folder, from `NAME=PATH` words.

    Raises:
        SettingsError: A word without `=`.
    """
    roots = {}
    for text in assignments or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise SettingsError(f"--data-root {text!r} is no assignment; write --data-root NAME=PATH")
        roots[name] = Path(path).expanduser()
    return roots
