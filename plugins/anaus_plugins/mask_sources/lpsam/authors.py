"""LP-SAM as the authors' code saves it (zhcz328/ANAUS, built on SAMUS): the whole network's state, under other names.

It has k = 2 query tokens, which are decoded together for one mask of no named class: K = 1 here, `tokens: joint`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from anaus_bench.errors import WeightsError

# Part of our name -> part of theirs. All other names are SAM's in both.
KEY_MAP = {
    # Image encoder
    "pos_reducer.": "post_pos_embed.downs.0.maxpool_conv.",
    "input_adapter.0.": "input_Adapter.D_fc1.",
    "input_adapter.2.": "input_Adapter.D_fc2.",
    "mlp_adapter.0.": "MLP_Adapter.D_fc1.",
    "mlp_adapter.2.": "MLP_Adapter.D_fc2.",
    "space_adapter.q_proj.": "Space_Adapter.q.",
    "space_adapter.k_proj.": "Space_Adapter.k.",
    "space_adapter.v_proj.": "Space_Adapter.v.",
    "space_adapter.out_proj.": "Space_Adapter.proj.",
    "refine_adapter.": "refine_Adapter.conv.",
    # Image encoder and prompt engine
    "cnn_branch.0.": "cnn_embed.inc.conv.",
    "cnn_branch.1.": "cnn_embed.downs.0.maxpool_conv.",
    "cnn_branch.2.": "cnn_embed.downs.1.maxpool_conv.",
    "cnn_branch.3.": "cnn_embed.downs.2.maxpool_conv.",
    # Prompt engine
    "prompt_engine.": "auto_prompter.",
    "queries.": "initial_sparse_embedding.",
    "rounds.": "blocks.",
    "cross.": "cpa.",
    "refine.": "single_conv.conv.",
    "image_update.attention.": "align_block.0.attn.",
    "image_update.norm.": "align_block.0.ln.",
    "image_update.mlp.": "align_block.0.fc.",
    "query_update.attention.": "align_block.1.attn.",
    "query_update.norm.": "align_block.1.ln.",
    "query_update.mlp.": "align_block.1.fc.",
}

# Put before every name where the network was saved inside torch's DataParallel.
WRAPPER = "module."


def authors_name(name: str) -> str:
    """Their name of one of our tensors (`adapter: samus`, `lpe: official`)."""
    for ours, theirs in KEY_MAP.items():
        name = name.replace(ours, theirs)
    return name


def from_authors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The authors' state under our names, in float32.

    Args:
        state: As their code saves it.
        expected: State dict of our network, for names and shapes.
        source: Where `state` is from, for messages.

    Raises:
        WeightsError: Another model's state, missing or surplus tensors, or another size.
    """
    if all(name.startswith(WRAPPER) for name in state):
        state = {name.removeprefix(WRAPPER): value for name, value in state.items()}
    _check_kind(state, source)
    names = {name: authors_name(name) for name in expected}
    missing = [theirs for theirs in names.values() if theirs not in state]
    surplus = sorted(state.keys() - set(names.values()))
    reshaped = [
        f"{theirs} is {tuple(state[theirs].shape)}, not {tuple(expected[name].shape)}"
        for name, theirs in names.items()
        if theirs in state and state[theirs].shape != expected[name].shape
    ]
    found = {"missing": missing, "surplus": surplus, "of another shape": reshaped}
    if any(found.values()):
        counts = ", ".join(f"{len(texts)} {kind} (first: {texts[0]})" for kind, texts in found.items() if texts)
        raise WeightsError(
            f"{source} does not fit the network's {len(names)} tensors: {counts}; masks.size, masks.rounds and "
            "masks.joint_tokens must be those it was trained with, by default ViT-B at 256 pixels, 4 and 2"
        )
    return {name: state[theirs].float() for name, theirs in names.items()}


def _check_kind(state: Collection[str], source: str) -> None:
    """Refuses what is recognised as another model."""

    def has(part: str) -> bool:
        return any(part in name for name in state)

    if has("auto_prompter."):
        return
    if has("prompt_engine."):
        text = "holds an LP-SAM under this package's names, expected the names of the authors' code (auto_prompter.*)"
    elif has("cnn_embed."):
        text = "holds SAMUS without a prompt engine (auto_prompter.*), expected LP-SAM after stage 2"
    elif has("image_encoder.pos_embed"):
        text = "holds plain SAM, expected a trained LP-SAM; to train one from it, give it as masks.weights instead"
    else:
        text = "holds no LP-SAM, expected a state dict of the authors' code (auto_prompter.*)"
    raise WeightsError(f"{source} {text}")
