"""The data sets that cannot be passed on: their official layouts, generated, read back, and spoilt in every way."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anaus_bench.datasets.folds import check_folds, make_folds
from anaus_bench.datasets.listing import natural_key
from anaus_bench.datasets.videos import write_video
from anaus_bench.errors import (
    BadMaskValues,
    CountMismatch,
    DataError,
    DatasetNotFound,
    DuplicateId,
    EmptyMask,
    LabelError,
    LayoutError,
    LeakageError,
    MissingMask,
    OrphanMask,
    SizeMismatch,
    UnreadableFile,
    WrongVersion,
)
from anaus_bench.interfaces import Dataset, Index
from anaus_bench.settings.base import Settings
from anaus_plugins.datasets.butterfly import Butterfly
from anaus_plugins.datasets.camus import CAMUS
from anaus_plugins.datasets.ddti import DDTI
from anaus_plugins.datasets.hmcqu import HMCQU, HMCQUSettings
from anaus_plugins.datasets.pocus import POCUS, POCUSSettings
from anaus_plugins.datasets.tg3k import TG3K
from anaus_plugins.datasets.tn3k import TN3K, TN3KSettings

COUNTS = {"butterfly": 40, "camus": 48, "pocus": 120, "tn3k": 24, "tg3k": 24, "ddti": 8, "hmcqu": 18}
SIZE = 48
DATASETS: dict[str, Dataset[Any]] = {
    "butterfly": Butterfly(Settings()),
    "camus": CAMUS(Settings()),
    "pocus": POCUS(POCUSSettings()),
    "tn3k": TN3K(TN3KSettings()),
    "tg3k": TG3K(Settings()),
    "ddti": DDTI(Settings()),
    "hmcqu": HMCQU(HMCQUSettings()),
}
PAIRED = ("tn3k", "tg3k", "ddti")
MASKED = ("camus", *PAIRED, "hmcqu")
Spoil = Callable[[str], Path]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {}
    for name, dataset in DATASETS.items():
        roots[name] = tmp_path_factory.mktemp("layouts") / name
        dataset.write_phantoms(roots[name], COUNTS[name], SIZE, seed=0)
    return roots


@pytest.fixture
def root(written: dict[str, Path], tmp_path: Path) -> Spoil:
    """A copy of a generated data set that a test may spoil."""
    return lambda name: shutil.copytree(written[name], tmp_path / name)


def refused(name: str, folder: Path, error: type[DataError], match: str) -> str:
    """Scans and reads everything, expects one error that names the data set and its root, and returns its message."""
    dataset = DATASETS[name]
    with pytest.raises(error, match=match) as caught:
        index = dataset.scan(folder)
        for sample in index.samples:
            dataset.read(index, sample)
    message = str(caught.value)
    assert name in message
    assert str(folder) in message
    assert message.startswith(name)
    return message


def first(name: str, folder: Path) -> tuple[Path, Path]:
    """Image and mask file of the first sample (the mask is the image where there is none)."""
    index = DATASETS[name].scan(folder)
    sample = index.samples[0]
    return index.root / sample.path, index.root / (sample.mask_paths or (sample.path,))[0]


# ---- generated data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_generated_data_sets_are_read_back_and_marked(name: str, written: dict[str, Path]) -> None:
    dataset = DATASETS[name]

    index = dataset.scan(written[name])

    assert abs(len(index.samples) - COUNTS[name]) <= 0.25 * COUNTS[name]
    assert index.phantom
    assert index.warnings == ()
    ids = [sample.sample_id for sample in index.samples]
    assert ids == sorted(set(ids), key=natural_key)
    for sample in index.samples:
        picture = dataset.read(index, sample)
        assert picture.image.std() > 5
        assert (picture.mask is not None) == (name in MASKED)
        if picture.mask is not None:
            assert picture.mask.shape == picture.image.shape
            assert 0 < picture.mask.max() <= len(dataset.structures)
            assert 0 < (picture.mask > 0).mean() < 0.9
    assert "generated" in (written[name] / "PHANTOM.txt").read_text()
    assert dataset.licence and dataset.url.startswith("http") and dataset.reference and dataset.how_to_get


@pytest.mark.parametrize("name", DATASETS)
def test_one_seed_writes_the_same_bytes(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    DATASETS[name].write_phantoms(tmp_path / "same", COUNTS[name], SIZE, seed=0)

    files = sorted(path.relative_to(written[name]) for path in written[name].rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "same") for path in (tmp_path / "same").rglob("*") if path.is_file()
    )
    assert [
        file for file in files if (tmp_path / "same" / file).read_bytes() != (written[name] / file).read_bytes()
    ] == []


@pytest.mark.parametrize("name", DATASETS)
def test_an_odd_size_and_a_single_sample_can_be_written(name: str, tmp_path: Path) -> None:
    DATASETS[name].write_phantoms(tmp_path / "one", 1, 45, seed=3)

    index = DATASETS[name].scan(tmp_path / "one")
    assert 1 <= len(index.samples) <= 6
    assert min(DATASETS[name].read(index, index.samples[0]).image.shape) > 30


@pytest.mark.parametrize("name", DATASETS)
def test_folds_of_groups_share_no_patient_and_no_clip(name: str, written: dict[str, Path]) -> None:
    dataset = DATASETS[name]
    index = dataset.scan(written[name])
    groups = dataset.groups(index)
    folds = make_folds(groups, [sample.label for sample in index.samples], min(3, len(set(groups))), seed=0)

    for unit in ("patient_id", "video_id"):
        of_unit: dict[str, set[int]] = {}
        for sample, fold in zip(index.samples, folds, strict=True):
            if getattr(sample, unit) is not None:
                of_unit.setdefault(getattr(sample, unit), set()).add(fold)
        assert all(len(found) == 1 for found in of_unit.values())
    spoilt = [*folds]
    twin = (
        next(row for row, group in enumerate(groups) if groups.count(group) > 1)
        if len(set(groups)) < len(groups)
        else None
    )
    if twin is not None:
        spoilt[twin] = (spoilt[twin] + 1) % 3
        with pytest.raises(LeakageError, match=r"stands in folds"):
            check_folds(groups, spoilt)


# ---- where the root is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_or_empty_root_says_where_to_get_the_data(name: str, tmp_path: Path) -> None:
    for folder, found in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "is empty")):
        message = refused(name, folder, DatasetNotFound, found)
        assert DATASETS[name].how_to_get in message
        assert f"--data-root {name}=" in message


@pytest.mark.parametrize("name", DATASETS)
def test_one_extra_folder_level_an_archive_and_a_strange_folder_are_noticed(
    name: str, root: Spoil, tmp_path: Path
) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    root(name).rename(outer / "unzipped")
    (outer / "unzipped" / "PHANTOM.txt").unlink()
    refused(name, outer, LayoutError, r"did you mean .*unzipped")

    shutil.rmtree(outer / "unzipped")
    (outer / "stuff").mkdir()
    refused(name, outer, LayoutError, "stuff")
    (outer / "data.zip").write_bytes(b"PK")
    refused(name, outer, LayoutError, r"archive 'data\.zip', unpack")


@pytest.mark.parametrize("name", DATASETS)
def test_a_subset_is_read_with_a_remark(name: str, root: Spoil) -> None:
    folder = root(name)
    (folder / "PHANTOM.txt").unlink()

    index = DATASETS[name].scan(folder)

    assert not index.phantom
    if DATASETS[name].expected_count is not None:
        assert any(f"{len(index.samples)} samples found" in warning for warning in index.warnings)


@pytest.mark.parametrize("name", DATASETS)
def test_a_link_that_leaves_the_root_is_refused_but_the_root_may_be_a_link(
    name: str, root: Spoil, tmp_path: Path
) -> None:
    folder = root(name)
    (tmp_path / "link").symlink_to(folder)
    assert DATASETS[name].scan(tmp_path / "link").samples

    image, _ = first(name, folder)
    shutil.move(image, tmp_path / f"elsewhere{image.suffix}")
    image.symlink_to(tmp_path / f"elsewhere{image.suffix}")

    refused(name, folder, LayoutError, "outside of the root")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("which", [0, 1], ids=["image", "mask"])
def test_damaged_files_are_named(name: str, which: int, root: Spoil) -> None:
    folder = root(name)
    file = first(name, folder)[which]
    whole = file.read_bytes()

    file.write_bytes(whole[: len(whole) // 2])
    assert file.stem.split(".")[0] in refused(name, folder, UnreadableFile, ".")

    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert file.name in refused(name, folder, WrongVersion, "git-LFS")

    file.write_bytes(b"")
    assert file.name in refused(name, folder, UnreadableFile, "0 bytes")

    file.write_bytes(b"<html>not found</html>" * 50)
    assert file.stem.split(".")[0] in refused(name, folder, UnreadableFile, ".")


@pytest.mark.parametrize("name", DATASETS)
def test_odd_names_beside_the_data_do_no_harm(name: str, root: Spoil) -> None:
    folder = root(name)
    before = DATASETS[name].scan(folder)
    image, _ = first(name, folder)
    (image.parent / f"._{image.name}").write_bytes(b"resource fork")
    (image.parent / "Thumbs.db").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    os.mkfifo(image.parent / f"pipe{image.suffix}")  # reading it would never end

    after = DATASETS[name].scan(folder)

    assert after.samples == before.samples
    assert after.fingerprint == before.fingerprint
    image.write_bytes(image.read_bytes() + b"\0")
    assert DATASETS[name].scan(folder).fingerprint != before.fingerprint


@pytest.mark.parametrize("name", ["butterfly", "pocus", *PAIRED])
def test_names_that_are_not_utf_8_are_refused(name: str, root: Spoil) -> None:
    folder = root(name)
    image, _ = first(name, folder)
    try:
        image.rename(image.with_name(f"Reg_\udcff{image.suffix}"))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")

    refused(name, folder, LayoutError, "not UTF-8")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", ["butterfly", *PAIRED])
def test_an_image_that_claims_a_hundred_megapixels_is_not_decoded(name: str, root: Spoil) -> None:
    folder = root(name)
    image, _ = first(name, folder)
    Image.new("1", (10_000, 10_000)).save(image, format="PNG")

    refused(name, folder, UnreadableFile, "10000 x 10000 pixels")


@pytest.mark.parametrize("name", [*PAIRED, "butterfly", "pocus"])
def test_two_files_of_one_id_are_refused(name: str, root: Spoil) -> None:
    folder = root(name)
    image, _ = first(name, folder)
    shutil.copy(image, image.with_suffix(".JPG" if image.suffix == ".jpg" else image.suffix.swapcase()))

    assert image.stem in refused(name, folder, DuplicateId, "one id")


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_missing_and_orphan_masks_are_counted_and_named(name: str, root: Spoil) -> None:
    folder = root(name)
    image, mask = first(name, folder)
    kept = mask.read_bytes()
    mask.unlink()
    assert image.stem.split("_half")[0] in refused(name, folder, MissingMask, r"\d")

    mask.write_bytes(kept)
    image.unlink()
    assert image.stem.split("_half")[0] in refused(name, folder, OrphanMask, "without an? (image|video)")


@pytest.mark.parametrize("name", PAIRED)
def test_masks_of_another_size_or_without_anything_are_refused_when_read(name: str, root: Spoil) -> None:
    folder = root(name)
    image, mask = first(name, folder)
    Image.new("L", (48, 20), 255).save(mask)
    refused(name, folder, SizeMismatch, "48 x 20")

    with Image.open(image) as opened:
        Image.new("L", opened.size, 127).save(mask, quality=100)
    refused(name, folder, EmptyMask, "all zero")


@pytest.mark.parametrize("name", ["tn3k", "tg3k"])
def test_jpeg_masks_are_cut_above_127_and_nowhere_else(name: str, written: dict[str, Path]) -> None:
    dataset, index = DATASETS[name], DATASETS[name].scan(written[name])
    grays = 0
    for sample in index.samples:
        with Image.open(index.root / sample.mask_paths[0]) as opened:
            values = np.array(opened)
        grays += int(((values > 0) & (values < 255)).sum())
        np.testing.assert_array_equal(dataset.read(index, sample).mask, values > 127)
    assert grays > 0  # so that another threshold would give another mask


# ---- butterfly -------------------------------------------------------------------------------------------------------


def test_butterfly_frames_are_in_numeric_order_with_the_class_of_their_clip(written: dict[str, Path]) -> None:
    index = DATASETS["butterfly"].scan(written["butterfly"])

    assert Counter(sample.label for sample in index.samples) == {0: 20, 1: 20}
    assert {sample.video_id for sample in index.samples} == {sample.group_id for sample in index.samples}
    for sample in index.samples:
        assert sample.path.endswith(f"_frame{sample.frame_index}.jpg")


def test_butterfly_takes_video_files_and_zero_padded_frames_and_remarks_on_unknown_clips(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 40), dtype=np.uint8)
    write_video(tmp_path / "Cov-lung ü (1).mp4", images, 10)
    (tmp_path / "sweep").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "sweep" / f"{number:05d}.jpg")

    index = DATASETS["butterfly"].scan(tmp_path)

    assert Counter((sample.video_id, sample.label) for sample in index.samples) == {
        ("Cov-lung ü (1).mp4", 1): 12,
        ("sweep", None): 12,
    }
    assert any("neither Cov nor Reg" in warning and "'sweep'" in warning for warning in index.warnings)
    assert all(DATASETS["butterfly"].read(index, sample).image.shape == (32, 40) for sample in index.samples)


def test_butterfly_refuses_loose_frames_and_clips_of_one_frame(root: Spoil, tmp_path: Path) -> None:
    folder = root("butterfly")
    (clip := next(child for child in folder.iterdir() if child.is_dir()))
    for file in sorted(clip.iterdir())[1:]:
        file.unlink()
    assert repr(clip.name) in refused("butterfly", folder, CountMismatch, "1 frame, at least 2")

    Image.new("L", (8, 8)).save(folder / "frame1.jpg")
    refused("butterfly", folder, LayoutError, "without a folder")


# ---- camus -----------------------------------------------------------------------------------------------------------


def nifti(path: Path, array: np.ndarray) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def test_camus_keeps_both_views_of_a_patient_and_the_axes(written: dict[str, Path]) -> None:
    import nibabel

    dataset, index = DATASETS["camus"], DATASETS["camus"].scan(written["camus"])
    sample = index.samples[1]
    stored = nibabel.load(index.root / sample.path)

    assert {sample.group_id for sample in index.samples} == {sample.patient_id for sample in index.samples}
    assert set(Counter(sample.group_id for sample in index.samples).values()) == {8}
    np.testing.assert_array_equal(dataset.read(index, sample).image, np.asarray(stored.dataobj)[:, :, 1].T)
    assert set(np.unique(dataset.read(index, sample).mask)) == {0, 1, 2, 3}


def test_camus_is_read_unzipped_and_in_any_order(root: Spoil) -> None:
    import gzip

    folder, dataset = root("camus"), DATASETS["camus"]
    before = dataset.scan(folder)
    pictures = [dataset.read(before, sample) for sample in before.samples]
    for file in folder.rglob("*.nii.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()

    after = dataset.scan(folder)

    assert len(after.samples) == len(before.samples)
    for sample, picture in reversed(list(zip(after.samples, pictures, strict=True))):
        np.testing.assert_array_equal(dataset.read(after, sample).image, picture.image)
        np.testing.assert_array_equal(dataset.read(after, sample).mask, picture.mask)


def test_camus_contradictions_are_refused(root: Spoil) -> None:
    folder = root("camus")
    image, mask = first("camus", folder)
    info = image.parent / "Info_2CH.cfg"
    text = info.read_text()
    for changed, error, match in (
        (text.replace("NbFrame: 4", "NbFrame: 5"), CountMismatch, r"4 frames, Info_2CH\.cfg says 5"),
        (text.replace("ES: ", "ES: 9"), CountMismatch, "expected 1 to 4"),
        (text.replace("ED: ", "ED: one"), LayoutError, "no number for ED"),
        ("", UnreadableFile, "0 bytes"),
    ):
        info.write_text(changed)
        refused("camus", folder, error, match)
    info.unlink()
    refused("camus", folder, LayoutError, "cannot be read")
    info.write_text(text)

    nifti(mask, np.zeros((48, 48, 3), dtype=np.uint8))
    refused("camus", folder, SizeMismatch, r"\(4, 48, 48\), its mask \(3, 48, 48\)")
    nifti(mask, np.full((48, 48, 4), 4, dtype=np.uint8))
    refused("camus", folder, BadMaskValues, r"values \[4\]; expected 0 to 3")
    nifti(mask, np.full((48, 48, 4), 1.5, dtype=np.float32))
    refused("camus", folder, BadMaskValues, r"values \[1\.5\]")
    nifti(mask, np.zeros((48, 48, 4), dtype=np.uint8))
    refused("camus", folder, EmptyMask, "marks nothing")
    nifti(mask, np.ones((48, 48, 4), dtype=np.uint8))
    nifti(image, np.full((48, 48, 4), 300, dtype=np.int16))
    refused("camus", folder, UnreadableFile, "expected gray levels")


def test_other_editions_and_names_of_camus_are_refused(root: Spoil, tmp_path: Path) -> None:
    folder = root("camus")
    image, _ = first("camus", folder)
    shutil.copy(image, image.with_name("patient0001_3CH_ED.nii.gz"))
    refused("camus", folder, LayoutError, "3CH")
    image.with_name("patient0001_3CH_ED.nii.gz").unlink()
    (image.parent / "patient0001_2CH_ED.mhd").write_text("x")
    refused("camus", folder, WrongVersion, "mixes the NIfTI and the MetaImage")

    (tmp_path / "repacked").mkdir()
    (tmp_path / "repacked" / "camus.h5").write_bytes(b"\x89HDF")
    refused("camus", tmp_path / "repacked", WrongVersion, "re-packed")


def write_metaimage(path: Path, array: np.ndarray, *, compressed: bool = False) -> None:
    import zlib

    raw = path.with_suffix(".zraw" if compressed else ".raw")
    raw.write_bytes(zlib.compress(array.tobytes()) if compressed else array.tobytes())
    path.write_text(
        f"ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = False\nCompressedData = {compressed}\n"
        f"DimSize = {array.shape[1]} {array.shape[0]} 1\nElementSpacing = 0.308 0.154 1\nElementType = MET_UCHAR\n"
        f"ElementDataFile = {raw.name}\n"
    )


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The challenge's edition: two annotated patients and one without masks."""
    for part, patient in (("training", 1), ("training", 2), ("testing", 3)):
        folder = tmp_path / "older" / part / f"patient{patient:04d}"
        folder.mkdir(parents=True)
        for view in ("2CH", "4CH"):
            (folder / f"Info_{view}.cfg").write_text("ED: 1\nES: 9\nNbFrame: 20\nSex: M\n")
            for phase in ("ED", "ES"):
                image = np.arange(30 * 20, dtype=np.uint16).reshape(30, 20).astype(np.uint8) + np.uint8(patient)
                write_metaimage(folder / f"{folder.name}_{view}_{phase}.mhd", image)
                if part == "training":
                    mask = np.zeros((30, 20), dtype=np.uint8)
                    mask[3:9, 5:7] = 3
                    write_metaimage(folder / f"{folder.name}_{view}_{phase}_gt.mhd", mask, compressed=view == "4CH")
    return tmp_path / "older"


