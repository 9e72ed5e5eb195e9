"""What each training loop does in each step: rates, decay, clipping, order, flips, progress, precision."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from anaus_bench.corpus.batch import Batch
from anaus_bench.corpus.packed import PackedCorpus, write_index
from anaus_bench.corpus.sampling import Draw, ImageSampler, Sampler
from anaus_bench.corpus.view import View
from anaus_bench.interfaces import Objective, StageContext, StageInputs
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.planning.specs import PretrainSpec
from anaus_bench.registry import Registry
from anaus_bench.settings.base import resolve
from anaus_bench.settings.core import PretrainSettings
from anaus_bench.stages import pretrain as pretrain_stage
from anaus_bench.training.batching import batch_indices
from anaus_bench.training.lars import LARS
from anaus_bench.training.pretraining import learning_rate, pretrain
from anaus_bench.training.schedules import warmup_cosine
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings
from anaus_plugins.mask_sources.lpsam.training import LineBatch, _Trainer, make_lines
from anaus_plugins.objectives.byol import BYOL, BYOLSettings
from anaus_plugins.protocols import finetune, maskrcnn
from anaus_plugins.protocols.maskrcnn.settings import MaskRCNNSettings

MakeContext = Callable[..., StageContext]


@dataclass(frozen=True)
class Step:
    """What an optimiser was about to do: its groups' rates and decays, and the norm of all gradients."""

    optimiser: torch.optim.Optimizer
    rates: list[float]
    decays: list[float]
    norm: float


@pytest.fixture
def steps() -> Iterator[list[Step]]:
    """Every step of every optimiser."""
    seen: list[Step] = []

    def record(optimiser: torch.optim.Optimizer, *_: object) -> None:
        groups = optimiser.param_groups
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm().item()
        seen.append(Step(optimiser, [g["lr"] for g in groups], [g["weight_decay"] for g in groups], norm))

    handle = register_optimizer_step_pre_hook(record)
    yield seen
    handle.remove()


# ---- pre-training ----------------------------------------------------------------------------------------------------


class Noting(Objective[BYOLSettings]):
    """A head on the mean of a view, beside an encoder that it leaves alone; notes what it is told."""

    name = "noting"
    settings_class = BYOLSettings

    def __init__(self) -> None:
        super().__init__(BYOLSettings())
        self.batches: list[Batch] = []
        self.told: dict[str, list[float]] = {name: [] for name in ("draw", "before", "factor", "after")}
        self.precisions: list[bool] = []

    def views(self, size: int) -> tuple[View, ...]:
        return (View(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),)

    def sampler(self, corpus: PackedCorpus, batch: int, seed: int) -> Sampler:
        sampler = ImageSampler(len(corpus), batch, seed)
        draw = sampler.draw

        def noted(step: int, progress: float) -> Draw:
            self.told["draw"].append(progress)
            return draw(step, progress)

        sampler.draw = noted  # type: ignore[method-assign]
        return sampler

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": encoder.requires_grad_(False), "head": nn.Linear(3, 2)})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(batch)
        features = batch.views[0].mean(dim=(2, 3))
        product = features @ nets["head"].weight.T  # type: ignore[operator,union-attr]
        self.precisions.append(product.dtype == torch.bfloat16)
        return 50 * (product.float() + nets["head"].bias).square().sum(), {}  # type: ignore[operator]

    def lr_factor(self, batch: Batch, progress: float) -> float:
        self.told["factor"].append(progress)
        return 1 + progress

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        self.told["before"].append(progress)

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        self.told["after"].append(progress)


def noted(ctx: StageContext, kept: Any = None, **values: Any) -> tuple[Noting, PretrainSettings]:
    """An objective after pre-training on a corpus of 12 images."""
    objective, corpus = Noting(), synthetic_corpus(12)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": 8, **values})
    rows = np.arange(12) if kept is None else np.array(kept)
    pretrain(objective, Encoder("resnet18"), corpus, None, rows, settings, ctx)
    return objective, settings


