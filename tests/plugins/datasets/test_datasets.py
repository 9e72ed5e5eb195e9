"""The built-in data sets: official layouts, generated phantoms, and an error for each way a folder can be wrong."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anaus_bench.datasets.listing import natural_key
from anaus_bench.errors import (
    BadMaskValues,
    DataError,
    DatasetNotFound,
    DuplicateId,
    EmptyMask,
    LabelError,
    LayoutError,
    MissingMask,
    OrphanMask,
    SizeMismatch,
    UnreadableFile,
    WrongVersion,
)
from anaus_bench.interfaces import Dataset
from anaus_bench.simulator.phantoms import KINDS, clips
from anaus_plugins.datasets.busi import BUSI
from anaus_plugins.datasets.images import Images, ImagesSettings
from anaus_plugins.datasets.phantom import STRUCTURES, Anatomy, Phantom, PhantomAnatomy
from anaus_plugins.datasets.udiat import UDIAT

COUNTS = {"phantom": 30, "busi": 18, "udiat": 6}
LABELLED: dict[str, type[Dataset[Any]]] = {"phantom": Phantom, "busi": BUSI, "udiat": UDIAT}


def made(name: str) -> Dataset[Any]:
    return LABELLED[name](LABELLED[name].settings_class())


def images(**values: Any) -> Images:
    return Images(ImagesSettings(**values))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {}
    for name, count in COUNTS.items():
        roots[name] = tmp_path_factory.mktemp("phantoms") / name
        made(name).write_phantoms(roots[name], count, 48, seed=0)
    return roots


@pytest.fixture
def root(written: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a generated data set that a test may spoil."""
    return lambda name: shutil.copytree(written[name], tmp_path / name)


# ---- generated data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELLED)
def test_generated_data_sets_are_read_back_and_marked(name: str, written: dict[str, Path]) -> None:
    dataset = made(name)

    index = dataset.scan(written[name])

    assert len(index.samples) == COUNTS[name]
    assert index.phantom
    assert index.warnings == ()
    assert [sample.sample_id for sample in index.samples] == sorted(
        {sample.sample_id for sample in index.samples}, key=natural_key
    )
    for sample in index.samples:
        picture = dataset.read(index, sample)
        assert picture.image.shape == (48, 48)
        assert picture.mask is not None
        normal = bool(dataset.classes) and sample.label == 2
        assert set(np.unique(picture.mask)) == ({0} if normal else {0, 1})
    assert "generated" in (written[name] / "PHANTOM.txt").read_text()


@pytest.mark.parametrize("name", LABELLED)
def test_one_seed_writes_the_same_bytes_and_another_other_patients(
    name: str, written: dict[str, Path], tmp_path: Path
) -> None:
    dataset = made(name)
    dataset.write_phantoms(tmp_path / "same", COUNTS[name], 48, seed=0)
    dataset.write_phantoms(tmp_path / "other", COUNTS[name], 48, seed=1)

    files = sorted(path.relative_to(written[name]) for path in written[name].rglob("*") if path.is_file())
    assert all((tmp_path / "same" / file).read_bytes() == (written[name] / file).read_bytes() for file in files)
    for sample in dataset.scan(tmp_path / "other").samples:
        original = written[name] / sample.path
        assert not original.exists() or original.read_bytes() != (tmp_path / "other" / sample.path).read_bytes()


@pytest.mark.parametrize("name", LABELLED)
def test_phantoms_are_not_written_among_other_files_or_too_small(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(DataError, match="not empty"):
        made(name).write_phantoms(tmp_path, 4, 48, seed=0)
    with pytest.raises(DataError, match="too small"):
        made(name).write_phantoms(tmp_path / "new", 4, 16, seed=0)


def test_frames_of_a_phantom_patient_are_one_group_of_one_class(written: dict[str, Path]) -> None:
    index = made("phantom").scan(written["phantom"])

    of_patient = Counter(
        (sample.patient_id, sample.group_id, sample.video_id, sample.label) for sample in index.samples
    )
    assert len(of_patient) == 10
    assert set(of_patient.values()) == {3}
    assert Counter(label for *_, label in of_patient) == {0: 4, 1: 3, 2: 3}
    assert [sample.frame_index for sample in index.samples[:4]] == [0, 1, 2, 0]


def test_large_phantom_sets_have_six_frames_of_each_patient(tmp_path: Path) -> None:
    made("phantom").write_phantoms(tmp_path / "new", 91, 32, seed=0)

    frames = Counter(sample.patient_id for sample in made("phantom").scan(tmp_path / "new").samples)
    assert sorted(frames.values()) == [1, *[6] * 15]


def test_busi_phantoms_keep_the_proportions_and_the_odd_masks_of_the_original(written: dict[str, Path]) -> None:
    index = made("busi").scan(written["busi"])

    assert Counter(sample.label for sample in index.samples) == {0: 10, 1: 5, 2: 3}
    assert (written["busi"] / "benign" / "benign (1)_mask.png").is_file()
    with Image.open(written["busi"] / "normal" / "normal (1)_mask.png") as mask:
        assert mask.mode == "RGB"


# ---- where the root is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [*(made(name) for name in LABELLED), images()], ids=lambda dataset: dataset.name)
def test_a_missing_or_empty_root_says_where_to_get_the_data(dataset: Dataset[Any], tmp_path: Path) -> None:
    for folder, found in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "is empty")):
        with pytest.raises(DatasetNotFound, match=found) as caught:
            dataset.scan(folder)
        assert f"--data-root {dataset.name}=" in str(caught.value)


