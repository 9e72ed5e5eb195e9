"""`store`: looks after a store."""

from __future__ import annotations

from typing import Annotated

import typer

from anaus_bench.cli.options import DEFAULT_STORE, AsJson, StorePath
from anaus_bench.cli.printing import print_json, say
from anaus_bench.errors import SettingsError
from anaus_bench.store import Store, mark

store_app = typer.Typer(no_args_is_help=True, help="Look after a store.")


@store_app.command("gc")
def store_gc(
    store: StorePath = DEFAULT_STORE,
    interrupted: Annotated[
        bool, typer.Option("--interrupted", help="Also what interrupted stages need to go on; they then start anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a store in order: remove what killed runs left over of finished stages. Results stay, running stages too."""
    shelf = Store(store)
    if not shelf.root.exists():
        raise SettingsError(f"store {str(store)!r} does not exist; pass --store")
    mark(shelf.root)
    removed = {f"{kind} {key}": shelf.tidy(kind, key, interrupted) for kind, key in shelf.unfinished()}
    if as_json:
        print_json(removed)
        return
    for what, size in removed.items():
        say(f"{what}: {size / 2**20:.1f} MiB removed")
    say(f"{sum(removed.values()) / 2**20:.1f} MiB removed from {shelf.root}")
