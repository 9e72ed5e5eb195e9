"""Imports go one way, down the layers, and the core names no plugin.

Imports for type checkers count: people read them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from anaus_bench.registry import KINDS, Registry

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "anaus_bench").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "anaus_plugins").rglob("*.py"))

# The rooms of the core, the ground first: each imports only those before it.
LAYERS = [
    *("errors", "lazy", "seeds", "machine"),
    *("metrics", "pictures", "distributed", "settings", "simulator"),
    *("corpus", "nn", "interfaces", "hookspecs", "registry", "store"),
    *("datasets", "training", "tasks", "cells", "planning", "stages", "execution"),
    *("results", "export", "kit", "cli", "__main__"),
]
LOOSE = 12  # files of the core that may lie outside the rooms
LONGEST = 310  # lines of a file of the core, generated anatomies apart
# Semantic groups are what a run of SlotCon finds.
BUILT_ON = {"anaus_plugins.mask_sources.sg": "anaus_plugins.objectives.slotcon"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import, inside functions and for type checkers as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            if node.module == "anaus_bench":
                yield from ((node.lineno, f"anaus_bench.{alias.name}") for alias in node.names)


def test_every_room_has_a_layer_of_its_own() -> None:
    rooms = {path.relative_to(ROOT / "anaus_bench").parts[0].removesuffix(".py") for path in CORE} - {"__init__"}

    assert rooms == set(LAYERS)
    assert len(LAYERS) == len(set(LAYERS))
    assert len(list((ROOT / "anaus_bench").glob("*.py"))) <= LOOSE


def test_the_core_imports_downwards_and_no_plugin() -> None:
    offenders = []
    for path in CORE:
        own = path.relative_to(ROOT / "anaus_bench").parts[0].removesuffix(".py")
        for line, module in imported(path):
            top, _, below = module.partition(".")
            room = below.partition(".")[0]
            up = top == "anaus_bench" and room in LAYERS and own in LAYERS and LAYERS.index(room) > LAYERS.index(own)
            if up or top == "anaus_plugins":
                offenders.append(f"{path.relative_to(ROOT)}:{line} imports {module}")

    assert not offenders


def test_no_two_files_import_each_other_in_a_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in CORE}
    arrows = {name: {module for _, module in imported(path) if module in names} for name, path in names.items()}
    ordered: set[str] = set()
    while free := {name for name in arrows.keys() - ordered if arrows[name] - {name} <= ordered}:
        ordered |= free

    assert not arrows.keys() - ordered


def test_no_file_of_the_core_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in CORE}

    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST and "simulator" not in name}


def test_plugins_do_not_import_each_other() -> None:
    offenders = []
    for path in PLUGINS:
        own = ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts[:3])
        for line, module in imported(path):
            allowed = module.startswith((own, BUILT_ON.get(own, own)))
            if module.startswith("anaus_plugins") and not allowed:
                offenders.append(f"{path.relative_to(ROOT)}:{line} imports {module}")

    assert not offenders


def test_the_core_asks_for_no_plugin_by_name() -> None:
    registry = Registry()
    names = {name for kind in KINDS if kind in ("objectives", "mask_sources") for name in registry.names(kind)}
    names -= {"imagenet", "random"}  # also words for what an encoder starts from
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in CORE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and names & {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
    ]

    assert not offenders


# Who opens files of the user's, and what for; everything else asks them.
OPENERS = {
    "anaus_bench/datasets/opening.py": "all of them",
    "anaus_bench/datasets/text.py": "JSON, tables, XML, fields",
    "anaus_bench/datasets/images.py": "pictures",
    "anaus_bench/datasets/videos.py": "videos",
    "anaus_bench/datasets/volumes.py": "NIfTI and MetaImage",
    "anaus_bench/datasets/arrays.py": ".npy",
    "anaus_bench/datasets/matlab.py": ".mat",
    "anaus_bench/datasets/workbooks.py": ".xlsx",
    "anaus_bench/datasets/pickles.py": "pickled arrays",
    "anaus_bench/datasets/facts.py": "its own cache",
}
READS = {
    *("open", "fdopen", "read_text", "read_bytes", "load", "loads", "fromfile", "memmap", "open_memmap", "loadtxt"),
    *("reader", "DictReader", "safe_load", "parse", "fromstring", "ZipFile", "load_workbook", "loadmat", "whosmat"),
}
MODULES = {
    *("json", "csv", "yaml", "np", "numpy", "pickle", "nibabel", "av", "Image", "os", "io", "ElementTree", "zipfile"),
}
READERS = [
    *(path for path in CORE if path.parent.name == "datasets"),
    *(path for path in PLUGINS if path.parent.name == "datasets"),
    ROOT / "plugins/anaus_plugins/mask_sources/imported.py",
]


def reads(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that open or parse a file, outside of functions that write one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("write"):
            continue
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in {"open", "loadmat", "whosmat", "load_workbook"}:
                yield node
            if isinstance(called, ast.Attribute) and called.attr in READS:
                owner = called.value.id if isinstance(called.value, ast.Name) else ""
                # Of other objects only the methods of a path open something.
                if owner in MODULES or called.attr in ("open", "read_text", "read_bytes"):
                    yield node
        yield from reads(node)


def test_only_the_openers_open_files_of_the_users() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno} {ast.unparse(call.func)}"
        for path in READERS
        if str(path.relative_to(ROOT)) not in OPENERS
        for call in reads(ast.parse(path.read_text()))
    ]

    assert found == []
