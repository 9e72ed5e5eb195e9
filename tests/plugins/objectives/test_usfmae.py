"""USF-MAE: the loss as a loop, what the encoder sees, its start and its place in a plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.cells.cell import Cell
from anaus_bench.corpus.batch import Batch
from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.encoder import Encoder
from anaus_bench.nn.vit import sine_positions
from anaus_bench.nn.weights import MAE_VIT_B
from anaus_bench.planning.planner import make_plan
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.lars import parameter_groups
from anaus_plugins.objectives.usfmae import USFMAE, USFMAESettings
from anaus_plugins.objectives.usfmae.autoencoder import draw_mask, patchify
from tests.plugins.objectives.test_usfmae_autoencoder import checkpoint

STILL = resolve(USFMAESettings, "objective", "tiny", {"rotation": 0.0, "vertical_flip": 0.0})


def build(settings: USFMAESettings = STILL) -> tuple[USFMAE, nn.ModuleDict]:
    torch.manual_seed(0)
    objective = USFMAE(settings)
    return objective, objective.build(Encoder("vit_ti_16"))


@pytest.fixture
def batch() -> Batch:
    return synthetic_batch(USFMAE(STILL), size=64, images=3)


def places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Visible and masked patches of the batch: the draw after that of the flips and turns."""
    generator = torch.Generator().manual_seed(batch.seed)
    torch.rand(len(batch.views[0]), 2, generator=generator)
    return draw_mask(len(batch.views[0]), 16, 0.75, generator)


