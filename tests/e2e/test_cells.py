"""Whole cells through the command, on generated phantoms at the `tiny` preset."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from anaus_bench.registry import Registry
from tests.e2e.conftest import Command

CELL = ("run", "--preset", "tiny", "--device", "cpu", "--json")


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (("--method", "anaus", "--masks", "lpsam", "--task", "udiat"), {"audit", "corpus", "fit", "masks"}),
        (("--method", "anaus", "--masks", "kmeans", "--task", "busi-seg"), {"audit", "corpus", "masks"}),
        (("--method", "anaus", "--masks", "groundtruth", "--task", "busi-cls"), {"audit", "corpus", "masks"}),
        (("--method", "byol", "--task", "udiat"), {"audit", "corpus"}),
        (("--method", "supervised", "--task", "busi-cls"), {"audit", "corpus"}),
        (("--method", "usfmae", "--task", "udiat"), {"audit", "corpus"}),
        (("--method", "usfmae", "--task", "busi-cls"), {"audit", "corpus"}),
        (("--method", "random", "--task", "busi-cls"), set()),
    ],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, tuple) else "",
)
def test_a_cell_runs_and_a_second_run_executes_no_stage(
    command: Command, words: tuple[str, ...], kinds: set[str]
) -> None:
    first = command(*CELL, *words)
    assert first.code == 0, first.err
    result = first.data

    assert result["phantom"] is True
    assert result["stages_run"] == len(result["folders"])
    assert len(result["folds"]) == 2
    for key, mean in result["mean"].items():
        values = [fold[key] for fold in result["folds"] if not math.isnan(fold[key])]
        assert math.isnan(mean) or mean == pytest.approx(sum(values) / len(values))
    ran = {path.name for path in Path("anaus-store").iterdir() if path.is_dir()}
    assert ran == kinds | {"phantoms", "folds", "pretrain", "finetune", "predict", "score", "panel"}
    with Image.open(result["panel"]) as panel:
        assert panel.size[0] > 300

    second = command(*CELL, *words).data
    assert second["stages_run"] == 0
    assert second["mean"] == pytest.approx(result["mean"], nan_ok=True)


def test_every_image_of_the_task_is_scored_once(command: Command) -> None:
    result = command(*CELL, "--method", "random", "--task", "udiat").data

    rows = list(
        csv.DictReader(
            (Path(next(f for t, f in result["folders"].items() if t.startswith("score"))) / "images.csv").open()
        )
    )
    assert len(rows) == result["images"] == 12
    assert len({row["image_id"] for row in rows}) == 12
    assert {row["fold"] for row in rows} == {"0", "1"}


def test_cells_share_stages(command: Command) -> None:
    command(*CELL, "--method", "byol", "--task", "udiat")

    second = command("plan", "--preset", "tiny", "--json", "--method", "byol", "--task", "busi-cls").data

    states = {stage["kind"]: stage["state"] for stage in second["stages"]}
    assert states["pretrain"] == "done"
    assert states["finetune"] == states["score"] == "to run"


def test_the_folds_do_not_depend_on_how_a_task_trains(command: Command) -> None:
    cell = ("--preset", "tiny", "--json", "--method", "byol", "--task", "busi-cls")

    plans = [command("plan", *cell, *words).data["stages"] for words in ((), ("--set", "protocol.epochs=7"))]

    first, second = ({stage["kind"]: stage["key"] for stage in stages} for stages in plans)
    assert {kind for kind in first if first[kind] == second[kind]} == {
        "phantoms",
        "corpus",
        "audit",
        "folds",
        "pretrain",
    }


def test_plan_names_the_field_that_makes_a_stage_new(command: Command) -> None:
    cell = ("--preset", "tiny", "--method", "anaus", "--masks", "groundtruth", "--task", "busi-cls")
    assert command("run", *cell).code == 0

    plan = command("plan", *cell, "--set", "objective.temperature=0.2", "--why", "--json").data

    (pretrain,) = [stage for stage in plan["stages"] if stage["kind"] == "pretrain"]
    assert pretrain["state"] == "to run"
    assert len(pretrain["why"]) == 1
    assert pretrain["why"][0].startswith("objective.settings.temperature: 0.1 in ")
    assert pretrain["why"][0].endswith("here 0.2")


def test_what_only_finished_stages_need_is_not_run_again(command: Command) -> None:
    cell = (*CELL, "--method", "byol", "--task", "busi-cls")
    folders = command(*cell).data["folders"]
    for title, folder in folders.items():
        if title.startswith(("pack", "pre-train", "score")):
            for file in Path(folder).iterdir():
                file.unlink()
            Path(folder).rmdir()

    again = command(*cell)

    assert again.code == 0
    assert again.data["stages_run"] == 1


def test_the_table_shows_the_cells_with_their_mark(command: Command) -> None:
    assert command("run", "--preset", "tiny", "--method", "random", "--task", "busi-cls").code == 0

    shown = command("table")
    text = command("table", "--format", "markdown").out

    assert "busi-cls [phantom]" in shown.out
    assert text.startswith("**busi-cls [phantom]**")
    assert "| random |" in text
    assert "not comparable with published numbers" in text


def test_the_printed_result_names_its_mark_its_folds_and_its_files(command: Command) -> None:
    done = command("run", "--preset", "tiny", "--method", "random", "--task", "busi-cls")

    assert done.code == 0
    for words in ("random on busi-cls [phantom]", "fold 1", "fold 2", "mean ± sd", "pooled", "panel.png", "images.csv"):
        assert words in done.out
    assert "9 stages run in" in done.err


def test_data_and_masks_commands(command: Command) -> None:
    packed = command("data", "prepare", "phantom", "--preset", "tiny", "--json").data
    assert packed["images"] == 24
    built = command("masks", "build", "--masks", "kmeans", "--corpus", "phantom", "--preset", "tiny", "--json").data
    assert built["scores"]["images"] == 24
    assert built["scores"]["regions"] > 1
    sheet = command(
        "masks",
        "preview",
        "--masks",
        "kmeans",
        "--masks",
        "groundtruth",
        "--corpus",
        "phantom",
        "--preset",
        "tiny",
        "--count",
        "3",
        "-o",
        "sheet.png",
    )
    assert sheet.code == 0, sheet.err
    assert Image.open("sheet.png").size[1] > 300
    scored = command(
        "masks",
        "score",
        "--masks",
        "kmeans",
        "--masks",
        "groundtruth",
        "--corpus",
        "phantom",
        "--preset",
        "tiny",
        "-o",
        "scores.png",
    )
    assert scored.code == 0, scored.err
    assert "mask scores [phantom]" in scored.out
    assert Image.open("scores.png").size[0] > 300


def test_phantoms_given_as_a_folder_keep_their_mark(command: Command, tmp_path: Path) -> None:
    folders = command(*CELL, "--method", "random", "--task", "busi-cls").data["folders"]
    written = next(Path(folder) for title, folder in folders.items() if title.startswith("generate")) / "data"

    info = command("data", "info", "busi", "--data-root", f"busi={written}", "--json").data
    verified = command("data", "verify", "busi", "--data-root", f"busi={written}")
    result = command(*CELL, "--method", "random", "--task", "busi-cls", "--data-root", f"busi={written}").data

    assert info["generated"] is True
    assert verified.code == 0
    assert "all images and masks can be read" in verified.out
    assert result["phantom"] is True


def generated(command: Command, name: str, count: int = 12) -> Path:
    """Phantoms in a data set's official layout."""
    outcome = command("data", "demo", name, "-o", f"given/{name}", "--count", count, "--size", 96)
    assert outcome.code == 0, outcome.err
    return Path("given") / name


