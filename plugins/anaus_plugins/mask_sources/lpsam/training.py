"""The two training stages of LP-SAM: adapters under random clicks, then the prompt engine that replaces the clicks.

One line of the training list is an image and one structure that its data set annotates (the paper counts such pairs).
Where the structure is absent from the (augmented) image the target is empty, and stage 1 clicks anywhere with label 0,
as in the authors' code: absence is learned too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from anaus_bench.corpus.packed import PackedCorpus
from anaus_bench.corpus.pixels import resample, resample_labels
from anaus_bench.corpus.view import Crop
from anaus_bench.errors import DataError
from anaus_bench.interfaces import StageContext
from anaus_bench.machine.parallel import batches
from anaus_bench.seeds import stream
from anaus_bench.training.loop import train
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings

# Lines (L, 2) int64: image, structure id from 1.
Lines = NDArray[np.int64]

BOX_JITTER = 0.1  # share of the box's side by which each edge may move (SAM, Sec. A)


def fit_network(net: LPSAMNetwork, pairs: PackedCorpus, settings: LPSAMSettings, ctx: StageContext) -> None:
    """Trains `net` in place; it ends with the parameters of each stage's best validation epoch.

    Raises:
        DataError: `pairs` has no masks, or too few groups to hold some out.
    """
    training, validation = split_lines(pairs, make_lines(pairs), settings.validation, ctx.seed)
    ctx.progress.note(f"lpsam: {len(training)} image-structure pairs to train on, {len(validation)} to validate")
    net.train().to(ctx.device)
    stages: tuple[ClickStage | LatentStage, ...] = (
        ClickStage(net, settings),
        LatentStage(net, settings, pairs, ctx),
    )
    for number, stage in enumerate(stages):
        _Trainer(net, stage, number, pairs, settings, ctx).run(training, validation)
    net.eval()


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineBatch:
    """Lines ready for the network.

    Attributes:
        images: (B, 1, S, S) float32 in [0, 1].
        targets: (B, S, S) float32, 1 = structure.
        structures: (B,) int64, class of each line from 0.
        indices: (B,) int64, image of each line in the corpus.
    """

    images: Tensor
    targets: Tensor
    structures: Tensor
    indices: Tensor


def make_lines(pairs: PackedCorpus) -> Lines:
    """One line per image and structure that its data set annotates; other structures are unknown, not absent."""
    names = sorted({entry.dataset for entry in pairs.entries})
    lines = [
        (index, id_) for index, entry in enumerate(pairs.entries) for id_ in pairs.annotated.get(entry.dataset, ())
    ]
    if pairs.truth is None or not lines:
        raise DataError(
            f"{'+'.join(names)}: no masks found, lpsam learns from images with masks; set masks.pairs to others"
        )
    return np.array(lines, dtype=np.int64)


def split_lines(pairs: PackedCorpus, lines: Lines, share: float, seed: int) -> tuple[Lines, Lines]:
    """Lines to train on and to validate on, by group: `share` of the groups of each data set that has two or more."""
    groups: dict[str, set[str]] = {}
    for index in np.unique(lines[:, 0]):
        entry = pairs.entries[index]
        groups.setdefault(entry.dataset, set()).add(entry.group_id)
    generator = np.random.default_rng(stream(seed, "validation"))
    held_out: set[tuple[str, str]] = set()
    for dataset in sorted(groups):
        order = generator.permutation(sorted(groups[dataset]))
        count = min(max(1, round(share * len(order))), len(order) - 1)
        held_out |= {(dataset, str(group)) for group in order[:count]}
    if not held_out:
        raise DataError(
            f"{'+'.join(sorted(groups))}: all images are of one group, lpsam holds one out to choose the best epoch; "
            "add images of another patient to masks.pairs"
        )
    entries = [pairs.entries[index] for index in lines[:, 0]]
    validates = np.array([(entry.dataset, entry.group_id) in held_out for entry in entries])
    return lines[~validates], lines[validates]


def read_lines(pairs: PackedCorpus, lines: Lines, settings: LPSAMSettings, device: torch.device) -> LineBatch:
    """Lines at the network's side: images antialiased, targets by nearest neighbour."""
    assert pairs.truth is not None
    side = settings.size.side
    truth = torch.from_numpy(pairs.truth[lines[:, 0]]).to(device)
    ids = torch.from_numpy(lines[:, 1]).to(device)
    targets = (truth == ids[:, None, None]).to(torch.uint8)
    if settings.aspect == "stretched":
        targets = resample_labels(targets, _cut(torch.from_numpy(pairs.boxes()[lines[:, 0]])), side).float()
    else:
        targets = F.interpolate(targets[:, None].float(), size=(side, side), mode="nearest-exact")[:, 0]
    return LineBatch(
        images=read_images(pairs, lines[:, 0], settings, device),
        targets=targets,
        structures=ids - 1,
        indices=torch.from_numpy(lines[:, 0]).to(device),
    )