def test_the_older_edition_of_camus_gives_the_annotated_frames(older: Path) -> None:
    dataset = DATASETS["camus"]

    index = dataset.scan(older)

    assert len(index.samples) == 8
    assert Counter(sample.frame_index for sample in index.samples) == {0: 4, 8: 4}
    assert "1 patients without masks are left out" in index.warnings[0]
    picture = dataset.read(index, index.samples[-1])
    assert picture.mask is not None
    assert picture.image[0, 1] == 3 and picture.mask[4, 5] == 3 and picture.mask.sum() == 3 * 12


def test_damaged_headers_of_the_older_edition_are_refused_and_lead_nowhere_else(older: Path, tmp_path: Path) -> None:
    header = older / "training" / "patient0001" / "patient0001_2CH_ED.mhd"
    text = header.read_text()
    (tmp_path / "secret.raw").write_bytes(bytes(600))
    for changed, match in (
        (text.replace("= patient0001_2CH_ED.raw", "= ../../../secret.raw"), "expected one file beside it"),
        (text.replace("= patient0001_2CH_ED.raw", "= absent.raw"), "cannot be read"),
        (text.replace("MET_UCHAR", "MET_LONG_DOUBLE"), "pixels of type"),
        (text.replace("20 30 1", "20 31 1"), "holds 600 bytes, 620 expected"),
        (text.replace("20 30 1", "200000 300000 1"), "claims the shape"),
        (text.replace("20 30 1", "many"), "no valid DimSize"),
        ("nothing", "is missing"),
    ):
        header.write_text(changed)
        refused("camus", older, UnreadableFile, match)


