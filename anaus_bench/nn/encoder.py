"""The encoder that pre-training makes and fine-tuning takes: a ResNet or a ViT and, where asked for, its pyramid.

Pyramid of a ResNet: Lin et al. 2017 (arXiv:1612.03144) as AnaUS uses it: strides 4, 8 and 16 are smoothed P2, P3, P4
of 256 channels, stride 32 is the raw C5. That of a ViT is in `vit`.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.errors import LONGEST, SettingsError, WeightsError, shown
from anaus_bench.machine.files import write_whole
from anaus_bench.nn.backbones import BACKBONES, VITS
from anaus_bench.nn.vit import SimplePyramid, ViT
from anaus_bench.nn.weights import IMAGENET, load_weights, misfit, unwrapped

STRIDES = (4, 8, 16, 32)
PYRAMID_CHANNELS = 256


class ResNet(nn.Sequential):
    """torchvision's ResNet without its classifier, under torchvision's names (conv1, bn1, layer1..layer4).

    Args:
        arch: One of `RESNETS`.

    Attributes:
        feature_dim: Channels of C5.
        channels: Of the maps of `forward`.
        stages: First letters of the parameters of the stem and of each stage.
        last_block: The same of the last residual block.
    """

    def __init__(self, arch: str) -> None:
        net = torchvision.models.get_model(arch, weights=None)
        super().__init__(
            OrderedDict((name, module) for name, module in net.named_children() if name not in ("avgpool", "fc"))
        )
        self.feature_dim = int(net.fc.in_features)
        self.channels = {stride: self.feature_dim * stride // 32 for stride in STRIDES}
        self.stages = (("conv1.", "bn1."), *((f"layer{number}.",) for number in (1, 2, 3, 4)))
        self.last_block = (f"layer4.{len(net.layer4) - 1}.",)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """C2, C3, C4, C5 of images (B, 3, H, W), by stride."""
        net: Any = self
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        maps = {}
        for stride, layer in zip(STRIDES, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
            maps[stride] = x = layer(x)
        return maps


class Pyramid(nn.Module):
    """Laterals 1x1 and smoothing 3x3 with bias, no norm, no activation, nearest x2 upsampling.

    Args:
        channels: Of the stages it takes by stride, finest first, C5 last.
    """

    def __init__(self, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.strides = tuple(channels)
        widths = list(channels.values())
        self.lateral = nn.ModuleList(nn.Conv2d(width, PYRAMID_CHANNELS, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1) for _ in widths[:-1])
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """C2..C5 by stride -> the smoothed maps of all but C5, finest first, `PYRAMID_CHANNELS` channels."""
        merged = self.lateral[-1](maps[self.strides[-1]])
        smoothed: dict[int, Tensor] = {}
        for level, stride in reversed(list(enumerate(self.strides[:-1]))):
            up = F.interpolate(merged, size=maps[stride].shape[-2:], mode="nearest")
            merged = self.lateral[level](maps[stride]) + up
            smoothed[stride] = self.smooth[level](merged)
        return dict(sorted(smoothed.items()))


class Encoder(nn.Module):
    """A backbone without its classifier, and a pyramid down to a finest stride.

    Args:
        arch: One of `BACKBONES`.
        finest_stride: 4, 8 or 16: the pyramid's finest map; 32: no pyramid.

    Attributes:
        backbone: torchvision's modules under torchvision's names.
        feature_dim: Channels of the raw map of stride 32 and length of `vector`.
        pyramid: None without one.
        channels: Channels of the map of each stride there is; a ViT without a pyramid has those of 16 and 32.
        card: Where the weights are from; set by `load_encoder`.
    """

    def __init__(self, arch: str, finest_stride: int = 32) -> None:
        super().__init__()
        if arch not in BACKBONES:
            raise SettingsError(f"unknown backbone {arch!r}; known: {', '.join(BACKBONES)}")
        if finest_stride not in STRIDES:
            raise ValueError(f"finest_stride {finest_stride!r} is none of {STRIDES}")
        self.arch = arch
        self.finest_stride = finest_stride
        self.card: EncoderCard | None = None
        self.backbone: ViT | ResNet = ViT(arch) if arch in VITS else ResNet(arch)
        self.feature_dim = self.backbone.feature_dim
        self.channels = dict(self.backbone.channels)
        self.pyramid: SimplePyramid | Pyramid | None = None
        smoothed = [stride for stride in STRIDES[:-1] if stride >= finest_stride]
        if smoothed:
            if isinstance(self.backbone, ViT):
                self.pyramid = SimplePyramid(self.feature_dim, smoothed, PYRAMID_CHANNELS)
            else:
                self.pyramid = Pyramid({stride: self.channels[stride] for stride in (*smoothed, 32)})
            self.channels |= dict.fromkeys(smoothed, PYRAMID_CHANNELS)

    @classmethod
    def of(cls, card: EncoderCard) -> Encoder:
        """The encoder that a card describes, with random weights."""
        encoder = cls(card.arch, card.finest_stride)
        encoder.card = card
        return encoder

    def forward(self, images: Tensor, strides: Sequence[int] = STRIDES) -> dict[int, Tensor]:
        """Maps of images (B, 3, H, W), normalised: stride -> (B, C, H/stride, W/stride).

        Below the finest stride of the pyramid, and without one, they are the backbone's own: C2..C5 of a ResNet. The
        pyramid runs only if one of its strides is asked for.
        """
        maps = self.backbone(images)
        if self.pyramid is not None and any(self.finest_stride <= stride < 32 for stride in strides):
            maps = {**maps, **self.pyramid(maps)}
        return {stride: maps[stride] for stride in strides}

    def stages(self, images: Tensor) -> list[Tensor]:
        """The backbone's own maps of images (B, 3, H, W), finest first: C2, C3, C4, C5 of a ResNet."""
        return list(self.backbone(images).values())

    def vector(self, images: Tensor) -> Tensor:
        """Global average of the map of stride 32 (B, feature_dim): of a ResNet's C5, or of a ViT's patch tokens."""
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
    write_whole(path, safetensors.torch.save(state, metadata={"card": json.dumps(asdict(card))}))


