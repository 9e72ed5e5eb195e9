"""A cell -> its stages. Planning reads settings, file names and sizes; it imports no torch and decodes no image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anaus_bench.cells.cell import CORPORA, Cell, cell_labels, cell_title
from anaus_bench.errors import DataError, LeakageError, MissingMask, SettingsError
from anaus_bench.interfaces import MaskSource, Objective, Protocol, Stage, Task
from anaus_bench.nn.backbones import BACKBONES
from anaus_bench.nn.weights import weights_identity
from anaus_bench.planning.plan import Plan
from anaus_bench.planning.sections import Sections
from anaus_bench.planning.sources import Source, Sources
from anaus_bench.planning.specs import (
    AuditSpec,
    FinetuneSpec,
    FitSpec,
    FoldsSpec,
    MasksSpec,
    PanelSpec,
    PredictSpec,
    PretrainSpec,
    ScoreSpec,
    stage_of,
)
from anaus_bench.registry import PluginSpec, Registry
from anaus_bench.settings.base import PRESETS, check_known, merge, resolve
from anaus_bench.settings.core import CorpusSettings, FinetuneSettings, PretrainSettings


def make_plan(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Plan:
    """The stages of a cell.

    Args:
        cell: What to fill.
        registry: Where plugins are found.
        roots: Data set name -> folder, as given by the user.

    Raises:
        AnausError: Unknown plugin or setting, a setting that nothing reads, missing data, masks missing for a method
            that needs them, a corpus that holds the test images.
    """
    return _Planner(cell, registry, roots).plan()


def corpus_stage(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Stage:
    """The stage that packs the cell's corpus."""
    planner = _Planner(cell, registry, roots)
    stage = planner.sources.corpus(cell.corpus_names())
    planner.sections.refuse_unread()
    return stage


