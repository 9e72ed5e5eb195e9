"""What users get wrong: one clear error, exit code 2, the store intact."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from anaus_bench.registry import Registry
from anaus_bench.store import FORMAT
from tests.e2e.conftest import Command, Outcome

TINY = ("run", "--preset", "tiny", "--device", "cpu", "--method", "random", "--task")


@pytest.fixture
def udiat(tmp_path: Path) -> Path:
    """A small data set in UDIAT-B's layout."""
    root = tmp_path / "udiat"
    root.mkdir()
    Registry().create("datasets", "udiat").write_phantoms(root, 8, 64, 0)
    return root


def refused(outcome: Outcome, *words: str) -> None:
    """One error line that holds the words, exit code 2, nothing on standard output."""
    assert outcome.code == 2, outcome
    line = outcome.err.strip().splitlines()[-1]
    assert line.startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in line, line


def test_without_data_the_error_says_what_it_is_how_to_get_it_and_that_demo_runs(command: Command) -> None:
    outcome = command("run", "--method", "random", "--task", "udiat")

    refused(outcome, "udiat", "Dataset B", "--data-root udiat=FOLDER", "ANAUS_DATA", "--preset demo")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "--method", "byoll", "--task", "udiat"), ("unknown objective 'byoll'", "did you mean 'byol'")),
        (("run", "--method", "byol", "--task", "uidat"), ("unknown task 'uidat'", "did you mean 'udiat'")),
        (
            ("run", "--method", "anaus", "--masks", "kmean", "--task", "udiat"),
            ("unknown mask source 'kmean'", "did you mean 'kmeans'"),
        ),
        (("run", "--method", "anaus", "--task", "udiat", "--preset", "tiny"), ("needs masks; pass --masks", "lpsam")),
        (
            ("run", "--method", "byol", "--masks", "kmeans", "--task", "udiat"),
            ("uses no masks", "leave --masks kmeans out"),
        ),
        ((*TINY, "udiat", "--preset", "demmo"), ("unknown preset 'demmo'", "did you mean 'demo'")),
        ((*TINY, "udiat", "--backbone", "resnet19"), ("unknown backbone 'resnet19'", "resnet18")),
        ((*TINY, "udiat", "--set", "protocol.epoch=1"), ("unknown setting 'protocol.epoch'", "did you mean 'epochs'")),
        ((*TINY, "udiat", "--set", "pretrain.batch=0"), ("pretrain.batch=0", "greater than or equal to 2")),
        (
            (*TINY, "udiat", "--set", "objektive.x=1"),
            ("unknown section of settings 'objektive'", "did you mean 'objective'"),
        ),
        ((*TINY, "udiat", "--set", "nonsense"), ("'nonsense'", "section.name=value")),
        ((*TINY, "udiat", "--data-root", "somewhere"), ("'somewhere'", "NAME=PATH")),
        ((*TINY, "udiat", "--corpus", "nowhere", "--method", "byol"), ("unknown data set 'nowhere'", "phantom")),
        ((*TINY, "udiat", "--plugin", "absent.py"), ("absent.py", "not found")),
        ((*TINY, "udiat", "--data-root", "udait=somewhere"), ("unknown data set 'udait'", "did you mean 'udiat'")),
        ((*TINY, "udiat", "--set", "data.bussi.x=3"), ("unknown data set 'bussi'", "did you mean 'busi'")),
        ((*TINY, "udiat", "--set", "pretrain=fast"), ("pretrain is a section", "pretrain.NAME=VALUE")),
        ((*TINY, "udiat", "--set", "masks.foo=1"), ("pass --masks",)),
        ((*TINY, "udiat", "--set", "data.busi.x=3"), ("data.busi.x: nothing in this cell reads that",)),
        ((*TINY, "udiat", "--set", "objective=5"), ("objective is a section",)),
        ((*TINY, "udiat", "--set", "executor.nonsense=1"), ("unknown setting 'executor.nonsense'",)),
        ((*TINY, "udiat", "--method", "byol", "--corpus", "phantom+phantom"), ("names a data set twice",)),
        (("show", "method", "byoll"), ("did you mean 'byol'",)),
        ((*TINY, "udiat", "--set", "task.epochs=1", "--set", "task.epochs=2"), ("set one value", "leave one out")),
        ((*TINY, "udiat", "--data-root", "bf=a", "--data-root", "butterfly=b"), ("gives 'butterfly' twice, 'a' and",)),
        ((*TINY, "udiat", "--set", "pretrain.betas=[2,3]"), ("pretrain.betas.0=2: input should be less than 1",)),
        ((*TINY, "udiat", "--device", "meta"), ("unknown device 'meta'", "cuda:N")),
        ((*TINY, "udiat", "--device", "cpu:7"), ("unknown device 'cpu:7'", "cuda:N")),
        (("list", "method"), ("unknown kind 'method'", "did you mean 'methods'")),
        (("table",), ("no results yet", "anaus-bench run")),
    ],
)  # fmt: skip
def test_an_unknown_word_is_refused_with_the_nearest_known_one(
    command: Command, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    refused(command(*words), *expected)

    assert not Path("anaus-store").exists()


def _remove_masks(root: Path) -> None:
    shutil.rmtree(root / "GT")


def _nest(root: Path) -> None:
    inner = root / "BUS_2024"
    inner.mkdir()
    for name in ("original", "GT"):
        (root / name).rename(inner / name)


def _lose_a_mask(root: Path) -> None:
    (root / "GT" / "000003.png").unlink()


def _lose_an_image(root: Path) -> None:
    (root / "original" / "000003.png").unlink()


def _resize_a_mask(root: Path) -> None:
    Image.new("L", (10, 20), 255).save(root / "GT" / "000003.png")


def _truncate_an_image(root: Path) -> None:
    file = root / "original" / "000003.png"
    file.write_bytes(file.read_bytes()[:100])


def _empty_a_mask(root: Path) -> None:
    size = Image.open(root / "original" / "000003.png").size
    Image.new("L", size, 0).save(root / "GT" / "000003.png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, ("does not exist", "Request Dataset B")),
        (_remove_masks, ("GT",)),
        (_nest, ("did you mean", "BUS_2024")),
        (_lose_a_mask, ("000003.png", "mask")),
        (_lose_an_image, ("000003.png", "image")),
        (_resize_a_mask, ("000003.png", "20", "10")),
        (_truncate_an_image, ("000003.png",)),
        (_empty_a_mask, ("000003.png", "zero")),
    ],
)
def test_a_damaged_data_set_is_refused_with_its_offender(
    command: Command, udiat: Path, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(udiat)

    refused(command(*TINY, "udiat", "--data-root", f"udiat={udiat}"), "udiat", *words)

    assert not list(Path().glob("anaus-store/finetune/[!.]*/record.json"))


def test_verify_names_every_file_that_cannot_be_used(command: Command, udiat: Path) -> None:
    _truncate_an_image(udiat)
    _resize_a_mask(udiat)
    (udiat / "original" / "000005.png").write_bytes(b"no picture at all")

    outcome = command("data", "verify", "udiat", "--data-root", f"udiat={udiat}")

    assert outcome.code == 2
    assert "000003.png" in outcome.out
    assert "000005.png" in outcome.out
    assert "2 images cannot be used" in outcome.out


def test_a_corpus_that_holds_the_test_images_is_refused(command: Command, udiat: Path) -> None:
    outcome = command(
        "run",
        "--preset",
        "tiny",
        "--method",
        "byol",
        "--task",
        "udiat",
        "--corpus",
        "udiat",
        "--data-root",
        f"udiat={udiat}",
    )

    refused(outcome, "corpus 'udiat' holds 'udiat'", "pass another --corpus")


def test_weights_that_are_not_the_published_ones_are_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "resnet18-f37072fd.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, file)

    outcome = command(
        "run", "--preset", "tiny", "--method", "imagenet", "--task", "udiat", "--set", f"pretrain.weights={file}"
    )

    refused(outcome, "has sha256", "expected f37072fd", "download it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("not found", "resnet18-f37072fd.pth")),
        (b"\x80garbage", ("cannot be read as weights",)),
        ({"conv1.weight": torch.zeros(1)}, ("does not fit resnet18",)),
        ([1, 2], ("holds no state dict",)),
    ],
)
def test_a_file_that_holds_no_weights_of_the_backbone_is_refused(
    command: Command, tmp_path: Path, content: object, words: tuple[str, ...]
) -> None:
    file = tmp_path / "mine.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)

    outcome = command(
        "run", "--preset", "tiny", "--method", "imagenet", "--task", "udiat", "--set", f"pretrain.weights={file}"
    )

    refused(outcome, *words)


