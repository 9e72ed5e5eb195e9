"""Classification: fine-tune the top of an encoder and a linear classifier on a fold, store probabilities, score them.

Recipe: Adam at 0.01 for 30 epochs on the last three layers is the paper's; batch, weight decay, cosine decay and
augmentation are those of the scripts the protocol stems from (USCL, Meta-USCL).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
from pydantic import Field

from anaus_bench.artifacts import damaged
from anaus_bench.errors import LabelError, StoreError
from anaus_bench.interfaces import Case, Fold, Metric, Scores, StageContext, Task
from anaus_bench.lazy import F, Image, nn, torch
from anaus_bench.metrics import classification as metrics
from anaus_bench.parallel import batches
from anaus_bench.rows import write_rows
from anaus_bench.settings.task import TaskSettings
from anaus_bench.tasks.predicted import read_predicted
from anaus_bench.training.batching import batch_indices, encoder_card, step_generator, steps_per_epoch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder

ACCURACY = Metric("accuracy", "Acc.")
MACRO_F1 = Metric("f1", "F1")

FILE_NAME = "predictions.csv"
VALIDATION_SHARE = 0.1
PREDICTION_BATCH = 128


class ClassificationSettings(TaskSettings):
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
        "demo": {"folds": 2, "size": 96, "epochs": 10, "batch_size": 16, "base_lr": 0.001},
        "tiny": {"folds": 2, "size": 64, "epochs": 2, "batch_size": 8},
    }


ClassificationSettingsT = TypeVar("ClassificationSettingsT", bound=ClassificationSettings)


class ClassificationTask(Task[ClassificationSettingsT]):
    """Fine-tunes a classifier on a fold and scores the probabilities of the held-out images."""

    settings_class: ClassVar[type[ClassificationSettings]] = ClassificationSettings
    reference = "Chen et al., USCL, MICCAI 2021, arXiv:2011.13066"

    def fit(self, encoder: Encoder, fold: Fold, ctx: StageContext) -> None:
        """Trains on `fold.train`; writes `predictions.csv` of `fold.test` and the training log `log.csv`.

        Raises:
            LabelError: A case has no label, or one that is no class of the fold.
            TrainingError: The loss is not finite.
        """
        settings = self.settings
        training, validation = fold.train, fold.test
        if settings.select == "val":
            training, validation = split_validation(fold.train, ctx.seed)
        train_set = decode(training, fold.classes, settings.size, ctx)
        test_set = decode(fold.test, fold.classes, settings.size, ctx)
        held_out = decode(validation, fold.classes, settings.size, ctx) if settings.select == "val" else test_set

        torch.manual_seed(ctx.seed)
        network = build_classifier(encoder, len(fold.classes), settings.trainable).to(ctx.device)
        log = _train(network, train_set, held_out, settings, ctx)
        write_rows(ctx.out / "log.csv", log)
        probabilities = _probabilities(network, test_set, settings)
        columns = [f"p_{name}" for name in fold.classes]
        rows = [
            {**_identity(case, fold), **dict(zip(columns, row, strict=True))}
            for case, row in zip(fold.test, probabilities.tolist(), strict=True)
        ]
        write_rows(ctx.out / FILE_NAME, rows)

    def score(self, folds: Sequence[tuple[Fold, Path]]) -> Scores:
        """Metrics per fold and over the images of all folds together; `*_group` from the mean probabilities of a group.

        Values per class are `recall_<class>`, `precision_<class>` and `f1_<class>`, nan where the class is absent.

        Raises:
            StoreError: A held-out image has no prediction.
        """
        classes = folds[0][0].classes
        rows: list[dict[str, Any]] = []
        tables: list[_Table] = []
        for fold, folder in folds:
            table = _read_table(folder / FILE_NAME, fold)
            tables.append(table)
            rows += table.rows(fold)
        together = _Table.joined(tables)
        pooled = together.scores(classes)
        pooled |= {f"{key}_group": value for key, value in together.by_group().scores(classes).items()}
        absent = sum(len(classes) - len(np.unique(table.truth)) for table in tables)
        return Scores(rows, [table.scores(classes) for table in tables], pooled, self._notes(together, classes, absent))

    def draw(self, case: Case, predictions: Path) -> tuple[None, None, str]:
        """No masks; the true class, and the predicted one with its probability."""
        path = predictions / FILE_NAME
        row = read_predicted(path).get(case.sample.sample_id)
        if row is None:
            raise _missing(path, case)
        probabilities = row.probabilities
        best = max(probabilities, key=probabilities.__getitem__)
        true = list(probabilities)[row.y_true]
        return None, None, f"{true}, predicted {best} ({probabilities[best]:.2f})"

    def _notes(self, table: _Table, classes: Sequence[str], absent: int) -> list[str]:
        confusion = metrics.confusion_matrix(table.truth, table.probabilities.argmax(axis=1), len(classes))
        notes = [
            f"{len(table.truth)} images; pooled: all folds' images together (sum of the confusion matrices)",
            "F1: mean of the classes' F1 over the classes present in the truth; ECE: 15 bins of the top probability",
            f"confusion matrix (rows true, columns predicted; {', '.join(classes)}): {confusion.tolist()}",
        ]
        if absent:
            notes.append(f"classes absent from held-out folds: {absent}; they are left out of those folds' means")
        if self.settings.select == "test_best":
            notes.append("the epoch was selected on the test fold: these values are optimistic")
        return notes


# ---- training --------------------------------------------------------------------------------------------------------


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
    labels = torch.tensor([_label(case, classes) for case in cases], dtype=torch.int64)
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
    settings: ClassificationSettings,
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


def _recipe(network: nn.ModuleDict, settings: ClassificationSettings) -> View:
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


def _probabilities(
    network: nn.ModuleDict, data: LabelledImages, settings: ClassificationSettings
) -> NDArray[np.float32]:
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


def _logits(network: nn.ModuleDict, views: Tensor, settings: ClassificationSettings) -> Tensor:
    """Logits (B, C) float32 of normalised views (B, 3, S, S)."""
    with torch.autocast(
        views.device.type, torch.bfloat16, enabled=settings.precision == "bf16" and views.device.type == "cuda"
    ):
        (last,) = _encoder(network)(views, (32,)).values()
    logits: Tensor = network["head"](last.float().mean(dim=(2, 3)))  # float32: close probabilities stay apart
    return logits


def _encoder(network: nn.ModuleDict) -> Encoder:
    return cast("Encoder", network["encoder"])


# ---- stored predictions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Predictions of a set of images (or groups): group ids (N,), truth (N,) int64, probabilities (N, C)."""

    groups: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def joined(cls, tables: Sequence[_Table]) -> _Table:
        return cls(
            tuple(group for table in tables for group in table.groups),
            np.concatenate([table.truth for table in tables]),
            np.concatenate([table.probabilities for table in tables]),
        )

    def by_group(self) -> _Table:
        """Mean probabilities of the images of one group and class (a patient may have lesions of two classes)."""
        units: dict[tuple[str, int], list[int]] = {}
        for index, key in enumerate(zip(self.groups, self.truth.tolist(), strict=True)):
            units.setdefault(key, []).append(index)
        return _Table(
            tuple(group for group, _ in units),
            np.array([truth for _, truth in units], dtype=np.int64),
            np.stack([self.probabilities[indices].mean(axis=0) for indices in units.values()]),
        )

    def scores(self, classes: Sequence[str]) -> dict[str, float]:
        values = metrics.classification_scores(self.truth, self.probabilities)
        confusion = metrics.confusion_matrix(self.truth, self.probabilities.argmax(axis=1), len(classes))
        for key, of_classes in metrics.per_class(confusion).items():
            values |= {f"{key}_{name}": value for name, value in zip(classes, of_classes.tolist(), strict=True)}
        return values

    def rows(self, fold: Fold) -> list[dict[str, Any]]:
        """One row per image of the fold; `accuracy` is 1 where the prediction is right."""
        columns = [f"p_{name}" for name in fold.classes]
        rows = []
        for case, probabilities in zip(fold.test, self.probabilities, strict=True):
            identity, predicted = _identity(case, fold), int(probabilities.argmax())
            rows.append(
                {
                    **identity,
                    "y_pred": predicted,
                    "accuracy": float(predicted == identity["y_true"]),
                    **dict(zip(columns, probabilities.tolist(), strict=True)),
                }
            )
        return rows


