"""`table`: what a store holds."""

from __future__ import annotations

from typing import Annotated

import typer

from anaus_bench.cli.options import DEFAULT_STORE, AsJson, PluginFiles, StorePath
from anaus_bench.cli.printing import print_json, print_table, say, warn
from anaus_bench.errors import SettingsError
from anaus_bench.registry import Registry
from anaus_bench.settings.base import check_known
from anaus_bench.store import Store


def table(
    store: StorePath = DEFAULT_STORE,
    form: Annotated[str, typer.Option("--format", help="terminal or markdown.")] = "terminal",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show all results of a store: one table per task, phantoms apart from real data."""
    from anaus_bench.results.lineage import mask_scores
    from anaus_bench.results.tables import markdown, store_tables

    check_known("format", [form], ["terminal", "markdown"])
    shelf = Store(store)
    if as_json:
        for damaged in shelf.damaged("score"):
            warn(f"damaged: {damaged}; see `anaus-bench doctor`")
        kept = ("key", "labels", "phantom", "result")
        records = shelf.records("score")
        print_json(
            [{key: record[key] for key in kept} | {"mask_scores": mask_scores(shelf, record)} for record in records]
        )
        return
    tables = store_tables(shelf, Registry(plugin or ()))
    if not tables:
        raise SettingsError(f"store {str(store)!r} has no results yet; run a cell with `anaus-bench run`")
    for number, made in enumerate(tables):
        if form == "markdown":
            for line in [*([""] if number else []), *markdown(made).split("\n")]:
                say(line)
        else:
            print_table(made)