def predictions_of(objective: USFMAE, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, predictions of all patches and tokens given to the decoder."""
    seen: dict[str, Tensor] = {}

    def keep(_: nn.Module, given: tuple[Any, ...], found: Tensor) -> None:
        found.retain_grad()
        seen.update(tokens=given[0], predictions=found)

    handle = nets["decoder"].register_forward_hook(keep)
    loss, _ = objective.loss(nets, batch)
    handle.remove()
    return loss, seen["predictions"], seen["tokens"]


@pytest.mark.parametrize("standardised", [False, True])
def test_the_loss_is_the_mean_squared_error_of_the_masked_patches_written_as_a_loop(
    batch: Batch, standardised: bool
) -> None:
    objective, nets = build(STILL.model_copy(update={"standardise_patches": standardised}))

    loss, predictions, _ = predictions_of(objective, nets, batch)

    images, found = patchify(batch.views[0]).double(), predictions.detach().double()
    errors = []
    for image, masked in enumerate(places(batch)[1].tolist()):
        for place in masked:
            target = images[image, place]
            if standardised:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append(sum((found[image, place, k] - target[k]).item() ** 2 for k in range(768)) / 768)
    assert len(errors) == 3 * 12
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_only_predictions_of_masked_patches_take_a_gradient(batch: Batch) -> None:
    objective, nets = build()
    loss, predictions, _ = predictions_of(objective, nets, batch)
    loss.backward()  # type: ignore[no-untyped-call]

    visible, masked = places(batch)

    assert predictions.grad is not None
    for image in range(3):
        assert not predictions.grad[image, visible[image]].any()
        assert predictions.grad[image, masked[image]].any(dim=1).all()


def test_the_encoder_sees_the_visible_patches_alone(batch: Batch) -> None:
    objective, nets = build()
    nets.eval()
    visible, masked = places(batch)

    def changed(place: int) -> Batch:
        view = batch.views[0].clone()
        row, column = divmod(place, 4)
        view[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
        return dataclasses.replace(batch, views=(view,))

    loss, _, tokens = predictions_of(objective, nets, batch)
    for place in masked[0].tolist():
        other_loss, _, other = predictions_of(objective, nets, changed(place))
        assert torch.equal(other, tokens)
        assert other_loss != loss
    _, _, other = predictions_of(objective, nets, changed(int(visible[0, 0])))
    assert not torch.equal(other[0], tokens[0])
    assert torch.equal(other[1:], tokens[1:])
    assert tokens.shape == (3, 1 + 4, 192)


def test_an_image_is_turned_before_it_is_mirrored(batch: Batch) -> None:
    quarter = STILL.model_copy(update={"rotation": 90.0, "vertical_flip": 1.0})
    crop = dataclasses.replace(batch.crops[0], flip=torch.tensor([False, True, False]))
    whole = dataclasses.replace(batch, crops=(crop,))

    turned = USFMAE(quarter)._turned(whole, torch.Generator().manual_seed(batch.seed))

    draw = torch.Generator().manual_seed(batch.seed)
    degrees = 90 * torch.rand(3, 2, generator=draw)[:, 1]
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    for image, angle, mirrored, found in zip(batch.views[0], degrees.tolist(), crop.flip, turned, strict=True):
        source = image.flip(2) if mirrored else image  # as it was before the crop mirrored it
        expected = tv.rotate(source, angle, InterpolationMode.BILINEAR).flip(1)
        expected = expected.flip(2) if mirrored else expected
        inside = (slice(None), slice(24, 40), slice(24, 40))
        torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=0)


def test_positions_stay_those_of_the_sines_and_tokens_are_not_decayed() -> None:
    _, nets = build()
    backbone = cast("Encoder", nets["encoder"]).backbone
    weights, vectors = parameter_groups(nets)
    listed = [id(parameter) for group in (weights, vectors) for parameter in group["params"]]

    assert torch.equal(backbone.encoder.pos_embedding[:, 1:], sine_positions(192))  # type: ignore[union-attr]
    assert id(backbone.encoder.pos_embedding) not in listed  # type: ignore[union-attr]
    assert any(parameter is backbone.class_token for parameter in vectors["params"])
    assert any(parameter is nets["decoder"].mask_token for parameter in vectors["params"])
    assert all(parameter.ndim > 1 for parameter in weights["params"])


def test_every_trained_parameter_takes_a_gradient(batch: Batch) -> None:
    objective, nets = build(resolve(USFMAESettings, "objective", "tiny"))
    objective.loss(nets, batch)[0].backward()  # type: ignore[no-untyped-call]

    missing = [name for name, value in nets.named_parameters() if value.requires_grad and value.grad is None]

    assert not missing


def test_an_autoencoder_learns_to_fill_in_a_batch() -> None:
    objective, nets = build()
    batch = synthetic_batch(objective, size=64, images=8)
    optimiser = torch.optim.AdamW(nets.parameters(), 1e-3)
    losses = []
    for _ in range(15):
        loss, _ = objective.loss(nets, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < 0.7 * losses[0]


def test_the_start_is_the_autoencoder_of_imagenet_with_its_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", USFMAE.imagenet), "vit_ti_16", MAE_VIT_B)
    state = checkpoint(12, 1)
    torch.save({"model": state}, tmp_path / "mine.pth")
    objective = USFMAE(USFMAESettings(decoder_dim=32, decoder_depth=1, decoder_heads=4))
    encoder = Encoder("vit_ti_16")

    objective.load_imagenet(encoder, str(tmp_path / "mine.pth"))
    nets = objective.build(encoder)

    last, block = "encoder.layers.encoder_layer_11.", "blocks.11."
    ours = encoder.backbone.state_dict()
    assert torch.equal(ours[f"{last}self_attention.in_proj_weight"], state[f"{block}attn.qkv.weight"])
    assert torch.equal(ours[f"{last}mlp.3.bias"], state[f"{block}mlp.fc2.bias"])
    assert torch.equal(ours["class_token"], state["cls_token"])
    assert torch.equal(nets["decoder"].predict.weight, state["decoder_pred.weight"])
    assert torch.equal(nets["decoder"].mask_token, state["mask_token"])


# ---- in a plan -------------------------------------------------------------------------------------------------------


def backbone_of(cell: Cell) -> str:
    plan = make_plan(cell, Registry(), {})
    (stage,) = [stage for stage in plan.stages if stage.kind == "pretrain"]
    assert plan.cell.backbone == stage.spec["backbone"] == plan.score.labels["backbone"]
    return str(stage.spec["backbone"])


def test_a_cell_without_a_backbone_takes_that_of_its_method() -> None:
    assert backbone_of(Cell("usfmae", "udiat", preset="tiny")) == "vit_ti_16"
    assert backbone_of(Cell("usfmae", "udiat", preset="demo", backbone="vit_s_16")) == "vit_s_16"
    assert backbone_of(Cell("byol", "udiat", preset="tiny")) == "resnet18"
    assert backbone_of(Cell("byol", "udiat", preset="tiny", backbone="vit_ti_16")) == "vit_ti_16"
    assert USFMAE(USFMAESettings()).default_backbone("paper") == "vit_b_16"


def test_a_resnet_is_refused_before_anything_runs() -> None:
    with pytest.raises(SettingsError, match="takes no backbone 'resnet18'; pass --backbone with one of vit_b_16"):
        make_plan(Cell("usfmae", "udiat", preset="tiny", backbone="resnet18"), Registry(), {})


@pytest.mark.parametrize("method", ["usfmae", "byol"])
def test_a_backbone_without_imagenet_weights_is_refused_before_anything_runs(method: str) -> None:
    cell = Cell(method, "udiat", preset="tiny", backbone="vit_s_16", overrides={"pretrain": {"init": "imagenet"}})

    with pytest.raises(
        SettingsError, match=r"'vit_s_16' cannot start from ImageNet weights, which exist for .*vit_b_16"
    ):
        make_plan(cell, Registry(), {})


def test_weights_without_a_published_digest_must_be_given_as_a_file(tmp_path: Path) -> None:
    def plan(weights: str) -> str:
        values = {"pretrain": {"init": "imagenet", "weights": weights}}
        cell = Cell("usfmae", "udiat", preset="tiny", backbone="vit_b_16", overrides=values)
        (stage,) = [stage for stage in make_plan(cell, Registry(), {}).stages if stage.kind == "pretrain"]
        return str(stage.spec["weights"])

    with pytest.raises(WeightsError, match=r"is not downloaded; fetch https://.*_full\.pth yourself and give its path"):
        plan("official")
    with pytest.raises(WeightsError, match="expected the path of the masked autoencoder"):
        plan("absent.pth")
    (tmp_path / "mine.pth").write_bytes(b"something")
    assert len(plan(str(tmp_path / "mine.pth"))) == 64


def test_the_native_recipe_is_that_of_the_authors_code() -> None:
    settings = resolve(PretrainSettings, "pretrain", "native", USFMAE.recipes["native"])

    assert (settings.optimiser, settings.batch, settings.epochs, settings.clip) == ("adamw", 64, 100, 1.0)
    assert settings.base_lr == pytest.approx(3e-4 * 128 / 256)
    assert settings.base_lr * settings.lr_end == pytest.approx(1e-5)
    assert settings.init == "imagenet"


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SettingsError, match="decoder_dim 36 is no multiple of decoder_heads 16"):
        resolve(USFMAESettings, "objective", "paper", {"decoder_dim": 36})


# ---- other objectives on a transformer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "masks"),
    [("byol", False), ("simclr", False), ("densecl", False), ("detcon", True), ("slotcon", False), ("anaus", True)],
)
def test_objectives_that_ask_for_vectors_maps_or_pyramids_train_a_transformer(
    name: str, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Registry().create("objectives", name, "tiny")
    monkeypatch.setattr(type(objective), "default_backbone", lambda self, preset: "vit_ti_16")

    check_objective(objective, size=64)
