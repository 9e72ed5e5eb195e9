"""Writes an encoder of the store for other libraries: a weights file and a model card, checked by equal outputs.

A format is a table of renaming rules and the library's own way of reading the file. Before anything is published the
written file is read back by that library, and its outputs are compared with the encoder's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path

import torch

from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.export.card import Exported, model_card
from anaus_bench.export.formats import FORMATS, SIDE, Format, Outputs
from anaus_bench.machine.artifacts import join_names
from anaus_bench.nn.encoder import Encoder, load_encoder
from anaus_bench.planning.specs import PretrainSpec
from anaus_bench.registry import Registry
from anaus_bench.results.lineage import find_record
from anaus_bench.settings.base import check_known
from anaus_bench.store import Store

TOLERANCE = 1e-4
"""Largest difference of an output, as a share of its largest value where that is above 1."""

CARD = "README.md"


def export(
    key: str, to: str, output: Path | None, store: Store, registry: Registry, *, replace: bool = False
) -> Exported:
    """Writes the encoder of a pre-training stage into a folder, all or nothing.

    Args:
        key: Key of a `pretrain` stage, or how one and only one begins.
        to: Name in `FORMATS`.
        output: Folder to write; `<method>-<backbone>-<first 8 of the key>` by default.
        store: Where the encoder is.
        registry: Where data sets and methods say their licences and references.
        replace: Whether an earlier export in `output` gives way.

    Raises:
        SettingsError: Unknown format, packages missing, or `output` is taken.
        StoreError: No such stage, several, a damaged artifact, or a record whose words make no name of a folder.
        WeightsError: What the library computes from the file differs from the encoder.
    """
    check_known("format", [to], list(FORMATS))
    form = FORMATS[to]
    record = find_record(store, key)
    spec = PretrainSpec.model_validate(record["spec"])
    method, backbone = spec.objective.name, spec.backbone
    if form.backbones is not None and backbone not in form.backbones:
        raise SettingsError(f"--to {to} takes {', '.join(form.backbones)}, found {backbone!r}; export it to timm")
    missing = [name for name in form.needs if not _is_installed(name)]
    if missing:
        raise SettingsError(f"--to {to} needs {' and '.join(missing)}; install with pip install 'anaus-bench[{to}]'")
    folder = output or join_names(Path(), f"{method}-{backbone}-{record['key'][:8]}")
    _check_free(folder, replace)
    encoder = load_encoder(store.open("pretrain", record["key"]) / "encoder.safetensors").eval()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as private:
        fresh = Path(private) / "new"
        fresh.mkdir()
        form.write(encoder, fresh / form.file)
        version, difference = _check(form, encoder, fresh / form.file)
        exported = Exported(record["key"], folder / form.file, folder / CARD, form.library, version, difference)
        (fresh / CARD).write_text(model_card(record, encoder, form, exported, store, registry))
        if folder.exists():
            folder.rename(Path(private) / "old")
        fresh.rename(folder)
    return exported


def _check_free(folder: Path, replace: bool) -> None:
    """Refuses an output that exists; with `replace`, one that holds anything but an export."""
    if not folder.exists():
        return
    if not replace:
        raise SettingsError(f"{str(folder)!r} exists; pass another --output, or --force to replace an earlier export")
    written = {CARD, *(form.file for form in FORMATS.values())}
    if not folder.is_dir() or any(path.name not in written for path in folder.iterdir()):
        raise SettingsError(
            f"{str(folder)!r} is not, or not only, an export and is not replaced; pass another --output"
        )


def _check(form: Format, encoder: Encoder, path: Path) -> tuple[str | None, float | None]:
    """Version of the library that read the file back, and the largest difference; two None without the library.

    Raises:
        WeightsError: The difference is above `TOLERANCE`.
    """
    if not _is_installed(form.library):
        return None, None
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    outputs = Outputs(encoder).eval()
    with torch.no_grad():
        expected = dict(zip(outputs.names, outputs(images), strict=True))
        found = form.read(encoder, path, images)
    shares = [(found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1) for name in found]
    difference = float(torch.stack(shares).max())
    version = importlib.metadata.version(form.library)
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{form.library} {version} computes other outputs from {form.file} than the encoder does (difference "
            f"{difference:.1e}, allowed {TOLERANCE:.0e}); nothing was written: please report it with these versions"
        )
    return version, difference


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library.replace("-", "_")) is not None


# ---- the model card --------------------------------------------------------------------------------------------------
