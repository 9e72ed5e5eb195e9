"""The command: parse, call the library, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

from anaus_bench.cli.data import data_app
from anaus_bench.cli.doctor import doctor
from anaus_bench.cli.export import export
from anaus_bench.cli.masks import masks_app
from anaus_bench.cli.plugins import list_plugins, show
from anaus_bench.cli.printing import warn
from anaus_bench.cli.results import table
from anaus_bench.cli.run import plan, run
from anaus_bench.cli.store import store_app
from anaus_bench.distributed import team as distributed
from anaus_bench.errors import AnausError
from anaus_bench.machine import interrupts
from anaus_bench.machine.failures import explain

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
for command in (run, plan, list_plugins, show, table, export, doctor):
    app.command("list" if command is list_plugins else None)(command)
app.add_typer(data_app, name="data")
app.add_typer(masks_app, name="masks")
app.add_typer(store_app, name="store")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: user errors are one line on standard error and exit code 2; see `distributed` for `torchrun`."""
    interrupts.listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        with distributed.team(), _output():
            if distributed.is_first():
                app(args=arguments)
            else:
                from anaus_bench.execution.runner import follow

                follow()
    except AnausError as error:
        if os.environ.get("ANAUS_TRACEBACK"):  # for authors of plugins
            traceback.print_exc()
        _fail(str(error))
    except OSError as error:
        _fail(explain(error))
    except MemoryError:
        _fail("out of memory; end other programs, or use a larger machine")


def _fail(text: str) -> NoReturn:
    """Ends with one line on standard error and exit code 2."""
    warn(f"error: {text}")
    sys.exit(2)


@contextmanager
def _output() -> Iterator[None]:
    """Around all that is printed: it is written to its end before the command can say that all is well.

    Raises:
        OSError: Standard output is full or broken.
    """
    if sys.stdout is None:  # `>&-`: no file may take its number, what prints there would write into it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # Python writes what is left as it ends
            raise
