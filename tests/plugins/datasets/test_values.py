"""Data sets whose files can be read but mean something else: refused by name, and not read in silence."""

from __future__ import annotations

import os
import pickle
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from anaus_bench.datasets.listing import JUNK, is_junk, left_out
from anaus_bench.datasets.verify import Report, verify
from anaus_bench.errors import BadMaskValues, DataError, LabelError, LayoutError, UnreadableFile
from anaus_bench.interfaces import Dataset
from anaus_bench.settings.base import Settings
from anaus_plugins.datasets.busi import BUSI
from anaus_plugins.datasets.butterfly import Butterfly
from anaus_plugins.datasets.camus import CAMUS
from anaus_plugins.datasets.ddti import DDTI
from anaus_plugins.datasets.images import Images, ImagesSettings
from anaus_plugins.datasets.pocus import POCUS, POCUSSettings
from anaus_plugins.datasets.tn3k import TN3K, TN3KSettings
from anaus_plugins.datasets.udiat import UDIAT
from tests.conftest import RecordedProgress

DATASETS: dict[str, Callable[[], Dataset[Any]]] = {
    "busi": lambda: BUSI(Settings()),
    "butterfly": lambda: Butterfly(Settings()),
    "camus": lambda: CAMUS(Settings()),
    "ddti": lambda: DDTI(Settings()),
    "images": lambda: Images(ImagesSettings()),
    "pocus": lambda: POCUS(POCUSSettings()),
    "tn3k": lambda: TN3K(TN3KSettings()),
    "udiat": lambda: UDIAT(Settings()),
}
COUNTS = {"busi": 8, "butterfly": 12, "camus": 8, "ddti": 4, "pocus": 120, "tn3k": 24, "udiat": 4}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp("values") / name for name in COUNTS}
    for name, folder in roots.items():
        DATASETS[name]().write_phantoms(folder, COUNTS[name], 48, seed=0)
    return roots


@pytest.fixture
def root(written: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(written[name], tmp_path / name)


def checked(name: str, folder: Path) -> Report:
    dataset = DATASETS[name]()
    dataset.skips_unreadable = True
    return verify(dataset, dataset.scan(folder), RecordedProgress())


def refused(name: str, folder: Path, error: type[DataError], match: str) -> None:
    dataset = DATASETS[name]()
    with pytest.raises(error, match=match):
        index = dataset.scan(folder)
        for sample in index.samples:
            dataset.read(index, sample)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda volume: volume / np.float32(255), "scaled"),
        (lambda volume: volume.astype(np.complex64), "complex64"),
        (lambda volume: np.where(volume > 20, np.nan, volume).astype(np.float32), "nan"),
        (lambda volume: volume * np.float32(10), "expected gray levels 0 to 255"),
    ],
)
def test_volumes_of_camus_that_are_no_gray_levels_are_refused(
    change: Callable[[np.ndarray], np.ndarray], match: str, root: Callable[[str], Path]
) -> None:
    folder = root("camus")
    path = next(folder.rglob("*half_sequence.nii.gz"))
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(nibabel.load(path).dataobj)), np.eye(4)), path)

    refused("camus", folder, UnreadableFile, match)


@pytest.mark.parametrize("value", [0.5, np.nan, 4])
def test_labels_of_camus_between_the_known_ones_are_refused(value: float, root: Callable[[str], Path]) -> None:
    folder = root("camus")
    path = next(folder.rglob("*half_sequence_gt.nii.gz"))
    labels = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
    labels[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), path)

    refused("camus", folder, BadMaskValues, "expected 0 to 3")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda images, labels: (images / 255, labels), UnreadableFile, "scaled"),
        (lambda images, labels: (images, labels == 1), LabelError, "True"),
        (lambda images, labels: (images, labels + 0.5), LabelError, r"0\.5"),
        (lambda images, labels: (images.astype(float) * np.nan, labels), UnreadableFile, "nan"),
    ],
)
def test_pickles_of_pocus_with_other_values_are_refused(
    change: Callable[..., tuple[np.ndarray, np.ndarray]], error: type[DataError], match: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 12, 10), dtype=np.uint8)
    for fold in range(5):
        content = (images, np.zeros(6, np.int64), *change(images, np.arange(6) % 3))
        (tmp_path / f"covid_data{fold + 1}.pkl").write_bytes(pickle.dumps(content))

    refused("pocus", tmp_path, error, match)


def test_tables_that_name_no_file_are_refused(root: Callable[[str], Path]) -> None:
    pocus, tn3k = root("pocus"), root("tn3k")
    (pocus / "dataset_metadata.csv").write_text("Filename,Patient ID / Name\nother,7\n")
    (tn3k / "label4test.csv").write_text("images/1.jpg,1\nimages/2.jpg,0\n")

    refused("pocus", pocus, LayoutError, "names not one file")
    refused("tn3k", tn3k, LayoutError, "names no image of test-image/")
    (tn3k / "label4test.csv").write_text("0000.jpg,1\n0000.jpg,0\n")
    refused("tn3k", tn3k, LabelError, "two labels")


