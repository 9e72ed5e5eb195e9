"""Label maps that a user made: found by sample, letterboxed with their images, refused when they do not fit."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anaus_bench.corpus.packed import Entry, PackedCorpus, letterbox, open_corpus, write_index
from anaus_bench.errors import (
    BadMaskValues,
    DuplicateId,
    LayoutError,
    MissingMask,
    SettingsError,
    SizeMismatch,
    UnreadableFile,
)
from anaus_plugins.mask_sources.imported import Imported, ImportedSettings

SIZE = 32


def entry(sample_id: str, height: int = SIZE, width: int = SIZE) -> Entry:
    _, box = letterbox(np.zeros((height, width), np.uint8), SIZE, labels=False)
    return Entry(sample_id, "set", "g", -1, None, None, None, box)


def corpus(*entries: Entry) -> PackedCorpus:
    images = np.zeros((len(entries), SIZE, SIZE), np.uint8)
    return PackedCorpus(images, None, entries, (), {}, (), False)


def source(folder: Path) -> Imported:
    return Imported(ImportedSettings(path=str(folder)))


def write(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def blocks(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    ids = np.zeros((height, width), np.uint8)
    ids[: height // 2, width // 2 :], ids[height // 2 :, : width // 2] = 40, 255
    return ids


def test_maps_are_found_by_sample_and_get_contiguous_ids(tmp_path: Path) -> None:
    write(tmp_path / "a" / "one.png", blocks())
    np.save(tmp_path / "clip#3.npy", blocks().astype(np.int64))
    entries = [entry("a/one.jpg"), entry("clip.mp4#3")]
    imported = source(tmp_path)

    imported.check(corpus(*entries))
    maps = imported.read(entries, SIZE)

    assert maps.dtype == np.uint8 and maps.shape == (2, SIZE, SIZE)
    assert np.array_equal(maps[0], maps[1])
    assert maps[0, 0, 0] == 0 and maps[0, 0, -1] == 1 and maps[0, -1, 0] == 2


def test_the_sub_folder_of_the_data_set_goes_before_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path / "one.png", np.zeros((SIZE, SIZE), np.uint8))
    write(tmp_path / "set" / "one.png", blocks())

    (found,) = source(tmp_path).read([entry("one.png")], SIZE)

    assert found.max() == 2


def test_a_map_of_the_images_own_size_is_letterboxed_like_its_image(tmp_path: Path) -> None:
    write(tmp_path / "wide.png", blocks(48, 96))
    wide = entry("wide.png", 48, 96)

    (found,) = source(tmp_path).read([wide], SIZE)

    expected, box = letterbox(blocks(48, 96), SIZE, labels=True)
    assert wide.box == box
    assert np.array_equal(found, np.searchsorted([0, 40, 255], expected))


def test_without_a_background_the_letterbox_is_a_region_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "wide.png", blocks(48, 96) // 2 + np.uint8(1))
    write(tmp_path / "square.png", np.where(blocks() > 0, 9, 7).astype(np.uint8))

    wide, square = source(tmp_path).read([entry("wide.png", 48, 96), entry("square.png")], SIZE)

    assert wide[0, 0] == 0 and wide[SIZE // 2].min() == 1
    assert sorted(np.unique(square)) == [0, 1]


def test_colours_are_regions(tmp_path: Path) -> None:
    colours = np.zeros((SIZE, SIZE, 3), np.uint8)
    colours[:8, :, 0], colours[8:16, :, 2] = 255, 255
    write(tmp_path / "one.png", colours)

    (found,) = source(tmp_path).read([entry("one.png")], SIZE)

    assert [found[0, 0], found[8, 0], found[16, 0]] == [2, 1, 0]


def test_overlapping_proposals_are_painted_small_over_large(tmp_path: Path) -> None:
    proposals = np.zeros((2, SIZE, SIZE), bool)
    proposals[0, 4:8, 4:8], proposals[1, :16] = True, True
    np.save(tmp_path / "one.npy", proposals)

    (found,) = source(tmp_path).read([entry("one.png")], SIZE)

    assert found[5, 5] == 2 and found[0, 0] == 1 and found[31, 31] == 0


def test_what_masks_build_wrote_is_read_by_sample_id(tmp_path: Path) -> None:
    maps = np.stack([blocks(), blocks().T]) // 40
    np.save(tmp_path / "label_maps.npy", maps)
    (tmp_path / "regions.csv").write_text("sample_id,regions\nb.png,3\na.png,3\n")
    imported = source(tmp_path)

    imported.check(corpus(entry("a.png"), entry("b.png")))

    assert np.array_equal(imported.read([entry("a.png"), entry("b.png")], SIZE), maps[::-1])
    with pytest.raises(MissingMask, match="1 of the corpus's 1 samples"):
        imported.check(corpus(entry("c.png")))
    with pytest.raises(SizeMismatch, match=r"corpus\.size=32"):
        imported.check(PackedCorpus(np.zeros((1, 64, 64), np.uint8), None, (entry("a.png"),), (), {}, (), False))


def test_missing_maps_are_counted_and_named_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "one.png", blocks())

    with pytest.raises(MissingMask, match=r"2 of the corpus's 3 samples, the first 'two\.png'.*two\.png"):
        source(tmp_path).check(corpus(entry("one.png"), entry("two.png"), entry("three.png")))


def test_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "shape.png", blocks(10, 30))
    write(tmp_path / "many.tif", np.arange(SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE))
    np.save(tmp_path / "float.npy", np.zeros((SIZE, SIZE)))
    (tmp_path / "text.png").write_text("no image")
    imported = source(tmp_path)

    with pytest.raises(SizeMismatch, match="30 x 10 pixels"):
        imported.read([entry("shape.png")], SIZE)
    with pytest.raises(BadMaskValues, match="1024 regions; at most 255"):
        imported.read([entry("many.png")], SIZE)
    with pytest.raises(UnreadableFile, match="float64 of shape"):
        imported.read([entry("float.npy")], SIZE)
    with pytest.raises(UnreadableFile, match="cannot be decoded"):
        imported.read([entry("text.png")], SIZE)


def test_the_contents_are_the_identity_not_the_place(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name / "one.png", blocks())

    first = source(tmp_path / "first").identity()

    assert source(tmp_path / "second").identity() == first
    write(tmp_path / "second" / "one.png", blocks().T.copy())
    assert source(tmp_path / "second").identity() != first


def test_a_folder_must_be_given_and_hold_maps(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"masks\.path=FOLDER"):
        source(Path()).__class__(ImportedSettings()).identity()
    with pytest.raises(SettingsError, match="no folder with label maps"):
        source(tmp_path / "absent").identity()


def test_maps_fit_the_corpus_that_was_written_and_opened_again(tmp_path: Path) -> None:
    write(tmp_path / "maps" / "wide.png", blocks(48, 96))
    packed = entry("wide.png", 48, 96)
    (tmp_path / "corpus").mkdir()
    write_index(tmp_path / "corpus", [packed], (), {}, (), False)
    np.save(tmp_path / "corpus" / "images.npy", np.zeros((1, SIZE, SIZE), np.uint8))

    (found,) = source(tmp_path / "maps").read(open_corpus(tmp_path / "corpus").entries, SIZE)

    assert sorted(np.unique(found)) == [0, 1, 2]


def test_accents_and_the_case_of_suffixes_do_not_matter(tmp_path: Path) -> None:
    Image.fromarray(blocks()).save(tmp_path / f"{unicodedata.normalize('NFD', 'é')}.PNG", format="PNG")
    Image.fromarray(blocks()).save(tmp_path / "b.TIFF", format="TIFF")

    maps = source(tmp_path).read([entry(unicodedata.normalize("NFC", "é.jpg")), entry("b.png")], SIZE)

    assert maps.max(axis=(1, 2)).tolist() == [2, 2]


def test_two_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "PNG"):
        Image.fromarray(blocks()).save(tmp_path / f"a.{suffix}", format="PNG")

    with pytest.raises(DuplicateId, match=r"'a\.PNG' and 'a\.png'"):
        source(tmp_path).identity()


def test_links_out_of_the_folder_and_oversized_maps_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.png", blocks())
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with (tmp_path / "maps" / "b.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**20, 2**20)})

    with pytest.raises(LayoutError, match="outside of"):
        source(tmp_path / "maps").read([entry("a.png")], SIZE)
    with pytest.raises(UnreadableFile, match="at most"):
        source(tmp_path / "maps").read([entry("b.png")], SIZE)


def test_a_folder_of_built_masks_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "regions.csv").write_text("sample_id\na.png\n")
    for array in (np.zeros((2, SIZE, SIZE), np.uint8), np.zeros((1, SIZE, SIZE), np.float32), np.zeros(1, np.uint8)):
        np.save(tmp_path / "label_maps.npy", array)

        with pytest.raises(UnreadableFile, match="build the masks again"):
            source(tmp_path).check(corpus(entry("a.png")))