def _identity(case: Case, fold: Fold) -> dict[str, Any]:
    return {
        "image_id": case.sample.sample_id,
        "group_id": case.sample.group_id,
        "fold": fold.number,
        "y_true": _label(case, fold.classes),
    }


def _label(case: Case, classes: Sequence[str]) -> int:
    label = case.sample.label
    if label is None or not 0 <= label < len(classes):
        raise LabelError(
            f"{case.sample.sample_id} has label {label!r}; classification needs one of 0..{len(classes) - 1} "
            f"({', '.join(classes)})"
        )
    return label


def _read_table(path: Path, fold: Fold) -> _Table:
    """Predictions of the fold's held-out images, in their order."""
    by_image = read_predicted(path)
    probabilities = []
    for case in fold.test:
        row = by_image.get(case.sample.sample_id)
        if row is None:
            raise _missing(path, case)
        if row.probabilities.keys() != {*fold.classes}:
            raise damaged(path, f"its classes are {', '.join(row.probabilities)}, expected {', '.join(fold.classes)}")
        probabilities.append([row.probabilities[name] for name in fold.classes])
    truth = np.array([_label(case, fold.classes) for case in fold.test], dtype=np.int64)
    return _Table(tuple(case.sample.group_id for case in fold.test), truth, np.array(probabilities))


def _missing(path: Path, case: Case) -> StoreError:
    return StoreError(
        f"{path} holds no prediction of {case.sample.sample_id!r}; it was made from other data: run its stage again"
    )
