"""What each method does with a corpus that lacks what its paper had: recorded, or refused before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from anaus_bench.corpus.packed import Entry, PackedCorpus
from anaus_bench.errors import AnausError
from anaus_bench.interfaces import Objective, StageContext
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.training.pretraining import pretrain

SIDE = 64


def packed(clips: list[tuple[str, str | None, int, int]], classes: tuple[str, ...]) -> PackedCorpus:
    """Noise of clips (data set, video, frames, label), or of lone images where the video is None."""
    entries = tuple(
        Entry(f"{name} {video} {frame}", name, f"{name}{video}", label, video, frame if video else None, None, BOX)
        for name, video, frames, label in clips
        for frame in range(frames)
    )
    images = np.random.default_rng(0).integers(0, 256, (len(entries), SIDE, SIDE), dtype=np.uint8)
    return PackedCorpus(images, None, entries, (), {}, classes, True)


BOX = (0, 0, SIDE, SIDE)
# The paper's corpus in small: labelled lung clips, heart clips whose ids name a view, one of them too short for USUCL.
PAPER = packed(
    [
        ("butterfly", "Reg-1", 4, 0),
        ("butterfly", "Cov-1", 6, 1),
        ("butterfly", "Cov-2", 6, 1),
        ("camus", "p1_2CH", 8, -1),
        ("camus", "p1_4CH", 6, -1),
        ("camus", "p2_4CH", 2, -1),
    ],
    ("butterfly:regular", "butterfly:covid"),
)
NO_LABELS = packed([("camus", f"p{number}", 5, -1) for number in range(4)], ())
IMAGES = packed([("udiat", None, 16, -1)], ())
SHORT = packed([("camus", f"p{number}", 2, -1) for number in range(8)], ())


def make(name: str, **values: Any) -> Objective[Any]:
    objective: Objective[Any] = Registry().create("objectives", name, "tiny", values)
    return objective


NAMES = Registry().names("objectives")
MASKED = [name for name in NAMES if make(name).takes_masks() != "none"]


@pytest.mark.parametrize(
    ("name", "values", "corpus", "facts"),
    [
        (
            "supervised", {}, PAPER,
            {"labels": "butterfly:regular 4, butterfly:covid 12, camus:2CH 8, camus:4CH 8 (sampling balanced)"},
        ),
        (
            "supervised", {"label_set": "classes"}, PAPER,
            {"labels": "butterfly:regular 4, butterfly:covid 12, none 16 (sampling balanced)"},
        ),
        (
            "fixmatch", {"label_fraction": 0.1}, PAPER,
            {"labels": "butterfly:regular 4, butterfly:covid 6, camus:2CH 8, camus:4CH 2, none 12 "
             "(label_fraction 0.1, seed 0)"},
        ),
        (
            "uscl", {}, PAPER,
            {"clips": "6 of 2 to 8 frames; 1 of fewer than 3 are not mixed",
             "labels": "butterfly:regular 4, butterfly:covid 12, none 16"},
        ),
        (
            "uscl", {"label_set": "classes+views"}, PAPER,
            {"clips": "6 of 2 to 8 frames; 1 of fewer than 3 are not mixed",
             "labels": "butterfly:regular 4, butterfly:covid 12, camus:2CH 8, camus:4CH 8"},
        ),
        (
            "uscl", {}, NO_LABELS,
            {"clips": "4 of 5 frames", "labels": "not used (no image has one): the contrast alone"},
        ),
        ("usucl", {}, PAPER, {"clips": "5 of 4 to 8 frames; 1 of fewer than 3 frames are left out"}),
        (
            "awcl", {"granularity": "view"}, PAPER,
            {"anatomies": "butterfly 16, camus 2CH 8, camus 4CH 8 (granularity view, ratio 1)"},
        ),
        (
            "awcl", {"granularity": "class"}, PAPER,
            {"anatomies": "butterfly:covid 12, butterfly:regular 4, none 16 (granularity class, ratio 1)"},
        ),
        (
            "ivpp", {}, PAPER,
            {"clips": "6 of 2 to 8 frames", "distance": "at most 0.5 (fraction): 1 to 4 frames",
             "frame rates": "not used"},
        ),
        (
            "ivpp", {"delta_unit": "seconds", "delta": 0.1, "fps": {"butterfly": 20, "camus": 50}}, PAPER,
            {"clips": "6 of 2 to 8 frames", "distance": "at most 0.1 (seconds): 2 to 5 frames",
             "frame rates": "butterfly 20 a second, camus 50 a second, as set"},
        ),
    ],
)  # fmt: skip
def test_what_a_method_makes_of_a_corpus_is_said(
    name: str, values: Mapping[str, Any], corpus: PackedCorpus, facts: Mapping[str, str]
) -> None:
    assert make(name, **values).corpus_facts(corpus, 0) == facts


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "uscl", "usucl", "awcl", "ivpp"])
def test_what_it_makes_of_a_corpus_is_in_the_record_and_shown(
    name: str, stage_context: Callable[..., StageContext]
) -> None:
    objective = make(name)
    corpus = synthetic_corpus(8)
    ctx = stage_context()
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": 1})
    encoder = Encoder("resnet18", objective.finest_stride())

    _, result = pretrain(objective, encoder, corpus, None, np.arange(len(corpus)), settings, ctx)

    assert result["corpus"] == objective.corpus_facts(corpus, 0)
    shown = " ".join(ctx.progress.notes)  # type: ignore[attr-defined]
    assert all(f"{what}: {text}" in shown for what, text in result["corpus"].items())


@pytest.mark.parametrize(
    ("name", "values", "corpus", "words"),
    [
        *[(name, {}, IMAGES, f"'{name}' compares the frames of clips, but 16 of 16 images belong to none")
          for name in ("uscl", "usucl", "ivpp")],
        ("usucl", {}, SHORT, "needs clips of at least 3 frames; the longest of 8 clips of this corpus has 2"),
        ("ivpp", {"delta_unit": "seconds"}, NO_LABELS, "needs the frame rate of camus"),
        ("awcl", {"granularity": "view"}, NO_LABELS, "needs at least 2 anatomies, the corpus has .'camus'."),
        ("awcl", {"granularity": "class"}, NO_LABELS, r"needs at least 2 anatomies, the corpus has \[\]"),
        *[(name, {}, NO_LABELS, f"objective '{name}' needs class labels; no image of this corpus has one")
          for name in ("supervised", "fixmatch")],
        *[(name, {}, packed([("lung", "Cov", 9, 1)], ("lung:regular", "lung:covid")),
           f"objective '{name}' needs images of at least 2 classes, the corpus has lung:covid 9")
          for name in ("supervised", "fixmatch")],
        *[(name, {}, packed([("lung", "Cov", 3, 1), ("lung", "Reg", 0, 0)], ("lung:regular", "lung:covid")), "fewer")
          for name in ("byol", "uscl")],
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_serve_is_refused_before_training(
    stage_context: Callable[..., StageContext], name: str, values: Mapping[str, Any], corpus: PackedCorpus, words: str
) -> None:
    ctx = stage_context()
    settings = resolve(PretrainSettings, "pretrain", "tiny")

    with pytest.raises(AnausError, match=words):
        pretrain(make(name, **values), Encoder("resnet18"), corpus, None, np.arange(len(corpus)), settings, ctx)

    assert not list(ctx.out.iterdir())
    assert not list(ctx.resume.iterdir())


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, field) for n in NAMES for field in type(make(n).settings).model_fields if "temperature" in field],
)
def test_a_temperature_of_zero_is_refused(name: str, field: str) -> None:
    with pytest.raises(AnausError, match=f"objective.{field}=0: input should be greater than 0"):
        make(name, **{field: 0})


@pytest.mark.parametrize("name", MASKED)
def test_one_region_per_image_gives_a_finite_loss(name: str, stage_context: Callable[..., StageContext]) -> None:
    objective, corpus = make(name), synthetic_corpus(8)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": 2})
    encoder = Encoder("resnet18", objective.finest_stride())
    whole = np.zeros((len(corpus), SIDE, SIDE), dtype=np.uint8)

    _, result = pretrain(objective, encoder, corpus, whole, np.arange(len(corpus)), settings, stage_context())

    assert np.isfinite(result["last"]["loss"])


@pytest.mark.parametrize("name", MASKED)
def test_views_that_share_no_region_give_a_finite_loss(name: str, stage_context: Callable[..., StageContext]) -> None:
    """Small crops of maps of tiny regions: in step 0 no image's views share an id."""
    objective, corpus = make(name, crop_area=(0.01, 0.01)), synthetic_corpus(8)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": 1, "batch": 2})
    encoder = Encoder("resnet18", objective.finest_stride())
    rows, columns = np.mgrid[:SIDE, :SIDE] // 4
    maps = np.broadcast_to((16 * rows + columns).astype(np.uint8), (len(corpus), SIDE, SIDE)).copy()

    _, result = pretrain(objective, encoder, corpus, maps, np.arange(len(corpus)), settings, stage_context())

    assert np.isfinite(result["last"]["loss"])
    assert result["last"].get("anchors_with_positive", 0) == 0  # DetCon says so