def masks_stage(cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> Stage:
    """The stage that builds the label maps of the cell's corpus with its mask source; method and task do not matter."""
    planner = _Planner(cell, registry, roots)
    stage = planner.masks(planner.mask_source(cell.masks or ""), planner.sources.corpus(cell.corpus_names()))
    planner.sections.refuse_unread()
    return stage


def _only(spec: PluginSpec, names: tuple[str, ...]) -> PluginSpec:
    """The plugin with these of its settings alone."""
    kept = {name: value for name, value in spec.settings.items() if name in names}
    return spec.model_copy(update={"settings": kept})


class _Planner:
    """Builds the stages of one cell; every section of settings, data set and corpus is looked at once."""

    def __init__(self, cell: Cell, registry: Registry, roots: Mapping[str, Path]) -> None:
        check_known("preset", [cell.preset], PRESETS)
        check_known("backbone", [cell.backbone] if cell.backbone else [], BACKBONES)
        named = {CORPORA.get(name, name): folder for name, folder in roots.items()}
        check_known("data set", named, registry.names("datasets"))
        self.sections = Sections(cell, registry)
        if cell.masks is None and "masks" in self.sections.given:
            raise SettingsError("--set masks.* sets a mask source; pass --masks as well")
        self.cell = cell
        self.registry = registry
        self.notes: list[str] = []
        self.sources = Sources(cell, named, self.sections, self.notes)

    def plan(self) -> Plan:
        objective: Objective[Any] = self.sections.create("objectives", self.cell.method)
        self.cell = cell = _with_backbone(self.cell, objective)
        self.notes += [f"method {objective.name}: {text}" for text in objective.describe().values()]
        task = self._task()
        protocol = self._protocol(task)
        source = self.mask_source(cell.masks) if cell.masks is not None else None
        self._check_masks(objective)
        self._check_pairs(source, task)
        data = self.sources.source(task.dataset, "task")
        below = data.inputs("data")
        asked, how = self.registry.spec("tasks", task), self.registry.spec("protocols", protocol)
        split = _only(asked, task.split_settings)
        folds = stage_of(
            FoldsSpec(task=split, dataset=data.spec), f"folds of {task.name}", inputs=below, roots=data.roots
        )
        audit = self._audit(task, split, data) if objective.trains else None
        pretrain, fit = self._pretrain(objective, source, audit)
        inputs = {"pretrain": pretrain, "folds": folds, **below}
        shaping = tuple(name for name in asked.settings if name not in task.score_settings)
        of_fold = {"task": _only(asked, shaping), "dataset": data.spec, "protocol": how, "seed": cell.seed}
        tests = {
            f"fold{fold}": self._test(task, fold, of_fold, inputs, data.roots) for fold in range(task.settings.folds)
        }
        name, tested = cell_title(cell), {"folds": folds, **tests, **below}
        score = stage_of(
            ScoreSpec(task=asked, dataset=data.spec, protocol=how),
            f"score {name}",
            inputs=tested | ({"audit": audit} if audit else {}),
            roots=data.roots,
            labels=cell_labels(cell, objective.trains),
        )
        seen_by = self.registry.spec("mask_sources", source) if source else None
        size = self.sections.core(CorpusSettings).size
        panel = stage_of(
            PanelSpec(task=asked, dataset=data.spec, masks=seen_by, size=size),
            f"pictures of {name}",
            inputs=tested | ({"fit": fit} if fit else {}),
            roots=data.roots,
        )
        keeps = self.sections.core(FinetuneSettings).keep == "networks"
        network = 4 * protocol.parameters(str(cell.backbone)) if keeps else 0
        self.sections.refuse_unread()
        return Plan(cell, score, panel, audit, tuple(self.notes), network * task.settings.folds)

    def mask_source(self, name: str) -> MaskSource[Any]:
        source: MaskSource[Any] = self.sections.create("mask_sources", name)
        self.notes += [f"masks {name}: {text}" for text in source.describe().values()]
        return source

    def masks(self, source: MaskSource[Any], corpus: Stage, audit: Stage | None = None) -> Stage:
        """Builds label maps of a corpus; rows that `audit` found are not fitted on."""
        inputs = {"corpus": corpus}
        if fit := self._fit(source, corpus, audit):
            inputs["fit"] = fit
        spec = MasksSpec(masks=self.registry.spec("mask_sources", source))
        return stage_of(spec, f"{source.name} masks of {corpus.title.removeprefix('pack ')}", inputs=inputs)

    def _task(self) -> Task[Any]:
        given, cls = self.sections.given.get("task", {}), self.registry.get("tasks", self.cell.task)
        how = self.registry.get("protocols", self.cell.protocol or cls.protocol).settings_class.model_fields
        if misplaced := [name for name in given if name in how and name not in cls.settings_class.model_fields]:
            raise SettingsError(
                f"--set task.{misplaced[0]} is a setting of how the encoder is used on the task; write --set "
                f"protocol.{misplaced[0]}"
            )
        task: Task[Any] = self.sections.create("tasks", self.cell.task)
        return task

    def _protocol(self, task: Task[Any]) -> Protocol[Any, Any]:
        protocol: Protocol[Any, Any] = self.sections.create("protocols", self.cell.protocol or task.protocol)
        if not isinstance(task, protocol.task_class):
            fitting = [
                name
                for name in self.registry.names("protocols")
                if isinstance(task, self.registry.get("protocols", name).task_class)
            ]
            raise SettingsError(
                f"protocol {protocol.name!r} cannot be used on task {task.name!r}; pass --protocol with one of "
                f"{', '.join(fitting)}, or leave it out"
            )
        return protocol

    def _test(
        self,
        task: Task[Any],
        fold: int,
        of_fold: Mapping[str, Any],
        inputs: Mapping[str, Stage],
        roots: Mapping[str, str],
    ) -> Stage:
        """Predicts one fold, with a network that is kept or, where predictions alone are kept, trained on the way."""
        number = f"{task.name}, fold {fold + 1} of {task.settings.folds}"
        predict = PredictSpec(**of_fold, fold=fold)
        if self.sections.core(FinetuneSettings).keep == "predictions":
            return stage_of(predict, f"fine-tune and predict {number}", inputs=inputs, roots=roots)
        finetune = stage_of(FinetuneSpec(**of_fold, fold=fold), f"fine-tune {number}", inputs=inputs, roots=roots)
        below = {role: stage for role, stage in inputs.items() if role != "pretrain"}
        return stage_of(predict, f"predict {number}", inputs={"finetune": finetune, **below}, roots=roots)

    def _audit(self, task: Task[Any], split: PluginSpec, data: Source) -> Stage:
        names = self.cell.corpus_names()
        if task.dataset in names and not self.sources.is_generated(task.dataset):
            raise LeakageError(
                f"corpus {'+'.join(names)!r} holds {task.dataset!r}, on which task {task.name!r} tests; "
                "pass another --corpus"
            )
        spec = AuditSpec(task=split, dataset=data.spec, overlap=self.sections.core(CorpusSettings).overlap)
        inputs = {"corpus": self.sources.corpus(names), **data.inputs("data")}
        return stage_of(spec, f"look for test images of {task.name} in the corpus", inputs=inputs, roots=data.roots)

    def _pretrain(
        self, objective: Objective[Any], source: MaskSource[Any] | None, audit: Stage | None
    ) -> tuple[Stage, Stage | None]:
        """The pre-training stage, and the fitting stage of the mask source."""
        cell = self.cell
        values = merge(objective.recipes.get(cell.preset, {}), self.sections.read("pretrain"))
        settings = resolve(PretrainSettings, "pretrain", cell.preset, values)
        backbone = str(cell.backbone)
        spec = PretrainSpec(
            objective=self.registry.spec("objectives", objective),
            backbone=backbone,
            init=objective.initialisation or settings.init,
            seed=cell.seed,
        )
        if spec.init == "imagenet":
            if backbone not in objective.imagenet:
                raise SettingsError(
                    f"{objective.name} with backbone {backbone!r} cannot start from ImageNet weights, which exist for "
                    f"{', '.join(objective.imagenet)}; pass one of these, or a random start (pretrain.init=random)"
                )
            digest = weights_identity(settings.weights, objective.imagenet[backbone])
            spec = spec.model_copy(update={"weights": digest, "weights_file": settings.weights})
        if not objective.trains:
            return stage_of(spec, f"{cell.method} encoder ({backbone})"), None
        protocol = settings.model_dump(mode="json", exclude={"init", "weights"})
        names = cell.corpus_names()
        if "labels" in objective.needs and not any(self.registry.get("datasets", name).classes for name in names):
            raise DataError(f"objective {objective.name!r} needs class labels; corpus {'+'.join(names)!r} has none")
        inputs = {"corpus": self.sources.corpus(names)}
        if audit is not None and audit.spec["overlap"] == "exclude":
            inputs["audit"] = audit
        fit = None
        if source is not None:
            inputs["masks"] = self.masks(source, inputs["corpus"], inputs.get("audit"))
            fit = inputs["masks"].inputs.get("fit")
        spec = spec.model_copy(update={"pretrain": protocol})
        return stage_of(spec, f"pre-train {cell.method} ({backbone})", inputs=inputs), fit

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
            inputs = {"pairs": self.sources.corpus(pairs)}
        else:
            inputs = {"pairs": corpus, **({"audit": audit} if audit else {})}
        spec = FitSpec(masks=self.registry.spec("mask_sources", source), seed=self.cell.seed)
        return stage_of(spec, f"fit {source.name}", inputs=inputs)

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
        if source is None or not source.learned or self.sources.is_generated(task.dataset):
            return
        if task.dataset in source.paired_corpora().split("+"):
            text = f"mask source {source.name!r} is fitted on {task.dataset!r}, on which task {task.name!r} tests"
            if self.sections.core(CorpusSettings).overlap != "allow":
                raise LeakageError(f"{text}; leave it out of masks.pairs, or say --set corpus.overlap=allow")
            self.notes.append(text)


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
