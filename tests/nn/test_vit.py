"""Vision transformers as encoders: torchvision's network at any size, its maps and its pyramid."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F

from anaus_bench.errors import WeightsError
from anaus_bench.nn.encoder import Encoder, EncoderCard, load_encoder, load_imagenet, save_encoder
from anaus_bench.nn.vit import GRID, ViT, resize_positions, sine_positions
from anaus_bench.nn.weights import IMAGENET, PublishedWeights


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("vit_ti_16").eval()


@pytest.mark.parametrize(
    ("arch", "parameters"), [("vit_b_16", 85_798_656), ("vit_s_16", 21_665_664), ("vit_ti_16", 5_524_416)]
)
def test_a_backbone_has_the_published_number_of_parameters(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        backbone = ViT(arch)

    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


def test_names_and_shapes_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(weights=None).state_dict()
        ours = ViT("vit_b_16").state_dict()

    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("heads.")
    }


def test_at_224_pixels_the_class_token_is_the_one_of_torchvision(encoder: Encoder) -> None:
    net = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768).eval()
    net.heads = torch.nn.Identity()
    net.load_state_dict(encoder.backbone.state_dict())
    images = torch.rand(2, 3, 224, 224)

    with torch.no_grad():
        tokens = encoder.backbone.encode(encoder.backbone.embed(images))
        torch.testing.assert_close(tokens[:, 0], net(images))


def test_maps_hold_the_patch_tokens_row_by_row_and_the_vector_their_mean(encoder: Encoder) -> None:
    images = torch.rand(2, 3, 64, 96)

    with torch.no_grad():
        tokens = encoder.backbone.encode(encoder.backbone.embed(images))[:, 1:]
        maps, vector = encoder(images, (16, 32)), encoder.vector(images)

    assert maps[16].shape == (2, 192, 4, 6)
    assert maps[32].shape == (2, 192, 2, 3)
    torch.testing.assert_close(maps[16][:, :, 1, 2], tokens[:, 6 + 2])
    torch.testing.assert_close(vector, tokens.mean(dim=1))
    assert encoder.channels == {16: 192, 32: 192}


def test_images_are_padded_with_zeros_to_whole_patches(encoder: Encoder) -> None:
    images = torch.rand(1, 3, 40, 50)

    with torch.no_grad():
        (given,) = encoder(images, (16,)).values()
        (padded,) = encoder(F.pad(images, (0, 14, 0, 8)), (16,)).values()

    assert given.shape == (1, 192, 3, 4)
    torch.testing.assert_close(given, padded)


def test_a_patch_left_out_does_not_reach_the_others(encoder: Encoder) -> None:
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] += 1  # patch 1 * 4 + 2
    others = [place for place in range(16) if place != 6]

    with torch.no_grad():
        first, second = (encoder.backbone.encode(encoder.backbone.embed(x)[:, others]) for x in (images, changed))
        whole, other_whole = (encoder.backbone.encode(encoder.backbone.embed(x)) for x in (images, changed))

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(whole[:, 1], other_whole[:, 1])


# ---- positions -------------------------------------------------------------------------------------------------------


def test_sine_positions_equal_the_formula_written_as_a_loop() -> None:
    width = 24
    table = sine_positions(width)[0]

    assert table.shape == (GRID * GRID, width)
    for row in range(GRID):
        for column in range(GRID):
            expected = [
                wave(place / 10000 ** (number / (width // 4)))
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for number in range(width // 4)
            ]
            torch.testing.assert_close(table[row * GRID + column], torch.tensor(expected))


def test_positions_are_left_alone_at_224_pixels_and_interpolated_elsewhere() -> None:
    table = sine_positions(64)

    assert torch.equal(resize_positions(table, GRID, GRID), table)
    finer = resize_positions(table, 16, 28).reshape(16, 28, 64)
    # The place of a finer cell's centre on the table's grid; inside, the interpolation is near the sine of that place.
    rows, columns = ((torch.arange(count) + 0.5) * GRID / count - 0.5 for count in (16, 28))
    inner, slow = (slice(2, -2), slice(4, -4)), 10000 ** (-2 / 16)
    of_columns, of_rows = (columns * slow).sin().expand(16, 28), (rows * slow).sin()[:, None].expand(16, 28)
    torch.testing.assert_close(finer[..., 2][inner], of_columns[inner], atol=0.02, rtol=0)
    torch.testing.assert_close(finer[..., 34][inner], of_rows[inner], atol=0.02, rtol=0)


def test_fixed_positions_are_not_trained_and_leave_the_class_token_at_zero(encoder: Encoder) -> None:
    encoder.backbone.fix_positions()

    table = encoder.backbone.encoder.pos_embedding
    assert not table.requires_grad
    assert not table[:, 0].any()
    assert torch.equal(table[:, 1:], sine_positions(192))


# ---- the pyramid, and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("finest", [4, 8, 16])
def test_the_pyramid_gives_its_strides_256_channels_and_leaves_stride_32_raw(finest: int) -> None:
    encoder = Encoder("vit_ti_16", finest)
    strides = [stride for stride in (4, 8, 16, 32) if stride >= finest]

    maps = encoder(torch.rand(1, 3, 64, 96), strides)

    for stride in strides:
        channels = 192 if stride == 32 else 256
        assert maps[stride].shape == (1, channels, 64 // stride, 96 // stride)
        assert encoder.channels[stride] == channels


def test_the_pyramid_runs_only_if_it_is_asked_for() -> None:
    encoder = Encoder("vit_ti_16", 4)
    encoder(torch.rand(1, 3, 32, 32), (32,))[32].sum().backward()

    assert encoder.pyramid is not None
    assert all(parameter.grad is None for parameter in encoder.pyramid.parameters())


def test_an_encoder_is_the_same_after_saving(tmp_path: Path) -> None:
    encoder = Encoder("vit_ti_16", 8)
    card = EncoderCard("vit_ti_16", 8, (0.5,) * 3, (0.25,) * 3, "usfmae", "random")
    save_encoder(tmp_path / "encoder.safetensors", encoder, card)

    again = load_encoder(tmp_path / "encoder.safetensors")

    assert again.card is not None
    assert (again.card.arch, again.card.finest_stride, again.card.method) == ("vit_ti_16", 8, "usfmae")
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_imagenet_weights_of_torchvision_are_loaded_without_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    monkeypatch.setitem(IMAGENET, "vit_ti_16", PublishedWeights("a small one", "https://example.org/ti.pth", "0"))
    net = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
    torch.save(net.state_dict(), tmp_path / "mine.pth")

    load_imagenet(encoder, str(tmp_path / "mine.pth"))

    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name
    torch.save({"class_token": torch.zeros(1, 1, 192)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="does not fit vit_ti_16"):
        load_imagenet(encoder, str(tmp_path / "part.pth"))
