"""`list` and `show`: what is installed, and its settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anaus_bench.cli.options import AsJson, PluginFiles, Preset
from anaus_bench.cli.printing import first_line, print_grid, print_json, say
from anaus_bench.errors import PluginError
from anaus_bench.interfaces import LearnedSource, OracleSource, StoredSource
from anaus_bench.registry import KINDS, Registry
from anaus_bench.settings.base import PRESETS, check_known, resolve
from anaus_bench.settings.core import CORE_SETTINGS

# What a user calls a kind of plugin -> the registry's name.
WORDS = {
    "masks": "mask_sources",
    "methods": "objectives",
    "tasks": "tasks",
    "protocols": "protocols",
    "datasets": "datasets",
    "executors": "executors",
}

# Columns of `list` beside name and description.
_LISTED = {
    "masks": ("needs",),
    "methods": ("masks", "corpus must have"),
    "tasks": ("data set", "protocol"),
    "protocols": ("tasks",),
    "datasets": ("classes", "masks of"),
    "executors": (),
}

MASKS_RULE = (
    "masks: `needed` and `optional` go with every source of `list masks`; where they are optional, the method groups "
    "pixels itself without --masks; with `none`, --masks is refused. `show method NAME` says what masks become, and "
    "what the method does where a corpus lacks labels, views or long clips."
)


def list_plugins(
    what: Annotated[str | None, typer.Argument(help=f"One of {', '.join(WORDS)}; all by default.")] = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins; a broken one is named and harms nothing."""
    if what is not None:
        check_known("kind", [what], list(WORDS))
    registry = Registry(plugin or ())
    found = {word: _listed(registry, WORDS[word]) for word in ([what] if what else WORDS)}
    if as_json:
        print_json(found)
        return
    for word, rows in found.items():
        columns = ("name", "what", *_LISTED[word])
        rows = [row if "error" not in row else row | {"what": f"broken: {row['error']}"} for row in rows]
        print_grid(word, columns, [[row.get(column, "") for column in columns] for row in rows])
        if word == "methods":
            say(MASKS_RULE, dim=True)


def show(
    kind: Annotated[str, typer.Argument(help="method, masks, task, protocol, dataset, executor or core.")],
    name: Annotated[str, typer.Argument(help="Name of the plugin, or of a section of the core's settings.")],
    preset: Preset = "paper",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show a plugin: what it is, its source, and every setting with its value, default and meaning."""
    check_known("preset", [preset], PRESETS)
    registry = Registry(plugin or ())
    head: dict[str, Any]
    if kind == "core":
        check_known("section", [name], list(CORE_SETTINGS))
        cls, section = CORE_SETTINGS[name], name
        head = {"name": name, "what": first_line(cls)}
        values = resolve(cls, section, preset)
    else:
        words = {word.removesuffix("s") if word != "masks" else word: registered for word, registered in WORDS.items()}
        check_known("kind", [kind], [*words, "core"])
        found = registry.create(words[kind], name, preset)
        cls, values = found.settings_class, found.settings
        section = f"data.{name}" if kind == "dataset" else KINDS[words[kind]][1]
        head = {
            "name": name,
            "what": first_line(type(found)),
            "version": found.version,
            "reference": found.reference,
            **found.describe(),
            **(_method_facts(found) if kind == "method" else {}),
        }
    rows = list(_settings_rows(cls, values, section))
    if as_json:
        print_json(head | {"preset": preset, "settings": rows})
        return
    facts = [
        (key, line)
        for key, value in head.items()
        for line in ([f"{name}: {text}" for name, text in value.items()] if isinstance(value, dict) else [value])
        if line
    ]
    print_grid(None, ("", ""), facts, unwrapped=1)
    if rows:
        cells = [(row["key"], row["value"], row["default"], row["description"]) for row in rows]
        print_grid(f"settings, preset {preset}", ("--set", "value", "default", "meaning"), cells, unwrapped=1)


def _listed(registry: Registry, kind: str) -> list[dict[str, str]]:
    rows = []
    for name in registry.names(kind):
        try:
            cls = registry.get(kind, name)
        except PluginError as error:
            rows.append({"name": name, "error": str(error)})
            continue
        rows.append(
            {"name": name, "what": getattr(cls, "title", None) or first_line(cls), **_traits(registry, kind, cls)}
        )
    return rows


def _traits(registry: Registry, kind: str, cls: Any) -> dict[str, str]:
    """The further columns of `list`."""
    if kind == "objectives":
        needs = sorted(cls.needs - {"masks"})
        return {"masks": cls.takes_masks(), "corpus must have": ", ".join(needs) if cls.trains else "not used"}
    if kind == "mask_sources":
        kinds = {"a fit": LearnedSource, "ground truth": OracleSource, "stored label maps": StoredSource}
        return {"needs": ", ".join(name for name, base in kinds.items() if issubclass(cls, base))}
    if kind == "datasets":
        return {"classes": ", ".join(cls.classes), "masks of": ", ".join(cls.structures)}
    if kind == "tasks":
        return {"data set": cls.dataset, "protocol": cls.protocol}
    return {"tasks": ", ".join(_fitting(registry, cls))} if kind == "protocols" else {}


def _fitting(registry: Registry, protocol: Any) -> list[str]:
    """Names of the tasks that a protocol can be used on; broken ones are left out."""
    names = []
    for name in registry.names("tasks"):
        try:
            if issubclass(registry.get("tasks", name), protocol.task_class):
                names.append(name)
        except PluginError:
            continue
    return names


def _method_facts(objective: Any) -> dict[str, Any]:
    """What `show` says of a method: which masks it takes, what it does where a corpus lacks something, its recipes."""
    masks = {"needed": "needed", "optional": "optional", "none": "none; --masks is refused"}[objective.takes_masks()]
    return {
        "masks": f"{masks}: {objective.masks_become}" if objective.masks_become else masks,
        "needs": ", ".join(sorted(objective.needs)),
        "backbones": ", ".join(objective.backbones),
        "without": dict(objective.without),
        "recipe": {
            preset: " ".join(f"pretrain.{name}={value}" for name, value in values.items())
            for preset, values in objective.recipes.items()
        },
    }


def _settings_rows(cls: Any, values: Any, section: str) -> Any:
    """Rows of a settings class, nested settings unfolded."""
    for name, field in cls.model_fields.items():
        value = getattr(values, name)
        if hasattr(type(value), "model_fields"):
            yield from _settings_rows(type(value), value, f"{section}.{name}")
            continue
        default = field.get_default(call_default_factory=True)
        yield {
            "key": f"{section}.{name}",
            "value": value if not hasattr(value, "model_dump") else value.model_dump(),
            "default": default,
            "description": field.description or "",
        }