@pytest.mark.parametrize("name", LABELLED)
def test_one_extra_folder_level_is_noticed(name: str, root: Callable[[str], Path], tmp_path: Path) -> None:
    root(name).rename(tmp_path / "unzipped")
    (tmp_path / "outer").mkdir()
    (tmp_path / "unzipped").rename(tmp_path / "outer" / "unzipped")

    with pytest.raises(LayoutError, match=r"did you mean .*unzipped"):
        made(name).scan(tmp_path / "outer")


@pytest.mark.parametrize("name", LABELLED)
def test_an_archive_and_a_strange_folder_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    with pytest.raises(LayoutError, match="stuff"):
        made(name).scan(tmp_path)

    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(LayoutError, match=r"archive 'data\.zip', unpack"):
        made(name).scan(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrapper"), [("busi", "Dataset_BUSI_with_GT"), ("udiat", "BUS"), ("udiat", "UDIAT_Dataset_B")]
)
def test_the_root_may_be_the_official_folder_or_its_parent(
    name: str, wrapper: str, root: Callable[[str], Path], tmp_path: Path
) -> None:
    inside = made(name).scan(root(name))
    (tmp_path / "parent").mkdir()
    (tmp_path / name).rename(tmp_path / "parent" / wrapper)

    outside = made(name).scan(tmp_path / "parent")

    assert outside.samples == inside.samples
    assert outside.fingerprint == inside.fingerprint
    assert outside.phantom


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [("busi", "benign/benign (2)_mask.png"), ("udiat", "GT/000002.png"), ("phantom", "masks/patient0000_frame01.png")],
)
def test_missing_masks_are_counted_and_named(name: str, file: str, root: Callable[[str], Path]) -> None:
    folder = root(name)
    (folder / file).unlink()

    with pytest.raises(MissingMask, match=f"{COUNTS[name] - 1} of {COUNTS[name]}") as caught:
        made(name).scan(folder)
    assert Path(file).stem.removesuffix("_mask") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("busi", "benign/benign (2).png"),
        ("udiat", "original/000002.png"),
        ("phantom", "images/patient0000_frame01.png"),
    ],
)
def test_masks_without_an_image_are_counted_and_named(name: str, file: str, root: Callable[[str], Path]) -> None:
    folder = root(name)
    (folder / file).unlink()

    with pytest.raises(OrphanMask, match="1 masks without an image") as caught:
        made(name).scan(folder)
    assert Path(file).stem in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [("busi", "benign/benign (1)_mask.png"), ("udiat", "GT/000001.png"), ("phantom", "masks/patient0000_frame00.png")],
)
def test_masks_of_another_size_or_without_lesion_are_refused_when_read(
    name: str, file: str, root: Callable[[str], Path]
) -> None:
    folder, dataset = root(name), made(name)
    Image.new("1", (48, 40), 1).save(folder / file)
    index = dataset.scan(folder)
    with pytest.raises(SizeMismatch, match="48 x 40"):
        dataset.read(index, index.samples[0])

    Image.new("1", (48, 48)).save(folder / file)
    with pytest.raises(EmptyMask, match="all zero"):
        dataset.read(index, index.samples[0])


