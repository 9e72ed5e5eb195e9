"""The command: parse, call the library, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from anaus_bench import interrupts
from anaus_bench.cli.data import data_app
from anaus_bench.cli.doctor import doctor
from anaus_bench.cli.export import export
from anaus_bench.cli.masks import masks_app
from anaus_bench.cli.plugins import list_plugins, show
from anaus_bench.cli.results import table
from anaus_bench.cli.run import plan, run
from anaus_bench.distributed import team as distributed
from anaus_bench.errors import AnausError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (run, plan, list_plugins, show, table, export, doctor):
    app.command("list" if command is list_plugins else None)(command)
app.add_typer(data_app, name="data")
app.add_typer(masks_app, name="masks")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: user errors are one line on standard error and exit code 2; see `distributed` for `torchrun`."""
    interrupts.listen()
    try:
        with distributed.team():
            if distributed.is_first():
                app(args=arguments)
            else:
                from anaus_bench.execution.runner import follow

                follow()
    except AnausError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        text = (
            f"error: {str(error.filename)!r} cannot be read or written ({error.strerror}); check --store and --output"
        )
        Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
