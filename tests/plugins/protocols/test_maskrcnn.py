"""Mask R-CNN on generated discs: targets, transfer, training, resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from anaus_bench.errors import MissingMask, SettingsError
from anaus_bench.interfaces import Case, Fold, Picture, Sample, StageContext
from anaus_bench.settings.base import resolve
from anaus_bench.tasks import instances as stored
from anaus_bench.tasks.instances import components, with_boxes
from anaus_bench.tasks.segmentation import SegmentationSettings
from anaus_bench.training.batching import batch_indices
from anaus_plugins.protocols.maskrcnn import Example, MaskRCNN, learning_rate
from anaus_plugins.protocols.maskrcnn.model import anchor_sizes, build_maskrcnn, trunks_in_bf16
from anaus_plugins.protocols.maskrcnn.settings import MaskRCNNSettings
from tests.toy_tasks import DISCS, Discs, disc_case, disc_fold, run_fold, toy_encoder

TINY = resolve(MaskRCNNSettings, "protocol", "tiny")


def test_flipping_a_target_flips_image_masks_and_boxes_alike() -> None:
    labels, boxes = with_boxes(components(disc_case(1).read().mask > 0, 1)[0])  # type: ignore[operator]
    image = torch.from_numpy(disc_case(1).read().image)
    example = Example(image, torch.from_numpy(labels), torch.from_numpy(boxes))

    (plain, target), (mirrored, flipped) = example.target(False), example.target(True)

    assert plain.shape == (3, 64, 80)
    assert plain.max() <= 1
    torch.testing.assert_close(mirrored, plain.flip(-1))
    torch.testing.assert_close(flipped["masks"], target["masks"].flip(-1))
    columns = flipped["masks"][0].any(dim=0).nonzero()
    assert flipped["boxes"][0, 0] == columns.min()
    assert flipped["boxes"][0, 2] == columns.max() + 1


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    epochs = [torch.cat([batch_indices(3, 4 * epoch + k, 7, 2) for k in range(4)]).tolist() for epoch in range(2)]

    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_backbone_computes_the_stages_of_the_encoder(arch: str) -> None:
    encoder = toy_encoder(arch).eval()
    model = build_maskrcnn(encoder, MaskRCNNSettings()).eval()
    images = torch.rand(1, 3, 64, 64)

    stages = model.backbone.body(images)

    for ours, theirs in zip(encoder.stages(images), stages.values(), strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (0, set()),
        (3, {"layer2", "layer3", "layer4"}),
        (4, {"layer1", "layer2", "layer3", "layer4"}),
        (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_trainable_layers_are_counted_from_the_top(layers: int, expected: set[str]) -> None:
    model = build_maskrcnn(toy_encoder(), MaskRCNNSettings(trainable_layers=layers, norm="bn"))

    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}

    assert trained == expected
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone.body"))


@pytest.mark.parametrize("norm", ["frozen", "gn"])
def test_the_pyramid_is_transferred_by_level(norm: str) -> None:
    encoder = toy_encoder(finest_stride=4)
    settings = MaskRCNNSettings(transfer="backbone+fpn", norm=norm)  # type: ignore[arg-type]
    fpn: Any = build_maskrcnn(encoder, settings).backbone.fpn

    assert encoder.pyramid is not None
    for level in range(4):
        torch.testing.assert_close(fpn.inner_blocks[level][0].weight, encoder.pyramid.lateral[level].weight)
    for level in range(3):
        torch.testing.assert_close(fpn.layer_blocks[level][0].weight, encoder.pyramid.smooth[level].weight)


def test_the_transferred_pyramid_computes_the_maps_of_the_encoder() -> None:
    encoder = toy_encoder(finest_stride=4).eval()
    model = build_maskrcnn(encoder, MaskRCNNSettings(transfer="backbone+fpn")).eval()
    images = torch.rand(1, 3, 64, 64)

    maps = model.backbone(images)

    for level, stride in enumerate((4, 8, 16)):
        torch.testing.assert_close(maps[str(level)], encoder(images)[stride])


def test_transferring_a_pyramid_that_was_not_trained_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs an encoder with a pyramid"):
        build_maskrcnn(toy_encoder(), MaskRCNNSettings(transfer="backbone+fpn"))


def test_anchors_scale_with_the_image_unless_given() -> None:
    assert anchor_sizes(MaskRCNNSettings()) == (32, 64, 128, 256, 512)
    assert anchor_sizes(MaskRCNNSettings(size=256)) == (16, 32, 64, 128, 256)
    assert anchor_sizes(resolve(MaskRCNNSettings, "protocol", "official")) == (32, 64, 128, 256, 512)


def test_inputs_are_normalised_and_resized_as_the_card_and_settings_say() -> None:
    model: Any = build_maskrcnn(toy_encoder(), MaskRCNNSettings(size=128))

    assert model.transform.image_mean == [0.5] * 3
    assert model.transform.image_std == [0.25] * 3
    assert (model.transform.min_size, model.transform.max_size) == ((128,), 213)


def test_in_bf16_features_and_box_deltas_come_back_in_float32() -> None:
    model: Any = build_maskrcnn(toy_encoder(), MaskRCNNSettings(size=64)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)
        with trunks_in_bf16(model, "cpu"):
            maps = model.backbone(images)
            _, deltas = model.rpn.head(list(maps.values()))
            (output,) = model([images[0]])
        after = model.backbone(images)

    for name, value in maps.items():
        assert value.dtype == torch.float32
        assert 0 < (value - expected[name]).norm() < 0.05 * expected[name].norm()
    assert {delta.dtype for delta in deltas} == {torch.float32}
    assert not torch.equal(output["boxes"], output["boxes"].bfloat16().float())
    assert all(torch.equal(after[name], value) for name, value in expected.items())


def test_the_learning_rate_warms_up_over_an_epoch_and_falls_every_ten() -> None:
    settings = MaskRCNNSettings()

    assert learning_rate(settings, 0) == pytest.approx(5e-6)
    assert learning_rate(settings, 0.5) == pytest.approx(0.005 * (1e-3 + 0.999 / 2))
    assert learning_rate(settings, 1) == learning_rate(settings, 9.9) == 0.005
    assert learning_rate(settings, 10) == pytest.approx(5e-4)
    assert learning_rate(settings, 29.9) == pytest.approx(5e-5)


def test_a_fold_gives_predictions_of_the_held_out_images_at_their_own_size(
    stage_context: Callable[..., StageContext],
) -> None:
    ctx, fold = stage_context(), disc_fold()
    run_fold(MaskRCNN(TINY), DISCS, fold, ctx)

    predictions = stored.read_predictions(ctx.out)
    assert list(predictions) == [case.sample.sample_id for case in fold.test]
    for instances in predictions.values():
        assert (instances.height, instances.width) == (64, 80)
        assert instances.scores == sorted(instances.scores, reverse=True)
        assert len(instances.boxes) == len(instances.scores) == len(instances.labels) == len(instances.masks) <= 3
        assert all(stored.decode_rle(mask).shape == (64, 80) for mask in instances.masks)
    assert (ctx.out / "log.csv").read_text().startswith("step,loss,")


class Killed(Exception):
    pass


def test_a_killed_fold_resumes_to_the_same_predictions(
    stage_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, fold = MaskRCNN(TINY), disc_fold(train=4, test=2)
    whole = stage_context("whole")
    run_fold(protocol, DISCS, fold, whole)

    killed = stage_context("killed", checkpoint_seconds=0.0)
    step, calls = torch.optim.SGD.step, []

    def fails_at_the_second(self: torch.optim.SGD, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", fails_at_the_second)
        with pytest.raises(Killed):
            run_fold(protocol, DISCS, fold, killed)
    torch.manual_seed(99)  # what another process would have
    run_fold(protocol, DISCS, fold, killed)

    for name in ("predictions.json", "log.csv"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert any("resumed at step 1 of 2" in note for note in killed.progress.notes)  # type: ignore[attr-defined]


def test_fine_tuning_leaves_the_encoder_as_it_was(stage_context: Callable[..., StageContext]) -> None:
    encoder = toy_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    run_fold(MaskRCNN(TINY), DISCS, disc_fold(train=2, test=1), stage_context(), encoder)

    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("layers", "moves"), [(0, False), (1, True)])
def test_statistics_of_batch_norm_move_where_its_layer_is_trained(
    layers: int, moves: bool, stage_context: Callable[..., StageContext]
) -> None:
    ctx = stage_context()
    protocol = MaskRCNN(TINY.model_copy(update={"norm": "bn", "trainable_layers": layers}))
    network: Any = protocol.build(toy_encoder(), ())
    last, first = network.backbone.body.layer4[1].bn2, network.backbone.body.bn1
    before = last.running_mean.clone()

    protocol.fit(network, disc_fold(train=2, test=1), DISCS, ctx)

    assert torch.equal(last.running_mean, before) is not moves
    assert not first.running_mean.any()


@pytest.mark.parametrize("norm", ["frozen", "gn"])
def test_images_without_a_lesion_are_trained_on(norm: str, stage_context: Callable[..., StageContext]) -> None:
    empty = Picture(np.full((64, 64), 90, dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8))
    case = Case(Sample("empty", "empty", "empty"), lambda: empty)
    fold = dataclasses.replace(disc_fold(train=2, test=1), train=(case, case, disc_case(0)))

    run_fold(MaskRCNN(TINY.model_copy(update={"norm": norm})), DISCS, fold, stage_context())


def test_an_image_without_a_mask_file_is_refused(stage_context: Callable[..., StageContext]) -> None:
    case = Case(Sample("bare", "bare", "bare"), lambda: Picture(np.zeros((64, 64), dtype=np.uint8)))
    fold = dataclasses.replace(disc_fold(), train=(case,))

    with pytest.raises(MissingMask, match="bare has no mask"):
        run_fold(MaskRCNN(TINY), DISCS, fold, stage_context())


@pytest.mark.slow
def test_eight_discs_are_learned_in_a_hundred_steps_from_random_weights(
    stage_context: Callable[..., StageContext],
) -> None:
    cases = tuple(disc_case(number, 96) for number in range(8))
    settings = MaskRCNNSettings(
        size=96,
        trainable_layers=5,
        norm="bn",
        base_lr=0.01,
        batch_size=4,
        epochs=50,
        lr_step=50,
        warmup_epochs=10,
        rois=64,
        proposals=200,
        detections=10,
    )
    ctx, fold = stage_context(), Fold(0, cases, cases)
    run_fold(MaskRCNN(settings), DISCS, fold, ctx)

    assert DISCS.score([(fold, ctx.out)]).folds[0]["dice"] > 0.85
    top1 = SegmentationSettings(merge="top1")
    assert Discs(top1).score([(fold, ctx.out)]).folds[0]["dice"] > 0.85
