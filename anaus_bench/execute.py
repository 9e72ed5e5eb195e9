"""Runs stages: looks into the store, claims, calls the stage's function, publishes the artifact with its record."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from anaus_bench import __version__, distributed
from anaus_bench.errors import MachineError, SettingsError
from anaus_bench.failures import as_os_error, explain, is_want_of_memory
from anaus_bench.interfaces import Progress, StageContext, StageInputs
from anaus_bench.plan import Stage
from anaus_bench.progress import SilentProgress
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
            self.registry.extensions().hook.anaus_stage_finished(stage=stage, record=record)
        except Exception as error:  # an extension is anybody's code; the stage is done and published
            self.progress.note(f"an extension failed after {stage.title}: {type(error).__name__}: {error}")
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
        import torch

        below = [self.store.record(other.kind, other.key) for other in stage.inputs.values()]
        inputs = StageInputs(
            {role: self.store.open(other.kind, other.key) for role, other in stage.inputs.items()},
            {name: Path(root) for name, root in stage.roots.items()},
            phantom=any(record is not None and record["phantom"] for record in below),
        )
        device = _device(self.device)
        seed = int(stage.spec.get("seed", 0))
        ctx = StageContext(place.out, place.resume, device, seed, self.progress, self.checkpoint_seconds)
        module = importlib.import_module(f"anaus_bench.stages.{stage.kind}")
        distributed.offer(
            {
                "kind": stage.kind,
                "spec": stage.spec,
                "folders": {role: str(folder.resolve()) for role, folder in inputs.folders.items()},
                "roots": {name: str(root.resolve()) for name, root in inputs.roots.items()},
                "phantom": inputs.phantom,
                "resume": str(place.resume.resolve()),
                "seed": seed,
                "device": self.device,
                "plugins": [str(file) for file in self.registry.files],
            }
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        self.progress.note(stage.title)
        result: dict[str, Any] = module.run(stage.spec, inputs, ctx, self.registry)
        record = {
            "kind": stage.kind,
            "key": stage.key,
            "title": stage.title,
            "spec": stage.spec,
            "inputs": {role: other.key for role, other in stage.inputs.items()},
            "roots": dict(stage.roots),
            "labels": dict(stage.labels),
            "phantom": bool(result.pop("phantom", False)) or inputs.phantom,
            "result": result,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.perf_counter() - clock, 3),
            "peak_memory": _peak_memory(device),
            "versions": _versions(),
            "source": _source_state(),
            "machine": machine(device),
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
    for job in distributed.jobs():
        inputs = StageInputs(
            {role: Path(folder) for role, folder in job["folders"].items()},
            {name: Path(root) for name, root in job["roots"].items()},
            phantom=job["phantom"],
        )
        module = importlib.import_module(f"anaus_bench.stages.{job['kind']}")
        with tempfile.TemporaryDirectory() as out:
            ctx = StageContext(Path(out), Path(job["resume"]), _device(job["device"]), job["seed"], SilentProgress())
            module.run(job["spec"], inputs, ctx, Registry([Path(file) for file in job["plugins"]]))


def _device(name: str) -> Any:
    """The torch device of this name; `auto` and `cuda` are the CUDA device of this process, `auto` else the CPU.

    Raises:
        SettingsError: Unknown, not there, or the same one for several processes.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.processes() > 1 and name.startswith("cuda:"):
        raise SettingsError(f"device {name!r} cannot serve {distributed.processes()} processes; pass auto or cuda")
    try:
        device = torch.device("cuda", distributed.local_rank()) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {name!r} cannot be used ({reason}); pass auto, cpu, cuda or cuda:N") from error
    return device


def machine(device: Any) -> dict[str, Any]:
    """What the numbers of a record were made on."""
    import torch

    found: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _peak_memory(device: Any) -> dict[str, int]:
    """Bytes: largest resident size of this process so far, and of the device during the stage."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device"] = int(torch.cuda.max_memory_allocated(device))
    return peak


def _versions() -> dict[str, str]:
    import numpy
    import torch
    import torchvision

    return {
        "anaus-bench": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _source_state() -> dict[str, Any]:
    """Commit of the source tree that ran, and whether it was changed; empty for an installed wheel."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists() or shutil.which("git") is None:
        return {}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
