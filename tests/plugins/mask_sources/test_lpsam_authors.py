"""LP-SAM trained and saved by the authors' code: names, values, wrong states, and the command."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anaus_bench.cells.cell import Cell
from anaus_bench.cli.app import main
from anaus_bench.corpus.packed import Entry, letterbox
from anaus_bench.errors import SettingsError, WeightsError
from anaus_bench.interfaces import Stage
from anaus_bench.planning.planner import masks_stage
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_plugins.mask_sources.lpsam import LPSAM
from anaus_plugins.mask_sources.lpsam.authors import from_authors
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings

State = dict[str, Tensor]

# Modules of the authors' network that SAM does not have, with block 1 global and one round of the prompt engine, as
# their code names them and as ours does. `w`: weight alone, `wb`: weight and bias.
NAMES = """
wb image_encoder.input_Adapter.D_fc1                      image_encoder.input_adapter.0
wb image_encoder.input_Adapter.D_fc2                      image_encoder.input_adapter.2
w  image_encoder.post_pos_embed.downs.0.maxpool_conv.1    image_encoder.pos_reducer.1
wb image_encoder.post_pos_embed.downs.0.maxpool_conv.2    image_encoder.pos_reducer.2
w  image_encoder.cnn_embed.inc.conv.0                     image_encoder.cnn_branch.0.0
wb image_encoder.cnn_embed.inc.conv.1                     image_encoder.cnn_branch.0.1
w  image_encoder.cnn_embed.downs.0.maxpool_conv.1         image_encoder.cnn_branch.1.1
wb image_encoder.cnn_embed.downs.0.maxpool_conv.2         image_encoder.cnn_branch.1.2
w  image_encoder.cnn_embed.downs.1.maxpool_conv.1         image_encoder.cnn_branch.2.1
wb image_encoder.cnn_embed.downs.1.maxpool_conv.2         image_encoder.cnn_branch.2.2
w  image_encoder.cnn_embed.downs.2.maxpool_conv.1         image_encoder.cnn_branch.3.1
wb image_encoder.cnn_embed.downs.2.maxpool_conv.2         image_encoder.cnn_branch.3.2
wb image_encoder.blocks.1.MLP_Adapter.D_fc1               image_encoder.blocks.1.mlp_adapter.0
wb image_encoder.blocks.1.MLP_Adapter.D_fc2               image_encoder.blocks.1.mlp_adapter.2
wb image_encoder.blocks.1.Space_Adapter.q                 image_encoder.blocks.1.space_adapter.q_proj
wb image_encoder.blocks.1.Space_Adapter.k                 image_encoder.blocks.1.space_adapter.k_proj
wb image_encoder.blocks.1.Space_Adapter.v                 image_encoder.blocks.1.space_adapter.v_proj
wb image_encoder.blocks.1.Space_Adapter.proj              image_encoder.blocks.1.space_adapter.out_proj
w  image_encoder.blocks.1.refine_Adapter.conv.0           image_encoder.blocks.1.refine_adapter.0
wb image_encoder.blocks.1.refine_Adapter.conv.1           image_encoder.blocks.1.refine_adapter.1
w  auto_prompter.initial_sparse_embedding                 prompt_engine.queries
w  auto_prompter.cnn_embed.inc.conv.0                     prompt_engine.cnn_branch.0.0
wb auto_prompter.cnn_embed.inc.conv.1                     prompt_engine.cnn_branch.0.1
w  auto_prompter.cnn_embed.downs.0.maxpool_conv.1         prompt_engine.cnn_branch.1.1
wb auto_prompter.cnn_embed.downs.0.maxpool_conv.2         prompt_engine.cnn_branch.1.2
w  auto_prompter.cnn_embed.downs.1.maxpool_conv.1         prompt_engine.cnn_branch.2.1
wb auto_prompter.cnn_embed.downs.1.maxpool_conv.2         prompt_engine.cnn_branch.2.2
w  auto_prompter.cnn_embed.downs.2.maxpool_conv.1         prompt_engine.cnn_branch.3.1
wb auto_prompter.cnn_embed.downs.2.maxpool_conv.2         prompt_engine.cnn_branch.3.2
wb auto_prompter.blocks.0.cpa.q_proj                      prompt_engine.rounds.0.cross.q_proj
wb auto_prompter.blocks.0.cpa.k_proj                      prompt_engine.rounds.0.cross.k_proj
wb auto_prompter.blocks.0.cpa.v_proj                      prompt_engine.rounds.0.cross.v_proj
wb auto_prompter.blocks.0.cpa.out_proj                    prompt_engine.rounds.0.cross.out_proj
w  auto_prompter.blocks.0.single_conv.conv.0              prompt_engine.rounds.0.refine.0
wb auto_prompter.blocks.0.single_conv.conv.1              prompt_engine.rounds.0.refine.1
wb auto_prompter.blocks.0.align_block.0.attn.q_proj       prompt_engine.rounds.0.image_update.attention.q_proj
wb auto_prompter.blocks.0.align_block.0.attn.k_proj       prompt_engine.rounds.0.image_update.attention.k_proj
wb auto_prompter.blocks.0.align_block.0.attn.v_proj       prompt_engine.rounds.0.image_update.attention.v_proj
wb auto_prompter.blocks.0.align_block.0.attn.out_proj     prompt_engine.rounds.0.image_update.attention.out_proj
wb auto_prompter.blocks.0.align_block.0.ln                prompt_engine.rounds.0.image_update.norm
wb auto_prompter.blocks.0.align_block.0.fc                prompt_engine.rounds.0.image_update.mlp
wb auto_prompter.blocks.0.align_block.1.attn.q_proj       prompt_engine.rounds.0.query_update.attention.q_proj
wb auto_prompter.blocks.0.align_block.1.attn.k_proj       prompt_engine.rounds.0.query_update.attention.k_proj
wb auto_prompter.blocks.0.align_block.1.attn.v_proj       prompt_engine.rounds.0.query_update.attention.v_proj
wb auto_prompter.blocks.0.align_block.1.attn.out_proj     prompt_engine.rounds.0.query_update.attention.out_proj
wb auto_prompter.blocks.0.align_block.1.ln                prompt_engine.rounds.0.query_update.norm
wb auto_prompter.blocks.0.align_block.1.fc                prompt_engine.rounds.0.query_update.mlp
"""

SAM_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def tiny(**values: Any) -> LPSAMSettings:
    return resolve(LPSAMSettings, "masks", "tiny", values)


@functools.cache
def their_names() -> dict[str, str]:
    """Our name -> theirs, for what SAM does not have."""
    found = {}
    for kinds, theirs, ours in (line.split() for line in NAMES.split("\n") if line):
        for kind in {"w": ("weight",), "wb": ("weight", "bias")}[kinds]:
            found[f"{ours}.{kind}"] = f"{theirs}.{kind}"
    return found


@functools.cache
def network() -> LPSAMNetwork:
    """Random values in every tensor, so that none can stand for another."""
    torch.manual_seed(0)
    net = LPSAMNetwork(tiny(adapter="samus", lpe="official", tokens="joint"), structures=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net.eval()


def saved() -> State:
    """The state of `network` as the authors' code would save it."""
    return {their_names().get(name, name): value.clone() for name, value in network().state_dict().items()}


