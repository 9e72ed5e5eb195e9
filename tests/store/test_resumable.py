from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anaus_bench.interfaces import StageContext, StageInputs
from anaus_bench.planning.specs import CorpusSpec, DatasetSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.corpus import run
from anaus_bench.store.resumable import ResumableArray

SHAPE = (6, 4, 4)
Make = Callable[..., StageContext]


def fill(array: ResumableArray[str], rows: range) -> None:
    for row in rows:
        array.rows[row] = row + 1
        array.add([f"fact {row}"])


def test_finished_rows_and_their_facts_survive(stage_context: Make) -> None:
    ctx = stage_context(checkpoint_seconds=0)
    fill(ResumableArray(ctx, "a.npy", SHAPE), range(3))

    resumed: ResumableArray[str] = ResumableArray(ctx, "a.npy", SHAPE)

    assert resumed.facts == ["fact 0", "fact 1", "fact 2"]
    assert resumed.rows[:, 0, 0].tolist() == [1, 2, 3, 0, 0, 0]
    fill(resumed, range(3, 6))
    assert np.load(ctx.out / "a.npy")[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_rows_since_the_last_checkpoint_are_not_finished(stage_context: Make) -> None:
    ctx = stage_context(checkpoint_seconds=3600)
    fill(ResumableArray(ctx, "a.npy", SHAPE), range(3))

    assert ResumableArray(ctx, "a.npy", SHAPE).facts == []


def test_progress_never_speaks_of_another_array(stage_context: Make) -> None:
    """The fault that published label maps of zeros: a new array beside the progress of the one before."""
    ctx = stage_context(checkpoint_seconds=0)
    fill(ResumableArray(ctx, "a.npy", SHAPE), range(3))
    np.save(ctx.out / "a.npy", np.zeros(SHAPE, dtype=np.uint8))

    assert ResumableArray(ctx, "a.npy", SHAPE).facts == []


def test_rows_count_up_to_the_first_that_is_damaged(stage_context: Make) -> None:
    ctx = stage_context(checkpoint_seconds=0)
    array: ResumableArray[str] = ResumableArray(ctx, "a.npy", SHAPE)
    fill(array, range(4))
    array.rows[2, 0, 0] ^= 1
    array.rows.flush()

    assert ResumableArray(ctx, "a.npy", SHAPE).facts == ["fact 0", "fact 1"]


@pytest.mark.parametrize(
    "damage", ["marker lost", "marker damaged", "array lost", "array empty", "array short", "shape"]
)
def test_whatever_is_lost_the_array_begins_anew(stage_context: Make, damage: str) -> None:
    ctx = stage_context(checkpoint_seconds=0)
    fill(ResumableArray(ctx, "a.npy", SHAPE), range(3))
    array, marker = ctx.out / "a.npy", ctx.resume / "a.npy.rows"
    match damage:
        case "marker lost":
            marker.unlink()
        case "marker damaged":
            marker.write_text("{")
        case "array lost":
            array.unlink()
        case "array empty":
            array.write_bytes(b"")
        case "array short":
            array.write_bytes(array.read_bytes()[:-20])
    shape = (7, 4, 4) if damage == "shape" else SHAPE

    begun: ResumableArray[str] = ResumableArray(ctx, "a.npy", shape)

    assert begun.facts == []
    assert not begun.rows.any()
    assert begun.rows.shape == shape


def test_rows_can_be_forgotten_so_that_parts_begin_at_their_start(stage_context: Make) -> None:
    ctx = stage_context(checkpoint_seconds=0)
    array: ResumableArray[str] = ResumableArray(ctx, "a.npy", SHAPE)
    fill(array, range(5))

    array.forget(4)
    fill(array, range(4, 6))

    assert ResumableArray(ctx, "a.npy", SHAPE).facts == [f"fact {row}" for row in range(6)]


def test_damaged_rows_of_a_corpus_are_packed_anew_also_where_images_have_no_mask(
    stage_context: Make, tmp_path: Path
) -> None:
    registry, spec, roots = Registry(), {}, {}
    for name in ("udiat", "pocus"):
        dataset = registry.create("datasets", name)
        roots[name] = tmp_path / name
        roots[name].mkdir()
        dataset.write_phantoms(roots[name], 4, 48, 0)
        spec[name] = DatasetSpec(**dict(registry.spec("datasets", dataset)))
    inputs, ctx = StageInputs({}, roots), stage_context(checkpoint_seconds=0)
    run(CorpusSpec(size=32, datasets=spec), inputs, ctx, registry)
    expected = np.load(ctx.out / "truth.npy")
    truth = np.load(ctx.out / "truth.npy", mmap_mode="r+")
    truth[:, 0, 0] ^= 1
    truth.flush()

    run(CorpusSpec(size=32, datasets=spec), inputs, ctx, registry)

    assert not expected[-1].any()
    assert np.array_equal(np.load(ctx.out / "truth.npy"), expected)
