"""Fine-tunes the top of an encoder and a linear classifier, and predicts class probabilities.

Adam at 0.01 for 30 epochs on the last three layers is the paper's; batch, weight decay, cosine decay and augmentation
are those of the scripts the protocol stems from (USCL, Meta-USCL).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Case, Fold, Protocol, StageContext
from anaus_bench.lazy import F, Image, nn, torch
from anaus_bench.nn.backbones import PARAMETERS
from anaus_bench.parallel import batches
from anaus_bench.rows import write_rows
from anaus_bench.settings.base import Settings
from anaus_bench.tasks.classification import ClassificationTask
from anaus_bench.tasks.probabilities import label_of, write_probabilities
from anaus_bench.training.batching import batch_indices, encoder_card, step_generator, steps_per_epoch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder

VALIDATION_SHARE = 0.1
PREDICTION_BATCH = 128


class FineTuningSettings(Settings):
    """Fine-tuning with a linear classifier on the global average of the last map."""

    trainable: Literal["linear", "last_block", "last_stage", "last3_stages", "all"] = Field(
        "last_block",
        description="what is trained beside the classifier; last_block: the last residual block, on a ResNet-18 with "
        "the classifier the paper's last three layers (USCL), or the last transformer block and final norm of a ViT, "
        "whose stages are quarters of its blocks",
    )
    bn_mode: Literal["train", "eval"] = Field(
        "train",
        description="mode of all BatchNorm layers in training; in train the statistics of frozen layers move (USCL)",
    )
    size: int = Field(224, ge=64, description="side of the square input, px; the aspect ratio is not kept (USCL)")
    base_lr: float = Field(
        0.01, gt=0, description="Adam learning rate, cosine to 0 (Sec. 4); lower it to train more layers"
    )
    weight_decay: float = Field(1e-4, ge=0, description="Adam weight decay (USCL)")
    epochs: int = Field(30, ge=1, description="passes over the training images (Sec. 4)")
    batch_size: int | None = Field(
        None,
        ge=2,
        description="images per step; none: 128, or 32 when a fold trains on fewer than 512 (Meta-USCL, USCL)",
    )
    select: Literal["last", "val", "test_best"] = Field(
        "last",
        description="epoch that is kept: the last, the most accurate on 10 % of the training groups held out, or on "
        "the test fold itself (USCL; optimistic, marked in the notes)",
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16 autocast on CUDA; a CPU always computes in fp32"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"batch_size": 32, "select": "test_best"},
        "demo": {"size": 96, "epochs": 10, "batch_size": 16, "base_lr": 0.001},
        "tiny": {"size": 64, "epochs": 2, "batch_size": 8},
    }


class FineTuning(Protocol[FineTuningSettings, ClassificationTask[Any]]):
    """Trains the top of the encoder with a linear classifier."""

    name = "finetune"
    task_class = ClassificationTask
    settings_class = FineTuningSettings
    reference = "Chen et al., USCL, MICCAI 2021, arXiv:2011.13066"

    def build(self, encoder: Encoder, classes: tuple[str, ...]) -> nn.Module:
        """The encoder, with gradients for its trainable part alone, and a linear head."""
        return build_classifier(encoder, len(classes), self.settings.trainable)

    def fit(self, network: nn.Module, fold: Fold, task: ClassificationTask[Any], ctx: StageContext) -> None:
        """Trains on `fold.train` and leaves the network at the selected epoch.

        Raises:
            LabelError: A case has no label, or one that is no class of the fold.
            TrainingError: The loss is not finite.
        """
        training, held_out = fold.train, fold.test if self.settings.select == "test_best" else ()
        if self.settings.select == "val":
            training, held_out = split_validation(fold.train, ctx.seed)
        train_set, held_out_set = (
            decode(cases, fold.classes, self.settings.size, ctx) for cases in (training, held_out)
        )
        log = _train(cast("nn.ModuleDict", network), train_set, held_out_set, self.settings, ctx)
        write_rows(ctx.out / "log.csv", log)

    def predict(self, network: nn.Module, fold: Fold, task: ClassificationTask[Any], ctx: StageContext) -> None:
        """Writes `predictions.csv`: class probabilities of each held-out image."""
        images = decode(fold.test, fold.classes, self.settings.size, ctx)
        write_probabilities(ctx.out, fold, _probabilities(cast("nn.ModuleDict", network), images, self.settings))

    def notes(self) -> list[str]:
        """Whether the test fold had a say."""
        optimistic = "the epoch was selected on the test fold: these values are optimistic"
        return [optimistic] if self.settings.select == "test_best" else []

    def parameters(self, backbone: str) -> int:
        """Those of the backbone; the head is small."""
        return PARAMETERS[backbone]


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, 1, S, S) uint8 and labels (N,) int64 on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def decode(cases: Sequence[Case], classes: Sequence[str], size: int, ctx: StageContext) -> LabelledImages:
    """All images resized to (size, size), on the device.

    Raises:
        LabelError: A case has no label, or one that is no class.
    """
    images = np.empty((len(cases), 1, size, size), dtype=np.uint8)
    with ctx.progress.track("decode", len(cases)) as tracker:
        for done, (case, packed) in enumerate(zip(cases, images, strict=True), start=1):
            resized = Image.fromarray(case.read().image).resize((size, size), Image.Resampling.BILINEAR)
            packed[0] = np.asarray(resized)
            tracker.advance(done, images=1, waited=0.0)
    labels = torch.tensor([label_of(case, classes) for case in cases], dtype=torch.int64)
    return LabelledImages(torch.from_numpy(images).to(ctx.device), labels.to(ctx.device))


def split_validation(cases: Sequence[Case], seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cases to train on and to validate with: 10 % of each class's groups, at least one where a class has two or more.

    A group belongs to the class of its first case.
    """
    groups: dict[int | None, dict[str, None]] = {}
    seen: set[str] = set()
    for case in cases:
        if case.sample.group_id not in seen:
            seen.add(case.sample.group_id)
            groups.setdefault(case.sample.label, {})[case.sample.group_id] = None
    generator = np.random.default_rng(seed)
    held_out: set[str] = set()
    for of_class in groups.values():
        count = math.ceil(VALIDATION_SHARE * len(of_class)) if len(of_class) > 1 else 0
        held_out.update(generator.permutation(sorted(of_class))[:count].tolist())
    return (
        tuple(case for case in cases if case.sample.group_id not in held_out),
        tuple(case for case in cases if case.sample.group_id in held_out),
    )