def test_camus_sub_groups_become_five_folds(root: Spoil) -> None:
    folder, dataset = root("camus"), DATASETS["camus"]
    assert isinstance(dataset, CAMUS)
    index = dataset.scan(folder)
    assert dataset.published_folds(index) is None
    groups = {f"subGroup{number}": [f"patient{number:04d}"] for number in range(1, 11)}
    (index.root / "subgroups_testing.json").write_text(json.dumps(groups))

    folds = dataset.published_folds(index)

    assert folds is not None
    check_folds(dataset.groups(index), folds)
    assert Counter(folds) == {0: 16, 1: 16, 2: 16}
    (index.root / "subgroups_testing.json").write_text('{"subGroup1": ["patient0001"]}')
    with pytest.raises(LayoutError, match="every patient"):
        dataset.published_folds(index)


# ---- tn3k ------------------------------------------------------------------------------------------------------------


def test_tn3k_has_labels_and_the_published_folds_with_a_fixed_test_set(written: dict[str, Path]) -> None:
    dataset = DATASETS["tn3k"]
    assert isinstance(dataset, TN3K)
    index = dataset.scan(written["tn3k"])

    assert Counter(sample.label for sample in index.samples) == {0: 16, 1: 8}
    folds = dataset.published_folds(index)
    assert folds is not None
    for sample, fold in zip(index.samples, folds, strict=True):
        number = int(Path(sample.path).stem)
        assert fold == (-1 if sample.path.startswith("test") else number % 5)
    assert TN3K(TN3KSettings(protocol="cv_all")).published_folds(index) is None


