"""The Mask R-CNN protocol on generated discs: targets, transfer, training, resuming, storing, scoring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anaus_bench.errors import MissingMask, SettingsError, StoreError
from anaus_bench.interfaces import Case, Fold, Picture, Sample, StageContext
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.settings.base import resolve
from anaus_bench.tasks import instances as stored
from anaus_bench.tasks.instances import components, with_boxes
from anaus_bench.tasks.segmentation import DICE, SegmentationTask
from anaus_bench.training.batching import batch_indices
from anaus_plugins.protocols.maskrcnn import Example, learning_rate
from anaus_plugins.protocols.maskrcnn.model import anchor_sizes, build_maskrcnn, run_trunks_in_bf16
from anaus_plugins.protocols.maskrcnn.settings import SegmentationSettings

TINY = resolve(SegmentationSettings, "task", "tiny")


class Discs(SegmentationTask[SegmentationSettings]):
    name = "discs"
    dataset = "discs"
    metrics = (DICE,)


def disc_case(number: int, side: int = 64) -> Case:
    """A bright disc on speckle, (side, side + 16)."""
    generator = np.random.default_rng(number)
    rows, columns = np.ogrid[:side, : side + 16]
    centre = generator.uniform(0.35 * side, 0.65 * side, size=2)
    mask = np.hypot(rows - centre[0], columns - centre[1]) < generator.uniform(0.15, 0.3) * side
    image = np.where(mask, 190, 70) * generator.uniform(0.6, 1.3, size=mask.shape)
    picture = Picture(image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8))
    return Case(Sample(f"disc {number}.png", f"group {number}", f"disc {number}.png"), lambda: picture)


def disc_fold(train: int = 6, test: int = 3, side: int = 64) -> Fold:
    cases = [disc_case(number, side) for number in range(train + test)]
    return Fold(0, tuple(cases[:train]), tuple(cases[train:]))


def make_encoder(arch: str = "resnet18", finest_stride: int = 32) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(arch, finest_stride)
    encoder.card = EncoderCard(arch, finest_stride, (0.2, 0.2, 0.2), (0.3, 0.3, 0.3), "random", "random")
    return encoder


def store(folder: Path, cases: Sequence[Case], masks: Sequence[Sequence[tuple[float, NDArray[np.bool_]]]]) -> None:
    """Stores for each case detections (score, mask)."""
    images = []
    for case, detections in zip(cases, masks, strict=True):
        height, width = case.read().image.shape
        images.append(
            stored.Instances(
                case.sample.sample_id,
                height,
                width,
                [[0.0, 0.0, 1.0, 1.0] for _ in detections],
                [score for score, _ in detections],
                [1 for _ in detections],
                [stored.encode_rle(mask) for _, mask in detections],
            )
        )
    folder.mkdir(exist_ok=True)
    stored.write_predictions(folder, images)


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_union_of_the_components_is_the_mask_minus_what_was_dropped() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.35
    labels, dropped = components(mask, min_area=6)

    sizes = [(labels == instance).sum() for instance in range(1, labels.max() + 1)]
    everything, count = components(mask, min_area=1)
    small = [i for i in range(1, everything.max() + 1) if (everything == i).sum() < 6]
    assert min(sizes) >= 6
    assert dropped == len(small) > 0
    assert count == 0
    np.testing.assert_array_equal(labels > 0, mask & ~np.isin(everything, small))


def test_pixels_that_touch_at_a_corner_are_one_object() -> None:
    labels, _ = components(np.eye(4, dtype=bool), min_area=1)

    assert labels.max() == 1


def test_a_box_ends_one_past_the_last_pixel() -> None:
    labels = np.zeros((8, 9), dtype=np.int32)
    labels[3, 4] = 1
    labels[5:7, 0:9] = 2

    _, boxes = with_boxes(labels)

    assert boxes.tolist() == [[4, 3, 5, 4], [0, 5, 9, 7]]


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


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_backbone_computes_the_stages_of_the_encoder(arch: str) -> None:
    encoder = make_encoder(arch).eval()
    model = build_maskrcnn(encoder, SegmentationSettings()).eval()
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
    model = build_maskrcnn(make_encoder(), SegmentationSettings(trainable_layers=layers, norm="bn"))

    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}

    assert trained == expected
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone.body"))


@pytest.mark.parametrize("norm", ["frozen", "gn"])
def test_the_pyramid_is_transferred_by_level(norm: str) -> None:
    encoder = make_encoder(finest_stride=4)
    settings = SegmentationSettings(transfer="backbone+fpn", norm=norm)  # type: ignore[arg-type]
    fpn: Any = build_maskrcnn(encoder, settings).backbone.fpn

    assert encoder.pyramid is not None
    for level in range(4):
        torch.testing.assert_close(fpn.inner_blocks[level][0].weight, encoder.pyramid.lateral[level].weight)
    for level in range(3):
        torch.testing.assert_close(fpn.layer_blocks[level][0].weight, encoder.pyramid.smooth[level].weight)


def test_the_transferred_pyramid_computes_the_maps_of_the_encoder() -> None:
    encoder = make_encoder(finest_stride=4).eval()
    model = build_maskrcnn(encoder, SegmentationSettings(transfer="backbone+fpn")).eval()
    images = torch.rand(1, 3, 64, 64)

    maps = model.backbone(images)

    for level, stride in enumerate((4, 8, 16)):
        torch.testing.assert_close(maps[str(level)], encoder(images)[stride])


def test_transferring_a_pyramid_that_was_not_trained_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs an encoder with a pyramid"):
        build_maskrcnn(make_encoder(), SegmentationSettings(transfer="backbone+fpn"))


def test_anchors_scale_with_the_image_unless_given() -> None:
    assert anchor_sizes(SegmentationSettings()) == (32, 64, 128, 256, 512)
    assert anchor_sizes(SegmentationSettings(size=256)) == (16, 32, 64, 128, 256)
    assert anchor_sizes(resolve(SegmentationSettings, "task", "official")) == (32, 64, 128, 256, 512)


def test_inputs_are_normalised_and_resized_as_the_card_and_settings_say() -> None:
    model: Any = build_maskrcnn(make_encoder(), SegmentationSettings(size=128))

    assert model.transform.image_mean == [0.2] * 3
    assert model.transform.image_std == [0.3] * 3
    assert (model.transform.min_size, model.transform.max_size) == ((128,), 213)


def test_in_bf16_features_and_box_deltas_come_back_in_float32() -> None:
    model: Any = build_maskrcnn(make_encoder(), SegmentationSettings(size=64)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)
        run_trunks_in_bf16(model, "cpu")
        maps = model.backbone(images)
        _, deltas = model.rpn.head(list(maps.values()))
        (output,) = model([images[0]])

    for name, value in maps.items():
        assert value.dtype == torch.float32
        assert 0 < (value - expected[name]).norm() < 0.05 * expected[name].norm()
    assert {delta.dtype for delta in deltas} == {torch.float32}
    assert not torch.equal(output["boxes"], output["boxes"].bfloat16().float())


def test_the_learning_rate_warms_up_over_an_epoch_and_falls_every_ten() -> None:
    settings = SegmentationSettings()

    assert learning_rate(settings, 0) == pytest.approx(5e-6)
    assert learning_rate(settings, 0.5) == pytest.approx(0.005 * (1e-3 + 0.999 / 2))
    assert learning_rate(settings, 1) == learning_rate(settings, 9.9) == 0.005
    assert learning_rate(settings, 10) == pytest.approx(5e-4)
    assert learning_rate(settings, 29.9) == pytest.approx(5e-5)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def test_a_fold_gives_predictions_of_the_held_out_images_at_their_own_size(
    stage_context: Callable[..., StageContext],
) -> None:
    ctx, fold = stage_context(), disc_fold()
    Discs(TINY).fit(make_encoder(), fold, ctx)

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
    task, fold = Discs(TINY), disc_fold(train=4, test=2)
    whole = stage_context("whole")
    task.fit(make_encoder(), fold, whole)

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
            task.fit(make_encoder(), fold, killed)
    torch.manual_seed(99)  # what another process would have
    task.fit(make_encoder(), fold, killed)

    for name in ("predictions.json", "log.csv"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert any("resumed at step 1 of 2" in note for note in killed.progress.notes)  # type: ignore[attr-defined]


def test_fine_tuning_leaves_the_encoder_as_it_was(stage_context: Callable[..., StageContext]) -> None:
    encoder = make_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    Discs(TINY).fit(encoder, disc_fold(train=2, test=1), stage_context())

    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["frozen", "gn"])
def test_images_without_a_lesion_are_trained_on(norm: str, stage_context: Callable[..., StageContext]) -> None:
    empty = Picture(np.full((64, 64), 90, dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8))
    case = Case(Sample("empty", "empty", "empty"), lambda: empty)
    fold = dataclasses.replace(disc_fold(train=2, test=1), train=(case, case, disc_case(0)))

    Discs(TINY.model_copy(update={"norm": norm})).fit(make_encoder(), fold, stage_context())


def test_an_image_without_a_mask_file_is_refused(stage_context: Callable[..., StageContext]) -> None:
    case = Case(Sample("bare", "bare", "bare"), lambda: Picture(np.zeros((64, 64), dtype=np.uint8)))
    fold = dataclasses.replace(disc_fold(), train=(case,))

    with pytest.raises(MissingMask, match="bare has no mask"):
        Discs(TINY).fit(make_encoder(), fold, stage_context())


@pytest.mark.slow
def test_eight_discs_are_learned_in_a_hundred_steps_from_random_weights(
    stage_context: Callable[..., StageContext],
) -> None:
    cases = tuple(disc_case(number, 96) for number in range(8))
    settings = SegmentationSettings(
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
    Discs(settings).fit(make_encoder(), fold, ctx)

    assert Discs(settings).score([(fold, ctx.out)]).folds[0]["dice"] > 0.85
    top1 = settings.model_copy(update={"merge": "top1"})
    assert Discs(top1).score([(fold, ctx.out)]).folds[0]["dice"] > 0.85


# ---- stored predictions and scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_survive_a_round_trip(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 20, size=2)) < generator.random()

    encoded = stored.encode_rle(mask)

    assert sum(encoded["counts"]) == mask.size
    np.testing.assert_array_equal(stored.decode_rle(json.loads(json.dumps(encoded))), mask)


def test_run_lengths_are_column_major_and_start_with_zeros() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)

    assert stored.encode_rle(mask) == {"size": [2, 3], "counts": [0, 2, 2, 1, 1]}
    assert stored.encode_rle(~mask) == {"size": [2, 3], "counts": [2, 2, 1, 1]}


def test_union_takes_confident_instances_and_top1_the_best_alone(tmp_path: Path) -> None:
    case = disc_case(0)
    left, right, rest = (np.zeros((64, 80), dtype=bool) for _ in range(3))
    left[:, :10], right[:, 70:], rest[:, 30:40] = True, True, True
    store(tmp_path, [case], [[(0.9, left), (0.5, right), (0.49, rest)]])

    instances = stored.read_predictions(tmp_path)[case.sample.sample_id]

    np.testing.assert_array_equal(instances.merged("union", 0.5), left | right)
    np.testing.assert_array_equal(instances.merged("top1", 0.5), left)
    store(tmp_path, [case], [[(0.1, rest)]])
    unsure = stored.read_predictions(tmp_path)[case.sample.sample_id]
    assert not unsure.merged("union", 0.5).any()
    np.testing.assert_array_equal(unsure.merged("top1", 0.5), rest)


def test_scores_hold_image_means_per_fold_and_summed_pixels_overall(tmp_path: Path) -> None:
    cases = [disc_case(number) for number in range(4)]
    truths = [case.read().mask > 0 for case in cases]  # type: ignore[operator]
    half = truths[1].copy()
    half[: half.shape[0] // 2] = False
    folds = [Fold(0, (), tuple(cases[:2])), Fold(1, (), tuple(cases[2:]))]
    store(tmp_path / "0", cases[:2], [[(0.9, truths[0])], [(0.8, half)]])
    store(tmp_path / "1", cases[2:], [[], [(0.7, truths[3])]])

    scores = Discs(SegmentationSettings()).score([(fold, tmp_path / str(fold.number)) for fold in folds])

    half_dice = 2 * half.sum() / (half.sum() + truths[1].sum())
    assert [row["dice"] for row in scores.rows] == pytest.approx([1, half_dice, 0, 1])
    assert [fold["dice"] for fold in scores.folds] == pytest.approx([(1 + half_dice) / 2, 0.5])
    tp = truths[0].sum() + half.sum() + truths[3].sum()
    fn = truths[1].sum() - half.sum() + truths[2].sum()
    assert scores.pooled["dice"] == pytest.approx(2 * tp / (2 * tp + fn))
    assert scores.pooled["dice_image"] == pytest.approx((2 + half_dice) / 4)
    assert scores.folds[1]["dice_micro"] == pytest.approx(2 * truths[3].sum() / (2 * truths[3].sum() + truths[2].sum()))
    assert [row["hd_penalised"] for row in scores.rows] == [False, False, True, False]
    assert scores.rows[2]["hausdorff"] == pytest.approx(256 * 2**0.5)
    assert scores.pooled["hausdorff_valid"] == pytest.approx(scores.rows[1]["hausdorff"] / 3)
    assert [row["n_pred"] for row in scores.rows] == [1, 1, 0, 1]
    assert any("penalised in 1 images; over the 3 images" in note for note in scores.notes)


def test_small_components_are_scored_and_counted_in_the_notes(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:30, 10:30], mask[50, 50] = 1, 1
    picture = Picture(np.zeros((64, 64), dtype=np.uint8), mask)
    case = Case(Sample("a", "a", "a"), lambda: picture)
    store(tmp_path, [case], [[(0.9, mask > 0)]])

    scores = Discs(SegmentationSettings()).score([(Fold(0, (), (case,)), tmp_path)])

    assert scores.rows[0]["dice"] == 1
    assert scores.rows[0]["n_gt"] == 1
    assert any(note.startswith("1 mask components below 16 px") for note in scores.notes)


def test_drawing_gives_both_masks_and_the_dice(tmp_path: Path) -> None:
    case = disc_case(0)
    truth = case.read().mask
    assert truth is not None
    store(tmp_path, [case], [[(0.9, truth > 0)]])

    drawn, predicted, caption = Discs(SegmentationSettings()).draw(case, tmp_path)

    np.testing.assert_array_equal(drawn, truth)
    np.testing.assert_array_equal(predicted, truth)
    assert caption == "Dice 1.000"


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    store(tmp_path, [disc_case(0)], [[]])
    task = Discs(SegmentationSettings())

    with pytest.raises(StoreError, match=r"no prediction of 'disc 1\.png'"):
        task.score([(Fold(0, (), (disc_case(1),)), tmp_path)])
    with pytest.raises(StoreError, match="holds no predictions"):
        task.score([(Fold(0, (), (disc_case(0),)), tmp_path / "nowhere")])
