"""A cell -> the stages that fill it, each with a key.

A stage's key is a hash of its kind, its fully resolved settings, the data's fingerprint and its inputs' keys. Cells
share stages by key. Planning reads settings, file names and sizes; it imports no torch and decodes no image.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anaus_bench.backbones import BACKBONES
from anaus_bench.cell import CORE_SETTINGS, CORPORA, Cell, CorpusSettings, PhantomSettings, PretrainSettings
from anaus_bench.config import PRESETS, check_known, merge, resolve
from anaus_bench.errors import DataError, DatasetNotFound, LeakageError, MissingMask, SettingsError
from anaus_bench.interfaces import Dataset, Index, MaskSource, Objective, Task
from anaus_bench.registry import KINDS, Registry
from anaus_bench.weights import weights_identity

if TYPE_CHECKING:
    from anaus_bench.store import Record, Store

# Raised when the stages themselves change their results.
STAGES_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One unit of work.

    Attributes:
        kind: Module in `anaus_bench/stages` that does it and folder of the store.
        title: What it is, for people.
        spec: All settings that shape its result, as JSON; enters the key, but for `locations`: where files are.
        inputs: Role -> stage; their keys enter the key.
        roots: Data set name -> folder of the data; not in the key, which holds their fingerprint.
        labels: What a table calls the cell; not in the key.
    """

    kind: str
    title: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    roots: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits."""
        content = {
            "version": STAGES_VERSION,
            "kind": self.kind,
            "spec": without_locations(self.spec),
            "inputs": {role: stage.key for role, stage in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def walk(self) -> Iterator[Stage]:
        """This stage and all it rests on, inputs first, each once."""
        seen: set[str] = set()

        def visit(stage: Stage) -> Iterator[Stage]:
            if stage.key in seen:
                return
            seen.add(stage.key)
            for below in stage.inputs.values():
                yield from visit(below)
            yield stage

        return visit(self)


@dataclass(frozen=True)
class Plan:
    """All stages of a cell, in an order in which they can run.

    Attributes:
        cell: What was asked for.
        score: The stage that holds the cell's metrics.
        panel: The stage that draws its pictures.
        audit: The stage that looks for test images in the corpus; None without pre-training.
        notes: What the user should know before it runs.
    """

    cell: Cell
    score: Stage
    panel: Stage
    audit: Stage | None = None
    notes: tuple[str, ...] = ()

    @property
    def stages(self) -> list[Stage]:
        """Inputs first."""
        return list({stage.key: stage for target in self._targets() for stage in target.walk()}.values())

    def pending(self, store: Store) -> list[Stage]:
        """Stages that must run for the cell to be complete."""
        return pending(self._targets(), store)

    def _targets(self) -> list[Stage]:
        """The audit comes first: it may refuse."""
        return [*([self.audit] if self.audit else []), self.score, self.panel]


def pending(targets: Sequence[Stage], store: Store) -> list[Stage]:
    """Stages that must run for `targets` to be in the store, inputs first; not those that only finished ones need."""
    needed: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in needed or store.record(stage.kind, stage.key) is not None:
            return
        for below in stage.inputs.values():
            visit(below)
        needed[stage.key] = stage

    for target in targets:
        visit(target)
    return list(needed.values())


def make_plan(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Plan:
    """The stages of a cell.

    Args:
        cell: What to fill.
        registry: Where plugins are found.
        roots: Data set name -> folder, as given by the user.

    Raises:
        AnausError: Unknown plugin or setting, missing data, masks missing for a method that needs them, a corpus that
            holds the test images.
    """
    return _Planner(cell, registry, roots).plan()


def corpus_stage(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Stage:
    """The stage that packs the cell's corpus."""
    return _Planner(cell, registry, roots).corpus(cell.corpus_names())