def test_a_store_of_a_newer_version_is_refused(command: Command, tmp_path: Path) -> None:
    store = tmp_path / "new"
    store.mkdir()
    (store / "store.json").write_text(json.dumps({"format": FORMAT + 1}))

    refused(command(*TINY, "udiat", "--store", store), f"format {FORMAT + 1}", "upgrade anaus-bench")


def test_a_damaged_artifact_is_refused_and_named(command: Command) -> None:
    cell = (*TINY, "busi-cls")
    assert command(*cell).code == 0
    encoder = next(Path().glob("anaus-store/pretrain/*/encoder.safetensors"))
    content = bytearray(encoder.read_bytes())
    content[-1] ^= 1
    encoder.write_bytes(content)

    outcome = command(*cell, "--seed", "0", "--set", "protocol.epochs=3")

    refused(outcome, "encoder.safetensors is damaged", f"delete {encoder.parent} and run again")
    assert command("doctor").code == 1
    assert "BAD" in command("doctor").out


def test_no_space_left_is_said_and_nothing_half_written_is_published(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(self: Path, *words: object, **named: object) -> int:
        if self.name == "folds.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, *words, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        outcome = command(*TINY, "busi-cls")

    refused(outcome, "no space left in store", "MiB free", "finished stages are kept")
    assert list(Path().glob("anaus-store/phantoms/*/record.json"))
    assert not list(Path().glob("anaus-store/folds/[!.]*"))


def test_a_loss_that_is_not_finite_stops_the_run(command: Command) -> None:
    outcome = command(
        "run", "--preset", "tiny", "--method", "byol", "--task", "busi-cls", "--set", "pretrain.steps=30",
        "--set", "pretrain.optimiser=sgd", "--set", "pretrain.base_lr=1e30",
    )  # fmt: skip

    refused(outcome, "pre-train: ", "must be finite", "Lower the learning rate")
    assert not list(Path().glob("anaus-store/pretrain/[!.]*/record.json"))


def test_a_corpus_smaller_than_a_batch_is_refused(command: Command) -> None:
    outcome = command("run", "--preset", "tiny", "--method", "byol", "--task", "busi-cls", "--set", "pretrain.batch=64")

    refused(outcome, "corpus has 24 images, fewer than one batch of 64", "lower pretrain.batch")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("uscl", "--corpus", "udiat"), ("'uscl' compares the frames of clips", "data sets: udiat", "pass a --corpus")),
        (("usucl", "--corpus", "camus"), ("'usucl' needs clips of at least 3 frames", "pass another --corpus")),
        (("fixmatch", "--corpus", "udiat"), ("'fixmatch' needs class labels", "corpus 'udiat' has none")),
        (("supervised", "--corpus", "udiat"), ("'supervised' needs class labels", "corpus 'udiat' has none")),
        (("awcl", "--set", "objective.granularity=view"), ("'awcl' needs at least 2 anatomies", "pass a --corpus")),
        (("ivpp", "--set", "objective.delta_unit=seconds"), ("frame rate of phantom", "--set objective.fps.phantom=")),
        (("mocov2", "--set", "objective.queue_size=25"), ("objective.queue_size=25", "24 images", "lower it")),
        (("byol", "--set", "pretrain.batch=1"), ("pretrain.batch=1", "greater than or equal to 2")),
        (("simclr", "--set", "objective.temperature=0"), ("objective.temperature=0", "greater than 0")),
    ],
)
def test_what_a_method_cannot_work_with_is_refused_before_training(
    command: Command, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    refused(command("run", "--preset", "tiny", "--task", "busi-cls", "--method", *words), *expected)

    assert not list(Path().glob("anaus-store/pretrain/[!.]*"))


@pytest.mark.parametrize("method", ["detcon", "slotcon"])
def test_masks_of_one_region_train(command: Command, method: str) -> None:
    outcome = command("run", "--preset", "tiny", "--method", method, "--masks", "whole", "--task", "busi-cls", "--json")

    assert outcome.code == 0, outcome.err


def test_a_device_that_is_not_there_is_refused(command: Command) -> None:
    refused(
        command("run", "--preset", "tiny", "--method", "random", "--task", "busi-cls", "--device", "gpu"),
        "'gpu'",
        "cuda:N",
    )


def test_a_mask_source_fitted_on_the_test_data_is_refused(command: Command, udiat: Path) -> None:
    outcome = command(
        "run", "--preset", "tiny", "--method", "anaus", "--masks", "lpsam", "--task", "udiat",
        "--set", "masks.pairs=udiat", "--data-root", f"udiat={udiat}",
    )  # fmt: skip

    refused(outcome, "mask source 'lpsam' is fitted on 'udiat'", "masks.pairs")
