"""The formats: renaming rules, and how each library reads the file back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from anaus_bench.export.names import DETECTRON2, TIMM, TIMM_NAMES, TORCHVISION, renamed
from anaus_bench.nn.backbones import RESNETS, VITS
from anaus_bench.nn.encoder import PYRAMID_CHANNELS, Encoder, EncoderCard, load_encoder, save_encoder
from anaus_bench.nn.vit import GRID, PATCH

SIDE = PATCH * GRID


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
        holds: What is in it; a template over `facts_of`, as is `usage`.
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
    save_encoder(path, encoder, encoder_card(encoder))


def _read_safetensors(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    outputs = Outputs(load_encoder(path)).eval()
    return dict(zip(outputs.names, outputs(images), strict=True))


def _write_torchvision(encoder: Encoder, path: Path) -> None:
    torch.save(renamed(encoder.state_dict(), TORCHVISION), path)


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
    safetensors.torch.save_file(renamed(encoder.state_dict(), TIMM), path)


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
    torch.save({"model": model, "__author__": "anaus-bench", "matching_heuristics": True}, path)


def _read_detectron2(encoder: Encoder, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import FPN, build_resnet_backbone

    config = get_cfg()
    facts = facts_of(encoder)
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


def encoder_card(encoder: Encoder) -> EncoderCard:
    """The card of a loaded encoder."""
    assert encoder.card is not None, "load_encoder sets the card"
    return encoder.card


def _level(stride: int) -> int:
    """Number of a map of this stride: 2 for 4, 5 for 32."""
    return int(math.log2(stride))


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """What the texts of the formats are filled with."""
    card, arch, is_vit = encoder_card(encoder), encoder.arch, encoder.arch in VITS
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
