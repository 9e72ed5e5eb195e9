"""Vision transformers with patches of 16 pixels: the backbone of an encoder, and its pyramid.

Backbone: torchvision's modules under torchvision's names (Dosovitskiy et al. 2021, arXiv:2010.11929), for images of any
size. Pyramid: the simple feature pyramid of ViTDet (Li et al. 2022, arXiv:2203.16527, Sec. 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d

from anaus_bench.nn.backbones import VITS

PATCH = 16
GRID = 14
"""Side of the table of positions in patches: images of 224 pixels; other sizes interpolate it."""


class ViT(nn.Module):
    """A vision transformer without its classifier.

    Args:
        arch: One of `VITS`.

    Attributes:
        feature_dim: Width of the tokens.
        channels: Of the maps of `forward`.
        stages: First letters of the parameters of the stem and of each quarter of the blocks, the last with the final
            norm; ViTDet divides the blocks so.
        last_block: The same of the last block and the final norm.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        width, depth, heads = VITS[arch]
        net = torchvision.models.VisionTransformer(PATCH * GRID, PATCH, depth, heads, width, 4 * width)
        self.class_token: nn.Parameter = net.class_token
        self.conv_proj: nn.Conv2d = net.conv_proj
        self.encoder: Any = net.encoder
        self.feature_dim = width
        self.channels = {16: width, 32: width}
        blocks = [f"encoder.layers.encoder_layer_{number}." for number in range(depth)]
        quarters = [tuple(blocks[part * depth // 4 : (part + 1) * depth // 4]) for part in range(4)]
        self.stages = (("class_token", "conv_proj.", "encoder.pos_embedding"), *quarters[:3])
        self.stages += ((*quarters[3], "encoder.ln."),)
        self.last_block = (blocks[-1], "encoder.ln.")

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Maps of images (B, 3, H, W): the patch tokens, stride 16, and their means over 2 x 2, stride 32.

        So the global average of the stride-32 map is the mean patch token; the class token is in no map.
        """
        rows, columns = grid_of(images)
        tokens = self.encode(self.embed(images))
        last = tokens[:, 1:].transpose(1, 2).reshape(-1, self.feature_dim, rows, columns)
        return {16: last, 32: F.avg_pool2d(last, 2, ceil_mode=True, count_include_pad=False)}

    def embed(self, images: Tensor) -> Tensor:
        """Patches (B, L, D) with their positions, row by row; images are padded with zeros to whole patches."""
        height, width = images.shape[-2:]
        patches: Tensor = self.conv_proj(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))
        positions = resize_positions(self.encoder.pos_embedding[:, 1:], *patches.shape[-2:])
        return patches.flatten(2).transpose(1, 2) + positions

    def encode(self, patches: Tensor) -> Tensor:
        """Class token and patches (B, 1 + n, D) after all blocks and the final norm, of any n embedded patches."""
        first = (self.class_token + self.encoder.pos_embedding[:, :1]).expand(len(patches), -1, -1)
        tokens: Tensor = self.encoder.ln(self.encoder.layers(torch.cat([first, patches], dim=1)))
        return tokens

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Replaces the learned positions by `sine_positions` that are not trained; the class token has zeros."""
        table = F.pad(sine_positions(self.feature_dim), (0, 0, 1, 0))
        self.encoder.pos_embedding.copy_(table).requires_grad_(False)


class SimplePyramid(nn.Module):
    """Maps of several strides from the last map alone: transposed convolutions, identity, max pooling.

    Each is then brought to one width by a 1 x 1 and a 3 x 3 convolution, all with layer norm.

    Args:
        width: Channels of the stride-16 map it takes.
        strides: 4, 8, 16 or 32.
        channels: Of each map it gives.
    """

    def __init__(self, width: int, strides: Sequence[int], channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {str(stride): nn.Sequential(*_level(width, stride, channels)) for stride in strides}
        )

    def forward(self, maps: dict[int, Tensor]) -> dict[int, Tensor]:
        """Stride -> (B, channels, H/stride, W/stride)."""
        return {int(stride): level(maps[16]) for stride, level in self.levels.items()}


class SimplePyramidBackbone(nn.Module):
    """A ViT and its pyramid as torchvision's detectors take them.

    Args:
        body: The transformer.
        channels: Of each map.

    Attributes:
        out_channels: The same.
        fpn: The pyramid of strides 4, 8, 16 and 32.
    """

    def __init__(self, body: ViT, channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = SimplePyramid(body.feature_dim, (4, 8, 16, 32), channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """P2..P5 under `0`..`3` and the subsampled P6 under `pool`."""
        levels = list(self.fpn(self.body(images)).values())
        maps = {str(number): level for number, level in enumerate(levels)}
        return {**maps, "pool": F.max_pool2d(levels[-1], kernel_size=1, stride=2)}


def grid_of(images: Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of images (B, 3, H, W)."""
    height, width = images.shape[-2:]
    return -(-height // PATCH), -(-width // PATCH)


def resize_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Positions (1, rows * columns, D) of a grid, interpolated (bicubic) from the table (1, GRID * GRID, D)."""
    if (rows, columns) == (GRID, GRID):
        return table
    grid = table.transpose(1, 2).reshape(1, -1, GRID, GRID)
    return F.interpolate(grid, (rows, columns), mode="bicubic").flatten(2).transpose(1, 2)


def sine_positions(width: int) -> Tensor:
    """Sines and cosines of column, then row (1, GRID * GRID, width) float32, as in MAE (He et al. 2022, App. A.1)."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(GRID, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (GRID, width / 2)
    of_columns, of_rows = waves.expand(GRID, -1, -1), waves[:, None].expand(-1, GRID, -1)
    return torch.cat([of_columns, of_rows], dim=2).flatten(0, 1)[None].float()


def _level(width: int, stride: int, channels: int) -> Iterator[nn.Module]:
    if stride == 4:
        yield nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        yield LayerNorm2d(width // 2, eps=1e-6)
        yield nn.GELU()
        width //= 2
    if stride <= 8:
        yield nn.ConvTranspose2d(width, width // 2, 2, stride=2)
        width //= 2
    if stride == 32:
        yield nn.MaxPool2d(2)
    yield nn.Conv2d(width, channels, 1, bias=False)
    yield LayerNorm2d(channels, eps=1e-6)
    yield nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    yield LayerNorm2d(channels, eps=1e-6)