def test_tn3k_fold_lists_must_deal_out_every_image_once(root: Spoil) -> None:
    folder, dataset = root("tn3k"), DATASETS["tn3k"]
    assert isinstance(dataset, TN3K)
    path = folder / "tn3k-trainval-fold3.json"
    kept = path.read_text()
    for changed, error, match in (
        ('{"train": [], "val": [0]}', CountMismatch, "trainval images"),
        ('{"train": [], "val": [99999]}', CountMismatch, "trainval images"),
        ('{"train": []}', LayoutError, "fold3"),
        ("no json", LayoutError, "fold3"),
        ('{"val": ["a"]}', LayoutError, "fold3"),
    ):
        path.write_text(changed)
        with pytest.raises(error, match=match) as caught:
            dataset.published_folds(dataset.scan(folder))
        assert "protocol=cv_all" in str(caught.value)
    path.unlink()
    with pytest.raises(LayoutError, match="fold3"):
        dataset.published_folds(dataset.scan(folder))
    path.write_text(kept)


def test_tn3k_tables_of_labels_may_miss_or_have_a_heading_but_no_other_class(root: Spoil) -> None:
    folder, dataset = root("tn3k"), DATASETS["tn3k"]
    table = folder / "label4test.csv"
    labels = [sample.label for sample in dataset.scan(folder).samples]
    table.write_text("image,label\n" + table.read_text())
    assert [sample.label for sample in dataset.scan(folder).samples] == labels

    table.write_text(table.read_text().replace(",0", ",2").replace(",1", ",2"))
    refused("tn3k", folder, LabelError, "known: 0")

    table.unlink()
    index = dataset.scan(folder)
    assert any("label4test.csv" in warning for warning in index.warnings)
    assert {sample.label for sample in index.samples if sample.path.startswith("test")} == {None}


