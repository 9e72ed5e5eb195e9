"""DINO (Caron et al. 2021, arXiv:2104.14294): a student with many crops learns a teacher's soft prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.distillation import CentredTargets, DINOHead
    from anaus_bench.nn.encoder import Encoder

GLOBAL_CROPS = 2
LOCAL_SIDE = 96 / 224  # of a local crop, relative to a global one


class DINOSettings(Settings):
    """Defaults are the paper's text; the crops are those of its convolutional encoders."""

    prototypes: int = pydantic.Field(65536, ge=2, description="K, width of the last layer (App. C)")
    hidden_dim: int = pydantic.Field(2048, ge=1, description="Width of the head's first two layers (App. C)")
    bottleneck_dim: int = pydantic.Field(256, ge=1, description="Width of the head's third layer (App. C)")
    head_norm: bool = pydantic.Field(False, description="Batch norm in the head; the paper has none")
    local_crops: int = pydantic.Field(8, ge=0, description="Small crops that only the student sees")
    global_area: CropArea = pydantic.Field((0.14, 1.0), description="Range of a global crop's share of the image")
    local_area: CropArea = pydantic.Field((0.05, 0.14), description="Range of a local crop's share of the image")
    student_temperature: float = pydantic.Field(0.1, gt=0, description="tau_s (Sec. 3.2)")
    teacher_temperature: float = pydantic.Field(0.07, gt=0, description="tau_t after its warm-up (Sec. 3.2)")
    teacher_temperature_start: float = pydantic.Field(0.04, gt=0, description="tau_t at the first step (Sec. 3.2)")
    teacher_warmup: float = pydantic.Field(
        0.1, ge=0, le=1, description="Share of the steps in which tau_t rises linearly: 30 of 300 epochs (Sec. 3.2)"
    )
    base_momentum: float = pydantic.Field(
        0.996, ge=0, le=1, description="Of the teacher, raised to 1 along a half cosine (Sec. 3.1)"
    )
    centre_momentum: float = pydantic.Field(0.9, ge=0, lt=1, description="m of the centre, Eq. 4")
    frozen_prototypes: float = pydantic.Field(
        1 / 300, ge=0, lt=1, description="Share of the steps, from the first, in which the prototypes stay: one epoch"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"prototypes": 1024, "hidden_dim": 256, "bottleneck_dim": 64, "local_crops": 2, "base_momentum": 0.98},
        "tiny": {"prototypes": 32, "hidden_dim": 32, "bottleneck_dim": 16, "local_crops": 1, "base_momentum": 0.9},
    }


class DINO(Objective[DINOSettings]):
    """A student matches the centred, sharpened outputs of its moving average.

    Networks: `encoder`, `head`; the teacher's `target_encoder`, `target_head`; `targets` with the centre.
    """

    name = "dino"
    settings_class = DINOSettings
    reference = "Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021, arXiv:2104.14294"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "native": {
            "optimiser": "adamw",
            "base_lr": 5e-4,
            "batch": 1024,
            "epochs": 300,
            "warmup_epochs": 10,
            "weight_decay": 0.04,
            "weight_decay_end": 0.4,
            "clip": 3.0,
            "init": "random",
        },
    }

    def views(self, size: int) -> tuple[View, ...]:
        """Two global crops with BYOL's photometry, then the local ones, whose side is a multiple of 32."""
        from anaus_bench.corpus.view import Blur, Jitter, Solarise, View

        settings = self.settings
        local_size = max(32, 32 * round(LOCAL_SIDE * size / 32))
        local = View(local_size, settings.local_area, (Jitter(), Blur(0.5)))
        return (
            View(size, settings.global_area, (Jitter(), Blur())),
            View(size, settings.global_area, (Jitter(), Blur(0.1), Solarise(0.2))),
            *[local] * settings.local_crops,
        )

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Student and teacher, alike at first."""
        from anaus_bench.nn.distillation import CentredTargets, DINOHead
        from anaus_bench.nn.momentum import frozen_copy

        settings = self.settings
        head = DINOHead(
            encoder.feature_dim,
            settings.hidden_dim,
            settings.bottleneck_dim,
            settings.prototypes,
            norm=settings.head_norm,
        )
        targets = CentredTargets(settings.prototypes, self.teacher_temperature(0.0), settings.centre_momentum)
        return nn.ModuleDict(
            {
                "encoder": encoder,
                "head": head,
                "target_encoder": frozen_copy(encoder),
                "target_head": frozen_copy(head),
                "targets": targets,
            }
        )

    def before_forward(self, nets: nn.ModuleDict, progress: float) -> None:
        """Sets the teacher's temperature, and whether the prototypes learn."""
        cast("CentredTargets", nets["targets"]).temperature.fill_(self.teacher_temperature(progress))
        trained = progress >= self.settings.frozen_prototypes
        cast("DINOHead", nets["head"]).prototypes.weight.requires_grad_(trained)

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 3 with the targets centred as they were; then the centre moves (Eq. 4)."""
        from anaus_bench.nn.distillation import cross_view_entropy
        from anaus_bench.nn.pooling import embedding_spread

        student, teacher = cast("Encoder", nets["encoder"]), cast("Encoder", nets["target_encoder"])
        targets = cast("CentredTargets", nets["targets"])
        vectors = [student.vector(view) for view in batch.views]  # one pass per crop, each with its batch statistics
        logits = nets["head"](vectors)  # (V, B, K)
        with torch.no_grad():
            seen = batch.views[:GLOBAL_CROPS]
            teacher_logits = nets["target_head"]([teacher.vector(view) for view in seen])
            distributions = targets(teacher_logits)
        loss = cross_view_entropy(distributions, logits, self.settings.student_temperature)
        targets.update(teacher_logits)
        entropy = torch.special.entr(distributions).sum(dim=2).mean()
        logs = {
            "teacher_entropy": entropy,  # 0: one prototype for all; log K: no preference; both are collapse
            "divergence": loss.detach() - entropy,
            "feature_std": embedding_spread(vectors[0]),
        }
        return loss, logs

    def after_step(self, nets: nn.ModuleDict, progress: float) -> None:
        """Moves the teacher towards the student."""
        from anaus_bench.nn.momentum import momentum_schedule, momentum_update

        momentum = momentum_schedule(self.settings.base_momentum, progress)
        for name in ("encoder", "head"):
            momentum_update(nets[f"target_{name}"], nets[name], momentum)

    def teacher_temperature(self, progress: float) -> float:
        """tau_t: linear from its start to its end within the warm-up, then constant."""
        settings = self.settings
        share = min(progress / settings.teacher_warmup, 1.0) if settings.teacher_warmup > 0 else 1.0
        start, end = settings.teacher_temperature_start, settings.teacher_temperature
        return start + share * (end - start)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [DINO]