def read_images(
    pairs: PackedCorpus, rows: NDArray[np.int64] | slice, settings: LPSAMSettings, device: torch.device
) -> Tensor:
    """Images of the corpus at the network's side: (B, 1, side, side) float32 in [0, 1]."""
    images = torch.tensor(pairs.images[rows]).to(device)[:, None]
    boxes = torch.from_numpy(pairs.boxes()[rows]) if settings.aspect == "stretched" else None
    return to_side(images, settings.size.side, boxes)


def to_side(images: Tensor, side: int, boxes: Tensor | None = None) -> Tensor:
    """(B, 1, H, W) uint8 -> (B, 1, side, side) float32 in [0, 1]; of square images the boxes (B, 4) alone, if given."""
    scaled = images.float() / 255
    if boxes is not None:
        return resample(scaled, _cut(boxes), side, "bilinear")
    if images.shape[-2:] == (side, side):
        return scaled
    return F.interpolate(scaled, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def _cut(boxes: Tensor) -> Crop:
    """Boxes (B, 4) (top, left, height, width) as crops."""
    return Crop(boxes.float().cpu(), torch.zeros(len(boxes), dtype=torch.bool))


def augment(batch: LineBatch, generator: torch.Generator) -> LineBatch:
    """Gamma, rotation, scale with crop, and contrast, each with probability 0.5 (the authors' ranges).

    One affine resampling per image (bilinear) and target (nearest), zeros outside; drawn on the CPU from `generator`.
    """
    images, device = batch.images, batch.images.device
    gamma, grid, contrast = (tensor.to(device) for tensor in _augmentation(len(images), images.shape[-1], generator))
    images = images ** (1 / gamma.view(-1, 1, 1, 1))
    images = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    targets = F.grid_sample(batch.targets[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + contrast.view(-1, 1, 1, 1) * (images - mean)).clamp(0, 1)
    return LineBatch(images, targets, batch.structures, batch.indices)


def _augmentation(count: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gamma (B,), sampling grid (B, side, side, 2) and contrast factor (B,); identity where not applied."""

    def sometimes(low: float, high: float, otherwise: float) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, generator=generator)
        return torch.where(torch.rand(count, generator=generator) < 0.5, drawn, otherwise)

    gamma = sometimes(1.0, 2.4, 1.0)
    angle = torch.deg2rad(sometimes(-30.0, 30.0, 0.0))
    zoom = sometimes(1.0, 1.3, 1.0)
    offset = (1 - 1 / zoom)[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=1).view(count, 2, 2)
    # The crop is cut from the rotated image: p -> R (p / zoom + offset).
    theta = torch.cat([rotation / zoom.view(-1, 1, 1), rotation @ offset[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
    return gamma, grid, sometimes(0.8, 2.0, 1.0)


# ---- prompts of stage 1 ----------------------------------------------------------------------------------------------


def random_clicks(targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One click per target (B, S, S): points (B, 1, 2) as (x, y) in pixels, labels (B, 1).

    Uniform in the structure with label 1; where the target is empty, uniform in the image with label 0.
    """
    count, _, width = targets.shape
    flat = targets.flatten(1)
    noise = torch.rand(flat.shape, generator=generator).to(targets.device)
    chosen = (flat + noise).argmax(dim=1)  # pixels of the structure have 1 <= score
    points = torch.stack([chosen % width, chosen // width], dim=1).float()
    labels = flat.any(dim=1).long()
    return points.view(count, 1, 2), labels.view(count, 1)


def jittered_boxes(targets: Tensor, generator: torch.Generator) -> Tensor:
    """Boxes (B, 4) as (x1, y1, x2, y2) in pixels, each edge moved by up to `BOX_JITTER` of the side; zeros if empty."""
    edges = []
    for dim in (1, 2):  # what is left after the reduction: x, then y
        inside = targets.amax(dim=dim)  # (B, S)
        side = inside.shape[1]
        first, last = inside.argmax(dim=1), side - 1 - inside.flip(1).argmax(dim=1)
        noise = (2 * torch.rand(2, len(targets), generator=generator) - 1).to(targets.device)
        length = (last - first + 1) * BOX_JITTER
        edges.append(((first + noise[0] * length).clamp(0, side - 1), (last + noise[1] * length).clamp(0, side - 1)))
    (left, right), (top, bottom) = edges
    boxes = torch.stack([left, top, right, bottom], dim=1)
    return boxes * targets.flatten(1).any(dim=1)[:, None]


# ---- loss ------------------------------------------------------------------------------------------------------------


def dice_loss(logits: Tensor, targets: Tensor, over: tuple[int, ...]) -> Tensor:
    """1 - Dice of probabilities (B, H, W) with squared denominators, sums over the dimensions `over`, then the mean."""
    smooth = 1e-5
    probabilities = logits.sigmoid()
    shared = (probabilities * targets).sum(over)
    total = probabilities.square().sum(over) + targets.square().sum(over)
    return (1 - (2 * shared + smooth) / (total + smooth)).mean()


def mask_loss(logits: Tensor, targets: Tensor, settings: LPSAMSettings) -> Tensor:
    """(1 - alpha) BCE + alpha Dice of low-resolution logits (B, h, w) and full targets (B, S, S), in float32."""
    logits = logits.float()
    targets = F.interpolate(targets[:, None], size=logits.shape[-2:], mode="nearest-exact")[:, 0]
    bce = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=logits.new_tensor(settings.pos_weight))
    over = (1, 2) if settings.dice == "image" else (0, 1, 2)
    return (1 - settings.alpha) * bce + settings.alpha * dice_loss(logits, targets, over)


def hard_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice (B,) of the pixels above probability 0.5 with nearest-resized targets; nan where the target is empty."""
    targets = F.interpolate(targets[:, None], size=logits.shape[-2:], mode="nearest-exact")[:, 0] > 0
    predicted = logits > 0
    total = predicted.sum((1, 2)) + targets.sum((1, 2))
    return torch.where(targets.any(-1).any(-1), 2 * (predicted & targets).sum((1, 2)) / total, torch.nan)


# ---- stages ----------------------------------------------------------------------------------------------------------


class ClickStage:
    """Stage 1: the mask of a clicked structure; trains the adapters (or all of SAM). No prompt engine."""

    label = "lpsam stage 1"

    def __init__(self, net: LPSAMNetwork, settings: LPSAMSettings) -> None:
        self.net = net
        self.box_prompt = settings.box_prompt
        self.augments = settings.augment
        self.parameters: dict[str, nn.Parameter] = (
            {name: value for name, value in net.named_parameters() if not name.startswith("prompt_engine.")}
            if settings.stage1 == "all"
            else net.image_encoder.adapter_parameters()
        )

    def begin(self) -> None:
        """Called when the parameters of the stage before are final."""

    def logits(self, batch: LineBatch, generator: torch.Generator) -> Tensor:
        """(B, S/2, S/2)."""
        prompts = self._prompts(batch.targets, generator)
        return self.net.decode(self.net.image_encoder(batch.images), prompts)[0]

    def _prompts(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Click and padding (B, 2, dim), or click and box corners, padded where no box is given (B, 3, dim)."""
        with torch.autocast(targets.device.type, enabled=False):
            return self._float_prompts(targets, generator)

    def _float_prompts(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        encoder = self.net.prompt_encoder
        clicks: Tensor = encoder(points=random_clicks(targets, generator), boxes=None, masks=None)[0]
        if self.box_prompt == 0:
            return clicks
        corners = encoder(points=None, boxes=jittered_boxes(targets, generator), masks=None)[0]
        drawn = (torch.rand(len(targets), generator=generator) < self.box_prompt).to(targets.device)
        given = (drawn & targets.flatten(1).any(dim=1)).view(-1, 1, 1)
        return torch.cat([clicks[:, :1], torch.where(given, corners, clicks[:, 1:])], dim=1)


class LatentStage:
    """Stage 2: the mask of a structure without a prompt; trains the prompt engine (and the mask decoder)."""

    label = "lpsam stage 2"

    def __init__(self, net: LPSAMNetwork, settings: LPSAMSettings, pairs: PackedCorpus, ctx: StageContext) -> None:
        self.net = net
        self.settings = settings
        self.pairs = pairs
        self.ctx = ctx
        self.augments = settings.augment and not settings.cache_features
        self.cache: Tensor | None = None
        trained = ("prompt_engine.", "mask_decoder.") if settings.train_mask_decoder else ("prompt_engine.",)
        self.parameters = {name: value for name, value in net.named_parameters() if name.startswith(trained)}

    def begin(self) -> None:
        """Computes the features to be cached: (N, dim, S/8, S/8) float16."""
        if not self.settings.cache_features:
            return
        device = self.ctx.device
        shape = (len(self.pairs), self.settings.size.prompt_dim, self.settings.size.grid, self.settings.size.grid)
        self.cache = torch.empty(shape, dtype=torch.float16, device=device)
        self.ctx.progress.note(f"lpsam stage 2: caching {self.cache.nbytes / 1e9:.2f} GB of image features")
        with torch.no_grad():
            for part in batches(len(self.pairs), self.settings.batch[1]):
                images = read_images(self.pairs, part, self.settings, device)
                with autocast(device, self.settings.precision):
                    self.cache[part] = self.net.image_encoder(images).half()

    def logits(self, batch: LineBatch, generator: torch.Generator) -> Tensor:
        """(B, S/2, S/2): with a token per class, only that of each line's class is decoded and trained."""
        embedding = self._embedding(batch)
        prompts = self.net.latent_prompts(batch.images, embedding)  # (B, K, T, dim)
        lines = torch.arange(len(prompts), device=prompts.device)
        chosen = batch.structures if self.net.per_class else torch.zeros_like(batch.structures)
        return self.net.decode(embedding, prompts[lines, chosen])[0]

    def _embedding(self, batch: LineBatch) -> Tensor:
        if self.cache is not None:
            return self.cache[batch.indices].float()
        with torch.no_grad():
            embedding: Tensor = self.net.image_encoder(batch.images)
            return embedding


class Selection:
    """The trained parameters and, beside them, those of the best validation so far; what a checkpoint keeps."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.dice = torch.tensor(-1.0)
        self.best = self._copy()

    def offer(self, dice: Tensor) -> None:
        """Keeps the present parameters unless `dice` was higher before: of equals, those trained longest."""
        if dice >= self.dice:
            self.dice, self.best = dice, self._copy()

    def restore(self) -> None:
        """Puts the best parameters back."""
        self._put(self.best)

    def state_dict(self) -> dict[str, Any]:
        """Present parameters, best ones, and their Dice."""
        return {"parameters": self._copy(), "best": self.best, "dice": self.dice}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._put(state_dict["parameters"])
        self.best, self.dice = state_dict["best"], state_dict["dice"].cpu()

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(values[name])


class _Trainer:
    """One stage: steps over shuffled lines, a validation after each epoch, the best parameters at the end."""

    def __init__(
        self,
        net: LPSAMNetwork,
        stage: ClickStage | LatentStage,
        number: int,
        pairs: PackedCorpus,
        settings: LPSAMSettings,
        ctx: StageContext,
    ) -> None:
        self.net, self.stage, self.pairs, self.settings, self.ctx = net, stage, pairs, settings, ctx
        self.batch = settings.batch[number]
        self.epochs = settings.epochs[number]
        self.steps = settings.steps[number] if settings.steps is not None else None
        self.seed = stream(ctx.seed, stage.label)

    def run(self, training: Lines, validation: Lines) -> None:
        """Trains the stage's parameters; all others are frozen."""
        self.net.requires_grad_(False)
        for parameter in self.stage.parameters.values():
            parameter.requires_grad_(True)
        self.stage.begin()
        batch = min(self.batch, len(training))
        per_epoch = len(training) // batch
        steps = self.steps or self.epochs * per_epoch
        optimiser = torch.optim.Adam(self.stage.parameters.values(), lr=self.settings.lr)
        selection = Selection(self.stage.parameters)

        @functools.lru_cache(maxsize=1)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.default_rng(stream(self.seed, "order", epoch)).permutation(len(training))

        def batch_of(number: int) -> tuple[LineBatch, torch.Generator]:
            """What a step is given, and the generator of its clicks."""
            epoch, position = divmod(number, per_epoch)
            lines = self._read(training[order(epoch)[position * batch : (position + 1) * batch]])
            generator = torch.Generator().manual_seed(stream(self.seed, "augmentation and clicks", number))
            return augment(lines, generator) if self.stage.augments else lines, generator

        def step(number: int) -> dict[str, Tensor]:
            loss = self._loss(*batch_of(number))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if (number + 1) % per_epoch == 0 or number == steps - 1:
                selection.offer(self._validate(validation))
            return {"loss": loss.detach(), "best_dice": selection.dice.clamp(min=0)}

        train(
            self.ctx,
            label=self.stage.label,
            steps=steps,
            step=step,
            stateful={"selection": selection, "optimiser": optimiser},
            images_per_step=batch,
            batch=lambda number: vars(batch_of(number)[0]),
        )
        selection.restore()
        self.ctx.progress.note(f"{self.stage.label}: best validation Dice {selection.dice.item():.3f}")

    def _loss(self, batch: LineBatch, generator: torch.Generator) -> Tensor:
        with autocast(self.ctx.device, self.settings.precision):
            logits = self.stage.logits(batch, generator)
        return mask_loss(logits, batch.targets, self.settings)

    @torch.no_grad()
    def _validate(self, lines: Lines) -> Tensor:
        """Mean hard Dice of the structures that are there, 0 if none is; the clicks are the same every time."""
        return torch.cat(list(self._dices(lines))).nanmean().nan_to_num(0.0).cpu()

    def _dices(self, lines: Lines) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(stream(self.seed, "clicks of the validation"))
        for part in batches(len(lines), self.batch):
            batch = self._read(lines[part])
            with autocast(self.ctx.device, self.settings.precision):
                logits = self.stage.logits(batch, generator)
            yield hard_dice(logits, batch.targets)

    def _read(self, lines: Lines) -> LineBatch:
        return read_lines(self.pairs, lines, self.settings, self.ctx.device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where asked for; `auto` asks for it on CUDA."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