@pytest.mark.parametrize("name", LABELLED)
def test_damaged_files_are_named(name: str, root: Callable[[str], Path]) -> None:
    folder, dataset = root(name), made(name)
    file = folder / dataset.scan(folder).samples[0].path
    file.write_bytes(file.read_bytes()[:300])
    index = dataset.scan(folder)
    with pytest.raises(UnreadableFile, match=file.name.replace("(", r"\(").replace(")", r"\)")):
        dataset.read(index, index.samples[0])

    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WrongVersion, match="git-LFS"):
        dataset.scan(folder)

    file.write_bytes(b"")
    with pytest.raises(UnreadableFile, match="0 bytes"):
        dataset.scan(folder)


@pytest.mark.parametrize("name", [*LABELLED, "images"])
def test_a_link_that_leaves_the_root_is_refused_but_the_root_may_be_a_link(
    name: str, root: Callable[[str], Path], tmp_path: Path
) -> None:
    dataset = images() if name == "images" else made(name)
    folder = root("udiat" if name == "images" else name)
    (tmp_path / "link").symlink_to(folder)
    sample = dataset.scan(tmp_path / "link").samples[0]

    shutil.move(folder / sample.path, tmp_path / "elsewhere.png")
    (folder / sample.path).symlink_to(tmp_path / "elsewhere.png")

    with pytest.raises(LayoutError, match="outside of the root"):
        dataset.scan(folder)


def test_a_folder_that_is_a_link_out_of_the_root_is_refused(root: Callable[[str], Path], tmp_path: Path) -> None:
    folder = root("udiat")
    (folder / "GT").rename(tmp_path / "GT")
    (folder / "GT").symlink_to(tmp_path / "GT")

    with pytest.raises(LayoutError, match="outside of the root"):
        made("udiat").scan(folder)

    (folder / "GT").unlink()
    (tmp_path / "GT").rename(folder / "GT")
    (folder / "GT" / "000009.png").symlink_to("nowhere.png")
    with pytest.raises(LayoutError, match="missing"):
        made("udiat").scan(folder)


@pytest.mark.parametrize("name", LABELLED)
def test_hidden_files_are_left_out_and_changes_change_the_fingerprint(name: str, root: Callable[[str], Path]) -> None:
    folder, dataset = root(name), made(name)
    before = dataset.scan(folder)
    sample = folder / before.samples[0].path
    (sample.parent / f"._{sample.name}").write_bytes(b"resource fork")
    (sample.parent / "Thumbs.db").write_bytes(b"")
    assert dataset.scan(folder).fingerprint == before.fingerprint

    sample.write_bytes(sample.read_bytes() + b"\0")

    assert dataset.scan(folder).fingerprint != before.fingerprint


# ---- udiat -----------------------------------------------------------------------------------------------------------


def test_udiat_pairs_by_name_and_remarks_on_the_count(tmp_path: Path) -> None:
    for folder in ("original", "GT"):
        (tmp_path / folder).mkdir()
    for number in (2, 10, 1):
        Image.new("L", (9, 9), number).save(tmp_path / "original" / f"{number}é.png")
        Image.new("L", (9, 9), 127 + number).save(tmp_path / "GT" / f"{number}é.png")

    index = made("udiat").scan(tmp_path)

    assert [sample.path for sample in index.samples] == ["original/1é.png", "original/2é.png", "original/10é.png"]
    assert [sample.mask_paths for sample in index.samples] == [("GT/1é.png",), ("GT/2é.png",), ("GT/10é.png",)]
    assert not index.phantom
    assert "3 samples found, 163 documented" in index.warnings[0]
    assert made("udiat").read(index, index.samples[2]).image[0, 0] == 10


def test_two_files_of_one_id_are_refused(root: Callable[[str], Path]) -> None:
    folder = root("udiat")
    shutil.copy(folder / "original" / "000001.png", folder / "original" / "000001.PNG")

    with pytest.raises(DuplicateId, match="one id"):
        made("udiat").scan(folder)


# ---- busi ------------------------------------------------------------------------------------------------------------


def test_busi_joins_all_masks_of_an_image(root: Callable[[str], Path]) -> None:
    folder, dataset = root("busi"), made("busi")
    corner = np.zeros((48, 48), dtype=bool)
    corner[:3, :3] = True
    Image.fromarray(corner).convert("RGBA").save(folder / "benign" / "benign (1)_mask_1.png")

    index = dataset.scan(folder)

    assert index.samples[0].mask_paths == ("benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png")
    mask = dataset.read(index, index.samples[0]).mask
    assert mask is not None
    assert mask[:3, :3].all()
    assert mask[3:].any()


def rename(folder: Path, change: Callable[[int], str]) -> None:
    for file in sorted(folder.glob("benign/*.png"), key=lambda file: natural_key(file.name)):
        number = int(file.name.split("(")[1].split(")")[0])
        file.rename(file.with_name(file.name.replace(f"({number})", change(number))))


