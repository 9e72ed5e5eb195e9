"""Every hook on one screen.

A plugin module implements the hook of its kind and is found through the entry-point group of that kind
(`anaus_bench.objectives`, ...). Modules in the group `anaus_bench.extensions` may answer the hooks at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from anaus_bench.interfaces import Dataset, Executor, MaskSource, Objective, Protocol, Stage, Task

hookspec = pluggy.HookspecMarker("anaus_bench")
hookimpl = pluggy.HookimplMarker("anaus_bench")


@hookspec
def anaus_datasets() -> Sequence[type[Dataset[Any]]]:
    """Return the data set classes this plugin offers."""


@hookspec
def anaus_mask_sources() -> Sequence[type[MaskSource[Any]]]:
    """Return the mask source classes this plugin offers."""


@hookspec
def anaus_objectives() -> Sequence[type[Objective[Any]]]:
    """Return the pre-training objective classes this plugin offers."""


@hookspec
def anaus_tasks() -> Sequence[type[Task[Any]]]:
    """Return the task classes this plugin offers."""


@hookspec
def anaus_protocols() -> Sequence[type[Protocol[Any, Any]]]:
    """Return the classes of protocols, how an encoder is used on a task, that this plugin offers."""


@hookspec
def anaus_executors() -> Sequence[type[Executor[Any]]]:
    """Return the executor classes this plugin offers."""


@hookspec
def anaus_stage_finished(stage: Stage, record: Mapping[str, Any]) -> None:
    """Called after a stage has run and its result is in the store; not called for cached stages."""
