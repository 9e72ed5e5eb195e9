"""Both protocols on a vision transformer: what is trained, the pyramid, a step, a fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anaus_bench.errors import SettingsError
from anaus_bench.interfaces import StageContext
from anaus_bench.nn.encoder import Encoder
from anaus_bench.tasks import instances as stored
from anaus_plugins.protocols.finetune import FineTuning, build_classifier
from anaus_plugins.protocols.maskrcnn import MaskRCNN
from anaus_plugins.protocols.maskrcnn.model import build_maskrcnn
from anaus_plugins.protocols.maskrcnn.settings import MaskRCNNSettings
from tests.plugins.protocols.test_finetune import TINY as CLASSIFY
from tests.plugins.protocols.test_maskrcnn import TINY
from tests.toy_tasks import DISCS, SHADES, disc_fold, run_fold, shade_fold
from tests.toy_tasks import toy_encoder as any_encoder


def toy_encoder(finest_stride: int = 32) -> Encoder:
    return any_encoder("vit_ti_16", finest_stride)


def blocks(first: int) -> set[str]:
    """Parts of the backbone from a block on."""
    return {f"encoder.layers.encoder_layer_{number}" for number in range(first, 12)} | {"encoder.ln"}


def part(name: str) -> str:
    """The block, layer or token that a parameter belongs to."""
    words = name.split(".")
    return ".".join(words[: 3 if words[:2] == ["encoder", "layers"] else 2 if words[0] == "encoder" else 1])


STEM = {"class_token", "conv_proj", "encoder.pos_embedding"}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("linear", set()),
        ("last_block", blocks(11)),
        ("last_stage", blocks(9)),
        ("last3_stages", blocks(3)),
        ("all", blocks(0) | STEM),
    ],
)
def test_gradients_are_left_to_the_trainable_part_of_a_transformer(trainable: str, expected: set[str]) -> None:
    encoder = build_classifier(toy_encoder(), 3, trainable)["encoder"]

    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}

    assert {part(name.removeprefix("backbone.")) for name in trained} == expected


@pytest.mark.parametrize(
    ("layers", "expected"), [(0, set()), (1, blocks(9)), (3, blocks(3)), (4, blocks(0)), (5, blocks(0) | STEM)]
)
def test_trainable_layers_of_a_transformer_are_quarters_of_its_blocks(layers: int, expected: set[str]) -> None:
    model: Any = build_maskrcnn(toy_encoder(), MaskRCNNSettings(trainable_layers=layers))

    trained = {part(name) for name, parameter in model.backbone.body.named_parameters() if parameter.requires_grad}

    assert trained == expected
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone.body"))


def test_the_detector_takes_five_levels_from_the_last_map_of_the_encoder() -> None:
    encoder = toy_encoder().eval()
    model: Any = build_maskrcnn(encoder, MaskRCNNSettings()).eval()
    images = torch.rand(2, 3, 64, 96)

    maps = model.backbone(images)

    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "0": (2, 256, 16, 24),
        "1": (2, 256, 8, 12),
        "2": (2, 256, 4, 6),
        "3": (2, 256, 2, 3),
        "pool": (2, 256, 1, 2),
    }
    torch.testing.assert_close(model.backbone.body(images)[16], encoder(images, (16,))[16])


def test_a_trained_pyramid_computes_the_same_in_the_detector() -> None:
    encoder = toy_encoder(finest_stride=4).eval()
    model: Any = build_maskrcnn(encoder, MaskRCNNSettings(transfer="backbone+fpn")).eval()
    images = torch.rand(1, 3, 64, 64)

    maps = model.backbone(images)

    for level, stride in enumerate((4, 8, 16)):
        torch.testing.assert_close(maps[str(level)], encoder(images)[stride])
    with pytest.raises(SettingsError, match="needs an encoder with a pyramid"):
        build_maskrcnn(toy_encoder(), MaskRCNNSettings(transfer="backbone+fpn"))


@pytest.mark.parametrize("norm", ["frozen", "bn", "gn"])
def test_a_step_trains_the_transformer_its_pyramid_and_the_heads(norm: str) -> None:
    settings = TINY.model_copy(update={"norm": norm})
    model: Any = build_maskrcnn(toy_encoder(), settings).train()
    image, target = torch.rand(3, 60, 70), torch.zeros(60, 70, dtype=torch.uint8)
    target[20:40, 10:30] = 1
    truth = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 40.0]]),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": target[None],
    }

    losses = model([image], [truth])
    torch.stack(list(losses.values())).sum().backward()

    assert all(value.isfinite() for value in losses.values())
    for name in ("backbone.body.conv_proj.weight", "backbone.body.encoder.layers.encoder_layer_0.ln_1.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
    for level in model.backbone.fpn.levels.values():
        assert level[-2].weight.grad.abs().sum() > 0


def test_a_fold_is_segmented_at_the_images_own_size_with_either_optimiser(
    stage_context: Callable[..., StageContext],
) -> None:
    fold, logs = disc_fold(train=4, test=1), {}
    for optimiser in ("sgd", "adamw"):
        ctx = stage_context(optimiser)
        run_fold(MaskRCNN(TINY.model_copy(update={"optimiser": optimiser})), DISCS, fold, ctx, toy_encoder())
        logs[optimiser] = (ctx.out / "log.csv").read_text()

        (instances,) = stored.read_predictions(ctx.out).values()
        assert (instances.height, instances.width) == (64, 80)

    assert logs["sgd"] != logs["adamw"]


def test_classes_that_differ_in_brightness_are_learned(stage_context: Callable[..., StageContext]) -> None:
    settings = CLASSIFY.model_copy(update={"epochs": 6, "base_lr": 1e-3})
    ctx, fold = stage_context(), shade_fold()
    run_fold(FineTuning(settings), SHADES, fold, ctx, toy_encoder())

    assert SHADES.score([(fold, ctx.out)]).pooled["accuracy"] == 1.0
