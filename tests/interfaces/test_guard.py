"""Broken plugins: one error that names the plugin, the rule, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anaus_bench.errors import PluginError
from anaus_bench.interfaces.contract import CONTRACTS
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.registry import KINDS, Registry

HEAD = """
import sys
from pathlib import Path

import numpy as np
from pydantic import Field

from anaus_bench.corpus.view import View
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import *
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
"""

OBJECTIVE = """
class Mine(Objective[Settings]):
    "Mine."

    name = "mine"

    def views(self, size):
        return (View(size),)

    def build(self, encoder, num_classes=0):
        return nn.ModuleDict({"encoder": encoder})

    def loss(self, nets, batch):
        vectors = nets["encoder"].vector(batch.views[0])
        return vectors.square().mean(), {"norm": vectors.detach().norm()}

@hookimpl
def anaus_objectives():
    return [Mine]
"""

SOURCE = """
class Mine(ImageSource[Settings]):
    "Mine."

    name = "mine"

    def segment(self, images, truth=None):
        return (images[:, 0] > 40).to(torch.uint8)

@hookimpl
def anaus_mask_sources():
    return [Mine]
"""

DATASET = """
class Mine(Dataset[Settings]):
    "Mine."

    name = "mine"
    title = "Mine"
    classes = ("benign", "malignant")
    structures = ("lesion",)

    def scan(self, root):
        samples = [Sample(f"{n}.png", f"g{n}", f"{n}.png", label=n % 2) for n in range(4)]
        return Index(root, tuple(samples), "0" * 64)

    def read(self, index, sample):
        return Picture(np.zeros((40, 50), np.uint8), np.ones((40, 50), np.uint8))

@hookimpl
def anaus_datasets():
    return [Mine]
"""

TASK = """
class Mine(Task[Settings]):
    "Mine."

    name = "mine"
    dataset = "busi"
    protocol = "maskrcnn"
    metrics = (Metric("dice", "Dice"),)

    def score(self, folds):
        return Scores([{"image_id": "a", "dice": 1.0}], [{"dice": 1.0} for _ in folds], {"dice": 1.0})

@hookimpl
def anaus_tasks():
    return [Mine]
