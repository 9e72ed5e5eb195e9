"""The command: parse, call the library, print. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from anaus_bench.cli.data import data_app
from anaus_bench.cli.doctor import doctor
from anaus_bench.cli.export import export
from anaus_bench.cli.masks import masks_app
from anaus_bench.cli.plugins import list_plugins, show
from anaus_bench.cli.printing import warn
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
    # SIGTERM (a scheduler's preemption) leaves the same resumable state as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        with distributed.team():
            if distributed.is_first():
                app(args=arguments)
            else:
                from anaus_bench.execution.runner import follow

                follow()
    except AnausError as error:
        if os.environ.get("ANAUS_TRACEBACK"):  # for authors of plugins
            traceback.print_exc()
        warn(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        warn(f"error: {str(error.filename)!r} cannot be read or written ({error.strerror}); check --store and --output")
        sys.exit(2)
