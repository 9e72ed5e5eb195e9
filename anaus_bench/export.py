"""Writes an encoder of the store for other libraries: a weights file and a model card, checked by equal outputs.

A format is a table of renaming rules and the library's own way of reading the file. Before anything is published the
written file is read back by that library, and its outputs are compared with the encoder's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
import yaml
from torch import Tensor, nn

from anaus_bench.backbones import RESNETS, VITS
from anaus_bench.config import check_known
from anaus_bench.errors import SettingsError, StoreError, WeightsError
from anaus_bench.files import save_torch, write_whole
from anaus_bench.nn.encoder import PYRAMID_CHANNELS, Encoder, EncoderCard, load_encoder, save_encoder
from anaus_bench.nn.vit import GRID, PATCH
from anaus_bench.registry import Registry
from anaus_bench.store import Record, Store
from anaus_bench.tables import PHANTOM_MARK

TOLERANCE = 1e-4
"""Largest difference of an output, as a share of its largest value where that is above 1."""

CARD = "README.md"
SIDE = PATCH * GRID

# Pattern -> replacement, all applied in this order; a name that becomes empty is left out of the file.
Rules = Sequence[tuple[str, str]]

TORCHVISION: Rules = ((r"^pyramid\..*", ""), (r"^backbone\.", ""))

# timm's ResNets have torchvision's names.
TIMM: Rules = (
    *TORCHVISION,
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
TIMM_NAMES = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_s_16": "vit_small_patch16_224",
    "vit_ti_16": "vit_tiny_patch16_224",
}

DETECTRON2: Rules = (
    (r".*num_batches_tracked$", ""),
    (r"^backbone\.(conv1|bn1)\.", r"stem.\1."),
    *((rf"^backbone\.layer{number}\.", f"res{number + 1}.") for number in range(1, 5)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Tensors under the names that the rules give them."""
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name:
            found[name] = tensor
    return found


class Outputs(nn.Module):
    """All that an encoder computes, in one pass.

    Attributes:
        names: Of the outputs: `c2`..`c5` the backbone's maps of stride 4..32 (a ViT has 16 and 32), `p2`..`p4` the
            pyramid's, as far as there is one, `vector` the global average of `c5`.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        raw = [f"c{_level(stride)}" for stride in encoder.backbone.channels]
        self.names = (*raw, *(f"p{level}" for level in range(_level(encoder.finest_stride), 5)), "vector")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `names` for normalised images (B, 3, H, W)."""
        maps = self.encoder.backbone(images)
        pyramid = self.encoder.pyramid
        smoothed = pyramid(maps) if pyramid is not None else {}
        return (*maps.values(), *smoothed.values(), maps[32].mean(dim=(2, 3)))


@dataclass(frozen=True)
class Format:
    """One way of writing an encoder.

    Attributes:
        file: Name of the weights file.
        holds: What is in it; a template over `_facts`, as is `usage`.
        usage: Markdown that shows how to load it.
        library: Package that reads it.
        write: Writes an encoder to a path.
        read: What the library computes from the file for normalised images: some of `Outputs.names` -> tensor.
        backbones: Those it is offered for; None: all.
        needs: Packages without which it cannot be written; the extra of the format's name installs them.
    """

    file: str
    holds: str
    usage: str
    library: str
    write: Callable[[Encoder, Path], None]
    read: Callable[[Encoder, Path, Tensor], Mapping[str, Tensor]]
    backbones: Sequence[str] | None = None
    needs: tuple[str, ...] = ()


def _write_safetensors(encoder: Encoder, path: Path) -> None:
    save_encoder(path, encoder, _card(encoder))