def test_a_resized_copy_of_tn3k_is_recognised(root: Spoil) -> None:
    folder = root("tn3k")
    for file in folder.glob("*-*/*.jpg"):
        Image.open(file).resize((32, 32)).save(file)

    refused("tn3k", folder, WrongVersion, "32 x 32 pixels, a resized copy")


def test_near_duplicates_in_tn3k_and_ddti_are_one_group(root: Spoil) -> None:
    for name in ("tn3k", "ddti"):
        folder, dataset = root(name), DATASETS[name]
        index = dataset.scan(folder)
        one, other = index.samples[0], index.samples[-1]
        for source, target in ((one.path, other.path), (one.mask_paths[0], other.mask_paths[0])):
            shutil.copy(index.root / source, index.root / target)

        groups = dataset.groups(dataset.scan(folder))

        assert groups[0] == groups[-1] == one.sample_id
        assert len(set(groups)) == len(groups) - 1


# ---- tg3k ------------------------------------------------------------------------------------------------------------


def test_tg3k_groups_are_runs_of_frames_that_end_with_the_video(tmp_path: Path) -> None:
    dataset = DATASETS["tg3k"]
    dataset.write_phantoms(tmp_path / "videos", 60, 96, seed=1)  # six videos of ten frames

    index = dataset.scan(tmp_path / "videos")
    groups = dataset.groups(index)

    videos = [number // 10 for number in range(60)]
    of_group: dict[str, set[int]] = {}
    for group, video in zip(groups, videos, strict=True):
        of_group.setdefault(group, set()).add(video)
    assert all(len(found) == 1 for found in of_group.values())  # no group holds two videos
    assert len(of_group) <= 12


# ---- ddti ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer", "image", "mask"),
    [("DDTI", "image", "mask"), ("DDTI/2_preprocessed_data/stage1", "p_image", "p_mask"), (".", "image", "mask")],
)
def test_ddti_is_found_in_each_of_its_layouts(outer: str, image: str, mask: str, root: Spoil, tmp_path: Path) -> None:
    folder = root("ddti")
    target = tmp_path / "other" / outer
    target.mkdir(parents=True)
    shutil.copytree(folder / "1_or_data" / "image", target / image)
    shutil.copytree(folder / "1_or_data" / "mask", target / mask)

    assert len(DATASETS["ddti"].scan(tmp_path / "other").samples) == COUNTS["ddti"]


