"""Examines an installation: versions, devices, plugins, data sets, weights, store."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from anaus_bench.cli.options import DEFAULT_STORE, AsJson, DataRoot, PluginFiles, StorePath, parse_roots
from anaus_bench.cli.printing import print_grid, print_json
from anaus_bench.datasets.roots import data_folder
from anaus_bench.errors import AnausError, WeightsError
from anaus_bench.nn.weights import weights_folder
from anaus_bench.registry import KINDS, Registry
from anaus_bench.store import MARKER, Store, is_marked


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, `note` (nothing to mend) or `bad`."""

    state: Literal["ok", "note", "bad"]
    what: str
    found: str


def examine(registry: Registry, store: Store, roots: Mapping[str, Path]) -> list[Finding]:
    """All findings, the installation first."""
    return [*_installation(), *_plugins(registry), *_datasets(registry, roots), _weights(), *_store(store)]


def _installation() -> list[Finding]:
    import torch
    import torchvision

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    found = [Finding("ok", "versions", versions)]
    found.append(Finding("ok", "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"))
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        found.append(Finding("ok", "CUDA", names))
    else:
        found.append(Finding("note", "CUDA", "none: everything runs on the CPU"))
    return found


def _plugins(registry: Registry) -> list[Finding]:
    broken, count = [], 0
    for kind, (title, _) in KINDS.items():
        for name in registry.names(kind):
            try:
                registry.get(kind, name)
                count += 1
            except AnausError as error:
                broken.append(Finding("bad", f"{title} {name}", str(error)))
    return [Finding("ok", "plugins", f"{count} installed"), *broken]


def _datasets(registry: Registry, roots: Mapping[str, Path]) -> list[Finding]:
    found = []
    for name in registry.names("datasets"):
        folder = data_folder(name, roots)
        if folder is None:
            continue
        try:
            dataset = registry.create("datasets", name)
            index = dataset.scan(folder)
            found.append(Finding("ok", f"data set {name}", f"{len(index.samples)} images in {folder}"))
        except AnausError as error:
            found.append(Finding("bad", f"data set {name}", str(error)))
    return found or [
        Finding("note", "data sets", "none given (--data-root, ANAUS_DATA); --preset demo generates phantoms")
    ]


def _weights() -> Finding:
    try:
        folder = weights_folder()
    except WeightsError as error:
        return Finding("note", "weights", str(error))
    files = sorted(path.name for path in folder.glob("[!.]*.*")) if folder.is_dir() else []
    return Finding("ok" if files else "note", "weights", ", ".join(files) or f"none in {folder}")


def _store(store: Store) -> list[Finding]:
    """The store as a whole, then a line per artifact and per stage that is not finished."""
    if not store.root.exists():
        return [Finding("note", "store", f"{store.root} does not exist yet")]
    free = shutil.disk_usage(store.root).free / 2**30
    artifacts = [_artifact(store, kind, key) for kind, key in store.artifacts()]
    count = sum(finding.state == "ok" for finding in artifacts)
    found = [Finding("ok", "store", f"{count} finished stages in {store.root}, {free:.1f} GiB free")]
    if artifacts and not is_marked(store.root):
        found.append(Finding("bad", "store", f"its {MARKER} is missing; `anaus-bench store gc` writes it again"))
    return [*found, *artifacts, *(_attempt(store, kind, key) for kind, key in store.unfinished())]


def _artifact(store: Store, kind: str, key: str) -> Finding:
    faults = list(store.faults(kind, key))
    if faults:
        return Finding("bad", f"{kind} {key}", "; ".join(faults))
    record = store.record(kind, key) or {}
    return Finding("ok", f"{kind} {key}", str(record.get("title", "")))


def _attempt(store: Store, kind: str, key: str) -> Finding:
    what = f"{kind} {key}"
    holder = store.holder(kind, key)
    if holder is not None:
        return Finding("note", what, f"running: {holder}")
    if store.state(kind, key) == "done":
        return Finding("note", what, "left over from a finished stage; `anaus-bench store gc` removes it")
    return Finding("note", what, "interrupted; run its cell again to go on")


def doctor(
    store: StorePath = DEFAULT_STORE,
    data_root: DataRoot = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation: versions, devices, plugins, data sets, weights, and every artifact of the store."""
    findings = examine(Registry(plugin or ()), Store(store), parse_roots(data_root))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        marks = {"ok": "ok", "note": "-", "bad": "BAD"}
        rows = [(marks[finding.state], finding.what, finding.found) for finding in findings]
        print_grid(None, ("", "what", "found"), rows)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
