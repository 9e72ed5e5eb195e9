"""The parts of a masked autoencoder, and its published checkpoint against the network written out by its names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.errors import WeightsError
from anaus_bench.nn.vit import ViT, sine_positions
from anaus_plugins.objectives.usfmae.autoencoder import (
    PIXELS,
    Decoder,
    draw_mask,
    load_autoencoder,
    patchify,
    standardise,
    take,
    unpatchify,
)

WIDTH, HEADS = 32, 4


def test_patches_are_read_row_by_row_with_the_channels_last() -> None:
    images = torch.rand(2, 3, 32, 48)

    patches = patchify(images)

    assert patches.shape == (2, 6, PIXELS)
    for row in range(2):
        for column in range(3):
            for y in (0, 5, 15):
                for x in (0, 9):
                    value = patches[:, 3 * row + column].reshape(2, 16, 16, 3)[:, y, x]
                    assert torch.equal(value, images[:, :, 16 * row + y, 16 * column + x])
    assert torch.equal(unpatchify(patches, (2, 3)), images)


def test_a_mask_leaves_49_of_196_patches_and_differs_from_image_to_image() -> None:
    visible, masked = draw_mask(5, 196, 0.75, torch.Generator().manual_seed(0))

    assert visible.shape == (5, 49)
    assert masked.shape == (5, 147)
    for kept, hidden in zip(visible.tolist(), masked.tolist(), strict=True):
        assert sorted(kept + hidden) == list(range(196))
    assert len({tuple(sorted(kept)) for kept in visible.tolist()}) == 5
    again, _ = draw_mask(5, 196, 0.75, torch.Generator().manual_seed(0))
    assert torch.equal(again, visible)


def test_one_patch_stays_visible_however_few_there_are() -> None:
    visible, masked = draw_mask(1, 4, 0.9, torch.Generator())

    assert (visible.shape, masked.shape) == ((1, 1), (1, 3))


def test_every_patch_is_equally_often_visible() -> None:
    visible, _ = draw_mask(4000, 16, 0.75, torch.Generator().manual_seed(0))

    shares = torch.bincount(visible.flatten(), minlength=16) / 4000

    assert (shares - 0.25).abs().max() < 0.03


def test_standardised_patches_have_mean_0_and_variance_1_and_flat_ones_are_finite() -> None:
    patches = 40 + 7 * torch.randn(2, 5, PIXELS)
    patches[1, 4] = 3.0

    found = standardise(patches)

    torch.testing.assert_close(found.mean(dim=2), torch.zeros(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0].var(dim=1), torch.ones(5))
    assert not found[1, 4].any()


def test_predictions_do_not_depend_on_the_order_of_the_visible_patches() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, WIDTH, 2, HEADS).eval()
    tokens, visible = torch.randn(2, 6, 8), torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    order = torch.tensor([3, 0, 4, 1, 2])

    with torch.no_grad():
        given = decoder(tokens, visible, (4, 4))
        shuffled = decoder(torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1), visible[:, order], (4, 4))

    assert given.shape == (2, 16, PIXELS)
    torch.testing.assert_close(given, shuffled)


# ---- the published checkpoint ----------------------------------------------------------------------------------------


def block_state(prefix: str, width: int) -> dict[str, Tensor]:
    """A transformer block under the published names."""
    return {
        f"{prefix}norm1.weight": 1 + 0.1 * torch.randn(width),
        f"{prefix}norm1.bias": 0.1 * torch.randn(width),
        f"{prefix}attn.qkv.weight": torch.randn(3 * width, width) / width**0.5,
        f"{prefix}attn.qkv.bias": 0.1 * torch.randn(3 * width),
        f"{prefix}attn.proj.weight": torch.randn(width, width) / width**0.5,
        f"{prefix}attn.proj.bias": 0.1 * torch.randn(width),
        f"{prefix}norm2.weight": 1 + 0.1 * torch.randn(width),
        f"{prefix}norm2.bias": 0.1 * torch.randn(width),
        f"{prefix}mlp.fc1.weight": torch.randn(4 * width, width) / width**0.5,
        f"{prefix}mlp.fc1.bias": 0.1 * torch.randn(4 * width),
        f"{prefix}mlp.fc2.weight": torch.randn(width, 4 * width) / (4 * width) ** 0.5,
        f"{prefix}mlp.fc2.bias": 0.1 * torch.randn(width),
    }


def checkpoint(depth: int, decoder_depth: int) -> dict[str, Tensor]:
    """A masked autoencoder around ViT-Ti under the names of facebookresearch/mae, 224 pixels."""
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, 192),
        "pos_embed": torch.cat([torch.zeros(1, 1, 192), sine_positions(192)], dim=1),
        "patch_embed.proj.weight": torch.randn(192, 3, 16, 16) / PIXELS**0.5,
        "patch_embed.proj.bias": torch.randn(192),
        "norm.weight": torch.rand(192),
        "norm.bias": torch.randn(192),
        "mask_token": torch.randn(1, 1, WIDTH),
        "decoder_pos_embed": torch.cat([torch.zeros(1, 1, WIDTH), sine_positions(WIDTH)], dim=1),
        "decoder_embed.weight": torch.randn(WIDTH, 192) / 192**0.5,
        "decoder_embed.bias": torch.randn(WIDTH),
        "decoder_norm.weight": torch.rand(WIDTH),
        "decoder_norm.bias": torch.randn(WIDTH),
        "decoder_pred.weight": torch.randn(PIXELS, WIDTH) / WIDTH**0.5,
        "decoder_pred.bias": torch.randn(PIXELS),
    }
    for number in range(depth):
        state |= block_state(f"blocks.{number}.", 192)
    for number in range(decoder_depth):
        state |= block_state(f"decoder_blocks.{number}.", WIDTH)
    return state


def block(x: Tensor, state: Mapping[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Rows (L, D) after a pre-norm transformer block, head by head."""

    def linear(rows: Tensor, name: str) -> Tensor:
        return rows @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    def norm(rows: Tensor, name: str) -> Tensor:
        centred = rows - rows.mean(dim=1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{prefix}{name}.weight"] + state[f"{prefix}{name}.bias"]

    width = x.shape[1] // heads
    query, key, value = linear(norm(x, "norm1"), "attn.qkv").chunk(3, dim=1)
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = (query[:, own] @ key[:, own].T / width**0.5).softmax(dim=1)
        parts.append(weights @ value[:, own])
    x = x + linear(torch.cat(parts, dim=1), "attn.proj")
    return x + linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


def test_the_published_names_give_the_published_network() -> None:
    state = checkpoint(12, 2)
    backbone, decoder = ViT("vit_ti_16").eval(), Decoder(192, WIDTH, 2, HEADS).eval()
    load_autoencoder(backbone, decoder, state, "here")
    image = torch.rand(1, 3, 224, 224)
    visible = torch.randperm(196)[None, :49]

    with torch.no_grad():
        tokens = backbone.encode(take(backbone.embed(image), visible))
        predictions = decoder(tokens, visible, (14, 14))

    kernel = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(192, PIXELS)
    patches = patchify(image)[0] @ kernel.T + state["patch_embed.proj.bias"] + state["pos_embed"][0, 1:]
    x = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], patches[visible[0]]])
    for number in range(12):
        x = block(x, state, f"blocks.{number}.", 3)
    x = F.layer_norm(x, (192,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(tokens[0], x, atol=1e-4, rtol=1e-4)

    known = x @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    y = state["mask_token"][0].repeat(197, 1)
    y[0] = known[0]
    for place, row in zip(visible[0].tolist(), known[1:], strict=True):
        y[1 + place] = row
    y = y + state["decoder_pos_embed"][0]
    for number in range(2):
        y = block(y, state, f"decoder_blocks.{number}.", HEADS)
    y = F.layer_norm(y, (WIDTH,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
    expected = y[1:] @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]
    torch.testing.assert_close(predictions[0], expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_another_shape_or_without_a_decoder_is_refused() -> None:
    state = checkpoint(12, 2)
    backbone = ViT("vit_ti_16")

    with pytest.raises(WeightsError, match=r"mine\.pth is no masked autoencoder"):
        load_autoencoder(backbone, Decoder(192, WIDTH, 3, HEADS), state, "mine.pth")
    encoder_only = {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}
    with pytest.raises(WeightsError, match="Missing key"):
        load_autoencoder(backbone, Decoder(192, WIDTH, 2, HEADS), encoder_only, "mine.pth")


def test_the_paper_s_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        backbone, decoder = ViT("vit_b_16"), Decoder(768, 512, 8, 16)

    count = sum(parameter.numel() for net in (backbone, decoder) for parameter in net.parameters())
    assert count + decoder.positions.numel() == 111_907_840  # the fixed positions of both are counted
