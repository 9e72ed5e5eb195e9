"""A cell -> its stages. Planning reads settings, file names and sizes; it imports no torch and decodes no image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anaus_bench.cells.cell import CORPORA, Cell, cell_labels, cell_title
from anaus_bench.datasets.roots import data_folder, find_data
from anaus_bench.errors import DataError, LeakageError, MissingMask, SettingsError
from anaus_bench.interfaces import Dataset, LearnedSource, MaskSource, Objective, Stage, Task
from anaus_bench.nn.backbones import BACKBONES
from anaus_bench.nn.weights import weights_identity
from anaus_bench.planning.plan import Plan
from anaus_bench.registry import KINDS, Registry
from anaus_bench.settings.base import PRESETS, check_known, merge, resolve
from anaus_bench.settings.core import CORE_SETTINGS, CorpusSettings, PhantomSettings, PretrainSettings


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
        spec: dict[str, Any] = {"size": self._core(CorpusSettings, "corpus").size, "datasets": {}}
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
            index = find_data(dataset, self.roots)
            self.notes += [f"{name}: {warning}" for warning in index.warnings]
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
        if not isinstance(source, LearnedSource) or not source.needs_fit:
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
        if not isinstance(source, LearnedSource) or self._is_generated(task.dataset):
            return
        if task.dataset in source.paired_corpora().split("+"):
            text = f"mask source {source.name!r} is fitted on {task.dataset!r}, on which task {task.name!r} tests"
            if self._core(CorpusSettings, "corpus").overlap != "allow":
                raise LeakageError(f"{text}; leave it out of masks.pairs, or say --set corpus.overlap=allow")
            self.notes.append(text)

    def _core(self, cls: Any, section: str) -> Any:
        return resolve(cls, section, self.cell.preset, self.cell.overrides.get(section))


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
