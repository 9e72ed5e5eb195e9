"""What stages wrote is not trusted when it is read back: what is wrong with it is one error, with how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from anaus_bench.corpus.packed import open_corpus, write_index
from anaus_bench.datasets.audit import read_audit, without_overlap
from anaus_bench.datasets.folds import deal, read_folds
from anaus_bench.errors import StoreError, WeightsError
from anaus_bench.kit.synthetic import SIDE, synthetic_corpus
from anaus_bench.machine.artifacts import MOST_BYTES, join_names, read_array, read_json
from anaus_bench.nn.encoder import Encoder, EncoderCard, load_encoder, save_encoder
from anaus_bench.registry import Registry
from anaus_bench.tasks.instances import Instances, encode_rle, read_predictions, write_predictions
from anaus_bench.tasks.predicted import read_predicted

NO_JSON = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"17",
    b'"text"',
    b"\xff\xfe{",
    b"[" * 100_000,
    b'{"a": ' * 100_000,
    b"<html></html>",
    b"\x1b[31m",
    b"{" + b"1" * 5000 + b"}",
]


def refused(read: Callable[[], object], path: Path, message: str = "") -> None:
    """One short line that names the file, and holds none of Python's words."""
    with pytest.raises(StoreError) as error:
        read()
    text = str(error.value)
    assert text.startswith(f"{path} is damaged: ")
    assert text.endswith(f"; delete {path.parent} and run again")
    assert message in text
    assert len(text) < len(str(path)) * 2 + 700
    assert "index out of range" not in text


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_of_its_stage_is_refused(tmp_path: Path, content: bytes) -> None:
    dataset = Registry().create("datasets", "phantom")
    readers: dict[str, Callable[[], object]] = {
        "index.json": lambda: open_corpus(tmp_path),
        "folds.json": lambda: read_folds(dataset, None, tmp_path),  # type: ignore[arg-type]
        "audit.json": lambda: read_audit(tmp_path),
        "predictions.json": lambda: read_predictions(tmp_path),
        "predictions.csv": lambda: read_predicted(tmp_path / "predictions.csv"),
    }

    for name, read in readers.items():
        refused(read, tmp_path / name, "it is missing")
        (tmp_path / name).write_bytes(content)
        refused(read, tmp_path / name)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)  # takes no space

    refused(lambda: read_json(tmp_path / "big.json", dict), tmp_path / "big.json", f"{MOST_BYTES + 1} bytes")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    corpus = synthetic_corpus(8)
    np.save(tmp_path / "images.npy", corpus.images)
    np.save(tmp_path / "truth.npy", corpus.truth)  # type: ignore[arg-type]
    write_index(tmp_path, corpus.entries, corpus.structures, corpus.annotated, corpus.classes, corpus.phantom)
    return tmp_path


def test_a_corpus_is_read_back_as_it_was(packed: Path) -> None:
    corpus, expected = open_corpus(packed), synthetic_corpus(8)

    assert corpus.entries == expected.entries
    assert corpus.annotated == expected.annotated
    assert np.array_equal(corpus.images, expected.images)


Change = Callable[[dict[str, Any]], object]
INDEX: list[tuple[str, Change]] = [
    ("columns are not those of 8 images", lambda index: index["entries"]["label"].pop()),
    ("columns are not those of 8 images", lambda index: [column.pop() for column in index["entries"].values()]),
    ("entries.label is missing", lambda index: index["entries"].pop("label")),
    ("entries.label.0 is '1': ", lambda index: index["entries"].update(label=["1"] * 8)),
    ("entries.box.0.3 ", lambda index: index["entries"].update(box=[[0, 0, 1]] * 8)),
    ("lies outside of its range", lambda index: index["entries"].update(box=[[0, 0, SIDE, SIDE + 1]] * 8)),
    ("lies outside of its range", lambda index: index["entries"].update(label=[3] * 8)),
    ("lies outside of its range", lambda index: index["annotated"].update(synthetic=[3])),
    ("entries.more is ", lambda index: index["entries"].update(more=[])),
    ("phantom is 1: ", lambda index: index.update(phantom=1)),
]