def load_encoder(path: Path) -> Encoder:
    """Encoder with its weights on the CPU, and with its card.

    Raises:
        WeightsError: Damaged, or not written by `save_encoder`.
    """
    try:
        with safetensors.safe_open(path, "pt") as stream:
            text = (stream.metadata() or {}).get("card")
        state = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _no_encoder(path, str(error)) from error
    card = _card(path, text)
    encoder = Encoder.of(card)
    expected = encoder.state_dict()
    strange = [
        name
        for name in {**expected, **state}
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    ]
    if strange:
        raise _no_encoder(path, f"{len(strange)} tensors, such as {strange[0]!r}, are not those of {card.arch}")
    encoder.load_state_dict(state)
    return encoder


def _card(path: Path, text: str | None) -> EncoderCard:
    """The card in the metadata of `path`, whose parts are in their range."""
    if text is None:
        raise _no_encoder(path, "it has no card")
    try:
        card = pydantic.TypeAdapter(EncoderCard).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise _no_encoder(path, f"its card: {error.errors()[0]['loc']}, {error.errors()[0]['msg']}") from None
    known = card.arch in BACKBONES and card.finest_stride in STRIDES
    normalised = len(card.mean) == len(card.std) == 3 and all(deviation > 0 for deviation in card.std)
    if not (known and normalised and all(map(math.isfinite, (*card.mean, *card.std)))):
        raise _no_encoder(path, f"its card says {shown(card)}")
    return card


def _no_encoder(path: Path, found: str) -> WeightsError:
    return WeightsError(f"{path} is no encoder of anaus-bench ({found[:LONGEST]}); pre-train it again")


def load_imagenet(encoder: Encoder, source: str) -> None:
    """Loads ImageNet weights (torchvision, IMAGENET1K_V1) from a path or the official address.

    Raises:
        WeightsError: Absent, damaged or of another model.
    """
    published = IMAGENET[encoder.arch]
    own = encoder.backbone.state_dict()
    state = unwrapped(load_weights(source, published), own, source)
    kept = {name: value for name, value in state.items() if not name.startswith(("fc.", "heads."))}
    if reason := misfit(kept, own):
        raise WeightsError(f"{source} does not fit {encoder.arch} ({reason}); expected {published.file_name}")
    encoder.backbone.load_state_dict(kept)