def ours(state: State) -> State:
    return from_authors(state, network().state_dict(), "lpsam.pth")


def source_of(state: Any, file: Path, **how: Any) -> LPSAM:
    torch.save(state, file, **how)
    return LPSAM(tiny(trained=str(file)))


# ---- names and values ------------------------------------------------------------------------------------------------


def test_every_tensor_goes_to_its_place() -> None:
    loaded = ours(saved())

    expected = network().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    shared = [name for name in expected if name not in their_names()]
    assert all(name.startswith(SAM_PARTS) for name in shared)  # under SAM's names in both


def test_half_precision_and_the_names_of_a_data_parallel_run_are_taken() -> None:
    state = {f"module.{name}": value.half() for name, value in saved().items()}

    loaded = ours(state)

    assert all(value.dtype == torch.float32 for value in loaded.values())
    torch.testing.assert_close(loaded, dict(network().state_dict()), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trained_source_gives_the_logits_of_the_network_that_was_saved(tmp_path: Path, zipped: bool) -> None:
    source = source_of(saved(), tmp_path / "lpsam.pth", _use_new_zipfile_serialization=zipped)
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    logits, iou = source.logits(images)

    with torch.no_grad():
        expected, expected_iou = network()(images / 255)
    assert logits.shape == (2, 1, 32, 32)
    assert (logits - expected).abs().max() <= 1e-4
    assert (iou - expected_iou).abs().max() <= 1e-4
    assert logits.std() > 0.1
    assert source.segment(images).shape == (2, 64, 64)


def test_a_trained_network_is_given_the_picture_stretched_as_the_authors_code_does(tmp_path: Path) -> None:
    source = source_of(saved(), tmp_path / "lpsam.pth")
    picture = np.random.default_rng(0).integers(0, 256, (48, 96), dtype=np.uint8)
    packed, box = letterbox(picture, 96, labels=False)
    images, boxes = torch.from_numpy(packed)[None, None], torch.tensor([box])
    stretched = torch.from_numpy(
        np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR)).copy()
    )

    logits, _ = source.logits(images, boxes)
    maps = source.label_maps(images, None, [Entry("a", "synthetic", "g", -1, None, None, None, box)])

    with torch.no_grad():
        expected, _ = network()(stretched[None, None] / 255)
    # PIL rounds to whole grey levels.
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert maps.shape == (1, 96, 96)
    top, _, height, _ = box
    assert maps[0, :top].sum() == maps[0, top + height :].sum() == 0
    inside = source.class_maps(logits, torch.ones(1, 1), (height, 96))[0] > 0
    assert torch.equal(maps[0, top : top + height] > 0, inside)
    assert inside.any()


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_trained_state_implies_the_network_of_the_authors_code() -> None:
    settings = tiny(trained="lpsam.pth")

    assert (settings.adapter, settings.lpe, settings.tokens, settings.aspect) == (
        "samus", "official", "joint", "stretched",
    )  # fmt: skip
    assert tiny(trained="lpsam.pth", min_iou=0.3).min_iou == 0.3
    assert (LPSAMSettings().adapter, LPSAMSettings().aspect) == ("paper", "kept")


