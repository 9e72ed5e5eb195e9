"""Imports go one way, and the core names no plugin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from anaus_bench.registry import KINDS, Registry

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "anaus_bench").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "anaus_plugins").rglob("*.py"))

# Layer of each module or package of the core; a module imports only its own layer and those before it.
LAYERS = [
    {"errors", "home", "lazy", "hookspecs", "rows", "seeds", "distributed"},
    {"backbones", "config", "weights"},
    {"interfaces", "fields", "parallel", "data", "nn", "loop", "simulator", "metrics", "mask_scores"},
    {"figures", "progress"},
    {"protocols", "registry", "cell", "store"},
    {"plan"},
    {"pretraining"},
    {"stages", "execute", "executors", "tables", "doctor", "preview", "export", "testing"},
    {"cli"},
    {"__main__"},
]
# Semantic groups are what a run of SlotCon finds.
BUILT_ON = {"anaus_plugins.mask_sources.sg": "anaus_plugins.objectives.slotcon"}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports when it runs (imports for type checkers alone are left out)."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "anaus_bench":
                yield from (f"anaus_bench.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    words = module.split(".")
    return words[1] if len(words) > 1 else ""


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_downwards_and_no_plugin(path: Path) -> None:
    own = path.relative_to(ROOT / "anaus_bench").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imported(path):
        assert not module.startswith("anaus_plugins"), f"{path.name} imports {module}"
        if module.startswith("anaus_bench.") and part(module) not in ("__version__", own):
            assert LAYER[part(module)] <= LAYER[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_do_not_import_each_other(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts[:3])
    for module in imported(path):
        allowed = module.startswith(own) or module == BUILT_ON.get(own)
        assert not module.startswith("anaus_plugins") or allowed, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_asks_for_no_plugin_by_name(path: Path) -> None:
    registry = Registry()
    names = {name for kind in KINDS if kind in ("objectives", "mask_sources") for name in registry.names(kind)}
    initialisations = {"imagenet", "random"}  # also words for what an encoder starts from

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            compared = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)}
            assert not compared & (names - initialisations), f"{path.name}:{node.lineno}"


# Who opens files of the user's, and what for; everything else asks them.
OPENERS = {
    "anaus_bench/data/opening.py": "all of them",
    "anaus_bench/data/text.py": "JSON, tables, XML, fields",
    "anaus_bench/data/images.py": "pictures and videos",
    "anaus_bench/data/volumes.py": "NIfTI and MetaImage",
    "anaus_bench/data/arrays.py": ".npy",
    "anaus_bench/data/matlab.py": ".mat",
    "anaus_bench/data/workbooks.py": ".xlsx",
    "anaus_bench/data/pickles.py": "pickled arrays",
    "anaus_bench/data/facts.py": "its own cache",
    "anaus_bench/data/corpus.py": "packed corpora of the store",
}
READS = {
    *("open", "fdopen", "read_text", "read_bytes", "load", "loads", "fromfile", "memmap", "open_memmap", "loadtxt"),
    *("reader", "DictReader", "safe_load", "parse", "fromstring", "ZipFile", "load_workbook", "loadmat", "whosmat"),
}
MODULES = {
    "json",
    "csv",
    "yaml",
    "np",
    "numpy",
    "pickle",
    "nibabel",
    "av",
    "Image",
    "os",
    "io",
    "ElementTree",
    "zipfile",
}
READERS = [
    *(path for path in CORE if path.parent.name == "data"),
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
