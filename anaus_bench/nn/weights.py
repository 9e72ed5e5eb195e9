"""Published weights: a path of the user's or the official download, checked by hash; never another file silently."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anaus_bench.errors import WeightsError
from anaus_bench.machine.files import file_digest, written_whole
from anaus_bench.machine.home import cache_folder, expanded

if TYPE_CHECKING:
    from torch import Tensor


# What DDP, torch.compile, Lightning, MoCo, BYOL, DINO and their like put before the names of an encoder.
WRAPPERS = (
    "module|_orig_mod|state_dict|model|net|network|backbone|encoder|base_encoder|encoder_q|online_encoder|"
    "online_network|student|teacher|resnet|trunk"
)


@dataclass(frozen=True)
class PublishedWeights:
    """A published file.

    Attributes:
        title: What it is, for messages.
        url: The official address.
        sha256: Its digest, or as many first characters as are published; None where none is: such a file is never
            downloaded, the user gives its path.
    """

    title: str
    url: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rsplit("/", 1)[-1]


_TORCHVISION = "https://download.pytorch.org/models/"

IMAGENET = {
    arch: PublishedWeights(
        f"ImageNet weights of {arch} (torchvision, IMAGENET1K_V1)", f"{_TORCHVISION}{arch}-{digest}.pth", digest
    )
    for arch, digest in {
        "resnet18": "f37072fd",
        "resnet50": "0676ba61",
        "resnet101": "63fe2227",
        "resnet152": "394f9c45",
        "vit_b_16": "c867db91",
    }.items()
}

MAE_VIT_B = PublishedWeights(
    "the masked autoencoder of ImageNet with its decoder (ViT-B/16)",
    "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base_full.pth",
    None,
)

SAM_VIT_B = PublishedWeights(
    "SAM ViT-B",
    "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
)


def weights_identity(source: str, published: PublishedWeights) -> str:
    """What stands for the weights in a key: the published digest, else the file's own; the path does not matter.

    Raises:
        WeightsError: The file is absent, or `official` and without a published digest.
    """
    if source == "official":
        return _published_digest(published)
    found = file_digest(_existing(source, published))
    return published.sha256 if published.sha256 and found.startswith(published.sha256) else found


def load_weights(source: str, published: PublishedWeights) -> Mapping[str, Tensor]:
    """State dict from `source`: a path, or `official`: `weights_folder()`, downloaded if need be.

    A file under its published name must have the published digest.

    Raises:
        WeightsError: Absent, not to be downloaded, of a wrong digest, or no state dict.
    """
    path = _official(published) if source == "official" else _existing(source, published)
    if path.name == published.file_name and published.sha256 is not None:
        _check_digest(path, published)
    return read_state(path)


def unwrapped(state: Mapping[str, Tensor], wanted: Collection[str], source: str) -> Mapping[str, Tensor]:
    """The tensors of a network without what frameworks and wrappers put before their names, said as a warning.

    Words such as `module.` or `backbone.` are taken off as long as that gives more of the names that are wanted; where
    a file holds several networks (an encoder and its momentum copy), the first that fits best is taken.

    Args:
        state: Name -> tensor.
        wanted: Names of the network that is to be loaded.
        source: Where `state` is from, for the warning.
    """
    names = set(wanted)
    prefixes = {"": None}  # in the order of the file
    for name in state:
        chain = re.match(rf"((?:{WRAPPERS})\.)+", name)
        for end in range(chain.end() if chain else 0):
            if name[end] == ".":
                prefixes[name[: end + 1]] = None
    fitting = {
        prefix: sum(name.startswith(prefix) and name[len(prefix) :] in names for name in state) for prefix in prefixes
    }
    best = max(prefixes, key=fitting.__getitem__)
    if not best or not fitting[best]:
        return state
    warnings.warn(f"the names in {source} begin with {best!r}, which is taken off", stacklevel=2)
    return {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}


def misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """How the tensors differ from those of a network, in a few words; empty if they do not."""
    # Batches are not counted in older files.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in wanted]
    odd = [name for name, value in state.items() if name in wanted and value.shape != wanted[name].shape]
    parts = [
        f"{len(names)} of {len(whole)} tensors {what}, such as {names[0]!r}"
        for what, names, whole in (
            ("missing", missing, wanted),
            ("unknown", surplus, state),
            ("of another shape", odd, state),
        )
        if names
    ]
    return "; ".join(parts)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """State dict of a `.safetensors` or torch file; runs no code of the file.

    Raises:
        WeightsError: The file is truncated or holds no state dict.
    """
    import pickle
    import struct

    import safetensors.torch
    import torch

    # What torch's unpickler raises on bytes that are no pickle depends on the bytes.
    unreadable = (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error)
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (*unreadable, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise WeightsError(
                f"{path} holds more than tensors (such as the arguments of its training), which would have to be run; "
                "where you trust it, save its state dict alone: torch.save(torch.load(PATH, weights_only=False)"
                "['state_dict'], NEW)"
            ) from error
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights ({reason}); download it again") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict", state.get("model")), Mapping):
        state = state.get("state_dict", state.get("model"))
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds no state dict of tensors; expected a file such as torch.save(net.state_dict())"
        )
    _check_values(state, path)
    return state


def _check_values(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses numbers that no training leaves behind."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path}: {name!r} holds values that are no finite numbers; its training failed")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise WeightsError(f"{path}: {name!r} holds negative variances; expected none: write the file again")


def weights_folder() -> Path:
    """Where downloads are kept: `ANAUS_WEIGHTS`, else a folder of the user's cache.

    Raises:
        WeightsError: Neither is there.
    """
    if own := os.environ.get("ANAUS_WEIGHTS"):
        return Path(own)
    cache = cache_folder()
    if cache is None:
        raise WeightsError("there is no home folder to keep downloads in; set ANAUS_WEIGHTS to a folder")
    return cache / "weights"


def _existing(source: str, published: PublishedWeights) -> Path:
    path = expanded(source)
    if not path.is_file():
        expected = "the path" if published.sha256 is None else "'official' or the path"
        raise WeightsError(
            f"weights {source!r} not found; expected {expected} of {published.title} "
            f"(published as {published.file_name})"
        )
    return path


def _published_digest(published: PublishedWeights) -> str:
    if published.sha256 is None:
        raise WeightsError(
            f"no digest of {published.title} is published, so it is not downloaded; fetch {published.url} yourself and "
            "give its path"
        )
    return published.sha256


def _official(published: PublishedWeights) -> Path:
    import urllib.error
    import urllib.request

    _published_digest(published)
    path = weights_folder() / published.file_name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(published.url, timeout=30) as response, written_whole(path) as stream:
            while block := response.read(1 << 20):
                stream.write(block)
            stream.flush()
            _check_digest(Path(stream.name), published)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise WeightsError(
            f"{published.title} cannot be downloaded from {published.url} ({error}); fetch {published.file_name} on a "
            f"machine with internet and put it into {path.parent}, or give its path"
        ) from error
    return path


def _check_digest(path: Path, published: PublishedWeights) -> None:
    found, expected = file_digest(path), _published_digest(published)
    if not found.startswith(expected):
        raise WeightsError(
            f"{path} has sha256 {found[:12]}..., expected {expected[:12]}... ({published.title}); "
            "the file is damaged or another model: download it again"
        )
