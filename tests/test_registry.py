from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anaus_bench.errors import PluginError
from anaus_bench.registry import KINDS, Registry

SOURCE = """
from anaus_bench.settings.base import Settings
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import MaskSource

class Mine(MaskSource[Settings]):
    \"\"\"Mine.\"\"\"

    name = "mine"

@hookimpl
def anaus_mask_sources():
    return [Mine]
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one module and its entry points on the path."""

    def put(package: str, source: str, name: str = "mine", kind: str = "mask_sources") -> Path:
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[anaus_bench.{kind}]\n{name} = {package}_module\n")
        (folder / f"{package}_module.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, f"{package}_module", raising=False)
        return folder / f"{package}_module.py"

    return put


def test_every_installed_plugin_of_ours_can_be_made_with_every_preset(tmp_path: Path) -> None:
    registry = Registry()
    (tmp_path / "one.png").touch()
    needed = {"imported": {"path": str(tmp_path)}}

    for kind in KINDS:
        assert registry.names(kind)
        for name in registry.names(kind):
            for preset in ("paper", "official", "demo", "tiny"):
                plugin = registry.create(kind, name, preset, needed.get(name))
                rebuilt = registry.build(registry.spec(kind, plugin))
                assert rebuilt.settings == plugin.settings


def test_loading_every_plugin_of_ours_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "from anaus_bench.registry import KINDS, Registry\n"
        "registry = Registry()\n"
        "[registry.create(kind, name) for kind in KINDS for name in registry.names(kind)]\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'skimage', 'sklearn', 'matplotlib', 'av', 'PIL'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_third_partys_plugin_is_found(install: Install) -> None:
    install("third", SOURCE)

    registry = Registry()

    assert "mine" in registry.names("mask_sources")
    assert registry.create("mask_sources", "mine").name == "mine"


def test_a_plugin_that_fails_to_import_is_named_and_harms_no_other(install: Install) -> None:
    install("third", SOURCE)
    install("broken", "import no_such_module", name="bad")
    registry = Registry()

    with pytest.raises(PluginError, match="mask source 'bad' of broken fails to import: ModuleNotFoundError"):
        registry.get("mask_sources", "bad")

    assert registry.get("mask_sources", "mine").name == "mine"


def test_two_owners_of_one_name_are_refused(install: Install) -> None:
    install("third", SOURCE)
    install("fourth", SOURCE)

    with pytest.raises(PluginError, match="'mine' is offered twice, by fourth, third; uninstall one of them"):
        Registry().get("mask_sources", "mine")


def test_a_misspelt_hook_is_found(install: Install) -> None:
    install("third", SOURCE.replace("anaus_mask_sources", "anaus_mask_source"))

    with pytest.raises(PluginError, match="anaus_mask_source"):
        Registry().get("mask_sources", "mine")


def test_an_entry_point_under_another_name_than_its_class_is_refused(install: Install) -> None:
    install("third", SOURCE, name="other")

    with pytest.raises(
        PluginError, match="offers mine; its hook anaus_mask_sources must return a class with name = 'other'"
    ):
        Registry().get("mask_sources", "other")


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PluginError, match=r"unknown objective 'byoll'; did you mean 'byol'\? \(installed: anaus, "):
        Registry().get("objectives", "byoll")


def test_a_single_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)

    registry = Registry([file])

    assert "mine" in registry.names("mask_sources")
    assert registry.get("mask_sources", "mine").name == "mine"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "not found; pass the path of a Python file"),
        ("1 / 0", "fails to import: ZeroDivisionError"),
        ("x = 1", "offers nothing; implement one of the hooks"),
        (SOURCE.replace('"mine"', '"kmeans"'), "mask source 'kmeans' is installed; rename yours"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path: Path, source: str | None, message: str) -> None:
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_text(source)

    with pytest.raises(PluginError, match=message):
        Registry([file])


def test_an_extension_listed_twice_is_told_once(install: Install) -> None:
    head = "from anaus_bench.hookspecs import hookimpl\ntold = []\n"
    module = install(
        "third", f"{head}@hookimpl\ndef anaus_stage_finished(stage): told.append(stage)\n", kind="extensions"
    )
    info = module.parent / "third_again-1.0.dist-info"  # an editable install beside the one it replaces
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-again\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[anaus_bench.extensions]\nmine = third_module\n")
    registry = Registry()

    for stage in ("first", "second"):
        registry.extensions().hook.anaus_stage_finished(stage=stage, record={})

    assert sys.modules["third_module"].told == ["first", "second"]


def test_a_misspelt_hook_of_an_extension_is_found(install: Install) -> None:
    source = "from anaus_bench.hookspecs import hookimpl\n@hookimpl\ndef anaus_stage_finnished(stage): pass\n"
    install("third", source, kind="extensions")

    with pytest.raises(PluginError, match="anaus_stage_finnished"):
        Registry().extensions()
