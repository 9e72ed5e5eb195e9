"""The encoder that pre-training makes and fine-tuning takes: a torchvision ResNet and, where asked for, its pyramid.

Pyramid: Lin et al. 2017 (arXiv:1612.03144) as AnaUS uses it: strides 4, 8 and 16 are smoothed P2, P3, P4 of 256
channels, stride 32 is the raw C5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.weights import IMAGENET, load_weights

STRIDES = (4, 8, 16, 32)
PYRAMID_CHANNELS = 256


class Pyramid(nn.Module):
    """Laterals 1x1 and smoothing 3x3 with bias, no norm, no activation, nearest x2 upsampling.

    Args:
        channels: Of the stages it takes, finest first, C5 last.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, PYRAMID_CHANNELS, 1) for width in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1) for _ in channels[:-1])
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Stages, finest first, C5 last -> the smoothed map of each but C5, `PYRAMID_CHANNELS` channels."""
        merged = self.lateral[-1](stages[-1])
        maps: list[Tensor] = []
        for level in reversed(range(len(stages) - 1)):
            up = F.interpolate(merged, size=stages[level].shape[-2:], mode="nearest")
            merged = self.lateral[level](stages[level]) + up
            maps.append(self.smooth[level](merged))
        return maps[::-1]


class Encoder(nn.Module):
    """ResNet without its classifier, and a pyramid down to a finest stride.

    Args:
        arch: `resnet18`, `resnet50`, `resnet101` or `resnet152`.
        finest_stride: 4, 8 or 16: the pyramid's finest map; 32: no pyramid.

    Attributes:
        backbone: torchvision's modules under torchvision's names (conv1, bn1, layer1..layer4).
        feature_dim: Channels of C5 and length of `vector`.
        pyramid: None without one.
        channels: Channels of the map of each stride.
        card: Where the weights are from; set by `load_encoder`.
    """

    def __init__(self, arch: str, finest_stride: int = 32) -> None:
        super().__init__()
        if arch not in IMAGENET:
            raise SettingsError(f"unknown backbone {arch!r}; known: {', '.join(IMAGENET)}")
        if finest_stride not in STRIDES:
            raise ValueError(f"finest_stride {finest_stride!r} is none of {STRIDES}")
        net = torchvision.models.get_model(arch, weights=None)
        self.arch = arch
        self.finest_stride = finest_stride
        self.card: EncoderCard | None = None
        self.backbone = nn.Sequential()
        for name, module in net.named_children():
            if name not in ("avgpool", "fc"):
                self.backbone.add_module(name, module)
        self.feature_dim = int(net.fc.in_features)
        widths = [self.feature_dim // 8, self.feature_dim // 4, self.feature_dim // 2, self.feature_dim]
        self.channels = dict(zip(STRIDES, widths, strict=True))
        self.pyramid = None
        if finest_stride < 32:
            self.pyramid = Pyramid([width for stride, width in self.channels.items() if stride >= finest_stride])
            self.channels |= {stride: PYRAMID_CHANNELS for stride in STRIDES[:-1] if stride >= finest_stride}

    def forward(self, images: Tensor, strides: Sequence[int] = STRIDES) -> dict[int, Tensor]:
        """Maps of images (B, 3, H, W), normalised: stride -> (B, C, H/stride, W/stride).

        Below the finest stride of the pyramid, and without one, they are the raw C2..C5. The pyramid runs only if one
        of its strides is asked for.
        """
        maps = dict(zip(STRIDES, self.stages(images), strict=True))
        levels = [stride for stride in STRIDES if stride >= self.finest_stride]
        if self.pyramid is not None and any(stride in levels[:-1] for stride in strides):
            maps |= dict(zip(levels[:-1], self.pyramid([maps[stride] for stride in levels]), strict=True))
        return {stride: maps[stride] for stride in strides}

    def stages(self, images: Tensor) -> list[Tensor]:
        """C2, C3, C4, C5 of images (B, 3, H, W)."""
        net: Any = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        stages = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            stages.append(x)
        return stages

    def vector(self, images: Tensor) -> Tensor:
        """Global average of C5: (B, feature_dim)."""
        (last,) = self(images, (32,)).values()
        return torch.mean(last, dim=(2, 3))


@dataclass(frozen=True)
class EncoderCard:
    """What must travel with encoder weights.

    Attributes:
        arch: Backbone.
        finest_stride: Of the trained pyramid in the file; 32: none.
        mean, std: Normalisation of the inputs, three channels, intensities in [0, 1].
        method: Objective that made it.
        initialisation: What it started from: `random`, or the weights with their digest.
        phantom: Whether it was trained on generated images.
    """

    arch: str
    finest_stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    initialisation: str
    phantom: bool = False


def save_encoder(path: Path, encoder: Encoder, card: EncoderCard) -> None:
    """Writes weights as safetensors with the card in the metadata."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata={"card": json.dumps(asdict(card))})


def load_encoder(path: Path) -> Encoder:
    """Encoder with its weights on the CPU, and with its card.

    Raises:
        WeightsError: Damaged, or not written by `save_encoder`.
    """
    try:
        with safetensors.safe_open(path, "pt") as stream:
            card = EncoderCard(**json.loads((stream.metadata() or {})["card"]))
        encoder = Encoder(card.arch, card.finest_stride)
        encoder.load_state_dict(safetensors.torch.load_file(path))
        encoder.card = card
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is no encoder of anaus-bench ({error}); pre-train it again") from error
    return encoder


def load_imagenet(encoder: Encoder, source: str) -> None:
    """Loads ImageNet weights (torchvision, IMAGENET1K_V1) from a path or the official address.

    Raises:
        WeightsError: Absent, damaged or of another model.
    """
    published = IMAGENET[encoder.arch]
    state: Mapping[str, Tensor] = load_weights(source, published)
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        encoder.backbone.load_state_dict(kept)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:200]
        raise WeightsError(
            f"{source} does not fit {encoder.arch} ({reason}); expected {published.file_name}"
        ) from error