def _read_safetensors(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    outputs = Outputs(load_encoder(path)).eval()
    return dict(zip(outputs.names, outputs(images), strict=True))


def _write_torchvision(encoder: Encoder, path: Path) -> None:
    save_torch(path, renamed(encoder.state_dict(), TORCHVISION))


def _read_torchvision(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {"layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5", "flatten": "vector"}
    net: Any
    if encoder.arch in VITS:
        width, depth, heads = VITS[encoder.arch]
        net = torchvision.models.VisionTransformer(SIDE, PATCH, depth, heads, width, 4 * width)
        net.heads, nodes = nn.Identity(), {"encoder": "tokens"}
    else:
        net = torchvision.models.get_model(encoder.arch, weights=None)
        net.fc = nn.Identity()
    net.load_state_dict(torch.load(path, weights_only=True))
    found: dict[str, Tensor] = create_feature_extractor(net.eval(), nodes)(images)
    return _of_tokens(found["tokens"]) if encoder.arch in VITS else found


def _write_timm(encoder: Encoder, path: Path) -> None:
    write_whole(path, safetensors.torch.save(renamed(encoder.state_dict(), TIMM)))


def _read_timm(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    import timm

    name = TIMM_NAMES.get(encoder.arch, encoder.arch)
    net: Any = timm.create_model(name, num_classes=0, checkpoint_path=str(path)).eval()
    features = net.forward_features(images)
    return _of_tokens(features) if encoder.arch in VITS else {"c5": features, "vector": net(images)}


def _of_tokens(tokens: Tensor) -> dict[str, Tensor]:
    """Map and vector of a ViT from its class token and patch tokens (B, 1 + GRID * GRID, D)."""
    patches = tokens[:, 1:]
    return {"c4": patches.transpose(1, 2).reshape(len(tokens), -1, GRID, GRID), "vector": patches.mean(dim=1)}


def _write_detectron2(encoder: Encoder, path: Path) -> None:
    finest = _level(encoder.finest_stride)
    pyramid = [
        (rf"^pyramid\.{ours}\.{level - finest}\.", f"fpn_{theirs}{level}.")
        for ours, theirs in (("lateral", "lateral"), ("smooth", "output"))
        for level in range(finest, 6)
    ]
    model = renamed(encoder.state_dict(), [*DETECTRON2, *pyramid])
    # With the heuristics a name matches by its end: `res2.0...` is found at `backbone.bottom_up.res2.0...`.
    save_torch(path, {"model": model, "__author__": "anaus-bench", "matching_heuristics": True})


def _read_detectron2(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import FPN, build_resnet_backbone

    config = get_cfg()
    facts = _facts(encoder)
    config.MODEL.RESNETS.DEPTH = int(facts["depth"])
    config.MODEL.RESNETS.RES2_OUT_CHANNELS = facts["res2"]
    config.MODEL.RESNETS.STRIDE_IN_1X1 = False
    config.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    resnet = build_resnet_backbone(config, ShapeSpec(channels=3)).eval()
    levels = range(_level(encoder.finest_stride), 6)
    if encoder.pyramid is None:
        DetectionCheckpointer(resnet).load(str(path))
        smoothed: Mapping[str, Tensor] = {}
    else:
        net = FPN(resnet, [f"res{level}" for level in levels], PYRAMID_CHANNELS).eval()
        DetectionCheckpointer(net).load(str(path))
        smoothed = net(images)
    raw = {name.replace("res", "c"): tensor for name, tensor in resnet(images).items()}
    return raw | {f"p{level}": smoothed[f"p{level}"] for level in levels[:-1]}


def _write_onnx(encoder: Encoder, path: Path) -> None:
    outputs = Outputs(encoder).eval()
    free = (0,) if encoder.arch in VITS else (0, 2, 3)
    torch.onnx.export(
        outputs,
        (torch.zeros(2, 3, SIDE, SIDE),),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["images"],
        output_names=list(outputs.names),
        dynamic_shapes={"images": dict.fromkeys(free, torch.export.Dim.DYNAMIC)},
    )


def _read_onnx(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = Outputs(encoder).names
    arrays = session.run(list(names), {"images": images.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


FORMATS: Mapping[str, Format] = {
    "safetensors": Format(
        file="encoder.safetensors",
        holds="the whole encoder of anaus-bench: backbone and, where it was trained, pyramid",
        usage="""```python
from pathlib import Path
from anaus_bench.nn.encoder import load_encoder
encoder = load_encoder(Path("encoder.safetensors")).eval()
maps, vector = encoder(images), encoder.vector(images)  # stride -> map; (B, {feature_dim})
```""",
        library="anaus-bench",
        write=_write_safetensors,
        read=_read_safetensors,
    ),
    "torchvision": Format(
        file="weights.pth",
        holds="the backbone, without classifier and pyramid",
        usage="""```python
net = torchvision.models.{torchvision}
net.{head} = torch.nn.Identity()  # (B, {feature_dim}); your own head goes here after loading
net.load_state_dict(torch.load("weights.pth", weights_only=True))
```{token_note}""",
        library="torchvision",
        write=_write_torchvision,
        read=_read_torchvision,
    ),
    "timm": Format(
        file="model.safetensors",
        holds="the backbone, without classifier and pyramid",
        usage="""```python
net = timm.create_model("{timm}", num_classes=0, checkpoint_path="model.safetensors")
features = net.eval().forward_features(images)
```

timm's data configuration of this name belongs to its own weights; normalise as said above.{token_note}""",
        library="timm",
        write=_write_timm,
        read=_read_timm,
    ),
    "detectron2": Format(
        file="weights.pth",
        holds="the backbone and, where it was trained, `fpn_lateral*` and `fpn_output*` of the pyramid",
        usage="""```yaml
MODEL:
  WEIGHTS: weights.pth
  PIXEL_MEAN: {pixel_mean}
  PIXEL_STD: {pixel_std}
  RESNETS: {{DEPTH: {depth}, RES2_OUT_CHANNELS: {res2}, STRIDE_IN_1X1: false}}
INPUT:
  FORMAT: RGB
```

```python
model = detectron2.modeling.build_model(cfg)
detectron2.checkpoint.DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
```

Names match by their ends, so the file fits a bare ResNet, an FPN and a whole detector. The input channels of
`stem.conv1` are in RGB order, as are mean and std; a gray image is the same in both orders. anaus-bench uses the map of
stride 32 raw, detectron2's FPN smooths it: `fpn_output5` (P5, P6) is not in the file and keeps its random start.""",
        library="detectron2",
        write=_write_detectron2,
        read=_read_detectron2,
        backbones=RESNETS,
    ),
    "onnx": Format(
        file="encoder.onnx",
        holds="the whole encoder for {free}; outputs {outputs}",
        usage="""```python
session = onnxruntime.InferenceSession("encoder.onnx")
c5, vector = session.run(["c5", "vector"], {{"images": images}})  # images: float32 array (B, 3, H, W)
```""",
        library="onnxruntime",
        write=_write_onnx,
        read=_read_onnx,
        needs=("onnx", "onnxscript"),
    ),
}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        key: Of the pre-training stage.
        weights: The weights file.
        card: The model card, in the same folder.
        library: Package that reads the weights.
        version: Of the library that read the file back; None where it is not installed.
        difference: Largest difference of an output, as `TOLERANCE` measures it; None if not compared.
    """

    key: str
    weights: Path
    card: Path
    library: str
    version: str | None
    difference: float | None

    @property
    def verdict(self) -> str:
        """What the comparison said, in words."""
        if self.version is None:
            return f"not verified here: {self.library} is not installed"
        return f"{self.library} {self.version} computes the same, largest difference {self.difference:.1e}"


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
        StoreError: No such stage, several, or a damaged artifact.
        WeightsError: What the library computes from the file differs from the encoder.
    """
    check_known("format", [to], list(FORMATS))
    form = FORMATS[to]
    record = find_record(store, key)
    method, backbone = record["spec"]["objective"]["name"], record["spec"]["backbone"]
    if form.backbones is not None and backbone not in form.backbones:
        raise SettingsError(f"--to {to} takes {', '.join(form.backbones)}, found {backbone!r}; export it to timm")
    missing = [name for name in form.needs if not _is_installed(name)]
    if missing:
        raise SettingsError(f"--to {to} needs {' and '.join(missing)}; install with pip install 'anaus-bench[{to}]'")
    folder = output or Path(f"{method}-{backbone}-{record['key'][:8]}")
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


def find_record(store: Store, key: str) -> Record:
    """Record of the only pre-training stage whose key begins so.

    Raises:
        StoreError: None, or several.
    """
    records = store.records("pretrain")
    found = [record for record in records if record["key"].startswith(key)]
    if len(found) == 1:
        return found[0]
    for other, fault in store.damaged("pretrain").items():
        if other.startswith(key) and not found:
            raise StoreError(fault)
    latest = "; ".join(f"{record['key']} {record['title']}" for record in (found or records)[-5:]) or "none"
    if found:
        raise StoreError(f"{key!r} begins the keys of {len(found)} encoders; give more of it (latest: {latest})")
    raise StoreError(f"store {str(store.root)!r} has no pretrain {key!r}; see `plan` for the keys (latest: {latest})")


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


def _card(encoder: Encoder) -> EncoderCard:
    assert encoder.card is not None, "load_encoder sets the card"
    return encoder.card


def _level(stride: int) -> int:
    """Number of a map of this stride: 2 for 4, 5 for 32."""
    return int(math.log2(stride))


def _facts(encoder: Encoder) -> dict[str, Any]:
    """What the texts of the formats are filled with."""
    card, arch, is_vit = _card(encoder), encoder.arch, encoder.arch in VITS
    builder = f"{arch}()"
    if arch not in torchvision.models.list_models():
        width, depth, heads = VITS[arch]
        builder = f"VisionTransformer({SIDE}, {PATCH}, {depth}, {heads}, {width}, {4 * width})"
    note = "\n\nThe vector of anaus-bench is the mean of the patch tokens after the last norm, not the class token."
    return {
        "torchvision": builder,
        "timm": TIMM_NAMES.get(arch, arch),
        "head": "heads" if is_vit else "fc",
        "token_note": note if is_vit else "",
        "feature_dim": encoder.feature_dim,
        "free": f"any batch of images of {SIDE} x {SIDE} pixels" if is_vit else "any batch, height and width",
        "outputs": ", ".join(f"`{name}`" for name in Outputs(encoder).names),
        "depth": arch.removeprefix("resnet"),
        "res2": encoder.feature_dim // 8,
        "pixel_mean": [round(255 * value, 4) for value in card.mean],
        "pixel_std": [round(255 * value, 4) for value in card.std],
    }


# ---- the model card --------------------------------------------------------------------------------------------------

# Role of an input -> kind of its stage, for those through which data sets reach an encoder.
KIND_OF_ROLE = {"corpus": "corpus", "pairs": "corpus", "masks": "masks", "fit": "fit"}


def model_card(
    record: Record, encoder: Encoder, form: Format, exported: Exported, store: Store, registry: Registry
) -> str:
    """Markdown: what the encoder is, how to load it, the terms of its data, settings and references."""
    card, spec, facts = _card(encoder), record["spec"], _facts(encoder)
    below = list(_below(record, store))
    datasets = _datasets(below)
    masks = [found["spec"]["masks"]["name"] for kind, _, found in below if kind == "masks" and found]
    size = f"trained at {spec['pretrain']['size']} x {spec['pretrain']['size']} pixels" if "pretrain" in spec else ""
    rows = {
        "method": f"{card.method} (seed {spec['seed']})",
        "backbone": encoder.arch + _pyramid(encoder),
        "file": f"`{form.file}`: {form.holds.format(**facts)}",
        "trained on": _trained(record, below),
        "masks": ", ".join(masks),
        "initialisation": card.initialisation,
        "input": "(B, 3, H, W) float32: gray image in [0, 1], repeated to 3 channels, then (x - mean) / std; " + size,
        "mean, std": f"{list(card.mean)}, {list(card.std)}",
        "verified": exported.verdict,
        "key": f"`{record['key']}`",
        "made with": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    settings = {"objective": spec["objective"]["settings"], "pretrain": spec.get("pretrain", {})}
    names = [("objectives", card.method), *(("mask_sources", name) for name in masks)]
    references = [registry.get(kind, name).reference for kind, name in names]
    references += [registry.get("datasets", name).reference for name in datasets]
    return "\n".join(
        [
            f"# {card.method} {encoder.arch}: an encoder for ultrasound images\n",
            *([f"> **{PHANTOM_MARK.upper()}**\n"] if record["phantom"] else []),
            "| | |\n|---|---|",
            *(f"| {name} | {text.rstrip('; ')} |" for name, text in rows.items() if text),
            f"\n## Load\n\n{form.usage.format(**facts)}\n",
            "## Data and licences\n",
            *_licences(datasets, below, card, registry),
            f"\n## Settings\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n",
            "## References\n",
            *(f"- {text}" for text in dict.fromkeys(references) if text),
            "",
        ]
    )


def _below(record: Record, store: Store) -> Iterator[tuple[str, str, Record | None]]:
    """Kind, key and record (None if it is no longer in the store) of the corpora, masks and fits below a stage."""
    for role, key in record["inputs"].items():
        if role in KIND_OF_ROLE:
            found = store.record(KIND_OF_ROLE[role], key)
            yield KIND_OF_ROLE[role], key, found
            if found is not None:
                yield from _below(found, store)


def _datasets(below: Sequence[tuple[str, str, Record | None]]) -> dict[str, bool]:
    """Name of each data set -> whether its images were generated for the run."""
    corpora = [found["spec"]["datasets"] for kind, _, found in below if kind == "corpus" and found]
    return {name: "fingerprint" not in spec for corpus in corpora for name, spec in corpus.items()}


def _trained(record: Record, below: Sequence[tuple[str, str, Record | None]]) -> str:
    if "corpus" not in record["inputs"]:
        return "nothing: these are the weights it starts from"
    corpus = next(found for kind, _, found in below if kind == "corpus")
    names = "+".join(corpus["spec"]["datasets"]) if corpus else "a corpus that is no longer in the store"
    result = record["result"]
    return f"{names}: {result['images']:,} images, {result['steps']:,} steps ({result['epochs']:g} epochs)"


def _pyramid(encoder: Encoder) -> str:
    return f", pyramid from stride {encoder.finest_stride}" if encoder.pyramid is not None else ""


def _licences(
    datasets: Mapping[str, bool],
    below: Sequence[tuple[str, str, Record | None]],
    card: EncoderCard,
    registry: Registry,
) -> Iterator[str]:
    """One line for each source whose terms may bind the weights."""
    yield "The terms of the data may bind the use of weights made from it; ask its publishers where in doubt.\n"
    for name, generated in datasets.items():
        dataset = registry.get("datasets", name)
        terms = "generated phantoms in its layout" if generated else f"{dataset.licence or 'not stated'}. {dataset.url}"
        yield f"- {name} ({dataset.title}): {terms}".rstrip()
    for kind, key, found in below:
        if found is None:
            yield f"- {kind} `{key}` is no longer in the store: its data sets are not known here"
    if card.initialisation != "random":
        yield "- ImageNet weights of torchvision, the initialisation: terms of torchvision and of ImageNet"
