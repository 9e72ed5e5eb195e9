"""How a run talks to the user: progress lines on the terminal, or plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from anaus_bench.errors import escape

LINE_EVERY = 20.0  # seconds between the lines of one loop where there is no terminal


class SilentTracker:
    """Shows nothing."""

    def advance(self, step: int, *, images: int, waited: float, values: Mapping[str, float] | None = None) -> None:
        """Shows nothing."""


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[SilentTracker]:
        """Shows nothing."""
        yield SilentTracker()

    def note(self, text: str) -> None:
        """Says nothing."""


class ConsoleProgress:
    """One line per loop with bar, ETA, the logged values, images/s and the share of time spent waiting for data.

    Args:
        console: Standard error, so that standard output carries results alone.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[_Line]:
        """A progress line of `total` steps."""
        label = escape(label)
        bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        with bars:
            yield _Line(
                self.console, bars, bars.add_task(label, total=total, completed=done, values=""), label, total, done
            )

    def note(self, text: str) -> None:
        """One line of information."""
        self.console.print(Text(escape(text)), soft_wrap=True)


class _Line:
    """Progress of one loop."""

    def __init__(self, console: Console, bars: Progress, task: TaskID, label: str, total: int, done: int) -> None:
        self.console, self.bars, self.task, self.label, self.total = console, bars, task, label, total
        self.first, self.started = done, time.monotonic()
        self.images, self.waited, self.printed = 0, 0.0, self.started

    def advance(self, step: int, *, images: int, waited: float, values: Mapping[str, float] | None = None) -> None:
        """Updates the line."""
        now = time.monotonic()
        self.images += images
        self.waited += waited
        seconds = max(now - self.started, 1e-9)
        shown = [f"{name} {value:.4g}" for name, value in (values or {}).items() if name == "loss"]
        shown.append(f"{self.images / seconds:.1f} images/s")
        if self.waited:
            shown.append(f"data {100 * self.waited / seconds:.0f} %")
        text = "  ".join(shown)
        self.bars.update(self.task, completed=step, values=text)
        if not self.console.is_terminal and (now - self.printed >= LINE_EVERY or step == self.total):
            left = seconds / max(step - self.first, 1) * (self.total - step)
            eta = f", ETA {left:.0f} s" if step < self.total else f", {seconds:.1f} s"
            self.console.print(Text(f"  {self.label}: {step}/{self.total}{eta}  {text}"))
            self.printed = now


def console_progress(console: Console, quiet: bool) -> ConsoleProgress | SilentProgress:
    """What talks to the user on `console`, or says nothing."""
    return SilentProgress() if quiet else ConsoleProgress(console)