def test_pre_training_follows_its_schedules_and_tells_the_objective_its_progress(
    stage_context: MakeContext, steps: list[Step]
) -> None:
    values = {"optimiser": "sgd", "warmup_epochs": 1, "epochs": 4, "weight_decay": 0.1, "weight_decay_end": 0.3}

    objective, settings = noted(stage_context(), **values)

    progress = [number / 8 for number in range(8)]
    rate = learning_rate(settings, 8)
    expected = [rate(number) * (1 + number / 8) for number in range(8)]
    assert [step.rates for step in steps] == [[pytest.approx(value)] * 2 for value in expected]
    assert expected[0] < expected[1] < expected[2] > expected[6] > expected[7] > 0
    decays = [warmup_cosine(number, 8, 0, 0.1, 0.3) for number in range(8)]
    assert [step.decays for step in steps] == [[pytest.approx(value), 0.0] for value in decays]
    assert objective.told == {
        "draw": progress, "before": progress, "factor": progress, "after": [value + 1 / 8 for value in progress],
    }  # fmt: skip
    assert [batch.step for batch in objective.batches] == list(range(8))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lars", LARS), ("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimiser_is_the_one_asked_for(
    stage_context: MakeContext, steps: list[Step], name: str, kind: type[torch.optim.Optimizer]
) -> None:
    noted(stage_context(), optimiser=name, steps=1)

    assert type(steps[0].optimiser) is kind


def test_gradients_are_clipped_where_asked_for(stage_context: MakeContext, steps: list[Step]) -> None:
    noted(stage_context("free"))
    free = [step.norm for step in steps]
    steps.clear()

    noted(stage_context("clipped"), clip=0.5)

    assert min(free) > 1
    assert [step.norm for step in steps] == [pytest.approx(0.5, rel=1e-4)] * 8


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_bf16_is_used_when_asked_for(stage_context: MakeContext, precision: str) -> None:
    objective, _ = noted(stage_context(), precision=precision, steps=2)

    assert objective.precisions == [precision == "bf16"] * 2  # auto: on CUDA alone


@pytest.mark.parametrize("asked", [False, True])
def test_networks_are_compiled_when_asked_for(
    stage_context: MakeContext, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled.append(net))

    noted(stage_context(), compile=asked, steps=1)

    assert [type(net) for net in compiled] == ([Encoder, nn.Linear] if asked else [])


@pytest.mark.parametrize("last", [False, True])
def test_the_memory_format_is_the_one_asked_for(stage_context: MakeContext, last: bool) -> None:
    objective, corpus = Noting(), synthetic_corpus(12)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"channels_last": last})

    nets, _ = pretrain(objective, Encoder("resnet18"), corpus, None, np.arange(12), settings, stage_context())

    weight = nets["encoder"].backbone.layer1[0].conv1.weight  # type: ignore[union-attr,index]
    assert weight.is_contiguous(memory_format=torch.channels_last) == last


