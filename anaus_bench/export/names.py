"""Names of weights in other libraries: renaming rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

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