@pytest.mark.parametrize(("message", "change"), INDEX, ids=range(len(INDEX)))
def test_an_index_that_does_not_fit_its_corpus_is_refused(packed: Path, message: str, change: Change) -> None:
    index = json.loads((packed / "index.json").read_text())
    change(index)
    (packed / "index.json").write_text(json.dumps(index))

    refused(lambda: open_corpus(packed), packed / "index.json", message.replace(" is missing", ""))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (b"", "no array of numpy"),
        (b"PK\x03\x04", "no array of numpy"),
        (b"\x93NUMPY\x01\x00\x04\x00{({(", "no array of numpy"),
        (np.zeros((8, 64, 64)), "found float64 of shape (8, 64, 64), expected uint8"),
        (np.zeros((8, 64, 32), np.uint8), "found uint8 of shape (8, 64, 32), expected uint8 of shape (N, S, S)"),
        (np.array([{}], dtype=object), "no array of numpy"),
    ],
)
def test_an_array_of_something_else_is_refused(packed: Path, array: Any, message: str) -> None:
    path = packed / "images.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array, allow_pickle=True)

    refused(lambda: open_corpus(packed), path, message)


def test_an_array_that_was_cut_or_is_of_another_corpus_is_refused(packed: Path) -> None:
    refused(
        lambda: read_array(packed / "images.npy", (9, 64, 64)), packed / "images.npy", "expected uint8 of shape (9,"
    )
    content = (packed / "truth.npy").read_bytes()
    (packed / "truth.npy").write_bytes(content[:-1])

    refused(lambda: open_corpus(packed), packed / "truth.npy", "shorter than it says")


FOLDS: list[tuple[str, Change]] = [
    ("no sample 'absent'", lambda file: file["samples"].update(absent={"fold": 0, "group": "g", "label": None})),
    ("not dealt to 3 folds", lambda content: content.update(folds=3)),
    ("folds is -1: ", lambda content: content.update(folds=-1)),
    ("protocol is 'mine': ", lambda content: content.update(protocol="mine")),
    ("samples", lambda content: content.update(samples={})),
    ("fold is -2: ", lambda content: next(iter(content["samples"].values())).update(fold=-2)),
    ("fold is 1.5: ", lambda content: next(iter(content["samples"].values())).update(fold=1.5)),
]


@pytest.mark.parametrize(("message", "change"), FOLDS, ids=range(len(FOLDS)))
def test_folds_that_do_not_fit_the_data_are_refused(tmp_path: Path, message: str, change: Change) -> None:
    dataset = Registry().create("datasets", "phantom")
    (root := tmp_path / "data").mkdir()
    dataset.write_phantoms(root, 8, 32, 0)
    index = dataset.scan(root)
    content = deal(dataset, index, index.samples, 2, 0)
    (tmp_path / "folds.json").write_text(json.dumps(content))
    assert len(read_folds(dataset, index, tmp_path)) == 2
    change(content)
    (tmp_path / "folds.json").write_text(json.dumps(content))

    refused(lambda: read_folds(dataset, index, tmp_path), tmp_path / "folds.json", message)


@pytest.mark.parametrize(
    ("rows", "message"), [([8], "not those of 8 images"), ([-1], "not those of"), (["1"], "rows.0")]
)
def test_an_audit_of_another_corpus_is_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    found = {"overlap": "exclude", "images": 0, "share": 0.0, "groups": 0, "examples": [["a", "b", 3]], "clips": []}
    path, corpus = tmp_path / "audit.json", synthetic_corpus(8)
    path.write_text(json.dumps({**found, "rows": [1, 7]}))
    assert without_overlap(corpus, tmp_path).tolist() == [0, 2, 3, 4, 5, 6]
    path.write_text(json.dumps({**found, "rows": rows}))

    refused(lambda: without_overlap(corpus, tmp_path), path, message)


INSTANCES: list[tuple[str, Change]] = [
    ("differ in number", lambda item: item["scores"].pop()),
    ("differ in number", lambda item: item["boxes"][0].pop()),
    ("must fall from at most 1", lambda item: item["scores"].reverse()),
    ("must fall from at most 1", lambda item: item.update(scores=[2.0, 1.0])),
    ("must fall from at most 1", lambda item: item.update(scores=[float("nan"), 0.5])),
    ("is not of 5 x 6 pixels", lambda item: item["masks"][0]["counts"].append(1)),
    ("is not of 5 x 6 pixels", lambda item: item["masks"][0].update(size=[6, 5])),
    ("is not of 5 x 6 pixels", lambda item: item["masks"][0].update(counts=[-1, 31])),
    ("an image of 0 x 6 pixels", lambda item: item.update(height=0)),
    ("an image of 100000000 x 6 pixels", lambda item: item.update(height=10**8)),
    ("images.0.labels", lambda item: item.pop("labels")),
]


