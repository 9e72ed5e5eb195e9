"""Where the core calls a plugin: what it raises, prints and returns is looked at here, and nowhere else."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from anaus_bench.errors import LONGEST, AnausError, PluginError
from anaus_bench.interfaces.breach import Breach
from anaus_bench.interfaces.contract import Check
from anaus_bench.interfaces.plugin import Plugin
from anaus_bench.machine.failures import as_os_error, is_want_of_memory

PluginT = TypeVar("PluginT", bound=Plugin[Any])
INTERFACES = "anaus_bench.interfaces."


@contextlib.contextmanager
def plugin_code(who: str, file: str | None = None) -> Iterator[None]:
    """Runs code of anybody's: what it prints goes to standard error, since standard output is for results alone.

    Errors of ours, of the operating system and want of memory pass: what is wrong is no fault of the plugin.

    Args:
        who: Whose code it is, and which part.
        file: Where it stands; the line of it that raised is named.

    Raises:
        PluginError: Whatever else is raised, the wish to end the program included.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Breach as breach:
        raise PluginError(f"{who} returned {breach.found}; expected {breach.expected}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, AnausError) or _is_of_the_machine(error):
            raise
        raise PluginError(f"{who} raised {reason(error)}{_place(error, file)}; it must not") from error


def reason(error: BaseException) -> str:
    """Kind and message of an error in one line."""
    text = (str(error).strip() or "no message").partition("\n")[0]
    return f"{type(error).__name__}: {text[:LONGEST]}"


def guarded(plugin: PluginT, who: str, checks: Mapping[str, Check]) -> PluginT:
    """The plugin itself, each method of whose interface now runs as `plugin_code` with its result checked.

    Args:
        plugin: Fresh from its class.
        who: What it is called in errors.
        checks: Method -> what must hold of its result.
    """
    file = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    bases = [base for base in type(plugin).__mro__ if base.__module__.startswith(INTERFACES)]
    for name in {name for base in bases for name, value in vars(base).items() if inspect.isfunction(value)}:
        if not name.startswith("_"):
            setattr(plugin, name, _guarded(plugin, getattr(plugin, name), f"{who}: {name}", file, checks.get(name)))
    return plugin


def _guarded(
    plugin: Plugin[Any], method: Callable[..., Any], who: str, file: str | None, check: Check | None
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*words: Any, **named: Any) -> Any:
        with plugin_code(who, file):
            found = method(*words, **named)
            if check is not None:
                check(plugin, found, *words, **named)
        return found

    return call


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether the operating system said so by a number, or a library for it, or memory ran out."""
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, Exception) and (is_want_of_memory(error) or as_os_error(error) is not None)


def _place(error: BaseException, file: str | None) -> str:
    """The line of `file` that raised, else the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
