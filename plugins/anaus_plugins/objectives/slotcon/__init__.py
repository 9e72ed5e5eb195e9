"""SlotCon (Wen et al. 2022, arXiv:2205.15288): pixels are grouped by prototypes, and the groups contrasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pydantic

from anaus_bench.errors import SettingsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.distillation import CentredTargets
    from anaus_bench.nn.encoder import Encoder

STRIDE = 32
MIN_CELLS = 0.5  # of a stored region in a view, to be there
FOLLOWED = ("encoder", "projector", "prototypes")  # what the target network follows
DIRECTIONS = ((0, 1), (1, 0))


class SlotConSettings(Settings):
    """Defaults are the paper's (Sec. 4.1) but for the number of prototypes.

    With stored masks, the regions of a label map take the place of the prototypes' groups.
    """

    stored_masks: Literal["hard", "guided"] = pydantic.Field(
        "hard",
        description="What masks replace, where there are any. hard: prototypes, grouping loss and all, only slots are "
        "contrasted; guided: the groups that are pooled into slots, while prototypes and their loss stay",
    )
    num_prototypes: int = pydantic.Field(
        64,
        ge=2,
        description="K, shared by all images; the paper's 256 for COCO are far more than ultrasound structures",
    )
    hidden_dim: int = pydantic.Field(4096, ge=1, description="Hidden width of the three-layer heads")
    projection_dim: int = pydantic.Field(256, ge=1, description="Width of projections, prototypes and slots")
    online_temperature: float = pydantic.Field(0.1, gt=0, description="tau_s of the grouping loss (Sec. 3.1)")
    target_temperature: float = pydantic.Field(
        0.07, gt=0, description="tau_t of the grouping loss (Sec. 3.1), and of both networks' attention (Sec. 3.2)"
    )
    temperature: float = pydantic.Field(0.2, gt=0, description="tau_c of the slot contrast (Sec. 3.2)")
    lambda_group: float = pydantic.Field(
        0.5, ge=0, le=1, description="Weight of the grouping loss; that of the slot contrast is 1 less this"
    )
    centre_momentum: float = pydantic.Field(
        0.9, ge=0, lt=1, description="Of the target scores' running mean (Sec. 3.1)"
    )
    min_overlap: float = pydantic.Field(
        0.01,
        gt=0,
        le=1,
        description="Least share of the second crop that the first must overlap, else the image is left out of the "
        "grouping loss",
    )
    redraw: bool = pydantic.Field(
        False,
        description="Draw a second crop again, up to ten times in all, that the first overlaps less than that (the "
        "authors' code); off, so that all methods see crops of one distribution",
    )
    base_momentum: float = pydantic.Field(
        0.99, ge=0, le=1, description="Momentum of the target network, raised to 1 along a half cosine"
    )
    crop_area: CropArea = pydantic.Field((0.08, 1.0), description="Range of a crop's share of the image")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {"num_prototypes": 256, "redraw": True},
        "demo": {"num_prototypes": 16, "hidden_dim": 512, "projection_dim": 128},
        "tiny": {"num_prototypes": 4, "hidden_dim": 32, "projection_dim": 16},
    }


@dataclass(frozen=True)
class Slots:
    """What one network finds in one view: vectors (B, K, D) float32, and which of them exist, (B, K) bool."""

    vectors: Tensor
    valid: Tensor


class SlotCon(Objective[SlotConSettings]):
    """Pixels grouped by prototypes or masks, and the groups contrasted.

    Networks: `encoder`, `projector`, `prototypes`, each with a `target_` twin; `predictor`; `targets`, the centre.

    With hard masks `prototypes` and `targets` are not used.
    """

    name = "slotcon"
    settings_class = SlotConSettings
    reference = (
        "Wen et al., Self-supervised visual representation learning with semantic grouping, NeurIPS 2022, "
        "arXiv:2205.15288"
    )
    makes_own_groups: ClassVar[bool] = True
    masks_become: ClassVar[str] = (
        "the groups: in place of prototypes and grouping loss (objective.stored_masks=hard), or beside them (guided); "
        "without masks, prototypes group the cells"
    )
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "batch": 512,
            "epochs": 800,
            "base_lr": 1.0,
            "lr_end": 5e-7,  # 1e-6 at a peak of 2
            "weight_decay": 1e-5,
            "warmup_epochs": 5,
            "init": "random",
        }
    }

    def views(self, size: int) -> tuple[View, ...]:
        """BYOL's two recipes.

        Raises:
            SettingsError: The cells of the masks would not divide the view.
        """
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        if size % STRIDE:
            raise SettingsError(f"view size {size} is no multiple of {STRIDE}, the stride of the groups; change it")
        area, overlap = self.settings.crop_area, self.settings.min_overlap if self.settings.redraw else 0.0
        first = View(size, area, (Jitter(), Blur()))
        return first, View(size, area, (Jitter(), Blur(0.1), Solarise(0.2)), overlap=overlap)

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Online and target networks; prototypes start from a standard normal."""
        from anaus_bench.nn.distillation import CentredTargets
        from anaus_bench.nn.momentum import frozen_copy
        from anaus_plugins.objectives.slotcon.slots import dense_head, slot_head

        settings = self.settings
        online = {
            "encoder": encoder,
            "projector": dense_head(encoder.feature_dim, settings.hidden_dim, settings.projection_dim),
            "prototypes": nn.Embedding(settings.num_prototypes, settings.projection_dim),
        }
        target = {f"target_{name}": frozen_copy(online[name]) for name in FOLLOWED}
        predictor = slot_head(settings.projection_dim, settings.hidden_dim)
        targets = CentredTargets(settings.num_prototypes, settings.target_temperature, settings.centre_momentum)
        return nn.ModuleDict({**online, "predictor": predictor, **target, "targets": targets})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Grouping loss (not with hard masks) and slot contrast, weighted; each the sum of both directions."""
        from anaus_bench.nn.pooling import embedding_spread
        from anaus_plugins.objectives.slotcon.slots import slot_contrast

        settings = self.settings
        online = [self._project(nets, view) for view in batch.views]  # (B, D, h, w)
        with torch.no_grad():
            target = [self._project(nets, view, "target_") for view in batch.views]
        logs: dict[str, Tensor] = {}
        grouping = torch.zeros((), device=online[0].device)
        if not batch.label_maps or settings.stored_masks == "guided":
            scores = [self._scores(nets, projections) for projections in online]
            with torch.no_grad():
                target_scores = [self._scores(nets, projections, "target_") for projections in target]
            grouping = self._grouping(nets, batch, scores, target_scores)
            logs["grouping"] = grouping
            logs["assignment_entropy"] = self._entropy(target_scores)
        if batch.label_maps:
            masks = self._masks(batch, online[0].shape[-1])
            online_slots, target_slots = self._mask_slots(online, masks), self._mask_slots(target, masks)
        else:
            online_slots = self._prototype_slots(online, scores)
            target_slots = self._prototype_slots(target, target_scores)

        contrasts, anchors = [], []
        for view, other in DIRECTIONS:
            own, keys = online_slots[view], target_slots[other]
            anchors.append(own.valid & keys.valid)
            contrasts.append(
                slot_contrast(
                    nets["predictor"], own.vectors, keys.vectors, anchors[-1], keys.valid, settings.temperature
                )
            )
        logs["contrast"] = torch.stack(contrasts).sum()
        loss = settings.lambda_group * grouping + (1 - settings.lambda_group) * logs["contrast"]
        logs["anchors"] = torch.stack(anchors).float().sum(dim=2).mean()
        logs["groups"] = torch.stack([slots.valid for slots in target_slots]).float().sum(dim=2).mean()
        logs["projection_std"] = embedding_spread(target[0].flatten(2).transpose(1, 2))
        return loss, {name: value.detach() for name, value in logs.items()}

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves the target network towards the online one, before the target's forward as in the authors' code."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        momentum = momentum_schedule(self.settings.base_momentum, progress)
        for name in FOLLOWED:
            momentum_update(nets[f"target_{name}"], nets[name], momentum)

    def _project(self, nets: nn.ModuleDict, images: Tensor, network: str = "") -> Tensor:
        """Dense projections (B, D, h, w) float32."""
        maps = nets[f"{network}encoder"](images, (STRIDE,))[STRIDE]
        projections: Tensor = nets[f"{network}projector"](maps)
        return projections.float()

    def _scores(self, nets: nn.ModuleDict, projections: Tensor, network: str = "") -> Tensor:
        from anaus_plugins.objectives.slotcon.slots import prototype_scores

        return prototype_scores(projections, cast("nn.Embedding", nets[f"{network}prototypes"]).weight)

    def _grouping(
        self, nets: nn.ModuleDict, batch: Batch, online: Sequence[Tensor], target: Sequence[Tensor]
    ) -> Tensor:
        """L_group over the pixels that both crops show, in both directions; then moves the centre."""
        from anaus_bench.corpus.draw import overlap_box
        from anaus_plugins.objectives.slotcon.alignment import align
        from anaus_plugins.objectives.slotcon.slots import grouping_loss

        settings, crops = self.settings, batch.crops
        targets = cast("CentredTargets", nets["targets"])
        box = overlap_box(*crops)
        least = settings.min_overlap * crops[1].box[:, 2:].prod(dim=1)
        usable = (box[:, 2:] > 0).all(dim=1) & (box[:, 2:].prod(dim=1) >= least)
        # Without an overlap each view is aligned to itself, with weight 0, so that shapes do not depend on the draw.
        boxes = [torch.where(usable[:, None], box, crop.box) for crop in crops]
        weights = usable.to(online[0].device, torch.float32, non_blocking=True)
        losses = [
            grouping_loss(
                align(online[view], crops[view], boxes[view]),
                targets(align(target[other], crops[other], boxes[other]).movedim(1, -1)),
                weights,
                settings.online_temperature,
            )
            for view, other in DIRECTIONS
        ]
        targets.update(torch.cat(list(target)).movedim(1, -1))
        return torch.stack(losses).sum()

    def _prototype_slots(self, projections: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Slots]:
        """Slots of each view; one exists if its prototype wins a cell of the view."""
        from anaus_plugins.objectives.slotcon.slots import prototype_slots, wins_a_cell

        temperature = self.settings.target_temperature
        return [
            Slots(prototype_slots(rows, view, temperature), wins_a_cell(view))
            for rows, view in zip(projections, scores, strict=True)
        ]

    def _masks(self, batch: Batch, side: int) -> list[Tensor]:
        """Share of each cell that each id covers, (B, 256, side, side) of each view."""
        from anaus_bench.nn.pooling import NUM_IDS, soft_masks

        ids = torch.arange(NUM_IDS, device=batch.source.device).expand(len(batch.source), -1)
        return [soft_masks(label_map, ids, (side,))[side] for label_map in batch.label_maps]

    def _mask_slots(self, projections: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Slots]:
        """Slots of each view's regions; one exists if it covers half a cell in all, or most of any."""
        from anaus_bench.nn.pooling import mask_pool
        from anaus_plugins.objectives.slotcon.slots import wins_a_cell

        with torch.autocast(projections[0].device.type, enabled=False):
            return [
                Slots(mask_pool(rows, areas), (areas.sum(dim=(2, 3)) >= MIN_CELLS) | wins_a_cell(areas))
                for rows, areas in zip(projections, masks, strict=True)
            ]

    def _entropy(self, scores: Sequence[Tensor]) -> Tensor:
        """Entropy in nats of the mean assignment of all cells, at most ln K; near 0 is collapse onto one prototype."""
        shares = (torch.cat(list(scores)) / self.settings.target_temperature).softmax(dim=1).mean(dim=(0, 2, 3))
        entropy: Tensor = torch.special.entr(shares).sum()
        return entropy


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [SlotCon]
