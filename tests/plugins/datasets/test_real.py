"""Real POCUS files and COVID-BLUES videos, where they are at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from anaus_bench.datasets.folds import make_folds
from anaus_bench.datasets.videos import VideoReader, video_header
from anaus_bench.settings.base import Settings
from anaus_plugins.datasets.butterfly import Butterfly
from anaus_plugins.datasets.pocus import POCUS, POCUSSettings

pytestmark = pytest.mark.data


def test_the_frames_of_every_real_container_are_as_many_as_its_header_says(data_root: Callable[[str], Path]) -> None:
    reader = VideoReader()
    videos = sorted((data_root("pocus") / "pocus_videos").rglob("*.*"))

    for video in videos:
        header = video_header(video)
        assert reader.frame(video, header.frames - 1).std() > 5
        assert 10 <= header.rate <= 60
    assert Counter(video.suffix for video in videos) == {".mp4": 15, ".avi": 4, ".mpeg": 4, ".gif": 2, ".mov": 2}


def test_real_pocus_files_follow_the_authors_protocol(data_root: Callable[[str], Path]) -> None:
    dataset = POCUS(POCUSSettings())

    index = dataset.scan(data_root("pocus"))

    files = {sample.path: sample for sample in index.samples}
    assert Counter(sample.label for sample in files.values()) == {0: 9, 1: 10, 2: 11}
    assert all(sample.patient_id is not None for sample in files.values())
    assert any("1 files of viral pneumonia" in warning for warning in index.warnings)
    assert not any("Butterfly" in warning for warning in index.warnings)  # 'likebutterfly' is another source
    assert max(Counter(sample.path for sample in index.samples).values()) <= 30
    group = {Path(path).name: sample.group_id for path, sample in files.items()}
    assert group["Reg_liftl_case3_clip2.mp4"] == group["Pneu_liftl_pneu_case3_clip3.mp4"] == "patient 7"
    assert group["Pneu_northumbria_0409_set1_vid1.avi"] == group["Pneu_northumbria_0409_set1_vid2.avi"]
    assert group["Pneu_northumbria_0409_set1_vid1.avi"] != group["Pneu_northumbria_0409_set2_vid1.avi"]
    assert group["Cov_Oliviera_2020_Fig4A.jpg"] == group["Cov_Oliviera_2020_Fig5A.jpg"]


def test_every_sampled_frame_of_pocus_is_read_and_folds_keep_patients_whole(
    data_root: Callable[[str], Path],
) -> None:
    dataset = POCUS(POCUSSettings(probe="both"))
    index = dataset.scan(data_root("pocus"))

    assert len({sample.path for sample in index.samples}) == 34  # of 36 files, two viral
    assert all(dataset.read(index, sample).image.std() > 5 for sample in index.samples)
    folds = make_folds(dataset.groups(index), [sample.label for sample in index.samples], 5, seed=0)
    of_patient: dict[str | None, set[int]] = {}
    for sample, fold in zip(index.samples, folds, strict=True):
        of_patient.setdefault(sample.patient_id, set()).add(fold)
    assert all(len(found) == 1 for found in of_patient.values())


def test_a_folder_of_real_lung_videos_is_read_as_butterfly(data_root: Callable[[str], Path]) -> None:
    dataset = Butterfly(Settings())

    index = dataset.scan(data_root("covid_blues") / "lus_videos")

    assert len({sample.group_id for sample in index.samples}) == 18
    assert 18 * 50 < len(index.samples) < 18 * 110
    assert {sample.label for sample in index.samples} == {None}
    assert any("neither Cov nor Reg" in warning for warning in index.warnings)
    assert all(dataset.read(index, sample).image.shape == (350, 350) for sample in index.samples[::25])