def test_batches_hold_the_kept_rows_alone_each_once_an_epoch_with_their_own_labels(stage_context: MakeContext) -> None:
    kept = [1, 2, 4, 5, 7, 8, 10, 11]

    objective, _ = noted(stage_context(), kept=kept)

    labels = synthetic_corpus(12).labels()
    drawn = [batch.indices[:, 0].tolist() for batch in objective.batches]
    epochs = [sorted(drawn[number] + drawn[number + 1]) for number in range(0, 8, 2)]
    assert epochs == [kept] * 4
    assert len({str(drawn[number] + drawn[number + 1]) for number in range(0, 8, 2)}) == 4
    assert [batch.labels.tolist() for batch in objective.batches] == [labels[rows].tolist() for rows in drawn]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_the_audit_excludes_and_what_the_share_leaves_out_is_never_trained_on(
    stage_context: MakeContext, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    ctx, corpus = stage_context(), synthetic_corpus(40)
    folders = {name: ctx.out.parent / name for name in ("corpus", "audit")}
    for folder in folders.values():
        folder.mkdir()
    np.save(folders["corpus"] / "images.npy", corpus.images)
    write_index(folders["corpus"], corpus.entries, corpus.structures, corpus.annotated, corpus.classes, corpus.phantom)
    audit = {"overlap": "exclude", "rows": [0, 1, 2, 3, 9], "images": 5, "share": 0.125, "groups": 5}
    audit |= {"examples": [], "clips": []}
    (folders["audit"] / "audit.json").write_text(json.dumps(audit))
    registry, seen = Registry(), set()

    def loss(self: BYOL, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.update(batch.indices[:, 0].tolist())
        return next(nets["encoder"].parameters()).sum() * 0, {}

    monkeypatch.setattr(registry.get("objectives", "byol"), "loss", loss)
    settings = resolve(PretrainSettings, "pretrain", "tiny", {"steps": 20})
    spec = PretrainSpec(
        objective=registry.spec("objectives", registry.create("objectives", "byol", "tiny")),
        backbone="resnet18",
        init="random",
        seed=0,
        share=share,
        pretrain=settings.model_dump(mode="json", exclude={"init", "weights"}),
    )

    result = pretrain_stage.run(spec, StageInputs(folders, {}), ctx, registry)

    clips = {corpus.entries[row].video_id for row in seen}
    assert not seen & {0, 1, 2, 3, 9}
    assert "v0" not in clips
    assert len(clips) == {0.5: 4, 1.0: 9}[share]  # nine clips of four frames are left, one of them of three
    assert result["images"] == {0.5: 16, 1.0: 35}[share] - (share == 0.5 and "v2" in clips)


# ---- Mask R-CNN ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """Images and targets of each step."""

    images: list[list[Tensor]] = field(default_factory=list)
    targets: list[list[Mapping[str, Tensor]]] = field(default_factory=list)


class Detector(nn.Module):
    """Stands for torchvision's: two losses of one weight, and what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = Seen()

    def forward(self, images: list[Tensor], targets: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        assert self.training
        self.seen.images.append(images)
        self.seen.targets.append(targets)
        return {"loss_classifier": 4 * self.weight, "loss_mask": 3 * self.weight}


def example(number: int) -> maskrcnn.Example:
    """An image whose left half is `number`, with an object there."""
    image, ids = torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.int32)
    image[:, :4], ids[:, :4] = number, 1
    return maskrcnn.Example(image, ids, torch.tensor([[0.0, 0.0, 4.0, 8.0]]))


def test_mask_r_cnn_follows_its_schedule_flips_and_shows_every_image_once_an_epoch(
    stage_context: MakeContext, steps: list[Step]
) -> None:
    settings = MaskRCNNSettings(epochs=4, batch_size=2, lr_step=2, warmup_epochs=1, gradient_clip=None)
    model = Detector()

    log = maskrcnn._train(model, [example(10 * number) for number in range(1, 7)], settings, stage_context())

    assert [step.rates for step in steps] == [[maskrcnn.learning_rate(settings, n / 3)] for n in range(12)]
    assert len({round(step.rates[0], 9) for step in steps}) == 5  # three of the warm-up, the base, and a decayed one
    assert {step.decays[0] for step in steps} == {settings.weight_decay}
    assert isinstance(steps[0].optimiser, torch.optim.SGD)
    assert [step.norm for step in steps] == [7.0] * 12  # the sum of all losses is what is trained
    assert log[0]["loss"] == pytest.approx(log[0]["loss_classifier"] + log[0]["loss_mask"])
    flipped = []
    for images, targets in zip(model.seen.images, model.seen.targets, strict=True):
        for image, target in zip(images, targets, strict=True):
            flipped.append(bool(image[0, 0, -1] > 0))
            assert target["boxes"].tolist() == [[4, 0, 8, 8] if flipped[-1] else [0, 0, 4, 8]]
            assert bool(target["masks"][0, 0, -1]) == flipped[-1]
    assert 6 <= sum(flipped) <= 18  # of 24
    shades = [round(image.max().item() * 255) for images in model.seen.images for image in images]
    shown = [sorted(shades[6 * epoch : 6 * epoch + 6]) for epoch in range(4)]
    assert shown == [[10, 20, 30, 40, 50, 60]] * 4


def test_mask_r_cnn_clips_and_does_not_flip_where_asked_not_to(stage_context: MakeContext, steps: list[Step]) -> None:
    settings = MaskRCNNSettings(epochs=1, batch_size=2, flip=0.0, gradient_clip=0.5)
    model = Detector()

    maskrcnn._train(model, [example(number) for number in range(1, 13)], settings, stage_context())

    assert [step.norm for step in steps] == [pytest.approx(0.5, rel=1e-4)] * 6
    assert not any(image[0, 0, -1] for images in model.seen.images for image in images)


# ---- classification --------------------------------------------------------------------------------------------------


class Means(nn.Module):
    """Stands for an encoder: the mean of each view as its only map; notes the views and whether it is in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.card = EncoderCard("means", 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "random", "random")
        self.views: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, views: Tensor, strides: tuple[int, ...]) -> dict[int, Tensor]:
        if torch.is_grad_enabled():
            self.views.append(views)
            self.modes.append(self.training)
        return {32: views.mean(dim=(2, 3), keepdim=True)}


def shades(count: int) -> finetune.LabelledImages:
    """Ramps from black at the left (N, 1, 64, 64); bright ones are of class 1."""
    images = torch.arange(64).expand(count, 1, 64, 64) * (2 + 2 * (torch.arange(count) % 2))[:, None, None, None]
    return finetune.LabelledImages(images.to(torch.uint8), torch.arange(count) % 2)


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_the_classifier_follows_its_schedule_and_augments(
    stage_context: MakeContext, steps: list[Step], bn_mode: str
) -> None:
    settings = resolve(
        finetune.FineTuningSettings,
        "task",
        "paper",
        {"epochs": 3, "batch_size": 4, "size": 64, "bn_mode": bn_mode, "select": "last"},
    )
    encoder = Means()
    network = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(3, 2)})
    ctx, train_set = stage_context(), shades(12)

    finetune._train(network, train_set, train_set, settings, ctx)

    rates = [finetune.cosine(settings.base_lr, number // 3, 3) for number in range(9)]
    assert [step.rates for step in steps] == [[rate] for rate in rates]
    assert len(set(rates)) == 3
    assert {step.decays[0] for step in steps} == {settings.weight_decay}
    assert isinstance(steps[0].optimiser, torch.optim.Adam)
    assert encoder.modes == [bn_mode == "train"] * 9
    views = torch.cat(encoder.views)[:, 0]
    mirrored = (views[:, :, 0] > views[:, :, -1]).all(dim=1)
    assert 9 <= mirrored.sum() <= 27  # of 36
    as_they_are = torch.cat([train_set.images[batch_indices(ctx.seed, n, 12, 4)] for n in range(9)])[:, 0] / 255
    cropped = [not torch.equal(view, image) for view, image in zip(views, as_they_are, strict=True)]
    assert sum(cropped) >= 30  # a draw that does not fit leaves the whole image


@pytest.mark.parametrize(("select", "accuracy"), [("val", 1.0), ("last", 0.0)])
def test_the_classifier_ends_with_the_weights_of_its_best_epoch_where_asked_to(
    stage_context: MakeContext, select: str, accuracy: float
) -> None:
    settings = resolve(
        finetune.FineTuningSettings,
        "task",
        "paper",
        {"epochs": 40, "batch_size": 6, "size": 64, "base_lr": 0.1, "select": select},
    )
    network = nn.ModuleDict({"encoder": Means(), "head": nn.Linear(3, 2)})
    with torch.no_grad():  # at first bright is class 1; training unlearns it
        network["head"].weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        network["head"].bias.copy_(torch.tensor([1.1, -1.1]))
    wrong = dataclasses.replace(shades(12), labels=1 - shades(12).labels)

    finetune._train(network, wrong, shades(12), settings, stage_context())

    found = finetune._probabilities(network, shades(12), settings).argmax(axis=1)
    assert (found == shades(12).labels.numpy()).mean() == accuracy


# ---- LP-SAM ----------------------------------------------------------------------------------------------------------


class Peaking:
    """Stands for a stage: training moves one weight step by step; within a window of it the validation is perfect."""

    label = "lpsam stage 1"
    augments = True
    window = (0.25, 0.45)

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.zeros(()))
        self.parameters = {"weight": self.weight}
        self.batches: list[LineBatch] = []
        self.offered: list[float] = []

    def begin(self) -> None:
        """Nothing to do."""

    def logits(self, batch: LineBatch, generator: torch.Generator) -> Tensor:
        low = batch.targets[:, ::2, ::2] * 2 - 1
        if torch.is_grad_enabled():
            self.batches.append(batch)
            return self.weight * low
        self.offered.append(self.weight.item())
        return low * (1 if self.window[0] < self.weight.item() < self.window[1] else -1)


def test_lp_sam_trains_on_augmented_lines_and_ends_with_its_best_epoch(
    stage_context: MakeContext, steps: list[Step]
) -> None:
    settings = resolve(LPSAMSettings, "masks", "tiny", {"steps": None, "epochs": (5, 5), "batch": (4, 4), "lr": 0.05})
    corpus, stage, ctx = synthetic_corpus(8), Peaking(), stage_context()
    lines = make_lines(corpus)

    _Trainer(LPSAMNetwork(settings, 2), stage, 0, corpus, settings, ctx).run(lines, lines[:4])  # type: ignore[arg-type]

    per_epoch = len(lines) // 4
    assert [step.rates for step in steps] == [[0.05]] * 5 * per_epoch
    assert len(stage.offered) == 5
    assert stage.offered[-1] > stage.window[1]
    (best,) = [value for value in stage.offered if stage.window[0] < value < stage.window[1]]
    assert stage.weight.item() == pytest.approx(best)
    epochs = [
        sorted(
            (index, structure)
            for batch in stage.batches[per_epoch * epoch : per_epoch * (epoch + 1)]
            for index, structure in zip(batch.indices.tolist(), batch.structures.tolist(), strict=True)
        )
        for epoch in range(5)
    ]
    assert epochs == [sorted((index, id_ - 1) for index, id_ in lines.tolist())] * 5
    first = [batch.images[batch.indices == 0] for batch in stage.batches if (batch.indices == 0).any()]
    assert not any(torch.equal(a[0], b[0]) for a, b in itertools.pairwise(first))