def masks_stage(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Stage:
    """The stage that builds the label maps of the cell's corpus with its mask source; method and task do not matter."""
    planner = _Planner(cell, registry, roots)
    return planner.masks(planner.mask_source(cell.masks or ""), planner.corpus(cell.corpus_names()))


def why(stage: Stage, store: Store) -> list[str]:
    """What makes a stage's key differ from the nearest finished stage of its kind, one line per field."""
    finished = [record for record in store.records(stage.kind) if record["key"] != stage.key]
    if not finished:
        return [f"no {stage.kind} stage has been run in this store"]
    inputs = {role: below.key for role, below in stage.inputs.items()}
    mine = _flatten({"spec": without_locations(stage.spec), "inputs": inputs})

    def differences(record: Record) -> list[str]:
        theirs = _flatten({"spec": without_locations(record["spec"]), "inputs": record["inputs"]})
        fields = sorted(mine.keys() | theirs.keys())
        return [
            f"{name.removeprefix('spec.')}: {theirs.get(name, 'absent')!r} in {record['key']}, "
            f"here {mine.get(name, 'absent')!r}"
            for name in fields
            if mine.get(name) != theirs.get(name)
        ]

    return min((differences(record) for record in finished), key=len)


def without_locations(value: Any) -> Any:
    """A spec without the parts named `locations`, at any depth."""
    if not isinstance(value, Mapping):
        return value
    return {name: without_locations(below) for name, below in value.items() if name != "locations"}


def data_folder(name: str, roots: Mapping[str, Path]) -> Path | None:
    """Where a data set is: as given, else its sub-folder of `ANAUS_DATA`, else None."""
    if name in roots:
        return roots[name]
    shared = os.environ.get("ANAUS_DATA")
    folder = Path(shared) / name if shared else None
    return folder if folder is not None and folder.is_dir() else None


class _Planner:
    """Builds the stages of one cell; settings are resolved once."""

    def __init__(self, cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> None:
        check_known("preset", [cell.preset], PRESETS)
        check_known("backbone", [cell.backbone] if cell.backbone else [], BACKBONES)
        check_known(
            "section of settings", cell.overrides, [*CORE_SETTINGS, *(section for _, section in KINDS.values())]
        )
        known = registry.names("datasets")
        self.roots = {CORPORA.get(name, name): folder for name, folder in roots.items()}
        check_known("data set", self.roots, known)
        for section, values in cell.overrides.items():
            if not isinstance(values, Mapping):
                raise SettingsError(
                    f"--set {section}={values!r}: {section} is a section; write --set {section}.NAME=VALUE"
                )
        check_known("data set", cell.overrides.get("data", {}), known)
        if cell.masks is None and cell.overrides.get("masks"):
            raise SettingsError("--set masks.* sets a mask source; pass --masks as well")
        self.cell = cell
        self.registry = registry
        self.notes: list[str] = []

    def plan(self) -> Plan:
        cell, registry = self.cell, self.registry
        overrides = cell.overrides
        objective: Objective[Any] = registry.create("objectives", cell.method, cell.preset, overrides.get("objective"))
        self.cell = cell = _with_backbone(cell, objective)
        self.notes += [f"method {objective.name}: {text}" for text in objective.describe().values()]
        task: Task[Any] = registry.create("tasks", cell.task, cell.preset, overrides.get("task"))
        source = self.mask_source(cell.masks) if cell.masks is not None else None
        self._check_masks(objective)
        self._check_pairs(source, task)
        data_spec, data_inputs, data_roots = self.data(task.dataset, "task")
        task_spec = {"task": registry.spec("tasks", task), "dataset": data_spec}
        kept = {name: value for name, value in task_spec["task"]["settings"].items() if name in task.split_settings}
        split_spec = {**task_spec, "task": {**task_spec["task"], "settings": kept}}
        audit = self._audit(task, split_spec, data_inputs, data_roots) if objective.trains else None
        pretrain, fit = self._pretrain(objective, source, audit)
        folds = Stage("folds", f"folds of {task.name}", split_spec, data_inputs, data_roots)
        tests = [
            Stage(
                "finetune",
                f"fine-tune {task.name}, fold {fold + 1} of {task.settings.folds}",
                {**task_spec, "fold": fold, "seed": cell.seed},
                {"pretrain": pretrain, "folds": folds, **data_inputs},
                data_roots,
            )
            for fold in range(task.settings.folds)
        ]
        per_fold = {f"fold{number}": stage for number, stage in enumerate(tests)}
        name = cell_title(cell)
        score_inputs = {"folds": folds, **per_fold, **data_inputs, **({"audit": audit} if audit else {})}
        score = Stage(
            "score", f"score {name}", task_spec, score_inputs, data_roots, cell_labels(cell, objective.trains)
        )
        panel_spec = {**task_spec, "masks": registry.spec("mask_sources", source) if source else None}
        panel_inputs = {"folds": folds, **per_fold, **data_inputs, **({"fit": fit} if fit else {})}
        panel = Stage(
            "panel",
            f"pictures of {name}",
            {**panel_spec, "size": self._core(CorpusSettings, "corpus").size},
            panel_inputs,
            data_roots,
        )
        return Plan(cell, score, panel, audit, tuple(self.notes))

    def mask_source(self, name: str) -> MaskSource[Any]:
        cell = self.cell
        source: MaskSource[Any] = self.registry.create("mask_sources", name, cell.preset, cell.overrides.get("masks"))
        self.notes += [f"masks {name}: {text}" for text in source.describe().values()]
        return source

    def corpus(self, names: list[str]) -> Stage:
        """Packs data sets into one corpus."""
        settings = self._core(CorpusSettings, "corpus")
        spec: dict[str, Any] = {"size": settings.size, "datasets": {}}
        if settings.unreadable != "refuse":
            spec["unreadable"] = settings.unreadable
        inputs: dict[str, Stage] = {}
        roots: dict[str, str] = {}
        for name in names:
            spec["datasets"][name], generated, root = self.data(name, "train")
            if generated:
                inputs[name] = generated["data"]
            roots |= root
        return Stage("corpus", f"pack {'+'.join(names)}", spec, inputs, roots)

    def masks(self, source: MaskSource[Any], corpus: Stage, audit: Stage | None = None) -> Stage:
        """Builds label maps of a corpus; rows that `audit` found are not fitted on."""
        inputs = {"corpus": corpus}
        if fit := self._fit(source, corpus, audit):
            inputs["fit"] = fit
        spec = {"masks": self.registry.spec("mask_sources", source)}
        return Stage("masks", f"{source.name} masks of {corpus.title.removeprefix('pack ')}", spec, inputs)

    def data(self, name: str, role: str) -> tuple[dict[str, Any], dict[str, Stage], dict[str, str]]:
        """A data set's part of a spec, the stage that generates it (under `data`) if it is generated, and its root."""
        cell = self.cell
        values = cell.overrides.get("data", {}).get(name)
        dataset: Dataset[Any] = self.registry.create("datasets", name, cell.preset, values)
        spec = self.registry.spec("datasets", dataset)
        if not self._is_generated(name):
            skips = role == "train" and self._core(CorpusSettings, "corpus").unreadable == "skip"
            index = find_data(dataset, self.roots, skips_unreadable=skips)
            self.notes += [f"{name}: {warning}" for warning in index.warnings]
            self.notes += [f"{name}: left out: {reason}" for reason in index.unreadable.values()]
            folder = data_folder(name, self.roots)
            return {**spec, "fingerprint": index.fingerprint}, {}, {name: str(folder)}
        phantom = self._core(PhantomSettings, "phantom")
        generate = {
            "dataset": spec,
            "count": getattr(phantom, role),
            "size": phantom.size,
            # The two roles never share a patient.
            "seed": 2 * phantom.seed + (role == "task"),
        }
        stage = Stage(
            "phantoms", f"generate images of {name} for the {'task' if role == 'task' else 'corpus'}", generate
        )
        return spec, {"data": stage}, {}

    def _audit(
        self, task: Task[Any], spec: Mapping[str, Any], data_inputs: Mapping[str, Stage], roots: Mapping[str, str]
    ) -> Stage:
        names = self.cell.corpus_names()
        if task.dataset in names and not self._is_generated(task.dataset):
            raise LeakageError(
                f"corpus {'+'.join(names)!r} holds {task.dataset!r}, on which task {task.name!r} tests; "
                "pass another --corpus"
            )
        spec = {**spec, "overlap": self._core(CorpusSettings, "corpus").overlap}
        inputs = {"corpus": self.corpus(names), **data_inputs}
        return Stage("audit", f"look for test images of {task.name} in the corpus", spec, inputs, roots)

    def _pretrain(
        self, objective: Objective[Any], source: MaskSource[Any] | None, audit: Stage | None
    ) -> tuple[Stage, Stage | None]:
        """The pre-training stage, and the fitting stage of the mask source."""
        cell = self.cell
        values = merge(objective.recipes.get(cell.preset, {}), cell.overrides.get("pretrain", {}))
        settings = resolve(PretrainSettings, "pretrain", cell.preset, values)
        start = objective.initialisation or settings.init
        backbone = str(cell.backbone)
        spec: dict[str, Any] = {
            "objective": self.registry.spec("objectives", objective),
            "backbone": backbone,
            "init": start,
            "seed": cell.seed,
        }
        if start == "imagenet":
            if backbone not in objective.imagenet:
                raise SettingsError(
                    f"{objective.name} with backbone {backbone!r} cannot start from ImageNet weights, which exist for "
                    f"{', '.join(objective.imagenet)}; pass one of these, or a random start (pretrain.init=random)"
                )
            spec["weights"] = weights_identity(settings.weights, objective.imagenet[backbone])
            spec["locations"] = {"weights": settings.weights}
        title = f"pre-train {cell.method} ({backbone})"
        if not objective.trains:
            return Stage("pretrain", f"{cell.method} encoder ({backbone})", spec), None
        spec["pretrain"] = settings.model_dump(mode="json", exclude={"init", "weights"})
        names = cell.corpus_names()
        if "labels" in objective.needs and not any(self.registry.get("datasets", name).classes for name in names):
            raise DataError(f"objective {objective.name!r} needs class labels; corpus {'+'.join(names)!r} has none")
        inputs = {"corpus": self.corpus(names)}
        if audit is not None and audit.spec["overlap"] == "exclude":
            inputs["audit"] = audit
        fit = None
        if source is not None:
            inputs["masks"] = self.masks(source, inputs["corpus"], inputs.get("audit"))
            fit = inputs["masks"].inputs.get("fit")
        return Stage("pretrain", title, spec, inputs), fit

    def _is_generated(self, name: str) -> bool:
        """Whether the data set is made of phantoms: those presets generate whatever has no folder of the user's."""
        return name not in self.roots and (self.cell.on_phantoms or name == "phantom")

    def _fit(self, source: MaskSource[Any], corpus: Stage, audit: Stage | None) -> Stage | None:
        if not source.learned:
            return None
        if names := source.paired_corpora():
            pairs = names.split("+")
            if bare := [name for name in pairs if not self.registry.get("datasets", name).structures]:
                raise MissingMask(
                    f"mask source {source.name!r} is fitted on images with masks, and {bare[0]!r} of its pairs "
                    f"{names!r} has none; set masks.pairs to data sets with masks (see `anaus-bench list datasets`)"
                )
            inputs = {"pairs": self.corpus(pairs)}
        else:
            inputs = {"pairs": corpus, **({"audit": audit} if audit else {})}
        spec = {"masks": self.registry.spec("mask_sources", source), "seed": self.cell.seed}
        return Stage("fit", f"fit {source.name}", spec, inputs)

    def _check_masks(self, objective: Objective[Any]) -> None:
        name = self.cell.masks
        installed = ", ".join(self.registry.names("mask_sources"))
        if name is None and "masks" in objective.needs:
            raise SettingsError(f"objective {objective.name!r} needs masks; pass --masks (installed: {installed})")
        takes = "masks" in objective.needs or objective.makes_own_groups
        if name is not None and not takes:
            raise SettingsError(f"objective {objective.name!r} uses no masks; leave --masks {name} out")

    def _check_pairs(self, source: MaskSource[Any] | None, task: Task[Any]) -> None:
        """A mask source must not have seen the ground truth of the task's test folds."""
        if source is None or not source.learned or self._is_generated(task.dataset):
            return
        if task.dataset in source.paired_corpora().split("+"):
            text = f"mask source {source.name!r} is fitted on {task.dataset!r}, on which task {task.name!r} tests"
            if self._core(CorpusSettings, "corpus").overlap != "allow":
                raise LeakageError(f"{text}; leave it out of masks.pairs, or say --set corpus.overlap=allow")
            self.notes.append(text)

    def _core(self, cls: Any, section: str) -> Any:
        return resolve(cls, section, self.cell.preset, self.cell.overrides.get(section))


def find_data(dataset: Dataset[Any], roots: Mapping[str, Path], *, skips_unreadable: bool = False) -> Index:
    """Index of a data set's folder; clips that cannot be read are refused, or left out and listed.

    Raises:
        DatasetNotFound: No folder was given; the message says what the data set is, how to get it and where to put it.
        DataError: As `Dataset.scan`.
    """
    folder = data_folder(dataset.name, roots)
    if folder is None:
        raise DatasetNotFound(
            f"{dataset.name}: no folder given for {dataset.title}. {dataset.how_to_get} Then pass --data-root "
            f"{dataset.name}=FOLDER, or set ANAUS_DATA to a folder that holds {dataset.name}/. Without the data, "
            "--preset demo runs on generated phantoms"
        )
    dataset.skips_unreadable = skips_unreadable
    return dataset.scan(folder)


def _with_backbone(cell: Cell, objective: Objective[Any]) -> Cell:
    """The cell with its backbone: the user's, or that of the objective.

    Raises:
        SettingsError: The objective cannot be built around it.
    """
    backbone = cell.backbone or objective.default_backbone(cell.preset)
    if backbone not in objective.backbones:
        raise SettingsError(
            f"objective {objective.name!r} takes no backbone {backbone!r}; pass --backbone with one of "
            f"{', '.join(objective.backbones)}, or leave it out"
        )
    return dataclasses.replace(cell, backbone=backbone)


def cell_title(cell: Cell) -> str:
    """Method, masks and task in a few words."""
    masks = f" with {cell.masks} masks" if cell.masks else ""
    return f"{cell.method}{masks} on {cell.task}"


def cell_labels(cell: Cell, trains: bool) -> dict[str, str]:
    """What a table calls a cell, column by column."""
    changed = _flatten({section: values for section, values in cell.overrides.items() if section != "executor"})
    return {
        "method": cell.method,
        "masks": cell.masks or "-",
        "corpus": "+".join(cell.corpus_names()) if trains else "-",
        "backbone": str(cell.backbone),
        "preset": cell.preset,
        "seed": str(cell.seed),
        "settings": " ".join(f"{name}={value}" for name, value in sorted(changed.items())) or "-",
    }


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, below in value.items() for name, leaf in _flatten(below, f"{prefix}{key}.").items()}
