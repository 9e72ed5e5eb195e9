"""Encoders leave the store in other libraries' names and compute the same there."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anaus_bench.cells.cell import Cell
from anaus_bench.cli.app import main
from anaus_bench.errors import SettingsError, StoreError, WeightsError
from anaus_bench.execution.runner import Runner
from anaus_bench.export.card import Exported
from anaus_bench.export.export import export
from anaus_bench.export.formats import FORMATS, Outputs
from anaus_bench.nn.encoder import Encoder, EncoderCard, load_encoder
from anaus_bench.planning.plan import pending
from anaus_bench.planning.planner import make_plan
from anaus_bench.registry import Registry
from anaus_bench.store import Store
from tests.conftest import RecordedProgress


def distinct_encoder(arch: str, finest_stride: int) -> Encoder:
    """An encoder in which no two tensors are equal, so that no swap of two names goes unseen."""
    torch.manual_seed(0)
    encoder = Encoder(arch, finest_stride).eval()
    encoder.card = EncoderCard(arch, finest_stride, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "byol", "random")
    for name, tensor in encoder.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.75, 1.25)
        elif tensor.is_floating_point() and not name.endswith(("conv1.weight", "conv2.weight", "conv3.weight")):
            tensor.add_(0.05 * torch.randn_like(tensor))
    return encoder


def outputs_of(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    outputs = Outputs(encoder).eval()
    with torch.no_grad():
        return dict(zip(outputs.names, outputs(images), strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found
    for name, tensor in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a pre-trained ResNet-18 with its pyramid, and an untrained ViT."""
    folder, registry = tmp_path_factory.mktemp("export"), Registry()
    store, udiat = Store(folder / "store"), folder / "udiat"
    udiat.mkdir()
    registry.create("datasets", "udiat").write_phantoms(udiat, count=12, size=64, seed=0)
    for cell in (
        Cell("anaus", "busi-cls", "groundtruth", "busi+udiat", "resnet18", preset="tiny"),
        Cell("random", "busi-cls", backbone="vit_ti_16", preset="tiny"),
    ):
        stages = make_plan(cell, registry, {"udiat": udiat}).stages
        runner = Runner(registry, store, RecordedProgress(), "cpu")
        for stage in pending([stage for stage in stages if stage.kind == "pretrain"], store):
            runner.run(stage)
    return store


@pytest.fixture
def keys(shelf: Store) -> dict[str, str]:
    return {record["spec"]["objective"]["name"]: record["key"] for record in shelf.records("pretrain")}


@pytest.mark.parametrize(
    ("arch", "finest_stride", "names"),
    [
        ("resnet18", 4, {4: "p2", 8: "p3", 16: "p4", 32: "c5"}),
        ("resnet50", 32, {4: "c2", 8: "c3", 16: "c4", 32: "c5"}),
        ("vit_ti_16", 8, {8: "p3", 16: "p4", 32: "c5"}),
    ],
)
def test_outputs_are_those_of_the_encoder(arch: str, finest_stride: int, names: dict[int, str]) -> None:
    encoder, images = distinct_encoder(arch, finest_stride), torch.randn(1, 3, 64, 96)

    found = outputs_of(encoder, images)

    with torch.no_grad():
        assert_same({names[stride]: tensor for stride, tensor in encoder(images, tuple(names)).items()}, found)
        assert_same({"vector": encoder.vector(images)}, found)


@pytest.mark.parametrize("form", ["safetensors", "torchvision", "timm"])
@pytest.mark.parametrize(("arch", "finest_stride"), [("resnet18", 4), ("resnet50", 32), ("vit_ti_16", 8)])
def test_the_library_computes_the_same_from_the_file(form: str, arch: str, finest_stride: int, tmp_path: Path) -> None:
    pytest.importorskip(form)
    encoder, images = distinct_encoder(arch, finest_stride), torch.randn(2, 3, 224, 224)

    FORMATS[form].write(encoder, tmp_path / FORMATS[form].file)

    with torch.no_grad():
        found = dict(FORMATS[form].read(encoder, tmp_path / FORMATS[form].file, images))
    assert "vector" in found
    assert_same(found, outputs_of(encoder, images))


