"""Finds plugins: kind and name -> class, through entry points and single files.

Names come from package metadata, so listing them imports nothing. pluggy keeps the hooks honest (`check_pending` finds
misspelt ones); the entry points are read here because pluggy would skip a name that is taken and stop at the first
plugin that fails to import.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pydantic

from anaus_bench import hookspecs
from anaus_bench.errors import PluginError
from anaus_bench.interfaces import Plugin
from anaus_bench.settings.base import did_you_mean, location_names, resolve

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
        self._entries: dict[str, dict[str, list[importlib.metadata.EntryPoint]]] = {}
        installed = importlib.metadata.entry_points()
        for kind in KINDS:
            owners = self._entries[kind] = {}
            for entry in installed.select(group=f"anaus_bench.{kind}"):
                known = owners.setdefault(entry.name, [])
                if all(entry.value != other.value for other in known):  # an editable install may be listed twice
                    known.append(entry)
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
        """A plugin with its settings resolved.

        Raises:
            PluginError: As `get`.
            SettingsError: Unknown or wrong settings.
        """
        cls = self.get(kind, name)
        section = f"data.{name}" if kind == "datasets" else KINDS[kind][1]
        return cls(resolve(cls.settings_class, section, preset, overrides))

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
        return cls(cls.settings_class.model_validate(spec.settings))

    def extensions(self) -> pluggy.PluginManager:
        """Manager of the hooks that everyone may answer (group `anaus_bench.extensions`, and plugin files)."""
        manager = _manager()
        for entry in importlib.metadata.entry_points(group="anaus_bench.extensions"):
            manager.register(_import(entry.value, f"extension {entry.name!r}"), entry.value)
        for file in self.files:
            manager.register(sys.modules[_module_name(file)], str(file))
        return manager

    def _load(self, kind: str, name: str) -> type[Plugin[Any]]:
        title, _ = KINDS[kind]
        entries = self._entries[kind].get(name, [])
        if not entries:
            names = self.names(kind)
            raise PluginError(
                f"unknown {title} {name!r}{did_you_mean(name, names)} (installed: {', '.join(names) or 'none'})"
            )
        if len(entries) > 1:
            owners = ", ".join(sorted(_owner(entry) for entry in entries))
            raise PluginError(f"{title} {name!r} is offered twice, by {owners}; uninstall one of them")
        (entry,) = entries
        module = _import(entry.value, f"{title} {name!r} of {_owner(entry)}")
        classes = {cls.name: cls for cls in _offered(module, kind)}
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
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a file of the user's may raise anything
            raise PluginError(f"plugin file {str(file)!r} fails to import: {_reason(error)}") from error
        added, digest = 0, hashlib.sha256(file.read_bytes()).hexdigest()
        for kind, (title, _) in KINDS.items():
            for cls in _offered(module, kind):
                if cls.name in self.names(kind):
                    raise PluginError(f"plugin file {str(file)!r}: {title} {cls.name!r} is installed; rename yours")
                self._loaded[kind, cls.name] = cls
                self._digests[kind, cls.name] = {"file": digest}
                added += 1
        if not added:
            hooks = ", ".join(f"anaus_{kind}" for kind in KINDS)
            raise PluginError(f"plugin file {str(file)!r} offers nothing; implement one of the hooks {hooks}")


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("anaus_bench")
    manager.add_hookspecs(hookspecs)
    return manager


def _offered(module: ModuleType, kind: str) -> list[type[Plugin[Any]]]:
    """Classes that a module's hook of this kind returns; checks the names of all its hooks."""
    manager = _manager()
    manager.register(module)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{module.__name__}: {error}; the hooks are listed in anaus_bench/hookspecs.py") from error
    offered = [cls for classes in getattr(manager.hook, f"anaus_{kind}")() for cls in classes]
    for cls in offered:
        if not (inspect.isclass(cls) and issubclass(cls, Plugin) and isinstance(getattr(cls, "name", None), str)):
            raise PluginError(f"{module.__name__}: anaus_{kind} returned {cls!r}; expected plugin classes with a name")
    return offered


def _import(value: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(value)
    except Exception as error:  # a third party's module may raise anything
        raise PluginError(f"{what} fails to import: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"


def _owner(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _module_name(file: Path) -> str:
    return f"anaus_plugin_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
