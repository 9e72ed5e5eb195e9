"""Several processes at work on one run, as `torchrun` starts them.

The first process does everything that a run alone does; the others wait until a stage calls `joined`, run that stage as
well, and throw away the files they write. A process group exists only inside `joined`, so that `world_size()` is 1
everywhere else and no collective waits through the hours of another stage. Items of a batch are dealt in order: process
r holds the r-th of equal parts.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from anaus_bench.distributed.group import least
from anaus_bench.lazy import torch
from anaus_bench.machine.interrupts import handled_by

POLL_SECONDS = 0.2
# Of a collective: longer than the first process takes to save a checkpoint, or to read a corpus onto its device.
TIMEOUT = timedelta(minutes=30)


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that talks, plans, locks and writes."""
    return processes() == 1 or os.environ["RANK"] == "0"


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if processes() > 1 else 0


# ---- the processes of a run ------------------------------------------------------------------------------------------


class _Team:
    """What the processes tell each other through the store of `torchrun`.

    Keys: `job0`, `job1`, ... what the others shall do, `null` to end; `failed` and `interrupted` count processes.
    """

    def __init__(self) -> None:
        store, self.rank, self.size = next(torch.distributed.rendezvous("env://"))  # type: ignore[attr-defined]
        self.store = self.part(store, f"anaus_bench/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
        self.offered: Mapping[str, Any] | None = None
        self.jobs = self.groups = 0
        self.told = False  # whether this process is the one whose error is shown

    @staticmethod
    def part(store: Any, prefix: str) -> Any:
        return torch.distributed.PrefixStore(prefix, store)  # type: ignore[attr-defined]

    def post(self, job: Mapping[str, Any] | None) -> None:
        self.store.set(f"job{self.jobs}", json.dumps(job))
        self.jobs += 1

    def count(self, what: str, more: int = 0) -> int:
        return int(self.store.add(what, more))

    def fail(self) -> None:
        """Ends this process without a word if another has failed before: that one says why."""
        if not self.told and self.count("failed", 1) > 1:
            sys.exit(1)
        self.told = True


_team: _Team | None = None


@contextmanager
def team() -> Iterator[None]:
    """Around all that a process does; of several errors the first is raised, the other processes end without a word."""
    global _team
    if processes() == 1:
        yield
        return
    # DDP would warn in every process where it looks for unused parameters, which some methods have, in vain.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _team = _Team()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        _team.fail()
        raise
    finally:
        if is_first():
            _team.post(None)
        _team = None


def offer(job: Mapping[str, Any]) -> None:
    """Says what the others are to do if the stage that begins now calls `joined`; a JSON object."""
    if _team is not None:
        _team.offered = job


def jobs() -> Iterator[Any]:
    """What the first process offered and joined, one after the other, until it ends.

    Meanwhile Ctrl-C and SIGTERM are ignored: it is the first process that ends the run, once its own step is saved.
    """
    assert _team is not None
    for number in itertools.count():
        try:
            with handled_by(signal.SIG_IGN):
                while not _team.store.check([f"job{number}"]):
                    time.sleep(POLL_SECONDS)
                job = json.loads(_team.store.get(f"job{number}"))
        except torch.distributed.DistNetworkError:  # the store ended with the first process
            return
        if job is None:
            return
        yield job


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """A process group of all processes, whose tensors may be on the CPU and on `device`; nothing without `torchrun`.

    Enters all or none: an error or Ctrl-C in one process ends the stage in all.
    """
    if _team is None:
        yield
        return
    if _team.offered is not None:
        _team.post(_team.offered)
        _team.offered = None
    _team.groups += 1
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_team.part(_team.store, f"group{_team.groups}"),
            rank=_team.rank,
            world_size=_team.size,
            timeout=TIMEOUT,
        )
        yield
        least(0)  # none leaves while another still waits for it
    except KeyboardInterrupt:
        _team.count("interrupted", 1)
        if _team.count("failed"):  # `torchrun` stops all when one has failed
            sys.exit(1)
        raise
    except Exception:
        if _team.count("interrupted"):  # what fails here is talking to a process that has left
            raise KeyboardInterrupt from None
        _team.fail()
        raise
    torch.distributed.destroy_process_group()


# ---- the processes of a group ----------------------------------------------------------------------------------------
