"""The image encoder of LP-SAM: SAM's ViT (Kirillov et al. 2023, arXiv:2304.02643) on 8-pixel patches, with adapters.

`PaperEncoder`: the bottleneck adapters of AnaUS Sec. 2.1 in the places of Medical SAM Adapter (Wu et al. 2023,
arXiv:2304.12620). `SamusEncoder`: the authors' code, that of SAMUS (Lin et al. 2023, arXiv:2309.06824).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import (
    Block,
    ImageEncoderViT,
    PatchEmbed,
    window_partition,
    window_unpartition,
)
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_plugins.mask_sources.lpsam.settings import NetworkSize

# SAM's patch size, whose weights are reused at half the stride.
PATCH, STRIDE = 16, 8
# Modules that are not SAM's.
ADDED = ("space_adapter", "mlp_adapter", "refine_adapter", "input_adapter", "cnn_branch", "pos_reducer")


def is_added(name: str) -> bool:
    """Whether a parameter of the image encoder belongs to a module that SAM does not have."""
    return any(part in ADDED for part in name.split("."))


class Adapter(nn.Sequential):
    """Bottleneck phi: R^d -> R^d' -> R^d, without its residual; as the zero function at the start if `zero`."""

    def __init__(self, dim: int, hidden: int, zero: bool) -> None:
        last = nn.Linear(hidden, dim)
        if zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), last)


class ConvNormAct(nn.Sequential):
    """3x3 convolution without bias, channel norm, GELU; after halving the side if `halve`."""

    def __init__(self, channels: int, out_channels: int, halve: bool = False) -> None:
        pool = [nn.MaxPool2d(2)] if halve else []
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        super().__init__(*pool, conv, LayerNorm2d(out_channels), nn.GELU())


class CNNBranch(nn.Sequential):
    """(B, 3, S, S) -> (B, out_channels, S/8, S/8)."""

    def __init__(self, base: int, out_channels: int) -> None:
        super().__init__(
            ConvNormAct(3, base),
            ConvNormAct(base, 2 * base, halve=True),
            ConvNormAct(2 * base, 4 * base, halve=True),
            ConvNormAct(4 * base, out_channels, halve=True),
        )


class PaperBlock(Block):  # type: ignore[misc]
    """A block with two adapters: after the attention, with a skip, and beside the MLP, halved and without one."""

    def __init__(self, adapter_dim: int, dim: int, **block: Any) -> None:
        super().__init__(dim=dim, **block)
        self.space_adapter = Adapter(dim, adapter_dim, zero=True)
        self.mlp_adapter = Adapter(dim, adapter_dim, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, dim) -> the same shape."""
        attended = windowed_attention(self, self.norm1(x))
        x = x + attended + self.space_adapter(attended)
        normed = self.norm2(x)
        updated: Tensor = x + self.mlp(normed) + 0.5 * self.mlp_adapter(normed)
        return updated


class SamusBlock(Block):  # type: ignore[misc]
    """A global block that first attends to a CNN feature, which it refines for the next one."""

    def __init__(self, dim: int, num_heads: int, **block: Any) -> None:
        super().__init__(dim=dim, num_heads=num_heads, **block)
        self.space_adapter = Attention(dim, num_heads)
        self.mlp_adapter = Adapter(dim, dim // 4, zero=False)
        self.refine_adapter = ConvNormAct(dim, dim)

    def forward(self, x: Tensor, cnn: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, H, W, dim) and CNN feature (B, dim, H, W) -> the same shapes."""
        normed = self.norm1(x)
        beside = cnn.flatten(2).transpose(1, 2)  # (B, H*W, dim)
        crossed = self.space_adapter(normed.flatten(1, 2), beside, beside).view_as(normed)
        x = x + windowed_attention(self, normed + crossed)
        normed = self.norm2(x)
        return x + self.mlp(normed) + 0.5 * self.mlp_adapter(normed), self.refine_adapter(cnn)


