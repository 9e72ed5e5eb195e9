"""SAM's published weights into LP-SAM's network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from anaus_bench.errors import WeightsError
from anaus_plugins.mask_sources.lpsam.encoder import is_added
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork


def load_sam(net: LPSAMNetwork, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every tensor of SAM's, with position tables resized; adapters and prompt engine stay as they are.

    Args:
        net: Changed in place.
        state: State dict of a SAM model, under SAM's names.
        source: Where it is from, for messages.

    Raises:
        WeightsError: Another model's weights, or some are missing or surplus.
    """
    own = net.state_dict()
    wanted = [name for name in own if not (name.startswith("prompt_engine.") or is_added(name))]
    _check_model(wanted, own, state, source)
    tables = {
        f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"
        for index, block in enumerate(net.image_encoder.blocks)
        if block.window_size == 0
        for axis in "hw"
    }
    kept = {name: _fit_grid(name, state[name], own[name], tables) for name in wanted}
    for name, value in kept.items():
        if value.shape != own[name].shape:
            raise WeightsError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}; "
                "give the SAM weights that fit masks.size (sam_vit_b_01ec64.pth for the defaults)"
            )
    net.load_state_dict(kept, strict=False)


def _check_model(wanted: list[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in wanted if name not in state]
    position = "image_encoder.pos_embed"
    if position not in state:
        raise WeightsError(
            f"{source} holds no SAM model ({len(missing)} of {len(wanted)} tensors missing, among them {position}); "
            "expected sam_vit_b_01ec64.pth"
        )
    found, expected = _encoder_size(state, position), _encoder_size(own, position)
    if found != expected:
        raise WeightsError(
            f"{source} holds a SAM encoder of {found[0]} blocks of width {found[1]}, expected {expected[0]} of width "
            f"{expected[1]}; ViT-B is sam_vit_b_01ec64.pth"
        )
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} of SAM's {len(wanted)} tensors, the first {missing[0]}; expected all of "
            "them: download sam_vit_b_01ec64.pth again"
        )
    if surplus := sorted(state.keys() - set(wanted)):
        raise WeightsError(
            f"{source} holds {len(surplus)} beside SAM's {len(wanted)} tensors, the first {surplus[0]}; expected SAM; "
            "an LP-SAM of the authors' code is given as masks.trained"
        )


def _encoder_size(state: Mapping[str, Tensor], position: str) -> tuple[int, int]:
    """Number of blocks and their width."""
    blocks = {match.group(1) for name in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", name))}
    return len(blocks), state[position].shape[-1]


def _fit_grid(name: str, value: Tensor, own: Tensor, tables: set[str]) -> Tensor:
    """Absolute positions resized by area, relative ones of the global blocks (`tables`) linearly along their rows."""
    if value.shape == own.shape:
        return value
    if name == "image_encoder.pos_embed":
        return F.interpolate(value.permute(0, 3, 1, 2), size=own.shape[1:3], mode="area").permute(0, 2, 3, 1)
    if name in tables and value.ndim == 2:
        return F.interpolate(value.T[None], size=len(own), mode="linear", align_corners=False)[0].T
    return value