@pytest.mark.parametrize("task", Registry().names("tasks"))
def test_every_task_runs_on_its_data_set_in_the_official_layout(command: Command, task: str) -> None:
    name = Registry().get("tasks", task).dataset
    root = f"{name}={generated(command, name)}"

    verified = command("data", "verify", name, "--data-root", root)
    outcome = command(*CELL, "--method", "random", "--task", task, "--data-root", root)

    assert verified.code == 0, verified.out
    assert outcome.code == 0, outcome.err
    assert outcome.data["phantom"] is True
    assert len(outcome.data["folds"]) == 2


def test_the_papers_corpus_serves_a_clip_method(command: Command) -> None:
    outcome = command(*CELL, "--method", "uscl", "--task", "busi-cls", "--corpus", "bf+cm")

    assert outcome.code == 0, outcome.err
    assert outcome.data["cell"]["corpus"] == "butterfly+camus"


def test_a_test_image_in_the_corpus_is_refused_or_left_out_as_asked(command: Command) -> None:
    root = generated(command, "udiat")
    Path("clips").mkdir()
    for number, image in enumerate(sorted((root / "original").glob("*.png"))[:3]):
        Image.open(image).resize((80, 80)).save(f"clips/{number}.png")
    for image in sorted((generated(command, "busi") / "benign").glob("*.png")):
        if "_mask" not in image.name:
            (Path("clips") / image.name).write_bytes(image.read_bytes())
    cell = (
        *CELL, "--method", "byol", "--task", "udiat", "--corpus", "images", "--data-root", "images=clips",
        "--data-root", f"udiat={root}", "--set", "pretrain.batch=2",
    )  # fmt: skip

    refused = command(*cell)
    pretrained = list(Path("anaus-store").glob("pretrain/[!.]*"))
    excluded = command(*cell, "--set", "corpus.overlap=exclude")

    assert refused.code == 2
    assert "3 of" in refused.err
    assert "stand in the test data of 'udiat'" in refused.err
    assert not pretrained
    assert excluded.code == 0, excluded.err
    assert any(
        "3 test images have a near-duplicate in the corpus, which were left out" in n for n in excluded.data["notes"]
    )


def test_published_folds_are_used_where_they_exist(command: Command) -> None:
    root = generated(command, "tn3k", 40)

    outcome = command("data", "folds", "tn3k", "--data-root", f"tn3k={root}", "-o", "folds.json")

    assert outcome.code == 0, outcome.err
    assert "published folds" in outcome.out
    assert "fixed test" in outcome.out


def test_an_audit_names_near_duplicates(command: Command) -> None:
    root = generated(command, "udiat")
    Path("copies").mkdir()
    (Path("copies") / "twin.png").write_bytes((root / "original" / "000001.png").read_bytes())

    found = command(
        "data",
        "audit",
        "images",
        "udiat",
        "--test",
        "udiat",
        "--data-root",
        "images=copies",
        "--data-root",
        f"udiat={root}",
    )

    assert found.code == 0, found.err
    assert "images holds 1 images of udiat" in found.out
    assert "twin.png ~ original/000001.png (0 bits)" in found.out
