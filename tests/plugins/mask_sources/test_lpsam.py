"""LP-SAM: counts of the paper, equations, adapters, weights, training, resuming and masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn import functional as F

from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.errors import DataError, SettingsError, WeightsError
from anaus_bench.interfaces import StageContext
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.lpsam import LPSAM
from anaus_plugins.mask_sources.lpsam.encoder import PATCH, PaperEncoder, SamusBlock
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
from anaus_plugins.mask_sources.lpsam.prompt_engine import LatentPromptEngine
from anaus_plugins.mask_sources.lpsam.sam_weights import load_sam
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings
from anaus_plugins.mask_sources.lpsam.training import (
    ClickStage,
    LineBatch,
    Selection,
    _Trainer,
    augment,
    dice_loss,
    fit_network,
    hard_dice,
    jittered_boxes,
    make_lines,
    mask_loss,
    random_clicks,
    split_lines,
)

Contexts = Callable[..., StageContext]


def tiny(**values: Any) -> LPSAMSettings:
    return resolve(LPSAMSettings, "masks", "tiny", values)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def meta_network(**values: Any) -> LPSAMNetwork:
    with torch.device("meta"):
        return LPSAMNetwork(LPSAMSettings(**values), structures=5)


def ellipses(number: int, side: int = 64, seed: int = 0) -> PackedCorpus:
    """Dark ellipses in bright speckle, one per image and patient."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    truth = np.zeros((number, side, side), np.uint8)
    for mask in truth:
        centre, radii = rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.25, 2)
        mask[((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1] = 1
    speckle = rng.rayleigh(1, truth.shape) * np.where(truth, 25, 90)
    entries = tuple(Entry(str(i), "made", f"p{i}", -1, None, None, None, (0, 0, side, side)) for i in range(number))
    images = speckle.clip(0, 255).astype(np.uint8)
    return PackedCorpus(images, truth, entries, ("lesion",), {"made": (1,)}, (), True)


@pytest.fixture
def fitted(stage_context: Contexts) -> LPSAM:
    """A tiny LP-SAM after a few steps."""
    source = LPSAM(tiny(steps=(2, 2)))
    source.load(source.fit(ellipses(12), stage_context()), ("lesion",), torch.device("cpu"))
    return source


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_paper_adapters_are_13_million_parameters() -> None:
    net = meta_network()

    adapters = sum(parameter.numel() for parameter in net.image_encoder.adapter_parameters().values())

    assert adapters == 24 * (2 * 768 * 352 + 352 + 768)
    assert abs(adapters - 13.0e6) < 0.05e6


def test_official_counts_are_those_of_the_released_code() -> None:
    net = meta_network(adapter="samus", lpe="official", tokens="joint")

    assert sum(parameter.numel() for parameter in net.image_encoder.adapter_parameters().values()) == 39_653_120
    assert count(net.image_encoder) == 129_259_008
    assert count(net.prompt_engine) == 7_011_904
    assert count(net.prompt_engine) + count(net.mask_decoder) == 11_070_244
    assert count(net) == 140_335_472


def test_paper_prompt_engine_adds_only_norms_and_tokens_to_the_coded_one() -> None:
    net = meta_network()

    assert count(net.prompt_engine) == 7_011_904 + 4 * 512 + 3 * 256
    assert count(meta_network(refine_fc=False).prompt_engine) == count(net.prompt_engine) - 4 * 590_336


def test_defaults_map_256_pixels_to_a_grid_of_32() -> None:
    net = meta_network(size={"depth": 1, "global_blocks": (0,)})

    logits, iou = net(torch.empty(2, 1, 256, 256, device="meta"))

    assert net.image_encoder(torch.empty(2, 1, 256, 256, device="meta")).shape == (2, 256, 32, 32)
    assert logits.shape == (2, 5, 128, 128)
    assert iou.shape == (2, 5)


# ---- encoder and weights ---------------------------------------------------------------------------------------------


def sam_encoder(settings: LPSAMSettings, grid: int) -> ImageEncoderViT:
    size = settings.size
    encoder = ImageEncoderViT(
        img_size=PATCH * grid,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        out_chans=size.prompt_dim,
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        use_rel_pos=True,
        window_size=size.window,
        global_attn_indexes=size.global_blocks,
    )
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    return encoder


def sam_state(settings: LPSAMSettings) -> dict[str, torch.Tensor]:
    """A SAM model of these dimensions, whose grid is twice as fine as ours."""
    encoder = sam_encoder(settings, 2 * settings.size.grid)
    net = LPSAMNetwork(settings, structures=1)
    rest = {
        name: value for name, value in net.state_dict().items() if name.startswith(("prompt_encoder", "mask_decoder"))
    }
    return {**{f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}, **rest}


def test_untrained_paper_adapters_leave_the_sam_encoder_as_it_is() -> None:
    settings = tiny()
    sam = sam_encoder(settings, settings.size.grid)
    adapted = PaperEncoder(settings.size, adapter_dim=8)
    adapted.load_state_dict(sam.state_dict(), strict=False)
    images = torch.rand(2, 1, 64, 64)

    sam.patch_embed.proj.stride = (8, 8)
    expected = sam(F.interpolate(images, size=72, mode="bilinear").expand(-1, 3, -1, -1))

    torch.testing.assert_close(adapted(images), expected)


def test_samus_block_is_its_description_written_out() -> None:
    torch.manual_seed(0)
    block = SamusBlock(dim=8, num_heads=2, norm_layer=nn.LayerNorm, use_rel_pos=True, window_size=0, input_size=(3, 3))
    x, cnn = torch.randn(2, 3, 3, 8), torch.randn(2, 8, 3, 3)

    out, refined = block(x, cnn)

    normed, beside = block.norm1(x), cnn.permute(0, 2, 3, 1).reshape(2, 9, 8)
    crossed = attention_by_hand(block.space_adapter, normed.reshape(2, 9, 8), beside, heads=2).reshape(2, 3, 3, 8)
    y = x + block.attn(normed + crossed)
    expected = y + block.mlp(block.norm2(y)) + 0.5 * block.mlp_adapter(block.norm2(y))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(refined, F.gelu(block.refine_adapter[1](block.refine_adapter[0](cnn))))


@pytest.mark.parametrize("adapter", ["paper", "samus"])
def test_sam_weights_load_with_global_tables_and_positions_resized(adapter: str) -> None:
    settings = tiny(adapter=adapter)
    state = sam_state(settings)
    net = LPSAMNetwork(settings, structures=1)

    load_sam(net, state, "sam.pth")

    loaded, grid = net.state_dict(), settings.size.grid
    for axis in "hw":
        windowed, table = (f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (0, 1))
        assert torch.equal(loaded[windowed], state[windowed])
        assert len(state[table]) == 4 * grid - 1
        expected = F.interpolate(state[table].T[None], size=2 * grid - 1, mode="linear")[0].T
        torch.testing.assert_close(loaded[table], expected)
    positions = state["image_encoder.pos_embed"]
    blocks = positions.unflatten(1, (grid, 2)).unflatten(3, (grid, 2)).mean((2, 4))
    torch.testing.assert_close(loaded["image_encoder.pos_embed"], positions if adapter == "samus" else blocks)
    assert torch.equal(loaded["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])


def test_weights_of_another_model_are_refused_with_what_was_found() -> None:
    net = LPSAMNetwork(tiny(), structures=1)
    deeper = sam_state(tiny(size={"depth": 4}))
    truncated = sam_state(tiny())
    del truncated["mask_decoder.iou_token.weight"]

    with pytest.raises(WeightsError, match="4 blocks of width 32, expected 2 of width 32"):
        load_sam(net, deeper, "sam.pth")
    with pytest.raises(WeightsError, match="lacks 1 of SAM's"):
        load_sam(net, truncated, "sam.pth")
    with pytest.raises(WeightsError, match="no SAM model"):
        load_sam(net, {"fc.weight": torch.zeros(1)}, "resnet.pth")


def test_tensors_beside_those_of_sam_are_refused() -> None:
    state = sam_state(tiny()) | {"image_encoder.cnn_embed.inc.conv.0.weight": torch.zeros(1)}

    with pytest.raises(WeightsError, match=r"holds 1 beside SAM.*cnn_embed.*masks\.trained"):
        load_sam(LPSAMNetwork(tiny(), structures=1), state, "samus.pth")


def test_sam_weights_of_another_width_of_prompts_are_refused() -> None:
    state = sam_state(tiny(size={"prompt_dim": 64}))

    with pytest.raises(WeightsError, match=r"has shape .*, expected .*; give the SAM weights that fit masks\.size"):
        load_sam(LPSAMNetwork(tiny(), structures=1), state, "sam.pth")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sam.pth", "cannot be read as weights"), ("sam_vit_b_01ec64.pth", r"has sha256 .*, expected ec2df6273261")],
)
def test_a_truncated_weights_file_stops_the_fit(
    stage_context: Contexts, tmp_path: Path, name: str, expected: str
) -> None:
    torch.save(sam_state(tiny()), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])

    with pytest.raises(WeightsError, match=expected):
        LPSAM(tiny(weights=str(tmp_path / name))).fit(ellipses(4), stage_context())


def test_fit_starts_from_a_weights_file(stage_context: Contexts, tmp_path: Path) -> None:
    settings = tiny(weights=str(tmp_path / "sam.pth"), stage1="adapters", train_mask_decoder=False, steps=(1, 1))
    state = sam_state(settings)
    torch.save(state, tmp_path / "sam.pth")

    source = LPSAM(settings)
    trained = source.fit(ellipses(4), stage_context())

    assert torch.equal(trained["image_encoder.neck.0.weight"], state["image_encoder.neck.0.weight"])
    assert torch.equal(trained["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])
    assert len(source.identity()["weights"]) == 64
    assert source.describe() == {}


def test_absent_weights_are_an_error_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected 'official' or the path of SAM ViT-B"):
        LPSAM(tiny(weights=str(tmp_path / "none.pth"))).identity()


# ---- prompt engine ---------------------------------------------------------------------------------------------------


def attention_by_hand(attention: Any, queries: torch.Tensor, context: torch.Tensor, heads: int) -> torch.Tensor:
    """Multi-head cross-attention, one head and one query at a time."""
    out = []
    for query_rows, context_rows in zip(queries, context, strict=True):
        q = query_rows @ attention.q_proj.weight.T + attention.q_proj.bias
        k = context_rows @ attention.k_proj.weight.T + attention.k_proj.bias
        v = context_rows @ attention.v_proj.weight.T + attention.v_proj.bias
        width = q.shape[1] // heads
        rows = []
        for row in q:
            parts = []
            for head in range(heads):
                own = slice(head * width, (head + 1) * width)
                scores = torch.exp(k[:, own] @ row[own] / width**0.5)
                parts.append((scores / scores.sum()) @ v[:, own])
            rows.append(torch.cat(parts))
        out.append(torch.stack(rows) @ attention.out_proj.weight.T + attention.out_proj.bias)
    return torch.stack(out)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("official", [False, True])
def test_prompt_engine_follows_equations_1_to_3(official: bool, refine: bool) -> None:
    torch.manual_seed(0)
    engine = LatentPromptEngine(dim=16, queries=3, rounds=2, official=official, refine=refine)
    for parameter in engine.parameters():
        nn.init.normal_(parameter, std=0.3)
    images, embedding, code = torch.rand(2, 1, 16, 16), torch.randn(2, 16, 2, 2), torch.randn(1, 16, 2, 2)

    tokens = engine(images, embedding, code)

    def attend(module: Any, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return attention_by_hand(module, queries, context, heads=8)

    def rows(maps: torch.Tensor) -> torch.Tensor:
        return maps.permute(0, 2, 3, 1).reshape(len(maps), 4, 16)

    image, queries = rows(embedding), engine.queries.weight.repeat(2, 1, 1)
    original = carried = engine.cnn_branch(images.repeat(1, 3, 1, 1))
    for step in engine.rounds:
        image = image + rows(code)
        if official:
            carried = step.refine(carried)
            fused = attend(step.cross, image, rows(carried))
        else:
            used = rows(step.refine(original) if refine else original)
            fused = step.cross_norm(attend(step.cross, image, used) + image)  # Eq. 1
        visual, latent = step.image_update, step.query_update
        new_image = visual.mlp(visual.norm(attend(visual.attention, fused, queries) + fused))  # Eq. 2
        queries = latent.mlp(latent.norm(attend(latent.attention, queries, fused) + queries))  # Eq. 3
        image = new_image
    torch.testing.assert_close(tokens, queries, rtol=1e-4, atol=1e-4)


def test_batched_decoder_equals_the_decoder_of_sam_image_by_image() -> None:
    torch.manual_seed(0)
    net = LPSAMNetwork(tiny(), structures=1).eval()
    embedding, prompts = torch.randn(3, 32, 8, 8), torch.randn(3, 2, 32)
    dense = net.prompt_encoder(points=None, boxes=torch.zeros(1, 4), masks=None)[1]

    logits, iou = net.decode(embedding, prompts)

    for index in range(3):
        masks, quality = net.mask_decoder.predict_masks(
            embedding[index : index + 1], net.prompt_encoder.get_dense_pe(), prompts[index : index + 1], dense
        )
        torch.testing.assert_close(logits[index], masks[0, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[index], quality[0, 0], rtol=1e-4, atol=1e-4)


# ---- loss, prompts, augmentation -------------------------------------------------------------------------------------


def test_loss_is_the_equation_written_as_a_loop_over_images() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 4), (torch.rand(3, 4, 4) > 0.6).float()
    settings = tiny(alpha=0.8, pos_weight=2.0)

    dices, entropies = [], []
    for image, target in zip(logits, targets, strict=True):
        shared = square = total = 0.0
        for logit, truth in zip(image.flatten().tolist(), target.flatten().tolist(), strict=True):
            p = 1 / (1 + np.exp(-logit))
            shared, square, total = shared + p * truth, square + p * p, total + truth
            entropies.append(-2 * truth * np.log(p) - (1 - truth) * np.log(1 - p))
        dices.append(1 - (2 * shared + 1e-5) / (square + total + 1e-5))
    expected = 0.2 * np.mean(entropies) + 0.8 * np.mean(dices)

    assert mask_loss(logits, targets, settings).item() == pytest.approx(expected, rel=1e-5)


def test_dice_over_the_batch_differs_from_dice_per_image() -> None:
    logits = torch.full((2, 2, 2), 20.0)
    targets = torch.stack([torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])])

    assert dice_loss(logits, targets, (1, 2)).item() == pytest.approx((0 + 1 - 2 / 5) / 2, abs=1e-4)
    assert dice_loss(logits, targets, (0, 1, 2)).item() == pytest.approx(1 - 10 / 13, abs=1e-4)


def test_hard_dice_is_of_structures_that_are_there() -> None:
    logits = torch.tensor([[[-1.0, -1.0]], [[1.0, -1.0]], [[1.0, 1.0]]])
    targets = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]])

    assert hard_dice(logits, targets).tolist() == pytest.approx([math.nan, math.nan, 2 / 3], nan_ok=True)


