"""Ctrl-C and SIGTERM (a scheduler's preemption): both ask a run to stop, and neither is ever lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
    """From now on both raise `KeyboardInterrupt`, even where a shell had Ctrl-C ignored, as in background jobs."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


@contextmanager
def handled_by(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """Gives both signals another handler for a while; in the main thread only."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def deferred() -> Iterator[threading.Event]:
    """An event that the first signal sets; `KeyboardInterrupt` comes at the end of the block, or with a second signal.

    Outside the main thread, which alone is given signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    with handled_by(handle):
        yield event
    if event.is_set():
        raise KeyboardInterrupt