@pytest.mark.parametrize(
    ("arch", "finest_stride", "shape"),
    [
        ("resnet18", 4, (3, 3, 64, 96)),
        pytest.param("resnet50", 8, (1, 3, 96, 64), marks=pytest.mark.slow),
        pytest.param("vit_ti_16", 4, (1, 3, 224, 224), marks=pytest.mark.slow),
    ],
)
def test_onnx_computes_the_same_for_another_batch_than_the_traced_one(
    arch: str, finest_stride: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    encoder, images = distinct_encoder(arch, finest_stride), torch.randn(shape)

    FORMATS["onnx"].write(encoder, tmp_path / "encoder.onnx")

    found = dict(FORMATS["onnx"].read(encoder, tmp_path / "encoder.onnx", images))
    expected = outputs_of(encoder, images)
    assert found.keys() == expected.keys()
    assert_same(found, expected)


@pytest.mark.parametrize(("arch", "finest_stride"), [("resnet18", 4), ("resnet50", 8), ("resnet18", 32)])
def test_detectron2_names_give_the_same_maps(arch: str, finest_stride: int, tmp_path: Path) -> None:
    encoder, images = distinct_encoder(arch, finest_stride), torch.randn(1, 3, 64, 96)

    FORMATS["detectron2"].write(encoder, tmp_path / "weights.pth")

    content = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert content["matching_heuristics"] is True
    state = dict(content["model"])
    found = detectron2_maps(state, images)
    expected = outputs_of(encoder, images)
    assert found.keys() == expected.keys() - {"vector"}
    assert_same(found, expected)
    assert not state, "every tensor of the file is used"


def detectron2_maps(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """ResNet and FPN with detectron2's parameter names and its forward pass; takes out of `state` what it uses.

    Strides as with STRIDE_IN_1X1 false: in the first 3 x 3 convolution of a stage's first block.
    """

    def conv_norm(x: Tensor, name: str, stride: int) -> Tensor:
        weight = state.pop(f"{name}.weight")
        norm = [state.pop(f"{name}.norm.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, *norm, training=False, eps=1e-5)

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        is_bottleneck = f"{name}.conv3.weight" in state
        shortcut = conv_norm(x, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in state else x
        strides = (1, stride, 1) if is_bottleneck else (stride, 1)
        for number, one in enumerate(strides, start=1):
            x = conv_norm(x, f"{name}.conv{number}", one)
            x = x.relu() if number < len(strides) else x
        return (x + shortcut).relu()

    def convolved(x: Tensor, name: str) -> Tensor:
        weight = state.pop(f"{name}.weight")
        return F.conv2d(x, weight, state.pop(f"{name}.bias"), padding=weight.shape[-1] // 2)

    x = F.max_pool2d(conv_norm(images, "stem.conv1", 2).relu(), 3, 2, 1)
    maps = {}
    for level in range(2, 6):
        number = 0
        while f"res{level}.{number}.conv1.weight" in state:
            x = block(x, f"res{level}.{number}", 2 if level > 2 and number == 0 else 1)
            number += 1
        maps[f"c{level}"] = x
    if "fpn_lateral5.weight" not in state:
        return maps
    merged = convolved(maps["c5"], "fpn_lateral5")
    for level in (4, 3, 2):
        if f"fpn_lateral{level}.weight" in state:
            up = F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = convolved(maps[f"c{level}"], f"fpn_lateral{level}") + up
            maps[f"p{level}"] = convolved(merged, f"fpn_output{level}")
    return maps


def test_the_card_says_what_a_user_of_the_weights_must_know(
    shelf: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)  # as where it is not installed

    exported = export(keys["anaus"], "detectron2", tmp_path / "out", shelf, Registry())

    card = exported.card.read_text()
    assert exported.version is exported.difference is None
    for words in (
        "GENERATED PHANTOMS, NOT COMPARABLE WITH PUBLISHED NUMBERS",
        "busi+udiat: 36 images, 2 steps",
        "busi (Breast ultrasound images (BUSI)): generated phantoms",
        "UDIAT breast ultrasound, Dataset B): research agreement",
        "| masks | groundtruth |",
        "| initialisation | random |",
        "trained at 32 x 32 pixels",
        "PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "RES2_OUT_CHANNELS: 64",
        "not verified here: detectron2 is not installed",
        keys["anaus"],
        f"torch {torch.__version__}",
        "temperature: 0.1",
        "arXiv:2605.25402",
    ):
        assert words in card
    assert str(shelf.root) not in card


def test_the_card_of_an_untrained_encoder_says_so_and_names_the_token(
    shelf: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    card = export(keys["random"], "torchvision", tmp_path / "out", shelf, Registry()).card.read_text()

    assert "nothing: these are the weights it starts from" in card
    assert "VisionTransformer(224, 16, 12, 3, 192, 768)" in card
    assert "net.heads = torch.nn.Identity()" in card
    assert "mean of the patch tokens" in card
    assert "PHANTOM" not in card


def test_a_corpus_that_left_the_store_is_said_to_be_unknown(shelf: Store, keys: dict[str, str], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    shutil.copytree(shelf.root, store.root)
    shutil.rmtree(store.root / "corpus")

    card = export(keys["anaus"], "safetensors", tmp_path / "out", store, Registry()).card.read_text()

    assert "its data sets are not known here" in card


@pytest.mark.parametrize("form", ["safetensors", "torchvision"])
def test_the_command_writes_the_default_folder_and_prints_the_difference(
    form: str,
    shelf: Store,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    run_command("export", keys["anaus"][:6], "--to", form, "--store", shelf.root, "--json")

    printed = json.loads(capsys.readouterr().out)
    folder = tmp_path / f"anaus-resnet18-{keys['anaus'][:8]}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", FORMATS[form].file])
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]
    assert printed["key"] == keys["anaus"]
    assert printed["difference"] <= 1e-6


def run_command(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("form", "vector"), [("safetensors", "vector"), ("torchvision", "net.eval()(images)"), ("timm", "net(images)")]
)
def test_the_lines_of_the_card_load_the_weights(
    form: str, vector: str, shelf: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip(form)
    card = export(keys["anaus"], form, tmp_path / "out", shelf, Registry()).card.read_text()
    names = {"torch": torch, form: library, "images": torch.randn(1, 3, 64, 64)}
    monkeypatch.chdir(tmp_path / "out")

    with torch.no_grad():
        exec(card.partition("```python\n")[2].partition("```")[0], names)
        found = eval(vector, names)

    encoder = load_encoder(shelf.folder("pretrain", keys["anaus"]) / "encoder.safetensors").eval()
    assert_same({"vector": found}, outputs_of(encoder, names["images"]))


def test_an_earlier_export_is_kept_unless_it_is_to_be_replaced(
    shelf: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    def write(form: str, replace: bool) -> Exported:
        return export(keys["anaus"], form, tmp_path / "out", shelf, Registry(), replace=replace)

    first = write("torchvision", False)
    with pytest.raises(SettingsError, match="--force"):
        write("safetensors", False)
    assert first.weights.is_file()

    write("safetensors", True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "encoder.safetensors"]

    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(SettingsError, match="not only, an export"):
        write("torchvision", True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_computes_something_else_is_not_left_behind(
    shelf: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS["torchvision"]

    def write(encoder: Encoder, path: Path) -> None:
        right.write(encoder, path)
        state = torch.load(path, weights_only=True)
        state["layer3.1.bn1.weight"], state["layer3.1.bn1.bias"] = (
            state["layer3.1.bn1.bias"],
            state["layer3.1.bn1.weight"],
        )
        torch.save(state, path)

    monkeypatch.setitem(FORMATS, "torchvision", dataclasses.replace(right, write=write))

    with pytest.raises(WeightsError, match=r"torchvision .* computes other outputs"):
        export(keys["anaus"], "torchvision", tmp_path / "out", shelf, Registry())

    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_with_the_next_step(
    shelf: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is not installed

    for key, form, error, words in (
        ("zz", "timm", StoreError, f"no pretrain 'zz'.*{keys['anaus']}"),
        ("", "timm", StoreError, "begins the keys of 2 encoders"),
        (keys["anaus"], "tim", SettingsError, "did you mean 'timm'"),
        (keys["anaus"], "onnx", SettingsError, r"onnxscript.*anaus-bench\[onnx\]"),
        (keys["random"], "detectron2", SettingsError, "found 'vit_ti_16'"),
    ):
        with pytest.raises(error, match=words):
            export(key, form, tmp_path / "out", shelf, Registry())

    assert not list(tmp_path.iterdir())


def test_the_words_of_a_record_never_lead_out_of_the_folder(
    shelf: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shelf.root, tmp_path / "store")
    path = tmp_path / "store" / "pretrain" / keys["anaus"] / "record.json"
    record = json.loads(path.read_text())
    record["spec"]["objective"]["name"] = "../outside/anaus"
    path.write_text(json.dumps(record))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(StoreError):
        export(keys["anaus"], "timm", None, Store(tmp_path / "store"), Registry())

    assert {*tmp_path.iterdir()} == {tmp_path / "store", tmp_path / "here"}


def test_a_damaged_encoder_is_refused(
    shelf: Store, keys: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shelf.root, tmp_path / "store")
    weights = tmp_path / "store" / "pretrain" / keys["anaus"] / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])

    code = run_command("export", keys["anaus"], "--to", "timm", "--store", tmp_path / "store", "-o", tmp_path / "out")

    assert code == 2
    assert "delete" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
