"""Finds plugins: kind and name -> class, through entry points and single files.

Names come from package metadata, so listing them imports nothing. pluggy keeps the hooks honest (`check_pending` finds
misspelt ones); the entry points are read here because pluggy would skip a name that is taken and stop at the first
plugin that fails to import.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
import pydantic

from anaus_bench import hookspecs
from anaus_bench.errors import PluginError, shown
from anaus_bench.interfaces import Plugin
from anaus_bench.interfaces.breach import require
from anaus_bench.interfaces.contract import CONTRACTS, check_class
from anaus_bench.interfaces.guard import guarded, plugin_code, reason
from anaus_bench.settings.base import Settings, did_you_mean, location_names, resolve

ResultT = TypeVar("ResultT")

# kind -> (what one is called, prefix of its settings on the command line)
KINDS: Mapping[str, tuple[str, str]] = {
    "datasets": ("data set", "data"),
    "mask_sources": ("mask source", "masks"),
    "objectives": ("objective", "objective"),
    "tasks": ("task", "task"),
    "protocols": ("protocol", "protocol"),
    "executors": ("executor", "executor"),
}


class PluginSpec(pydantic.BaseModel):
    """What stands for a plugin in a key and suffices to build it again.

    Attributes:
        kind, name, version: Of the plugin.
        settings: All of its settings, as JSON.
        identity: What else shapes its results: digests of weights, and of the file of a plugin given with `--plugin`.
        locations: Dotted names of the settings that say where a file is; a record does not hold them.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: str
    name: str
    version: int
    settings: dict[str, Any]
    identity: dict[str, str] = {}
    locations: tuple[str, ...] = pydantic.Field((), exclude=True)