def test_of_equal_epochs_the_latest_is_chosen() -> None:
    weight = nn.Parameter(torch.zeros(1))
    selection = Selection({"weight": weight})

    for value, dice in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.7), (4.0, 0.6)):
        weight.data.fill_(value)
        selection.offer(torch.tensor(dice))
    selection.restore()

    assert weight.item() == 3.0
    assert selection.dice.item() == pytest.approx(0.7)


def test_a_network_that_finds_nothing_scores_nothing_however_much_is_absent(stage_context: Contexts) -> None:
    corpus, settings = ellipses(8), tiny()
    assert corpus.truth is not None
    corpus.truth[4:] = 0  # half of the images show nothing
    net = LPSAMNetwork(settings, structures=1)
    for parameter in net.mask_decoder.output_hypernetworks_mlps[0].parameters():
        nn.init.zeros_(parameter)  # logits 0: no pixel is above probability 0.5

    dice = _Trainer(net, ClickStage(net, settings), 0, corpus, settings, stage_context())._validate(make_lines(corpus))

    assert dice.item() == 0.0


def test_clicks_lie_in_the_structure_and_are_negative_where_it_is_absent() -> None:
    targets = torch.zeros(50, 8, 10)
    targets[:40, 2:5, 6:9] = 1

    points, labels = random_clicks(targets, torch.Generator().manual_seed(0))

    assert labels[:, 0].tolist() == [1] * 40 + [0] * 10
    inside = points[:40, 0].int()
    assert all(targets[0, y, x] == 1 for x, y in inside.tolist())
    assert len({(x, y) for x, y in inside.tolist()}) > 5