def test_other_editions_of_busi_are_recognised(root: Callable[[str], Path], tmp_path: Path) -> None:
    folder = root("busi")
    rename(folder, lambda number: f"({number - 1})")
    with pytest.raises(WrongVersion, match="numbered from 0"):
        made("busi").scan(folder)

    for mask in folder.glob("*/*_mask*.png"):
        mask.unlink()
    with pytest.raises(WrongVersion, match="not one mask"):
        made("busi").scan(folder)

    for name in ("images", "masks"):
        (tmp_path / "split" / name).mkdir(parents=True)
    with pytest.raises(WrongVersion, match="images, masks"):
        made("busi").scan(tmp_path / "split")


def test_strange_names_and_classes_of_busi_are_refused(root: Callable[[str], Path]) -> None:
    folder = root("busi")
    (folder / "cyst").mkdir()
    with pytest.raises(LabelError, match="'cyst'"):
        made("busi").scan(folder)
    (folder / "cyst").rmdir()

    shutil.copy(folder / "benign" / "benign (1).png", folder / "malignant" / "benign (1).png")
    with pytest.raises(LabelError, match="another class"):
        made("busi").scan(folder)
    (folder / "malignant" / "benign (1).png").rename(folder / "benign" / "benign1.png")

    with pytest.raises(LayoutError, match=r"benign1\.png"):
        made("busi").scan(folder)


def test_busi_groups_hold_near_duplicates_of_any_class(root: Callable[[str], Path]) -> None:
    folder, dataset = root("busi"), made("busi")
    with Image.open(folder / "benign" / "benign (3).png") as image:
        image.point(lambda value: value * 0.9).save(folder / "malignant" / "malignant (2).png")

    index = dataset.scan(folder)
    group = dict(zip((sample.sample_id for sample in index.samples), dataset.groups(index), strict=True))

    assert group["malignant/malignant (2).png"] == "benign/benign (3).png" == group["benign/benign (3).png"]
    assert len(set(group.values())) == len(group) - 1


@pytest.mark.data
def test_the_whole_of_busi_has_the_documented_counts_and_duplicates(data_root: Callable[[str], Path]) -> None:
    dataset = made("busi")
    index = dataset.scan(data_root("busi_256"))

    assert Counter(sample.label for sample in index.samples) == {0: 437, 1: 210, 2: 133}
    assert index.warnings == ()
    assert not index.phantom
    assert sum(len(sample.mask_paths) for sample in index.samples) == 798
    several = [sample.path.rpartition("/")[2] for sample in index.samples if len(sample.mask_paths) > 1]
    numbers = (4, 25, 54, 58, 83, 92, 93, 98, 100, 163, 173, 181, 195, 315, 346, 424)
    assert several == [*(f"benign ({number}).png" for number in numbers), "malignant (53).png"]

    groups = dataset.groups(index)
    group = dict(zip((sample.sample_id for sample in index.samples), groups, strict=True))
    assert group["benign/benign (433).png"] == group["malignant/malignant (145).png"]
    sizes = [size for size in Counter(groups).values() if size > 1]
    assert (len(sizes), sum(sizes)) == (142, 316)
    labels: dict[str, set[int | None]] = {}
    for sample, name in zip(index.samples, groups, strict=True):
        labels.setdefault(name, set()).add(sample.label)
    assert sum(len(found) > 1 for found in labels.values()) == 8  # groups across classes


@pytest.mark.data
def test_original_busi_files_with_their_odd_mask_modes_are_read(data_root: Callable[[str], Path]) -> None:
    dataset = made("busi")
    index = dataset.scan(data_root("busi"))

    assert "64 samples found, 780 documented" in index.warnings[0]
    for sample in index.samples:
        mask = dataset.read(index, sample).mask
        assert mask is not None
        assert mask.any() == (sample.label != 2)


# ---- phantom ---------------------------------------------------------------------------------------------------------


def test_a_spoilt_index_of_phantoms_is_refused(root: Callable[[str], Path]) -> None:
    folder = root("phantom")
    table = folder / "index.csv"
    text = table.read_text()
    for spoilt, error, message in (
        (text.replace(",benign", ",unknown"), LabelError, "'unknown'"),
        (text.replace("class", "label"), LayoutError, "columns"),
        (text.replace("frame00.png", "frame77.png", 1), LayoutError, "frame77"),
        (text + text.splitlines()[-1] + "\n", LayoutError, "twice"),
    ):
        table.write_text(spoilt)
        with pytest.raises(error, match=message):
            made("phantom").scan(folder)

    table.unlink()
    with pytest.raises(LayoutError, match=r"index\.csv"):
        made("phantom").scan(folder)