SQUARE = (
    '[{"points": [{"x": 4, "y": 3}, {"x": 12, "y": 3}, {"x": 12, "y": 9}, {"x": 4, "y": 9}], "regionType": "freehand"}]'
)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """The original edition: case 10 has two images, of which the second is unmarked, case 2 one with two nodules."""
    folder = tmp_path / "cases"
    folder.mkdir()
    for name in ("10_1", "10_2", "2_1"):
        Image.new("RGB", (20, 16), (50, 60, 70)).save(folder / f"{name}.jpg")
    for case, images in (
        ("10", {"1": SQUARE, "2": ""}),
        ("2", {"1": SQUARE[:-1] + ', {"points": [{"x": 15, "y": 12}, {"x": 19, "y": 12}, {"x": 19, "y": 15}]}]'}),
    ):
        marks = "".join(f"<mark><image>{image}</image><svg>{svg}</svg></mark>" for image, svg in images.items())
        (folder / f"{case}.xml").write_text(f"<case><number>{case}</number><tirads>4a</tirads>{marks}</case>")
    return folder


def test_ddti_polygons_of_the_original_edition_are_filled_and_grouped_by_case(cases: Path) -> None:
    dataset = DATASETS["ddti"]

    index = dataset.scan(cases)

    assert [(sample.path, sample.group_id) for sample in index.samples] == [
        ("2_1.jpg", "case 2"),
        ("10_1.jpg", "case 10"),
    ]
    assert dataset.groups(index) == ("case 2", "case 10")
    assert any("'10_2.jpg'" in warning for warning in index.warnings)
    one, two = (dataset.read(index, sample).mask for sample in reversed(index.samples))
    assert one is not None and two is not None
    assert one[3:10, 4:13].all() and one.sum() == 7 * 9
    assert two[3:10, 4:13].all() and two[13, 18] == 1


def test_broken_cases_of_ddti_are_refused(cases: Path) -> None:
    xml = cases / "2.xml"
    text = xml.read_text()
    for changed in (
        "<case>",
        text.replace("[{", "[{{"),
        text.replace('"x": 4', '"x": "four"'),
        '<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><case>&b;</case>',
    ):
        xml.write_text(changed)
        assert "2.xml" in refused("ddti", cases, UnreadableFile, ".")
    xml.write_text(text.replace('"x": ', '"x": 99').replace('"y": ', '"y": 99'))
    refused("ddti", cases, EmptyMask, "outside of the image")
    xml.unlink()
    refused("ddti", cases, MissingMask, r"1 of 3 images.*2_1\.jpg")
    xml.write_text(text)
    (cases / "7.xml").write_text(text)
    refused("ddti", cases, OrphanMask, r"7\.xml")
    (cases / "7.xml").rename(cases / "a.txt")
    (cases / "2_1.jpg").rename(cases / "first.jpg")
    refused("ddti", cases, LayoutError, r"first\.jpg")


# ---- hmcqu -----------------------------------------------------------------------------------------------------------


def test_hmcqu_reads_the_ticked_cycle_at_either_resolution(written: dict[str, Path]) -> None:
    index = DATASETS["hmcqu"].scan(written["hmcqu"])
    assert Counter(sample.video_id for sample in index.samples) == {f"ES{n:04d}_4CH_1": 3 for n in range(1, 7)}
    assert [sample.frame_index for sample in index.samples[:3]] == [1, 2, 3]
    assert len(list((written["hmcqu"] / "HMC-QU" / "A4C").iterdir())) == 7  # one video is not annotated

    small = DATASETS["hmcqu"].read(index, index.samples[4])
    large = HMCQU(HMCQUSettings(resolution="videos")).read(index, index.samples[4])

    assert small.image.shape == (224, 224) and large.image.shape == (SIZE, SIZE)
    assert small.mask is not None and large.mask is not None
    assert large.mask.mean() == pytest.approx(small.mask.mean(), rel=0.2)