@pytest.mark.parametrize(("message", "change"), INSTANCES, ids=range(len(INSTANCES)))
def test_detections_that_do_not_fit_their_image_are_refused(tmp_path: Path, message: str, change: Change) -> None:
    mask = encode_rle(np.eye(5, 6, dtype=bool))
    instances = Instances("a.png", 5, 6, [[0.0, 0.0, 1.0, 1.0]] * 2, [0.9, 0.5], [1, 1], [mask, mask])
    write_predictions(tmp_path, [instances])
    assert read_predictions(tmp_path) == {"a.png": instances}
    path = tmp_path / "predictions.json"
    content = json.loads(path.read_text())
    change(content["images"][0])
    path.write_text(json.dumps(content))

    refused(lambda: read_predictions(tmp_path), path, message)


def test_two_predictions_of_one_image_are_refused(tmp_path: Path) -> None:
    write_predictions(tmp_path, [Instances("a.png", 5, 6, [], [], [], [])] * 2)

    refused(lambda: read_predictions(tmp_path), tmp_path / "predictions.json", "2 predictions of 1 images")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,g,0,1,0.5,0.5", "a,g,0,1,0.5,0.5"], "2 rows of 1 images"),
        (["a,g,0,1,0.5,high"], "p_b is 'high': "),
        (["a,g,0,1,0.5,1.5"], "p_b is '1.5': "),
        (["a,g,0,1,0.5,nan"], "p_b is 'nan': "),
        (["a,g,0,2,0.5,0.5"], "'a' is of class 2 of 2"),
        (["a,g,0,-1,0.5,0.5"], "y_true is '-1': "),
        (["a,g,0,1"], "p_a is None: "),
        (["a,g,0,1,0.5,0.5,7"], ""),
        (['a,"g'], "it is no table"),
        ([], "0 rows of 0 images"),
    ],
)
def test_probabilities_that_are_none_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(["image_id,group_id,fold,y_true,p_a,p_b", *lines]) + "\n")

    refused(lambda: read_predicted(path), path, message)


def test_probabilities_are_read_by_class(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("image_id,group_id,fold,y_true,p_benign,p_malignant\n1.png,g,0,1,0.25,7.5e-1\n")

    assert read_predicted(path)["1.png"].probabilities == {"benign": 0.25, "malignant": 0.75}


CARD = EncoderCard("resnet18", 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "byol", "random")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "it has no card"),
        ({"card": "{"}, "its card"),
        ({"card": "[]"}, "its card"),
        ({"card": '{"arch": "resnet18"}'}, "its card"),
        ({"arch": "resnet19"}, "its card says"),
        ({"finest_stride": 5}, "its card says"),
        ({"mean": [0.5]}, "its card says"),
        ({"std": [0.0, 0.2, 0.2]}, "its card says"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "its card"),
        ({"arch": "resnet50"}, "are not those of resnet50"),
        ({"finest_stride": 4}, "are not those of resnet18"),
    ],
)
def test_an_encoder_whose_card_is_wrong_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = Encoder("resnet18")
    save_encoder(path, encoder, CARD)
    assert load_encoder(path).card == CARD
    if metadata and "card" not in metadata:
        metadata = {"card": json.dumps({**vars(CARD), **metadata})}
    safetensors.torch.save_file(encoder.state_dict(), path, metadata=metadata)

    with pytest.raises(WeightsError, match=message) as refused:
        load_encoder(path)

    assert len(str(refused.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "\x1b", "x" * 300]
)
def test_a_name_from_a_record_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    assert join_names(tmp_path, "byol-resnet18-0123abcd") == tmp_path / "byol-resnet18-0123abcd"
    with pytest.raises(StoreError, match="from a record, is no name of a file"):
        join_names(tmp_path, name)
