"""Runs stages: looks into the store, claims, calls the stage's function, publishes the artifact with its record."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from anaus_bench.distributed import team as distributed
from anaus_bench.errors import MachineError, PluginError
from anaus_bench.execution.device import find_device
from anaus_bench.execution.job import Job
from anaus_bench.execution.progress import SilentProgress
from anaus_bench.execution.provenance import forget_peak, provenance
from anaus_bench.interfaces import Progress, Stage
from anaus_bench.interfaces.guard import plugin_code
from anaus_bench.machine.failures import as_os_error, explain, is_want_of_memory
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
    _told: bool = False

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
                waiting=lambda holder: self.progress.note(f"{stage.title}: {holder} is at work on it; waiting"),
            ) as place:
                record = self.store.record(stage.kind, stage.key)  # another process may have finished it
                if record is not None:
                    return record
                self._note_locks(place)
                record = self._execute(stage, place)
        except OSError as error:
            record = self.store.record(stage.kind, stage.key)
            if record is not None:  # without locks, another process finished it and removed this one's files
                return record
            raise self._failed(stage, error) from error
        except (MemoryError, RuntimeError, SafetensorError) as error:
            if is_want_of_memory(error):
                raise MachineError(_memory_advice(stage, self.device)) from error
            behind = as_os_error(error)
            if behind is None:
                raise
            raise self._failed(stage, behind) from error
        self.done.append(stage.key)
        try:
            with plugin_code("an extension"):
                self.registry.extensions().hook.anaus_stage_finished(stage=stage, record=record)
        except (PluginError, OSError) as error:  # the stage is done and published
            self.progress.note(f"after {stage.title}: {error}")
        return record

    def _failed(self, stage: Stage, error: OSError) -> MachineError:
        return MachineError(f"{stage.title}: {explain(error, self.store.root)}; finished stages are kept")

    def _note_locks(self, place: Workplace) -> None:
        if not (place.locked or self._told):
            self.progress.note(
                f"the file system of store {str(self.store.root)!r} has no locks: results are right, but two runs at a "
                "time may both do the same stage"
            )
            self._told = True

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


def _memory_advice(stage: Stage, device: str) -> str:
    """What to do about a stage that found no memory: its device, its batch and the setting of that."""
    batches = list(_batches(stage.spec))
    sizes = ", ".join(f"{name}={size}" for name, size in batches)
    step = f"lower it with --set {batches[0][0]}=..." if batches else "end other programs"
    where = "" if device == "cpu" else ", pass --device cpu"
    return (
        f"{stage.title}: out of memory on device {device!r}{f' with {sizes}' if sizes else ''}; {step}{where}, or use "
        "a larger machine; finished stages are kept"
    )


def _batches(spec: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    """Name, as `--set` takes it, and value of each batch size in a stage's settings."""
    for name, value in spec.items():
        if name in ("batch", "batch_size") and above:
            yield ".".join((*above, name)), value
        elif isinstance(value, Mapping):
            yield from _batches(value, *above, *([] if name == "settings" else [name]))


def follow() -> None:
    """What every process but the first does: it runs the stages that the first one calls it to, into empty folders."""
    for values in distributed.jobs():
        job = Job(**values)
        with tempfile.TemporaryDirectory() as out:
            job.run(Path(out), Registry([Path(file) for file in job.plugins]), SilentProgress())