def test_hmcqu_contradictions_and_other_versions_are_refused(root: Spoil, tmp_path: Path) -> None:
    from scipy.io import savemat

    folder = root("hmcqu")
    _, mask = first("hmcqu", folder)
    for content, error, match in (
        ({"predicted": np.zeros((3, 8, 8), dtype=np.uint8)}, EmptyMask, "marks nothing"),
        ({"predicted": np.full((3, 8, 8), 2, dtype=np.uint8)}, BadMaskValues, r"values \[2\]"),
        ({"predicted": np.ones((4, 8, 8), dtype=np.uint8)}, CountMismatch, r"4 frames, A4C\.xlsx says 3"),
        ({"other": np.ones((3, 8, 8), dtype=np.uint8)}, UnreadableFile, "expected 'predicted'"),
        ({"predicted": np.ones((3, 8), dtype=np.uint8)}, UnreadableFile, "expected 'predicted'"),
    ):
        savemat(mask, content)
        refused("hmcqu", folder, error, match)
    mask.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    refused("hmcqu", folder, WrongVersion, "7.3")

    shutil.rmtree(folder / "LV Ground-truth Segmentation Masks")
    refused("hmcqu", folder, MissingMask, "but not the folder")
    (folder / "HMC-QU Echos").mkdir()
    refused("hmcqu", folder, WrongVersion, "first edition")


def test_a_spoilt_table_of_hmcqu_is_refused(root: Spoil) -> None:
    import openpyxl

    folder = root("hmcqu")
    table = folder / "A4C.xlsx"

    def change(row: int, column: int, value: object) -> None:
        book = openpyxl.load_workbook(table)
        book.active.cell(row, column).value = value
        book.save(table)

    change(2, 9, 40)
    refused("hmcqu", folder, CountMismatch, "5 frames.*frame 40")
    change(2, 9, 1)
    refused("hmcqu", folder, CountMismatch, "from 1")
    change(2, 9, "last")
    refused("hmcqu", folder, LayoutError, "expected two numbers")
    change(2, 9, 4)
    change(3, 1, "ES0001_4CH_1")
    refused("hmcqu", folder, DuplicateId, "twice")
    change(3, 1, "ES0099_4CH_1")
    refused("hmcqu", folder, MissingMask, "ES0099")
    change(3, 1, "ES0002_4CH_1")
    change(3, 10, None)
    refused("hmcqu", folder, OrphanMask, "ES0002")
    change(1, 1, "Name")
    refused("hmcqu", folder, LayoutError, "columns ECHO")
    table.write_bytes(table.read_bytes()[:900])
    refused("hmcqu", folder, UnreadableFile, "table")
    table.unlink()
    refused("hmcqu", folder, LayoutError, "A4C.xlsx")


# ---- pocus -----------------------------------------------------------------------------------------------------------


def test_pocus_samples_three_frames_a_second_and_thirty_at_most(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (100, 16, 16), dtype=np.uint8)
    folder = tmp_path / "pocus_videos" / "convex"
    (tmp_path / "pocus_videos" / "linear" / "label_uncertain").mkdir(parents=True)
    (tmp_path / "pocus_images" / "convex").mkdir(parents=True)
    folder.mkdir()
    write_video(folder / "Cov_a.mp4", images, 10)
    write_video(folder / "pneu-slow.avi", images, 2)  # int(2 / 3) would be no step at all
    write_video(folder / "Reg-Butterfly-b+(1).mov", images[:7], 6)
    write_video(folder / "Cov_likebutterfly_c.gif", images[:4], 3)
    write_video(folder / "Vir_d.avi", images[:4], 3)
    write_video(tmp_path / "pocus_videos" / "linear" / "Reg_e.avi", images[:4], 3)
    write_video(tmp_path / "pocus_videos" / "linear" / "label_uncertain" / "Reg_f.avi", images[:4], 3)
    Image.new("RGB", (9, 7)).save(tmp_path / "pocus_images" / "convex" / "Pneu_g.JPG", format="JPEG")

    def frames(**settings: Any) -> dict[str, list[int | None]]:
        found: dict[str, list[int | None]] = {}
        for sample in POCUS(POCUSSettings(**settings)).scan(tmp_path).samples:
            found.setdefault(Path(sample.path).name, []).append(sample.frame_index)
        return found

    assert frames() == {
        "Cov_a.mp4": list(range(0, 90, 3)),
        "Cov_likebutterfly_c.gif": [0, 1, 2, 3],
        "Reg-Butterfly-b+(1).mov": [0, 2, 4, 6],
        "pneu-slow.avi": list(range(30)),
        "Pneu_g.JPG": [None],
    }
    assert "Reg-Butterfly-b+(1).mov" not in frames(exclude_overlap=True)
    assert frames(probe="linear") == {"Reg_e.avi": [0, 1, 2, 3]}
    assert len(frames(probe="both", rate=10.0, max_frames=2)["Cov_a.mp4"]) == 2
    warnings = DATASETS["pocus"].scan(tmp_path).warnings
    assert [word for word in ("viral", "Butterfly", "dataset_metadata") if any(word in text for text in warnings)] == [
        "viral",
        "Butterfly",
        "dataset_metadata",
    ]