@pytest.mark.parametrize("wrong", [{"adapter": "paper"}, {"lpe": "paper"}, {"tokens": "per_class"}, {"aspect": "kept"}])
def test_a_trained_state_in_another_network_is_refused(wrong: dict[str, str]) -> None:
    ((name, value),) = wrong.items()

    with pytest.raises(SettingsError, match=rf"masks\.{name}='{value}'.*leave this setting out"):
        tiny(trained="lpsam.pth", **wrong)


def test_a_trained_source_is_not_fitted_and_says_where_it_is_from(tmp_path: Path) -> None:
    source = source_of(saved(), tmp_path / "lpsam.pth")

    assert not source.needs_fit and source.paired_corpora() == ""
    assert LPSAM(tiny()).needs_fit
    assert source.identity().keys() == {"trained"}
    assert "trained elsewhere" in source.describe()["trained"]


# ---- wrong states ----------------------------------------------------------------------------------------------------


def without(*parts: str) -> State:
    return {name: value for name, value in saved().items() if not any(part in name for part in parts)}


def plain_sam() -> State:
    return without("auto_prompter", "Adapter", "cnn_embed", "post_pos_embed")


def changed(name: str, value: Tensor | None) -> State:
    state = saved() | ({name: value} if value is not None else {})
    return {key: kept for key, kept in state.items() if key != name or value is not None}


