"""`export`: an encoder for another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anaus_bench.cli.options import DEFAULT_STORE, AsJson, PluginFiles, StorePath
from anaus_bench.cli.printing import print_json, say
from anaus_bench.registry import Registry
from anaus_bench.store import Store


def export(
    key: Annotated[str, typer.Argument(help="Key of a pretrain stage (see `plan`), or how it begins.")],
    to: Annotated[str, typer.Option(help="safetensors, torchvision, timm, detectron2 or onnx.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. [default: METHOD-BACKBONE-KEY]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    store: StorePath = DEFAULT_STORE,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Write an encoder for another library, with a model card; its outputs are checked with that library."""
    from anaus_bench.export.export import export as export_encoder

    exported = export_encoder(key, to, output, Store(store), Registry(plugin or ()), replace=force)
    if as_json:
        print_json(vars(exported))
        return
    rows = {"weights": exported.weights, "card": exported.card, "verified": exported.verdict}
    for name, value in rows.items():
        say(f"{name:10} {value}")