def test_jittered_boxes_surround_the_structure_within_a_tenth_of_its_side() -> None:
    targets = torch.zeros(20, 64, 64)
    targets[:, 10:30, 20:60] = 1

    boxes = jittered_boxes(targets, torch.Generator().manual_seed(0))

    away = (boxes - torch.tensor([20.0, 10.0, 59.0, 29.0])).abs()
    assert (away <= torch.tensor([4.0, 2.0, 4.0, 2.0])).all()
    assert away.max() > 1


def test_augmentation_moves_image_and_target_alike_and_repeats_under_one_seed() -> None:
    corpus = ellipses(16)
    targets = torch.from_numpy(corpus.truth).float()
    batch = LineBatch(targets[:, None].clone(), targets, torch.zeros(16), torch.zeros(16))

    once = augment(batch, torch.Generator().manual_seed(3))
    again = augment(batch, torch.Generator().manual_seed(3))

    assert torch.equal(once.images, again.images)
    assert torch.equal(once.targets, again.targets)
    assert once.images.min() >= 0 and once.images.max() <= 1
    assert set(once.targets.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(once.targets, targets)
    overlap = ((once.images[:, 0] > 0.5) == (once.targets > 0)).float().mean()
    assert overlap > 0.98


# ---- lines -----------------------------------------------------------------------------------------------------------


def test_lines_are_the_structures_that_each_data_set_annotates() -> None:
    corpus = ellipses(4)
    entries = tuple(replace(entry, dataset=name) for entry, name in zip(corpus.entries, "aabc", strict=True))
    corpus = replace(corpus, entries=entries, structures=("x", "y", "z"), annotated={"a": (1,), "b": (2, 3)})

    assert make_lines(corpus).tolist() == [[0, 1], [1, 1], [2, 2], [2, 3]]


def test_validation_holds_out_whole_groups_of_every_data_set() -> None:
    corpus = ellipses(40)
    entries = tuple(
        replace(entry, group_id=f"p{index // 2}", dataset="ab"[index >= 36])
        for index, entry in enumerate(corpus.entries)
    )
    corpus = replace(corpus, entries=entries, annotated={"a": (1,), "b": (1,)})

    training, validation = split_lines(corpus, make_lines(corpus), 0.1, seed=0)

    groups = [{entries[index].group_id for index in lines[:, 0]} for lines in (training, validation)]
    assert not groups[0] & groups[1]
    assert len(training) + len(validation) == 40
    assert {entries[index].dataset for index in validation[:, 0]} == {"a", "b"}


def test_pairs_without_masks_or_without_a_second_group_are_refused(stage_context: Contexts) -> None:
    corpus = ellipses(4)
    one_group = replace(corpus, entries=tuple(replace(entry, group_id="p") for entry in corpus.entries))

    with pytest.raises(DataError, match="no masks found"):
        LPSAM(tiny()).fit(replace(corpus, truth=None), stage_context())
    with pytest.raises(DataError, match="one group"):
        LPSAM(tiny()).fit(one_group, stage_context())


# ---- training --------------------------------------------------------------------------------------------------------


def frozen_and_moved(settings: LPSAMSettings, ctx: StageContext) -> set[str]:
    """Top-level modules (and `adapters`) whose parameters training moved."""
    torch.manual_seed(0)
    net = LPSAMNetwork(settings, structures=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adapters = {f"image_encoder.{name}" for name in net.image_encoder.adapter_parameters()}

    fit_network(net, ellipses(8), settings, ctx)

    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    return {"adapters" if name in adapters else name.split(".")[0] for name in moved}


@pytest.mark.parametrize("adapter", ["paper", "samus"])
def test_the_text_trains_adapters_then_the_prompt_engine_only(adapter: str, stage_context: Contexts) -> None:
    settings = tiny(adapter=adapter, stage1="adapters", train_mask_decoder=False, steps=(2, 2))

    assert frozen_and_moved(settings, stage_context()) == {"adapters", "prompt_engine"}


def test_the_mask_decoder_and_all_of_sam_train_where_asked_for(stage_context: Contexts) -> None:
    decoder = tiny(stage1="adapters", steps=(1, 2), box_prompt=0.5, tokens="joint", lpe="official")

    assert frozen_and_moved(decoder, stage_context("a")) == {"adapters", "prompt_engine", "mask_decoder"}
    everything = {"adapters", "image_encoder", "prompt_encoder", "mask_decoder", "prompt_engine"}
    assert frozen_and_moved(tiny(steps=(2, 1)), stage_context("b")) == everything


def test_only_the_token_of_the_lines_class_is_trained(stage_context: Contexts) -> None:
    corpus = replace(ellipses(8), structures=("absent", "lesion"), annotated={"made": (2,)})
    corpus = replace(corpus, truth=corpus.truth * np.uint8(2))
    torch.manual_seed(0)
    net = LPSAMNetwork(tiny(rounds=1), structures=2)
    before = net.prompt_engine.queries.weight.detach().clone()

    # In the last round a token's update depends on the image and itself alone.
    fit_network(net, corpus, tiny(steps=(1, 2), rounds=1), stage_context())

    assert torch.equal(net.prompt_engine.queries.weight[0], before[0])
    assert not torch.equal(net.prompt_engine.queries.weight[1], before[1])


def test_an_interrupted_fit_continues_to_the_same_state(
    stage_context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anaus_plugins.mask_sources.lpsam import training

    settings, corpus = tiny(steps=(3, 4)), ellipses(12)
    expected = LPSAM(settings).fit(corpus, stage_context("whole"))
    read, calls = training.read_lines, []

    def dies(*args: Any) -> LineBatch:
        calls.append(1)
        if len(calls) in (3, 12):
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(training, "read_lines", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            LPSAM(settings).fit(corpus, stage_context("killed", checkpoint_seconds=0))
    resumed_context = stage_context("killed", checkpoint_seconds=0)
    state = LPSAM(settings).fit(corpus, resumed_context)

    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert any("resumed at step" in note for note in resumed_context.progress.notes)


def test_cached_features_train_without_the_encoder(stage_context: Contexts) -> None:
    ctx = stage_context()

    LPSAM(tiny(cache_features=True, steps=(1, 2))).fit(ellipses(8), ctx)

    assert any("caching" in note for note in ctx.progress.notes)


def test_a_random_start_is_said_aloud(stage_context: Contexts) -> None:
    ctx = stage_context()

    LPSAM(tiny(steps=(1, 1))).fit(ellipses(4), ctx)

    assert "lpsam: random initialisation, not SAM" in ctx.progress.notes
    assert LPSAM(tiny()).describe() == {"weights": "random initialisation, not SAM"}
    assert LPSAM(tiny()).identity() == {}


def test_unknown_sizes_are_refused_before_training() -> None:
    with pytest.raises(SettingsError, match="global_blocks"):
        tiny(size={"global_blocks": (5,)})


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_segment_gives_contiguous_maps_whatever_the_batch(fitted: LPSAM) -> None:
    images = torch.from_numpy(ellipses(5, side=80, seed=1).images)[:, None]

    maps = fitted.segment(images)

    assert maps.shape == (5, 80, 80)
    assert maps.dtype == torch.uint8
    assert torch.equal(maps, fitted.segment(images))
    assert torch.equal(maps, torch.cat([fitted.segment(image[None]) for image in images]))
    for one in maps:
        assert one.unique().tolist() == list(range(int(one.max()) + 1))
        assert one.max() <= 15


def logits_of(probability: torch.Tensor) -> torch.Tensor:
    return torch.logit(probability.clamp(1e-4, 1 - 1e-4))


def test_overlaps_go_to_the_more_probable_class() -> None:
    probability = torch.zeros(1, 2, 4, 4)
    probability[0, 0, :, :3] = 0.7
    probability[0, 1, :, 2:] = 0.9

    classes = LPSAM(tiny()).class_maps(logits_of(probability), torch.ones(1, 2), (4, 4))

    assert classes[0].tolist() == [[1, 1, 2, 2]] * 4


def test_maps_of_low_predicted_iou_or_probability_are_dropped() -> None:
    probability = torch.zeros(2, 2, 4, 4)
    probability[:, 0, :2] = 0.95
    probability[:, 1, 2:] = 0.6
    iou = torch.tensor([[0.4, 0.6], [0.6, 0.6]])

    by_iou = LPSAM(tiny(min_iou=0.5)).class_maps(logits_of(probability), iou, (4, 4))
    by_probability = LPSAM(tiny(min_probability=0.8)).class_maps(logits_of(probability), iou, (4, 4))

    assert by_iou[0].unique().tolist() == [0, 2]
    assert by_iou[1].unique().tolist() == [1, 2]
    assert by_probability[1].unique().tolist() == [0, 1]


def test_a_least_iou_of_zero_keeps_maps_of_any_predicted_iou() -> None:
    classes = LPSAM(tiny(min_iou=0.0)).class_maps(torch.full((1, 1, 2, 2), 9.0), torch.tensor([[-3.0]]), (2, 2))

    assert classes.tolist() == [[[1, 1], [1, 1]]]


def test_the_network_learns_to_find_what_it_is_not_told_where(stage_context: Contexts) -> None:
    source = LPSAM(tiny(steps=(40, 30), batch=(8, 8), lr=2e-3))
    source.load(source.fit(ellipses(40), stage_context()), ("lesion",), torch.device("cpu"))
    test = ellipses(12, seed=5)
    assert test.truth is not None

    maps = source.segment(torch.from_numpy(test.images)[:, None]).numpy()

    best = []
    for found, truth in zip(maps, test.truth > 0, strict=True):
        best.append(max(((found == k) & truth).sum() / ((found == k) | truth).sum() for k in range(found.max() + 1)))
    assert np.mean(best) > 0.5