def build_classifier(encoder: Encoder, num_classes: int, trainable: str) -> nn.ModuleDict:
    """A copy of the encoder under `encoder`, with gradients for its `trainable` part alone, and a linear `head`."""
    encoder = copy.deepcopy(encoder)
    encoder.requires_grad_(False)
    for name, parameter in encoder.backbone.named_parameters():
        parameter.requires_grad_(name.startswith(trained_prefixes(encoder, trainable)))
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(encoder.feature_dim, num_classes)})


def trained_prefixes(encoder: Encoder, trainable: str) -> tuple[str, ...]:
    """First letters of the names of the backbone's parameters that are trained."""
    backbone = encoder.backbone
    return {
        "linear": (),
        "last_block": backbone.last_block,
        "last_stage": backbone.stages[-1],
        "last3_stages": sum(backbone.stages[-3:], ()),
        "all": ("",),
    }[trainable]


class BestEpoch:
    """The weights of the most accurate epoch so far; the first of equals wins."""

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.weights: dict[str, Tensor] = {}

    def offer(self, accuracy: float, network: nn.Module) -> None:
        """Keeps a copy of the weights if they are more accurate."""
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"accuracy": self.accuracy, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.accuracy, self.weights = state["accuracy"], state["weights"]


def _train(
    network: nn.ModuleDict,
    train_set: LabelledImages,
    held_out: LabelledImages,
    settings: FineTuningSettings,
    ctx: StageContext,
) -> list[dict[str, float]]:
    """Trains `network` in place, leaves it at the selected epoch, and returns the log."""
    from anaus_bench.corpus.draw import draw_crops
    from anaus_bench.corpus.pixels import normalise, resample
    from anaus_bench.training.loop import train

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, settings.base_lr, weight_decay=settings.weight_decay)
    batch_size = settings.batch_size or (32 if len(train_set) < 512 else 128)
    per_epoch = steps_per_epoch(len(train_set), batch_size)
    recipe = _recipe(network, settings)
    best = BestEpoch()

    def step(number: int) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = cosine(settings.base_lr, number // per_epoch, settings.epochs)
        chosen = batch_indices(ctx.seed, number, len(train_set), batch_size).to(ctx.device)
        boxes = torch.tensor([[0.0, 0.0, settings.size, settings.size]]).expand(len(chosen), 4)
        crop = draw_crops(recipe, boxes, step_generator(ctx.seed, number))
        source = train_set.images[chosen].float() / 255
        views = normalise(resample(source, crop, settings.size, recipe.interpolation), recipe)
        network["encoder"].train(settings.bn_mode == "train")
        logits, labels = _logits(network, views, settings), train_set.labels[chosen]
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if settings.select != "last" and (number + 1) % per_epoch == 0:
            correct = _probabilities(network, held_out, settings).argmax(axis=1) == held_out.labels.cpu().numpy()
            best.offer(float(correct.mean()), network)
        return {"loss": loss.detach(), "accuracy": (logits.detach().argmax(dim=1) == labels).float().mean()}

    log = train(
        ctx,
        label="classifier",
        steps=settings.epochs * per_epoch,
        step=step,
        stateful={"network": network, "optimizer": optimizer, "best": best},
        images_per_step=batch_size,
    )
    if settings.select != "last":
        network.load_state_dict(best.weights)
    return log


def cosine(base_lr: float, epoch: int, epochs: int) -> float:
    """Learning rate of an epoch, from `base_lr` along a half cosine towards 0 after the last."""
    return base_lr * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _recipe(network: nn.ModuleDict, settings: FineTuningSettings) -> View:
    """Random resized crop and flip (USCL), normalised as in pre-training."""
    from anaus_bench.corpus.view import View

    card = encoder_card(_encoder(network))
    return View(
        size=settings.size,
        crop_area=(0.8, 1.0),
        crop_ratio=(0.8, 1.25),
        interpolation="bilinear",
        flip=0.5,
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
        mean=cast("tuple[float, float, float]", card.mean),
        std=cast("tuple[float, float, float]", card.std),
    )


def _probabilities(network: nn.ModuleDict, data: LabelledImages, settings: FineTuningSettings) -> NDArray[np.float32]:
    """Softmax outputs (N, C) float32 of un-augmented images, with BatchNorm in eval mode."""
    from anaus_bench.corpus.pixels import normalise

    network["encoder"].eval()
    recipe = _recipe(network, settings)
    outputs = []
    with torch.no_grad():
        for part in batches(len(data), PREDICTION_BATCH):
            views = normalise(data.images[part].float() / 255, recipe)
            outputs.append(_logits(network, views, settings).softmax(dim=1).cpu())
    return torch.cat(outputs).numpy()


def _logits(network: nn.ModuleDict, views: Tensor, settings: FineTuningSettings) -> Tensor:
    """Logits (B, C) float32 of normalised views (B, 3, S, S)."""
    with torch.autocast(
        views.device.type, torch.bfloat16, enabled=settings.precision == "bf16" and views.device.type == "cuda"
    ):
        (last,) = _encoder(network)(views, (32,)).values()
    logits: Tensor = network["head"](last.float().mean(dim=(2, 3)))  # float32: close probabilities stay apart
    return logits


def _encoder(network: nn.ModuleDict) -> Encoder:
    return cast("Encoder", network["encoder"])


@hookimpl
def anaus_protocols() -> list[type[Protocol[Any, Any]]]:
    """The protocol of this module."""
    return [FineTuning]