def test_pocus_groups_by_patient_then_examination_then_video(tmp_path: Path) -> None:
    folder = tmp_path / "pocus_images" / "convex"
    folder.mkdir(parents=True)
    for stem in (
        "Reg_a",
        "Cov_b",
        "Pneu_northumbria_0409_set1_vid1",
        "Pneu_northumbria_0409_set1_vid2",
        "Cov_c",
        "Cov_d",
    ):
        Image.new("L", (8, 8)).save(folder / f"{stem}.png")
    (tmp_path / "dataset_metadata.csv").write_text(
        "Filename,Patient ID / Name\nReg_A,7\nCov_b,7\nPneu_northumbria_0409_set1_vid1,184\n"
        "Pneu_northumbria_0409_set1_vid2,185\nCov_c,n/A\n"
    )

    groups = {Path(sample.path).stem: sample.group_id for sample in DATASETS["pocus"].scan(tmp_path).samples}

    assert groups["Reg_a"] == groups["Cov_b"] == "patient 7"
    assert groups["Pneu_northumbria_0409_set1_vid1"] == groups["Pneu_northumbria_0409_set1_vid2"]
    assert (groups["Cov_c"], groups["Cov_d"]) == ("pocus_images/convex/Cov_c.png", "pocus_images/convex/Cov_d.png")
    (tmp_path / "dataset_metadata.csv").write_text("name\n")
    refused("pocus", tmp_path, LayoutError, "no columns")


def test_pocus_names_without_a_class_are_refused(root: Spoil) -> None:
    folder = root("pocus")
    image, _ = first("pocus", folder)
    image.rename(image.with_name(f"Ünknown{image.suffix}"))

    refused("pocus", folder, LabelError, "Ünknown")


def write_pickles(
    folder: Path, change: Callable[[int, list[Any]], object] = lambda fold, arrays: tuple(arrays)
) -> Path:
    import pickle

    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(5):
        rng = np.random.default_rng(fold)
        test = rng.integers(0, 256, (6, 3, 12, 10), dtype=np.uint8)
        train = np.zeros((24, 3, 12, 10), dtype=np.uint8)
        arrays = [train, np.zeros(24, dtype=np.int64), test, np.arange(6) % 3]
        (folder / f"covid_data{fold + 1}.pkl").write_bytes(pickle.dumps(change(fold, arrays), protocol=3))
    return folder


def test_pickled_folds_of_pocus_are_read_and_stay_folds(tmp_path: Path) -> None:
    dataset = DATASETS["pocus"]
    assert isinstance(dataset, POCUS)
    write_pickles(tmp_path / "covid_5_fold")

    index = dataset.scan(tmp_path)

    assert len(index.samples) == 30
    assert dataset.published_folds(index) == [fold for fold in range(5) for _ in range(6)]
    assert Counter(sample.label for sample in index.samples) == {0: 10, 1: 10, 2: 10}
    expected = np.random.default_rng(3).integers(0, 256, (6, 3, 12, 10), dtype=np.uint8)[4].transpose(1, 2, 0)
    np.testing.assert_array_equal(
        dataset.read(index, index.samples[22]).image,
        np.asarray(Image.fromarray(np.ascontiguousarray(expected)).convert("L")),
    )
    folds = make_folds(dataset.groups(index), [sample.label for sample in index.samples], 5, seed=0)
    assert len({(fold, mine) for fold, mine in zip(dataset.published_folds(index) or (), folds, strict=True)}) == 5


def test_wrong_pickles_of_pocus_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pickles"
    for change, error, match in (
        (lambda fold, arrays: (*arrays[:3], arrays[3][:-1]), CountMismatch, "6 test images but 5 labels"),
        (lambda fold, arrays: (*arrays[:3], arrays[3] + 1), LabelError, r"labels \[3\]"),
        (lambda fold, arrays: tuple(arrays[:3]), UnreadableFile, "expected X"),
        (lambda fold, arrays: {"X": 1}, UnreadableFile, "'dict'"),
        (
            lambda fold, arrays: (*arrays[:2], arrays[2] - 0.5, arrays[3]),
            UnreadableFile,
            "expected gray levels 0 to 255",
        ),
        (lambda fold, arrays: (*arrays[:3], Path("a")), WrongVersion, "pathlib"),
    ):
        write_pickles(folder, change)
        refused("pocus", folder, error, match)
    (folder / "covid_data2.pkl").unlink()
    refused("pocus", folder, LayoutError, "4 of 5")


# ---- scale -----------------------------------------------------------------------------------------------------------


def test_sixty_thousand_files_are_scanned(tmp_path: Path) -> None:
    for clip in range(60):
        folder = tmp_path / f"Cov-{clip}_mp4"
        folder.mkdir()
        for frame in range(1000):
            os.link(tmp_path / "Cov-0_mp4" / "f0.jpg", folder / f"f{frame}.jpg") if clip or frame else (
                folder / "f0.jpg"
            ).write_bytes(bytes(300))

    index = DATASETS["butterfly"].scan(tmp_path)

    assert len(index.samples) == 60_000


def test_reading_frames_in_order_opens_each_file_once(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import anaus_plugins.datasets.camus as camus

    opened: list[Path] = []
    read = camus.read_volume
    monkeypatch.setattr(camus, "read_volume", lambda path: (opened.append(path), read(path))[1])
    dataset = CAMUS(Settings())
    index: Index = dataset.scan(written["camus"])

    for sample in index.samples:
        dataset.read(index, sample)

    assert len(opened) == len(set(opened))
