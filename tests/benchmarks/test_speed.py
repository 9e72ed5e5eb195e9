"""The speed benchmarks measure what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.interfaces import Objective
from anaus_bench.kit.synthetic import synthetic_batch
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import Registry
from benchmarks.speed import detector, lightly_peers, memory, phases, steps
from benchmarks.speed.__main__ import main, table
from benchmarks.speed.counting import counted
from benchmarks.speed.passes import Call, bare, given_back, recorded, views
from benchmarks.speed.training import Run, alternate, first_batch, taken

REGISTRY = Registry()
CPU = torch.device("cpu")
TINY = Run(batch=4, size=32, repeats=1)

# Images per item that must pass with and without gradients at the paper's settings, by their side (views of 64).
PASSES: dict[str, tuple[dict[int, int], dict[int, int]]] = {
    "anaus": ({64: 3}, {64: 3}),  # two views; their overlap, damaged for the online network and intact for the target
    "awcl": ({64: 2}, {}),
    "byol": ({64: 2}, {64: 2}),
    "densecl": ({64: 1}, {64: 1}),
    "detcon": ({64: 2}, {64: 2}),
    "dino": ({64: 2, 32: 8}, {64: 2}),
    "fixmatch": ({64: 1 + 2 * 7}, {}),
    "ivpp": ({64: 2}, {}),
    "mocov2": ({64: 1}, {64: 1}),
    "r2o": ({64: 2}, {64: 3}),  # the third is the whole image, whose features are clustered
    "simclr": ({64: 2}, {}),
    "slotcon": ({64: 2}, {64: 2}),
    "supervised": ({64: 1}, {}),
    "uscl": ({64: 2}, {}),
    "usfmae": ({64: 1}, {}),
    "usucl": ({64: 1 + 3}, {64: 1}),
    "vicreg": ({64: 2}, {}),
}
# The settings of a preset that change them, to be the paper's.
COUNTED = {"dino": "local_crops", "fixmatch": "unlabelled", "usucl": "negatives"}


def tiny(name: str) -> tuple[Objective[Any], nn.ModuleDict, Any]:
    objective = REGISTRY.create("objectives", name, "tiny")
    return objective, *first_batch(objective, TINY)


def counts(calls: list[Call], items: int) -> tuple[dict[int, float], dict[int, float]]:
    return views(calls, items, with_gradient=True), views(calls, items, with_gradient=False)


@pytest.mark.parametrize("name", PASSES)
def test_a_loss_passes_the_images_that_its_method_must_pass(name: str) -> None:
    paper = REGISTRY.create("objectives", name).settings
    counted = {COUNTED[name]: getattr(paper, COUNTED[name])} if name in COUNTED else {}
    objective = REGISTRY.create("objectives", name, "tiny", counted)
    nets, batch = first_batch(objective, Run(batch=4, size=64))

    with recorded(nets) as calls:
        objective.loss(nets, batch)

    assert counts(calls, 4) == PASSES[name]


def test_every_objective_that_trains_has_its_passes_stated() -> None:
    ours = [name for name in steps.trained(REGISTRY) if REGISTRY.get("objectives", name).__module__.startswith("anaus")]

    assert sorted(PASSES) == ours


def test_regions_of_stored_masks_save_r2o_its_third_target_pass() -> None:
    objective = REGISTRY.create("objectives", "r2o", "tiny")
    nets = objective.build(Encoder("resnet18"))

    with recorded(nets) as calls:
        objective.loss(nets, synthetic_batch(objective, size=32, images=4))

    assert counts(calls, 4) == ({32: 2}, {32: 2})


def test_anaus_makes_one_pyramid_pass_for_all_scales() -> None:
    objective, nets, batch = tiny("anaus")

    with recorded(nets) as calls:
        objective.loss(nets, batch)

    strides = [call.args[1] for call in calls if call.in_encoder]
    assert strides == [(32, 16, 8, 4)] * 6


def test_bare_passes_call_the_same_modules_and_leave_no_gradients() -> None:
    objective, nets, batch = tiny("byol")
    with recorded(nets) as calls:
        objective.loss(nets, batch)

    passes = bare(calls, TINY.autocast)
    with recorded(nets) as again:
        passes()

    assert [(call.module, call.with_gradient) for call in again] == [
        (call.module, call.with_gradient) for call in calls
    ]
    assert all(parameter.grad is None for parameter in nets.parameters())


def test_a_loss_is_the_same_on_passes_given_back_and_its_gradients_stop_there() -> None:
    objective, nets, batch = tiny("simclr")
    with recorded(nets) as calls:
        expected, _ = objective.loss(nets, batch)

    with given_back([call for call in calls if call.in_encoder]):
        found, _ = objective.loss(nets, batch)
        found.backward()

    assert torch.equal(found, expected)
    assert all(parameter.grad is None for parameter in nets["encoder"].parameters())
    assert all(parameter.grad is not None for parameter in nets["projector"].parameters())


def test_steps_are_timed_in_turn_with_other_functions() -> None:
    turns: list[str] = []

    found = alternate(
        REGISTRY.create("objectives", "simclr", "tiny"),
        Run(batch=4, size=32, repeats=2),
        lambda *_: [lambda: turns.append("first"), lambda: turns.append("second")],
    )

    assert turns == ["first", "second"] * 3  # one round to warm up
    assert [len(seconds) for seconds in (found.steps, found.updates, found.others)] == [2, 2, 2]
    assert all(0 < update < step for update, step in zip(found.updates, found.steps, strict=True))


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def function() -> None:
        first = torch.zeros(1000, 1000)  # 4 MB
        second = first + 1
        del first, second
        torch.zeros(1000, 1000)

    assert memory.peak_bytes(function, CPU) == pytest.approx(8e6, rel=1e-3)


def test_the_memory_of_a_loss_leaves_out_its_encoder_passes() -> None:
    row = memory.measure("simclr", REGISTRY.create("objectives", "simclr", "tiny"), TINY)

    # Of ResNet-18 the gradients alone are 45 MB.
    assert 0 < row["gradients of heads MB"] < row["loss MB"] < 1


@pytest.mark.parametrize("nce", memory.PAIRWISE)
def test_a_pairwise_loss_holds_at_least_its_similarities(nce: Callable[..., Tensor]) -> None:
    row = memory.pairwise(nce, CPU, images=8, masks=4, scales=2, dim=8)

    similarities = 2 * 2 * (8 * 4) * (2 * 8 * 4) * 4
    assert similarities <= 1e6 * row["loss MB"] < 3 * similarities


@pytest.mark.parametrize("name", lightly_peers.OURS)
def test_lightly_s_step_is_timed_beside_ours(name: str) -> None:
    row = lightly_peers.measure(name, TINY)

    assert row["ratio"] == pytest.approx(row["ours images/s"] / row["lightly images/s"])


def test_a_batch_is_doubled_until_the_method_takes_it() -> None:
    assert taken(REGISTRY.create("objectives", "mocov2"), TINY).batch == 16  # 8 parts of at least 2


def test_a_method_that_cannot_be_measured_gets_a_line_that_says_why() -> None:
    objective = REGISTRY.create("objectives", "ivpp", "tiny", {"delta_unit": "seconds"})

    for part in (steps, memory, phases):
        row = part.measure("ivpp", objective, TINY)
        assert row["note"].startswith("not measured: objective.delta_unit='seconds' needs the frame rate")


def test_innermost_operators_are_counted_with_those_of_the_backward_pass() -> None:
    weights, inputs, gradient = torch.randn(3, requires_grad=True), torch.randn(3), torch.ones(3)

    with counted(TINY, "forward") as forward:
        values = (weights * inputs).tanh()
    with counted(TINY, "backward") as backward:
        values.backward(gradient)  # type: ignore[no-untyped-call]

    assert forward.operators == 2
    assert backward.operators >= 2
    assert forward.waits == backward.waits == 0


def test_a_value_that_the_host_reads_is_a_wait() -> None:
    values = torch.arange(4.0)

    with counted(TINY, "reading") as counts:
        values.sum().item()
        values[values > 1]

    assert counts.waits == 2
    assert counts.per(2)["host waits"] == 1


def test_a_step_is_the_sum_of_its_phases() -> None:
    row = phases.measure("byol", REGISTRY.create("objectives", "byol", "tiny"), TINY)

    spans = [row[phase] for phase in phases.PHASES]
    assert all(span > 0 for span in spans)
    assert row["step ms"] == pytest.approx(sum(spans))  # one step is timed, so medians are that step's
    assert row["operators"] > 100


def test_averages_that_move_before_the_loss_are_a_phase_of_their_own() -> None:
    row = phases.measure("mocov2", REGISTRY.create("objectives", "mocov2", "tiny"), TINY)

    assert 0 < row["average"] < row["loss"]


def test_the_detector_s_training_and_prediction_are_measured_at_the_sizes_asked_for() -> None:
    run = Run(batch=2, size=64, repeats=1)

    train, predict = detector.train(run, "tiny"), detector.predict(run, "tiny")

    assert (train["batch"], train["size"], predict["size"]) == (2, 64, 64)
    assert train["images/s"] == pytest.approx(2 * train["steps/s"])
    assert train["operators"] > 100 and predict["operators"] > 100
    assert train["host waits"] > 0


def test_the_command_prints_the_slowest_operators_of_the_parts_that_count_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["phases", "--profile", "--methods", "simclr", "--batch", "4", "--size", "32", "--repeats", "1"])

    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["phases"]
    assert row["method"] == "simclr"
    assert "simclr\n" in printed.err
    assert "Self CPU" in printed.err


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["steps", "--methods", "simclr", "--batch", "4", "--size", "32", "--repeats", "1"])

    (row,) = json.loads(capsys.readouterr().out)["steps"]
    assert (row["with gradient"], row["without"], row["limit"]) == ("2 x 32", "none", 1.1)
    assert row["ratio"] == pytest.approx(row["step s"] / row["passes s"])


def test_the_command_refuses_unknown_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["step"])

    assert "unknown part step" in capsys.readouterr().err


def test_a_table_has_the_columns_of_all_rows() -> None:
    assert table([{"method": "a", "ratio": 1.0345}, {"method": "b", "note": "none"}]).splitlines() == [
        "| method | ratio | note |",
        "| --- | --- | --- |",
        "| a | 1.03 |  |",
        "| b |  | none |",
    ]
