"""Names and shapes of the architectures an encoder can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ViTShape(NamedTuple):
    """Width of the tokens, number of blocks and of attention heads; a block's hidden layer is four times as wide."""

    width: int
    depth: int
    heads: int


RESNETS = ("resnet18", "resnet50", "resnet101", "resnet152")

# Ti and S: Touvron et al. 2021 (arXiv:2012.12877); B: Dosovitskiy et al. 2021 (arXiv:2010.11929).
VITS: Mapping[str, ViTShape] = {
    "vit_b_16": ViTShape(768, 12, 12),
    "vit_s_16": ViTShape(384, 12, 6),
    "vit_ti_16": ViTShape(192, 12, 3),
}

BACKBONES = (*RESNETS, *VITS)

# Parameters of each, in round numbers, without a classifier.
PARAMETERS: Mapping[str, int] = {
    "resnet18": 11_200_000,
    "resnet50": 23_500_000,
    "resnet101": 42_500_000,
    "resnet152": 58_100_000,
    "vit_b_16": 85_800_000,
    "vit_s_16": 21_700_000,
    "vit_ti_16": 5_500_000,
}
