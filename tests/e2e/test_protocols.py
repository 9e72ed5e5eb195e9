"""How an encoder is used on a task: protocols, networks that are kept, and what each setting makes new."""

from __future__ import annotations

from pathlib import Path

from anaus_bench.nn.network import read_card
from tests.e2e.conftest import Command

CELL = ("--preset", "tiny", "--method", "random", "--task", "busi-cls", "--json")
SEGMENT = ("--preset", "tiny", "--method", "random", "--task", "udiat", "--json")


def kinds_to_run(command: Command, *words: str) -> set[str]:
    return {stage["kind"] for stage in command("plan", *words).data["stages"] if stage["state"] == "to run"}


def test_the_network_of_a_fold_is_kept_with_what_it_is(command: Command) -> None:
    folders = command("run", *CELL).data["folders"]

    card = read_card(Path(folders["fine-tune busi-cls, fold 2 of 2"]) / "network.safetensors")

    assert (card.protocol, card.task, card.fold, card.phantom) == ("finetune", "busi-cls", 1, True)
    assert card.classes == ("benign", "malignant", "normal")
    assert card.encoder.arch == "resnet18"


def test_predictions_are_the_same_where_no_network_is_kept(command: Command) -> None:
    kept = command("run", *CELL).data
    spared = command("run", *CELL, "--set", "finetune.keep=predictions").data

    assert "fine-tune and predict busi-cls, fold 1 of 2" in spared["folders"]
    assert not any(title.startswith("fine-tune busi-cls") for title in spared["folders"])
    assert spared["folds"] == kept["folds"]
    assert spared["mask_scores"] == kept["mask_scores"] == {}


def test_another_threshold_needs_no_training_and_no_prediction(command: Command) -> None:
    command("run", *SEGMENT)

    assert kinds_to_run(command, *SEGMENT, "--set", "task.score_threshold=0.3") == {"score", "panel"}
    assert kinds_to_run(command, *SEGMENT, "--set", "task.min_area=4") == {"finetune", "predict", "score", "panel"}


def test_plan_says_what_the_networks_take_on_disk(command: Command) -> None:
    kept = command("plan", *SEGMENT).data["network_bytes"]

    assert 2 * 100e6 < kept < 2 * 150e6
    assert command("plan", *SEGMENT, "--set", "finetune.keep=predictions").data["network_bytes"] == 0


def test_a_protocol_is_named_and_stands_in_the_table(command: Command) -> None:
    named = command("run", *CELL, "--protocol", "finetune").data

    assert named["cell"]["protocol"] == "finetune"
    assert command("run", *CELL).data["cell"]["protocol"] == "-"
    assert command("run", *CELL).data["key"] == named["key"]


def test_a_protocol_of_another_kind_of_task_is_refused(command: Command) -> None:
    outcome = command("run", *CELL, "--protocol", "maskrcnn")

    assert outcome.code == 2
    assert "protocol 'maskrcnn' cannot be used on task 'busi-cls'; pass --protocol with one of finetune" in outcome.err


def test_a_setting_of_the_protocol_under_task_is_sent_there(command: Command) -> None:
    outcome = command("plan", *CELL, "--set", "task.epochs=3")

    assert outcome.code == 2
    assert "write --set protocol.epochs" in outcome.err