@pytest.mark.parametrize("anatomy", STRUCTURES)
def test_phantoms_of_each_anatomy_have_its_classes_and_structures(anatomy: Anatomy, tmp_path: Path) -> None:
    dataset = Phantom(PhantomAnatomy(anatomy=anatomy))
    dataset.write_phantoms(tmp_path / "new", 2 * len(KINDS[anatomy]), 48, seed=0)

    index = dataset.scan(tmp_path / "new")
    masks = [dataset.read(index, sample).mask for sample in index.samples]

    assert dataset.classes == KINDS[anatomy]
    assert {sample.label for sample in index.samples} == set(range(len(dataset.classes)))
    kinds = [dataset.classes[sample.label or 0] for sample in index.samples]
    made = list(clips(anatomy, "phantom", kinds, frames=1, size=48, seed=0))
    for mask, clip in zip(masks, made, strict=True):
        names = np.array([0, *(1 + dataset.structures.index(name) for name in clip.structures)])
        assert mask is not None
        assert (mask == names[clip.labels[0]]).all()


def test_phantoms_of_another_anatomy_are_refused(root: Callable[[str], Path], tmp_path: Path) -> None:
    folder = root("phantom")
    heart = Phantom(PhantomAnatomy(anatomy="heart"))
    thyroid = Phantom(PhantomAnatomy(anatomy="thyroid"))
    thyroid.write_phantoms(tmp_path / "thyroid", 4, 48, seed=0)

    with pytest.raises(LabelError, match="'benign'"):
        heart.scan(folder)
    index = made("phantom").scan(tmp_path / "thyroid")
    with pytest.raises(BadMaskValues, match=r"breast are \[0, 255\]; set data\.phantom\.anatomy"):
        for sample in index.samples:
            made("phantom").read(index, sample)


# ---- images ----------------------------------------------------------------------------------------------------------


def write_video(path: Path, levels: list[int]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Über" / "clip (1)").mkdir(parents=True)
    for number in range(12):
        Image.new("L", (8, 6), number).save(tmp_path / "Über" / "clip (1)" / f"frame{number}.png")
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "alone.bmp")
    write_video(tmp_path / "video.mp4", [20, 60, 100, 140, 180, 220, 250])
    (tmp_path / "readme.md").write_text("not an image")
    return tmp_path


def test_any_folder_is_a_corpus_of_clips_in_numeric_order(folder: Path) -> None:
    dataset = images()

    index = dataset.scan(folder)

    frames = [sample for sample in index.samples if sample.video_id == "Über/clip (1)"]
    assert [dataset.read(index, sample).image[0, 0] for sample in frames] == list(range(12))
    assert [sample.frame_index for sample in frames] == list(range(12))
    alone = next(sample for sample in index.samples if sample.path == "alone.bmp")
    assert (alone.group_id, alone.video_id, alone.label) == ("alone.bmp", None, None)
    video = [sample for sample in index.samples if sample.path == "video.mp4"]
    assert [sample.sample_id for sample in video] == [f"video.mp4#{number}" for number in range(7)]
    assert {sample.group_id for sample in video} == {"video.mp4"}
    levels = [dataset.read(index, sample).image.mean() for sample in video]
    assert levels == pytest.approx([20, 60, 100, 140, 180, 220, 250], abs=10)


def test_every_and_max_frames_thin_each_clip(folder: Path) -> None:
    index = images(every=3, max_frames=3).scan(folder)

    chosen: dict[str | None, list[int | None]] = {}
    for sample in index.samples:
        chosen.setdefault(sample.video_id, []).append(sample.frame_index)
    assert chosen == {None: [None], "Über/clip (1)": [0, 3, 6], "video.mp4": [0, 3, 6]}


def test_a_folder_without_images_and_a_broken_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(LayoutError, match="no image or video"):
        images().scan(tmp_path)

    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 50)
    with pytest.raises(UnreadableFile, match=r"a\.mp4"):
        images().scan(tmp_path)


@pytest.mark.data
def test_real_lung_videos_are_read_frame_by_frame(data_root: Callable[[str], Path]) -> None:
    dataset = images(every=40)
    index = dataset.scan(data_root("covid_blues"))

    assert len({sample.group_id for sample in index.samples}) == 18
    assert all(dataset.read(index, sample).image.std() > 10 for sample in index.samples)