class Registry:
    """All installed plugins, and those of the files given with `--plugin`.

    Args:
        files: Python files whose plugins are added; they may not take a name that is installed.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.files = tuple(Path(file).resolve() for file in files)
        for file, count in Counter(self.files).items():
            if count > 1:
                raise PluginError(f"plugin file {str(file)!r} is given {count} times; leave the others out")
        self._managers: dict[ModuleType, pluggy.PluginManager] = {}
        self._entries: dict[str, dict[str, list[importlib.metadata.EntryPoint]]] = {}
        installed = importlib.metadata.entry_points()
        for kind in KINDS:
            owners = self._entries[kind] = {}
            for entry in _once(installed.select(group=f"anaus_bench.{kind}")):
                owners.setdefault(entry.name, []).append(entry)
        self._loaded: dict[tuple[str, str], type[Plugin[Any]]] = {}
        self._digests: dict[tuple[str, str], dict[str, str]] = {}
        for file in self.files:
            self._add_file(file)

    def names(self, kind: str) -> list[str]:
        """Names of one kind, sorted; nothing is imported."""
        return sorted({*self._entries[kind], *(name for loaded, name in self._loaded if loaded == kind)})

    def get(self, kind: str, name: str) -> type[Any]:
        """The class of a plugin; imports its module.

        Raises:
            PluginError: Unknown, owned twice, failing to import, or not offering what its entry point says.
        """
        if (kind, name) not in self._loaded:
            self._loaded[kind, name] = self._load(kind, name)
        return self._loaded[kind, name]

    def create(self, kind: str, name: str, preset: str = "paper", overrides: Mapping[str, Any] | None = None) -> Any:
        """A plugin with its settings resolved; what it does from here on is looked at (`interfaces.guard`).

        Raises:
            PluginError: As `get`, or it cannot be made.
            SettingsError: Unknown or wrong settings.
        """
        cls = self.get(kind, name)
        section = f"data.{name}" if kind == "datasets" else KINDS[kind][1]
        with plugin_code(f"{_title(kind, name)}: {cls.settings_class.__name__}", _file(cls)):
            settings = resolve(cls.settings_class, section, preset, overrides)
        return self._make(kind, cls, settings)

    def spec(self, kind: str, plugin: Plugin[Any]) -> PluginSpec:
        """What stands for a plugin in a key and suffices to build it again."""
        return PluginSpec(
            kind=kind,
            name=plugin.name,
            version=plugin.version,
            settings=plugin.settings.model_dump(mode="json"),
            identity=plugin.identity() | self._digests.get((kind, plugin.name), {}),
            locations=location_names(plugin.settings),
        )

    def build(self, spec: PluginSpec) -> Any:
        """The plugin of a `spec`."""
        cls = self.get(spec.kind, spec.name)
        return self._make(spec.kind, cls, cls.settings_class.model_validate(spec.settings))

    def extensions(self) -> pluggy.PluginManager:
        """Manager of the hooks that everyone may answer (group `anaus_bench.extensions`, and plugin files).

        Raises:
            PluginError: A module fails to import, or misspells a hook.
        """
        return self._extensions

    @functools.cached_property
    def _extensions(self) -> pluggy.PluginManager:
        manager = _manager()
        entries = _once(importlib.metadata.entry_points(group="anaus_bench.extensions"))
        modules = [_import(entry.value, f"extension {entry.name!r}") for entry in entries]
        for module in dict.fromkeys([*modules, *(sys.modules[_module_name(file)] for file in self.files)]):
            self._manager_of(module)  # checks the names of its hooks
            manager.register(module)
        return manager

    def _make(self, kind: str, cls: type[Plugin[Any]], settings: Settings) -> Plugin[Any]:
        who = _title(kind, cls.name)
        with plugin_code(f"{who}: __init__", _file(cls)):
            plugin = cls(settings)
        return guarded(plugin, who, CONTRACTS[kind].checks)

    def _load(self, kind: str, name: str) -> type[Plugin[Any]]:
        title, _ = KINDS[kind]
        entries = self._entries[kind].get(name, [])
        if not entries:
            names = self.names(kind)
            raise PluginError(
                f"unknown {title} {shown(name)}{did_you_mean(name, names)} (installed: {', '.join(names) or 'none'})"
            )
        if len(entries) > 1:
            owners = ", ".join(sorted(_owner(entry) for entry in entries))
            raise PluginError(f"{title} {name!r} is offered twice, by {owners}; uninstall one of them")
        (entry,) = entries
        module = _import(entry.value, f"{title} {name!r} of {_owner(entry)}")
        classes = {cls.name: cls for cls in self._offered(module, kind)}
        if name not in classes:
            raise PluginError(
                f"{title} {name!r} of {_owner(entry)}: {entry.value} offers {', '.join(sorted(classes)) or 'nothing'}; "
                f"its hook anaus_{kind} must return a class with name = {name!r}"
            )
        return classes[name]

    def _add_file(self, file: Path) -> None:
        if not file.is_file():
            raise PluginError(f"plugin file {str(file)!r} not found; pass the path of a Python file")
        spec = importlib.util.spec_from_file_location(_module_name(file), file)
        if spec is None or spec.loader is None:
            raise PluginError(f"plugin file {str(file)!r} is no Python file; expected a name that ends in .py")
        loader = spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        _loaded(f"plugin file {str(file)!r}", lambda: loader.exec_module(module))
        added, digest = 0, hashlib.sha256(file.read_bytes()).hexdigest()
        for kind, (title, _) in KINDS.items():
            for cls in self._offered(module, kind):
                if cls.name in self.names(kind):
                    raise PluginError(f"plugin file {str(file)!r}: {title} {cls.name!r} is installed; rename yours")
                self._loaded[kind, cls.name] = cls
                self._digests[kind, cls.name] = {"file": digest}
                added += 1
        if not added:
            hooks = ", ".join(f"anaus_{kind}" for kind in KINDS)
            raise PluginError(f"plugin file {str(file)!r} offers nothing; implement one of the hooks {hooks}")

    def _offered(self, module: ModuleType, kind: str) -> list[type[Plugin[Any]]]:
        """Classes that a module's hook of this kind returns, each looked at.

        Raises:
            PluginError: The hook fails or returns something else, or a class does not describe itself as it must.
        """
        offered: list[type[Plugin[Any]]] = []
        who = f"{module.__file__ or module.__name__}: anaus_{kind}"
        with plugin_code(who, module.__file__):
            for classes in getattr(self._manager_of(module).hook, f"anaus_{kind}")():
                require(isinstance(classes, list | tuple), shown(classes), "a list of classes")
                for cls in classes:
                    check_class(cls, CONTRACTS[kind])
                    require(all(cls.name != other.name for other in offered), f"{cls.name!r} twice", "each name once")
                    offered.append(cls)
        return offered

    def _manager_of(self, module: ModuleType) -> pluggy.PluginManager:
        """The one manager of a module, the names of whose hooks were checked."""
        if module not in self._managers:
            manager = _manager()
            try:
                manager.register(module)
                manager.check_pending()
            except pluggy.PluginValidationError as error:
                raise PluginError(
                    f"{module.__file__ or module.__name__}: {error}; the hooks are listed in anaus_bench/hookspecs.py"
                ) from error
            self._managers[module] = manager
        return self._managers[module]


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("anaus_bench")
    manager.add_hookspecs(hookspecs)
    return manager


def _once(entries: importlib.metadata.EntryPoints) -> list[importlib.metadata.EntryPoint]:
    """Each entry point once: an editable install may be listed twice."""
    return list({(entry.name, entry.value): entry for entry in entries}.values())


def _import(value: str, what: str) -> ModuleType:
    return _loaded(what, lambda: importlib.import_module(value))


def _loaded(what: str, load: Callable[[], ResultT]) -> ResultT:
    """Runs a module of anybody's, which may raise anything, end the program and print."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{what} fails to import: {reason(error)}") from error


def _title(kind: str, name: str) -> str:
    return f"{KINDS[kind][0]} {name!r}"


def _file(cls: type[Plugin[Any]]) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "__file__", None)


def _owner(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _module_name(file: Path) -> str:
    return f"anaus_plugin_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
