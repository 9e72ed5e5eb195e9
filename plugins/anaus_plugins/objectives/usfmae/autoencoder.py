"""Masked autoencoder (He et al. 2022, arXiv:2111.06377): the decoder, its targets and its published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import EncoderBlock

from anaus_bench.distributed.group import rand_rows
from anaus_bench.errors import WeightsError
from anaus_bench.nn.vit import PATCH, ViT, resize_positions, sine_positions

PIXELS = 3 * PATCH * PATCH
"""Values of a patch."""

# Name in the published checkpoint -> ours, in this order; `decoder_` leads the decoder's.
_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"^norm\.", "encoder.ln."),
    (r"^(mask_token|decoder_.*)$", r"decoder.\1"),
    (r"^decoder\.decoder_pos_embed$", "decoder.positions"),
    (r"^decoder\.decoder_pred\.", "decoder.predict."),
    (r"^decoder\.decoder_", "decoder."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


class Decoder(nn.Module):
    """Predicts the pixels of all patches from the tokens of the visible ones (Sec. 3).

    Args:
        in_dim: Width of the encoder's tokens.
        width: Of its own tokens.
        depth: Number of its blocks.
        heads: Attention heads of a block.
    """

    def __init__(self, in_dim: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(heads, width, 4 * width, 0.0, 0.0) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, PIXELS)
        self.positions: Tensor
        self.register_buffer("positions", F.pad(sine_positions(width), (0, 0, 1, 0)))
        nn.init.normal_(self.mask_token, std=0.02)
        for linear in (self.embed, self.predict):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicted patches (B, rows * columns, PIXELS).

        Args:
            tokens: (B, 1 + K, in_dim) class token and visible patches.
            visible: (B, K) int64 places of the visible patches.
            grid: Rows and columns of patches.
        """
        rows, columns = grid
        known = self.embed(tokens)
        place = visible[:, :, None].expand(-1, -1, known.shape[2])
        patches = self.mask_token.to(known.dtype).repeat(len(known), rows * columns, 1).scatter(1, place, known[:, 1:])
        positions = torch.cat([self.positions[:, :1], resize_positions(self.positions[:, 1:], rows, columns)], dim=1)
        predicted: Tensor = self.predict(self.norm(self.blocks(torch.cat([known[:, :1], patches], 1) + positions)))
        return predicted[:, 1:]


def patchify(images: Tensor) -> Tensor:
    """Patches (B, L, PIXELS) of images (B, 3, H, W), row by row; values in the order row, column, channel.

    H and W are multiples of `PATCH`.
    """
    count, _, height, width = images.shape
    split = images.reshape(count, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, PIXELS)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) of the patches (B, L, PIXELS) of a grid: undoes `patchify`."""
    rows, columns = grid
    split = patches.reshape(-1, rows, columns, PATCH, PATCH, 3)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * PATCH, columns * PATCH)


def draw_mask(count: int, patches: int, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of the visible patches (count, K) and of the masked ones (count, patches - K), int64 on the CPU.

    Each image has a mask of its own, the same however many processes share the batch. K is the share `1 - ratio`
    rounded down, at least one.
    """
    order = rand_rows(count, patches, generator=generator).argsort(dim=1)
    kept = max(1, int(patches * (1 - ratio)))
    return order[:, :kept], order[:, kept:]


def take(patches: Tensor, places: Tensor) -> Tensor:
    """Patches (B, K, D) of (B, L, D) at places (B, K)."""
    return patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2]))


def standardise(patches: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1 over its values (Sec. 4.1, Tab. 1d)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def load_autoencoder(backbone: ViT, decoder: Decoder, state: Mapping[str, Tensor], source: str) -> None:
    """Loads the published checkpoint with its decoder (names of facebookresearch/mae).

    Raises:
        WeightsError: `state`, read from `source`, is none of these networks.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    ours = {name: value for name, value in renamed.items() if not name.startswith("decoder.")}
    theirs = {name.removeprefix("decoder."): value for name, value in renamed.items() if name.startswith("decoder.")}
    try:
        backbone.load_state_dict(ours)
        decoder.load_state_dict(theirs)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:200]
        raise WeightsError(f"{source} is no masked autoencoder of this shape ({reason})") from error