"""

Install = Callable[..., Registry]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """The registry with a plugin file of this source, in which some words are replaced."""

    def put(source: str, *replaced: tuple[str, str]) -> Registry:
        for old, new in replaced:
            assert old in source
            source = source.replace(old, new)
        (tmp_path / "mine.py").write_text(HEAD + source)
        return Registry([tmp_path / "mine.py"])

    return put


def test_every_kind_has_a_contract() -> None:
    assert CONTRACTS.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (OBJECTIVE, "return [Mine]", "return None", "offers nothing"),
        (OBJECTIVE, "return [Mine]", "return Mine", "returned <class .*expected a list of classes"),
        (OBJECTIVE, "return [Mine]", "return [Mine()]", "anaus_objectives raised TypeError: .*mine.py, line 31"),
        (OBJECTIVE, "return [Mine]", "return ['mine']", "returned str; expected classes derived from Objective"),
        (
            OBJECTIVE,
            "return [Mine]",
            "return [Task]",
            "returned the class Task; expected classes derived from Objectiv",
        ),
        (OBJECTIVE, "return [Mine]", "return [Mine, Mine]", "returned 'mine' twice; expected each name once"),
        (OBJECTIVE, "return [Mine]", "sys.exit(0)", "anaus_objectives raised SystemExit: 0"),
        (OBJECTIVE, "def anaus_objectives():", "def anaus_objectives(more):", "anaus_objectives.*more"),
        (OBJECTIVE, 'name = "mine"', "", "Mine without name; expected a class attribute name"),
        (OBJECTIVE, '"mine"', '"My Method"', "Mine.name = 'My Method'; expected a name to type"),
        (OBJECTIVE, '"mine"', '"a/../../b"', "expected a name to type"),
        (OBJECTIVE, '"mine"', "7", "Mine.name = 7; expected a valid string"),
        (OBJECTIVE, '"mine"', '"mine"; version = "2"', "Mine.version = '2'; expected a valid integer"),
        (OBJECTIVE, '"mine"', '"mine"; version = 0', "Mine.version = 0; expected versions from 1"),
        (
            OBJECTIVE,
            '"mine"',
            '"mine"; settings_class = dict',
            "Mine.settings_class = <class 'dict'>; expected a subclass",
        ),
        (
            OBJECTIVE,
            '"mine"',
            '"mine"; needs = {"mask"}',
            "Mine.needs.* = .*expected a valid frozenset",
        ),
        (
            OBJECTIVE,
            '"mine"',
            '"mine"; needs = frozenset({"mask"})',
            "= 'mask'; expected 'masks', 'lab",
        ),
        (OBJECTIVE, '"mine"', '"mine"; backbones = ("resnet19",)', "expected some of resnet18"),
        (DATASET, 'title = "Mine"', "", "Mine without title"),
        (DATASET, '("lesion",)', '("lesion", "lesion")', "expected at most 255 names, each once"),
        (TASK, '(Metric("dice", "Dice"),)', "()", "expected at least one metric"),
        (TASK, '(Metric("dice", "Dice"),)', '("dice",)', r"Mine.metrics\[0\] = 'dice'"),
        (OBJECTIVE, "class Mine", "sys.exit(3)\nclass Mine", "fails to import: SystemExit: 3"),
    ],
    ids=range(23),
)
def test_a_file_that_offers_what_is_no_plugin_is_refused(
    install: Install, source: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(PluginError, match=message) as refused:
        install(source, (old, new))

    assert "mine.py" in str(refused.value)


def test_one_file_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HEAD + OBJECTIVE)

    with pytest.raises(PluginError, match=r"mine.py' is given 2 times; leave the others out"):
        Registry([Path("mine.py"), tmp_path / "." / "mine.py"])


def lost(objective: Any) -> None:
    nets = objective.build(Encoder("resnet18", objective.finest_stride()), 3)
    objective.views(32)
    objective.lr_factor(None, 0.5)
    objective.labels(synthetic_corpus(8))
    objective.sampler(synthetic_corpus(8), 4, 0)
    objective.loss(nets, synthetic_batch(objective, size=32, images=4))


def test_a_sound_method_passes_and_what_it_prints_goes_to_standard_error(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = install(OBJECTIVE, ("vectors = ", "print('hello'); vectors = "), ('"mine"\n', '"mine"; print("name")\n'))

    lost(registry.create("objectives", "mine"))

    assert capsys.readouterr() == ("", "name\nhello\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return (View(size),)", "return View(size)", r"views returned View\(.*expected a tuple of at least one View"),
        ("return (View(size),)", "return ()", r"views returned \(\); expected a tuple of at least one View"),
        ('{"encoder": encoder}', '{"net": encoder}', "networks net without the given encoder; expected that very enc"),
        (
            '{"encoder": encoder}',
            '{"encoder": __import__("copy").deepcopy(encoder)}',
            "networks encoder without the given encoder",
        ),
        ("nn.ModuleDict({", "dict({", "build returned dict; expected an nn.ModuleDict"),
        (
            "vectors.square().mean(),",
            "vectors.square(),",
            r"a loss that is Tensor of torch.float32 and shape \(4, 512\)",
        ),
        (
            "vectors.square().mean(),",
            "vectors.square().mean().item(),",
            "a loss that is float; expected a scalar tensor",
        ),
        ("vectors.square().mean(),", "vectors.detach().mean(),", "a loss without a gradient"),
        ("vectors.square().mean(), {", "[], {", "a loss that is list"),
        (
            ', {"norm": vectors.detach().norm()}',
            "",
            "loss returned Tensor of .*; expected the loss and the values to log",
        ),
        ('"norm"', '"loss"', "a value to log named 'loss'; expected a name, other than loss and step"),
        ("vectors.detach().norm()", "vectors.norm()", "'norm' to log that is Tensor .*; expected detached scalars"),
        ("vectors.detach().norm()", "1.0", "'norm' to log that is float; expected detached scalars"),
        ("vectors = ", "1 / 0; vectors = ", r"loss raised ZeroDivisionError: division by zero \(mine.py, line 26\)"),
        ("vectors = ", "sys.exit(0); vectors = ", r"loss raised SystemExit: 0 \(mine.py, line 26\)"),
        ("vectors = ", "raise OSError('odd'); vectors = ", "loss raised OSError: odd"),
        (
            "def loss",
            "def finest_stride(self): return 5\n    def loss",
            "finest_stride returned 5; expected one of 4, 8",
        ),
        ("def loss", "def lr_factor(self, *_): return float('nan')\n    def loss", "lr_factor returned the factor nan"),
        ("def loss", "def labels(self, c): return np.zeros(8), ()\n    def loss", "labels that are ndarray of float64"),
        (
            "def loss",
            "def labels(self, c): return np.full(8, 2), ('a', 'b')\n    def loss",
            "labels 2 to 2; expected -1 to 1",
        ),
        ("def loss", "def sampler(self, *_): return 3\n    def loss", "sampler returned int; expected a sampler, with"),
        ("def loss", "def __init__(self, settings): sys.exit(0)\n    def loss", "__init__ raised SystemExit: 0"),
    ],
    ids=range(22),
)
def test_a_method_that_breaks_a_rule_is_named_with_the_rule(install: Install, old: str, new: str, message: str) -> None:
    registry = install(OBJECTIVE, (old, new))

    with pytest.raises(PluginError, match=f"^objective 'mine': .*{message}") as refused:
        lost(registry.create("objectives", "mine"))

    assert len(str(refused.value).splitlines()) == 1


def test_errors_of_the_machine_pass_as_they_are(install: Install) -> None:
    full = install(OBJECTIVE, ("vectors = ", "open('/no/such/file'); vectors = "))
    small = install(OBJECTIVE, ("vectors = ", "raise RuntimeError('CUDA out of memory'); vectors = "))

    with pytest.raises(FileNotFoundError):
        lost(full.create("objectives", "mine"))
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        lost(small.create("objectives", "mine"))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("images[:, 0] > 40", "Tensor of torch.bool and shape .* on cpu; expected uint8 of shape"),
        ("images", r"shape \(2, 1, 64, 64\) on cpu; expected uint8 of shape \(2, 64, 64\)"),
        ("images[:, 0, ::2]", r"shape \(2, 32, 64\)"),
        ("images.numpy()", "ndarray of uint8 .*; expected a tensor"),
        ("(images[:, 0] > 40).to(torch.uint8) * 3", r"the ids \[0, 3\]; expected ids from 0 on without a gap"),
        ("(images[:, 0] > 40).to(torch.uint8) + 1", r"the ids \[1, 2\]; expected ids from 0 on without a gap"),
        ("None", "NoneType; expected a tensor"),
    ],
)
def test_label_maps_that_break_a_rule_are_refused(install: Install, new: str, message: str) -> None:
    registry = install(SOURCE, ("(images[:, 0] > 40).to(torch.uint8)", new))
    images = torch.from_numpy(synthetic_corpus(2).images)[:, None]

    with pytest.raises(PluginError, match=f"^mask source 'mine': segment returned .*{message}"):
        registry.create("mask_sources", "mine").segment(images)


def test_sound_label_maps_pass(install: Install) -> None:
    images = torch.from_numpy(synthetic_corpus(2).images)[:, None]

    maps = install(SOURCE).create("mask_sources", "mine").segment(images)

    assert maps.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return Index(", "return (", r"tuple; expected Index\(...\)"),
        ("tuple(samples)", "samples", r"samples = \[Sample\(.*expected a valid tuple"),
        ("tuple(samples)", "()", "no sample; expected at least one"),
        ("tuple(samples)", "('a',)", r"samples\[0\] = 'a'"),
        ('Sample(f"{n}.png"', 'Sample("a"', "4 samples with the id 'a'; expected unique ids"),
        ('Sample(f"{n}.png"', "Sample(n", r"sample_id\[0\] = 0; expected a valid string"),
        ('f"g{n}"', "None", r"group_id\[0\] = None; expected a valid string"),
        ('f"g{n}"', '""', "an empty group_id"),
        ("label=n % 2", "label=n", r"labels \[2, 3\]; expected labels below 2, the number of classes"),
        ("label=n % 2", "label=np.int64(1)", r"label\[0\] = .*expected a valid integer"),
        ('f"{n}.png", label', '"../x", label', "the path '../x'; expected paths relative to the root, inside of it"),
        ('f"{n}.png", label', '"/etc/x", label', "the path '/etc/x'"),
        ('Sample(f"{n}.png"', 'Sample(f"{n}\\udcff"', "a sample_id with"),
        ('"0" * 64', '""', "an empty fingerprint"),
        ('"0" * 64', "17", "fingerprint = 17"),
        ("Index(root,", "Index(str(root),", "root = '/data'"),
    ],
)
def test_an_index_that_breaks_a_rule_is_refused(install: Install, old: str, new: str, message: str) -> None:
    registry = install(DATASET, (old, new))

    with pytest.raises(PluginError, match=f"^data set 'mine': scan returned .*{message}"):
        registry.create("datasets", "mine").scan(Path("/data"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Picture(np.zeros((40, 50), np.uint8), ", "(0, ", "tuple; expected a Picture"),
        ("np.zeros((40, 50), np.uint8)", "np.zeros((40, 50))", "an image of '0.png': ndarray of float64"),
        ("np.zeros((40, 50), np.uint8)", "np.zeros((40, 50, 3), np.uint8)", r"shape \(40, 50, 3\); expected an array"),
        ("np.zeros((40, 50), np.uint8)", "np.zeros((0, 50), np.uint8)", r"shape \(0, 50\)"),
        ("np.ones((40, 50), np.uint8)", "np.ones((50, 40), np.uint8)", r"expected the size of its image, \(40, 50\)"),
        ("np.ones((40, 50), np.uint8)", "np.ones((40, 50), bool)", "a mask of '0.png': ndarray of bool"),
        (
            "np.ones((40, 50), np.uint8)",
            "np.full((40, 50), 255, np.uint8)",
            "ids up to 255; expected ids of the 1 struc",
        ),
    ],
)
def test_a_picture_that_breaks_a_rule_is_refused(install: Install, old: str, new: str, message: str) -> None:
    dataset = install(DATASET, (old, new)).create("datasets", "mine")
    index = dataset.scan(Path("/data"))

    with pytest.raises(PluginError, match=f"^data set 'mine': read returned .*{message}"):
        dataset.read(index, index.samples[0])


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        ("groups", "['a'] * 4", "expected a valid tuple"),
        ("groups", "('a',)", "1 groups; expected one for each of 4 samples"),
        ("published_folds", "[0, 1]", "2 folds; expected one for each of 4 samples"),
        ("published_folds", "[0, 2, 2, -1]", r"the folds \[0, 2\]; expected 0, 1, ... without a gap"),
        ("published_folds", "np.array([0, 1, 0, 1])", "folds = array"),
    ],
)
def test_groups_and_folds_that_break_a_rule_are_refused(install: Install, method: str, body: str, message: str) -> None:
    replaced = ("def scan", f"def {method}(self, index): return {body}\n    def scan")
    dataset = install(DATASET, replaced).create("datasets", "mine")

    with pytest.raises(PluginError, match=f"^data set 'mine': {method} returned .*{message}"):
        getattr(dataset, method)(dataset.scan(Path("/data")))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("{}", r"dict; expected Scores\(...\)"),
        ('Scores([], [{"dice": 1.0}], {"dice": 1.0})', "scores of 1 folds; expected those of 2"),
        ('Scores([], [{"ppv": 1.0}] * 2, {})', "folds without dice; expected the task's metrics in each fold"),
        ('Scores([], [{"dice": 1.0}, {}], {})', "folds with other metrics than the first"),
        ('Scores([], [{"dice": np.float32(1)}] * 2, {})', "'dice' = .*expected a number of Python's"),
        ('Scores([], [{"dice": "1"}] * 2, {})', "'dice'"),
    ],
)
def test_scores_that_break_a_rule_are_refused(install: Install, new: str, message: str) -> None:
    old = 'Scores([{"image_id": "a", "dice": 1.0}], [{"dice": 1.0} for _ in folds], {"dice": 1.0})'
    task = install(TASK, (old, new)).create("tasks", "mine")

    with pytest.raises(PluginError, match=f"^task 'mine': score returned .*{message}"):
        task.score([None, None])


def test_a_checked_method_gives_what_the_plugin_gave(install: Install) -> None:
    dataset = install(DATASET).create("datasets", "mine")

    index = dataset.scan(Path("/data"))

    assert np.array_equal(dataset.read(index, index.samples[0]).image, np.zeros((40, 50), np.uint8))
    assert dataset.groups(index) == ("g0", "g1", "g2", "g3")