@pytest.mark.parametrize("point", ['{"x": NaN, "y": 2}', '{"x": 1e300, "y": 2}', '{"x": "a", "y": 2}', "[1, 2]"])
def test_points_of_ddti_that_are_no_places_are_refused(point: str, tmp_path: Path) -> None:
    Image.new("L", (40, 30), 60).save(tmp_path / "1_1.jpg")
    points = f'[{{"points": [{point}, {{"x": 9, "y": 9}}, {{"x": 3, "y": 20}}]}}]'
    (tmp_path / "1.xml").write_text(f"<case><mark><image>1</image><svg>{points}</svg></mark></case>")

    refused("ddti", tmp_path, UnreadableFile, "1.xml")


# ---- what lies among the data ----------------------------------------------------------------------------------------

FOLDERS = ("@eaDir", "$RECYCLE.BIN", ".snapshot", "lost+found", "#recycle", "__MACOSX", "Thumbnails", ".Trash-0")


@pytest.mark.parametrize("name", COUNTS)
def test_what_systems_leave_behind_is_no_sample_and_is_named(name: str, root: Callable[[str], Path]) -> None:
    folder = root(name)
    before = checked(name, folder)
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()} - {".txt"}
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for junk in FOLDERS:
            (place / junk / "a").mkdir(parents=True)
            for suffix in suffixes:
                Image.new("L", (9, 9)).save(place / junk / "a" / f"thumb{suffix}", format="PNG")
        for junk in ("Thumbs.db", "desktop.ini", "~$table.xlsx", "SYNOFILE_THUMB_M.png", "._a.png"):
            (place / junk).write_bytes(b"x")

    after = checked(name, folder)

    assert (after.images, after.groups, after.offenders) == (before.images, before.groups, ())
    assert "@eaDir" in after.warnings[-1] and "left out" in after.warnings[-1]
    assert set(left_out(folder)) >= set(FOLDERS)


def test_names_of_data_are_no_junk() -> None:
    assert JUNK.fullmatch("thumbnails")
    for name in (
        "benign (1).png",
        "original",
        "Cov_a~b.mp4",
        "thumb1.png",
        "Reg-thumbs up.avi",
        "patient0001",
        "$1.png",
    ):
        assert not is_junk(name)


def test_two_copies_of_busi_in_one_folder_are_refused(root: Callable[[str], Path]) -> None:
    folder = root("busi")
    shutil.copytree(folder, folder.parent / "copy")
    shutil.move(folder.parent / "copy", folder / "Dataset_BUSI_with_GT")

    refused("busi", folder, LayoutError, "the same images twice")


# ---- names -----------------------------------------------------------------------------------------------------------


def test_accents_may_be_written_in_two_ways(root: Callable[[str], Path]) -> None:
    folder = root("udiat")
    for place, form in (("original", "NFC"), ("GT", "NFD")):
        (folder / place / "000001.png").rename(folder / place / f"{unicodedata.normalize(form, 'é1')}.png")

    assert checked("udiat", folder).with_mask == COUNTS["udiat"]


def test_masks_of_udiat_may_be_jpeg(root: Callable[[str], Path]) -> None:
    folder = root("udiat")
    expected = {}
    for path in list((folder / "GT").iterdir()):
        with Image.open(path) as mask:
            expected[path.stem] = np.asarray(mask) > 0
            mask.convert("L").save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    dataset = DATASETS["udiat"]()
    index = dataset.scan(folder)

    for sample in index.samples:
        found = dataset.read(index, sample).mask
        assert found is not None
        assert (found != expected[Path(sample.path).stem]).sum() <= 3


# ---- clips -----------------------------------------------------------------------------------------------------------


def test_pages_are_frames_of_a_clip_and_a_single_page_is_a_picture(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    pages[0].save(tmp_path / "clip.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    dataset = DATASETS["images"]()

    index = dataset.scan(tmp_path)

    assert [sample.sample_id for sample in index.samples] == ["clip.tif#0", "clip.tif#1", "clip.tif#2", "one.tif"]
    assert [sample.video_id for sample in index.samples] == ["clip.tif"] * 3 + [None]
    assert [dataset.read(index, sample).image[0, 0] for sample in index.samples] == [10, 20, 30, 10]


def test_unreadable_clips_are_named_together_or_left_out_and_listed(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 10).save(tmp_path / "good.png")
    for name in ("a.mp4", "b.avi", "c.tif"):
        (tmp_path / name).write_bytes(b"no clip at all" * 99)
    dataset = DATASETS["images"]()

    with pytest.raises(UnreadableFile, match=r"3 files cannot be used: 'a\.mp4', 'b\.avi', 'c\.tif'.*unreadable=skip"):
        dataset.scan(tmp_path)
    report = checked("images", tmp_path)

    assert report.images == 1
    assert [offender for offender in report.offenders if "cannot be" in offender] == list(report.offenders)
    assert len(report.offenders) == 3


def test_a_mask_that_was_corrected_makes_another_data_set(root: Callable[[str], Path]) -> None:
    folder = root("udiat")
    path = folder / "GT" / "000001.png"
    with Image.open(path) as mask:
        pixels = np.asarray(mask).copy()
    Image.fromarray(pixels).save(path, compress_level=0)
    before, stamp = DATASETS["udiat"]().scan(folder).fingerprint, path.stat()
    Image.fromarray(pixels.T).save(path, compress_level=0)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert path.stat().st_size == stamp.st_size
    assert DATASETS["udiat"]().scan(folder).fingerprint != before