class PaperEncoder(ImageEncoderViT):  # type: ignore[misc]
    """Adapters in all blocks; the network is SAM's encoder on 8-pixel patches until they are trained.

    The position table is SAM's, resized to the grid and frozen.
    """

    def __init__(self, size: NetworkSize, adapter_dim: int) -> None:
        super().__init__(**_vit(size, depth=0))
        _densify(self, size)
        for index in range(size.depth):
            self.blocks.append(PaperBlock(adapter_dim, **_block(size, index)))

    def forward(self, images: Tensor) -> Tensor:
        """Gray images (B, 1, S, S) in [0, 1] -> embeddings F_v (B, prompt_dim, S/8, S/8)."""
        x = _patches(self, images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What stage 1 trains."""
        return {name: value for name, value in self.named_parameters() if is_added(name)}


class SamusEncoder(ImageEncoderViT):  # type: ignore[misc]
    """The authors' encoder: a CNN branch beside the ViT that the global blocks attend to.

    The position table keeps SAM's 64x64 and is halved by a learned reducer.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__(**_vit(size, depth=0))
        _densify(self, size)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * size.grid, 2 * size.grid, size.dim))
        self.pos_reducer = ConvNormAct(size.dim, size.dim, halve=True)
        self.cnn_branch = CNNBranch(size.prompt_dim // 4, size.dim)
        self.input_adapter = Adapter(size.dim, size.dim // 4, zero=False)
        self.global_blocks = size.global_blocks
        for index in range(size.depth):
            block = SamusBlock if index in size.global_blocks else Block
            self.blocks.append(block(**_block(size, index)))

    def forward(self, images: Tensor) -> Tensor:
        """Gray images (B, 1, S, S) in [0, 1] -> embeddings F_v (B, prompt_dim, S/8, S/8)."""
        cnn = self.cnn_branch(images.expand(-1, 3, -1, -1))
        x = _patches(self, images)
        x = x + self.input_adapter(x)
        x = x + self.pos_reducer(self.pos_embed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        for block in self.blocks:
            if isinstance(block, SamusBlock):
                x, cnn = block(x, cnn)
            else:
                x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2) + 0.5 * cnn)
        return embedding

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What stage 1 trains: all that is not SAM's, and the relative positions of the global blocks."""
        tables = tuple(f"blocks.{index}.attn.rel_pos_" for index in self.global_blocks)
        return {name: value for name, value in self.named_parameters() if is_added(name) or name.startswith(tables)}


def windowed_attention(block: Block, x: Tensor) -> Tensor:
    """SAM's self-attention of normed tokens (B, H, W, dim), in windows where the block has them."""
    if block.window_size == 0:
        attended: Tensor = block.attn(x)
        return attended
    windows, padded = window_partition(x, block.window_size)
    merged: Tensor = window_unpartition(block.attn(windows), block.window_size, padded, x.shape[1:3])
    return merged


def _patches(encoder: ImageEncoderViT, images: Tensor) -> Tensor:
    """Tokens (B, S/8, S/8, dim): the image grows by one stride so that 16-pixel patches 8 apart fill the grid."""
    side = images.shape[-1] + STRIDE
    grown = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    tokens: Tensor = encoder.patch_embed(grown.expand(-1, 3, -1, -1))
    return tokens


def _densify(encoder: ImageEncoderViT, size: NetworkSize) -> None:
    encoder.patch_embed = PatchEmbed((PATCH, PATCH), (STRIDE, STRIDE), embed_dim=size.dim)


def _vit(size: NetworkSize, depth: int) -> dict[str, Any]:
    return {
        "img_size": PATCH * size.grid,
        "patch_size": PATCH,
        "embed_dim": size.dim,
        "depth": depth,
        "num_heads": size.heads,
        "out_chans": size.prompt_dim,
        "use_rel_pos": True,
    }


def _block(size: NetworkSize, index: int) -> dict[str, Any]:
    return {
        "dim": size.dim,
        "num_heads": size.heads,
        "norm_layer": functools.partial(nn.LayerNorm, eps=1e-6),
        "use_rel_pos": True,
        "window_size": 0 if index in size.global_blocks else size.window,
        "input_size": (size.grid, size.grid),
    }