TOKENS = "auto_prompter.initial_sparse_embedding.weight"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (plain_sam, "holds plain SAM.*masks.weights"),
        (lambda: without("auto_prompter"), "SAMUS without a prompt engine"),
        (lambda: dict(network().state_dict()), "under this package's names"),
        (lambda: {"fc.weight": torch.zeros(1)}, "holds no LP-SAM"),
        (dict, "holds no LP-SAM"),
        (lambda: changed("image_encoder.neck.0.weight", None), r"1 missing \(first: image_encoder.neck.0.weight\)"),
        (lambda: without("Space_Adapter"), r"8 missing \(first: image_encoder.blocks.1.Space_Adapter.q.weight\)"),
        (lambda: changed("extra.weight", torch.zeros(1)), r"1 surplus \(first: extra.weight\)"),
        (lambda: changed(TOKENS, torch.zeros(5, 32)), r"is \(5, 32\), not \(2, 32\)\).*masks.joint_tokens"),
        (lambda: changed("image_encoder.pos_embed", torch.zeros(1, 64, 64, 32)), r"is \(1, 64, 64, 32\).*masks.size"),
    ],
)
def test_another_state_is_refused_with_what_was_found(state: Callable[[], State], expected: str) -> None:
    with pytest.raises(WeightsError, match=expected):
        ours(state())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool, kept: float) -> None:
    source = source_of(saved(), tmp_path / "lpsam.pth", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "lpsam.pth").read_bytes()
    (tmp_path / "lpsam.pth").write_bytes(data[: int(kept * len(data))])

    with pytest.raises(WeightsError, match=r"lpsam\.pth cannot be read as weights"):
        source.segment(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))


def test_an_absent_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pth' not found; masks\.trained is"):
        LPSAM(tiny(trained=str(tmp_path / "none.pth"))).identity()


# ---- plan and command ------------------------------------------------------------------------------------------------


def masks_of(file: Path) -> Stage:
    cell = Cell("", "", "lpsam", "phantom", preset="tiny", overrides={"masks": {"trained": str(file)}})
    return masks_stage(cell, Registry(), {})


def test_the_key_knows_the_file_by_its_content(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("first.pth", "copy.pth", "other.pth"))
    torch.save(saved(), first)
    copy.write_bytes(first.read_bytes())
    torch.save(changed(TOKENS, torch.zeros(2, 32)), other)

    assert masks_of(first).key == masks_of(copy).key
    assert masks_of(first).key != masks_of(other).key
    assert "fit" not in masks_of(first).inputs


def build_masks(file: Path, *words: str) -> int:
    """Exit code of `masks build` with a trained state, on phantoms, into `store` beside the file."""
    phantoms = ("--corpus", "phantom", "--preset", "tiny", "--device", "cpu", "--store", str(file.with_name("store")))
    try:
        main(["masks", "build", "--masks", "lpsam", *phantoms, "--set", f"masks.trained={file}", *words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_builds_masks_without_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(saved(), tmp_path / "lpsam.pth")

    code = build_masks(tmp_path / "lpsam.pth", "--set", "masks.adapter=samus", "--set", "masks.lpe=official", "--json")

    assert code == 0
    assert "trained elsewhere" in json.loads(capsys.readouterr().out)["trained"]
    assert (tmp_path / "store" / "masks").is_dir()
    assert not (tmp_path / "store" / "fit").exists()


def test_the_command_says_in_one_line_what_is_wrong_with_a_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(plain_sam(), tmp_path / "sam.pth")

    code = build_masks(tmp_path / "sam.pth")

    errors = capsys.readouterr().err
    assert code == 2
    assert "sam.pth holds plain SAM" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
