"""Runs stages: looks into the store, claims, calls the stage's function, publishes the artifact with its record."""

from __future__ import annotations

import datetime
import errno
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from anaus_bench.distributed import team as distributed
from anaus_bench.errors import PluginError, StoreError
from anaus_bench.execution.device import find_device
from anaus_bench.execution.job import Job
from anaus_bench.execution.progress import SilentProgress
from anaus_bench.execution.provenance import forget_peak, provenance
from anaus_bench.interfaces import Progress, Stage
from anaus_bench.interfaces.guard import plugin_code
from anaus_bench.registry import Registry
from anaus_bench.store import Record, Store, Workplace


@dataclass
class Runner:
    """Runs stages one after the other on one device.

    Attributes:
        registry: Where the stages' plugins are found.
        store: Where artifacts are.
        progress: How to talk to the user.
        device: torch device, or `auto`: the first CUDA device, else the CPU.
        checkpoint_seconds: Least time between checkpoints.
        done: Keys of the stages that this runner ran (not those that were cached).
    """

    registry: Registry
    store: Store
    progress: Progress
    device: str = "auto"
    checkpoint_seconds: float = 60.0
    done: list[str] = field(default_factory=list)

    def run(self, stage: Stage) -> Record:
        """Record of the stage; runs it if the store does not hold it. Its inputs must be there.

        Raises:
            AnausError: Whatever the stage raises; the store is left as it was, but for the stage's resume state.
        """
        record = self.store.record(stage.kind, stage.key)
        if record is not None:
            return record
        try:
            with self.store.claim(
                stage.kind,
                stage.key,
                waiting=lambda: self.progress.note(f"{stage.title}: another process is at work on it; waiting"),
            ) as place:
                record = self.store.record(stage.kind, stage.key)  # another process may have finished it
                if record is not None:
                    shutil.rmtree(place.out.parent)
                    return record
                record = self._execute(stage, place)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self.store.root).free / 2**20
            raise StoreError(
                f"{stage.title}: no space left in store {str(self.store.root)!r} ({free:.0f} MiB free); free some, or "
                "pass another --store; finished stages are kept"
            ) from error
        self.done.append(stage.key)
        try:
            with plugin_code("an extension"):
                self.registry.extensions().hook.anaus_stage_finished(stage=stage, record=record)
        except (PluginError, OSError) as error:  # the stage is done and published
            self.progress.note(f"after {stage.title}: {error}")
        return record

    def _execute(self, stage: Stage, place: Workplace) -> Record:
        device = find_device(self.device)
        below = [self.store.record(other.kind, other.key) for other in stage.inputs.values()]
        folders = {role: self.store.open(other.kind, other.key) for role, other in stage.inputs.items()}
        job = Job(
            kind=stage.kind,
            spec=stage.spec,
            folders={role: str(folder.resolve()) for role, folder in folders.items()},
            roots={name: str(Path(root).resolve()) for name, root in stage.roots.items()},
            phantom=any(record is not None and record["phantom"] for record in below),
            resume=str(place.resume.resolve()),
            device=self.device,
            plugins=tuple(str(file) for file in self.registry.files),
        )
        distributed.offer(asdict(job))
        forget_peak(device)
        started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        self.progress.note(stage.title)
        result = job.run(place.out, self.registry, self.progress, self.checkpoint_seconds)
        record = {
            "kind": stage.kind,
            "key": stage.key,
            "title": stage.title,
            "version": stage.version,
            "spec": stage.spec,
            "locations": stage.locations,
            "inputs": {role: other.key for role, other in stage.inputs.items()},
            "roots": dict(stage.roots),
            "labels": dict(stage.labels),
            "phantom": bool(result.pop("phantom", False)) or job.phantom,
            "result": result,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.perf_counter() - clock, 3),
            **provenance(device),
        }
        return self.store.publish(stage.kind, stage.key, place, record)


def follow() -> None:
    """What every process but the first does: it runs the stages that the first one calls it to, into empty folders."""
    for values in distributed.jobs():
        job = Job(**values)
        with tempfile.TemporaryDirectory() as out:
            job.run(Path(out), Registry([Path(file) for file in job.plugins]), SilentProgress())
