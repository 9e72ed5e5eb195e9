"""Semantic groups of a trained SlotCon (Wen et al. 2022, arXiv:2205.15288), the masks behind `slotcon` made offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import LearnedSource
from anaus_bench.lazy import F, nn, torch
from anaus_bench.machine.parallel import batches
from anaus_bench.nn.weights import IMAGENET, weights_identity
from anaus_bench.settings.base import Settings
from anaus_bench.settings.core import PretrainSettings
from anaus_plugins.objectives.slotcon import STRIDE, SlotCon, SlotConSettings

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.packed import PackedCorpus
    from anaus_bench.corpus.view import View
    from anaus_bench.interfaces import StageContext

KEPT = ("encoder", "projector", "prototypes")  # of the target network
BATCH = 16  # images per forward
MAX_IDS = 256


class SGSettings(Settings):
    """The SlotCon run that finds the groups, and how images are grouped by it; both without labels."""

    backbone: Literal["resnet18", "resnet50", "resnet101", "resnet152"] = Field(
        "resnet18", description="Encoder of the SlotCon run."
    )
    slotcon: SlotConSettings = Field(SlotConSettings.model_validate({}), description="The objective's settings.")
    pretrain: PretrainSettings = Field(PretrainSettings.model_validate({}), description="The run's protocol.")
    side: int = Field(
        224, ge=STRIDE, multiple_of=STRIDE, description="Side that images are resized to; 448 gives finer groups."
    )
    min_area: float = Field(
        0.005, ge=0, lt=1, description="Groups with a smaller share of the image give their pixels to the next best."
    )

    @model_validator(mode="after")
    def _fits(self) -> SGSettings:
        if self.slotcon.num_prototypes > MAX_IDS:
            raise ValueError(f"slotcon.num_prototypes {self.slotcon.num_prototypes} exceeds the {MAX_IDS} ids of a map")
        return self

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        preset: {
            "slotcon": SlotConSettings.presets.get(preset, {}),
            "pretrain": PretrainSettings.presets.get(preset, {}),
            **over,
        }
        for preset, over in {"official": {}, "native": {}, "demo": {"side": 128}, "tiny": {"side": 32}}.items()
    }


class SG(LearnedSource[SGSettings]):
    """Semantic groups of SlotCon.

    Prototypes learned on the corpus itself; a region is what one prototype wins, connected or not.
    """

    name = "sg"
    settings_class = SGSettings
    reference = SlotCon.reference

    def __init__(self, settings: SGSettings) -> None:
        super().__init__(settings)
        self._nets: nn.ModuleDict | None = None

    def identity(self) -> dict[str, str]:
        """Digest of the ImageNet weights it starts from."""
        start = self.settings.pretrain
        if start.init == "random":
            return {}
        return {"weights": weights_identity(start.weights, IMAGENET[self.settings.backbone])}

    def describe(self) -> dict[str, str]:
        """Says a random start aloud."""
        return {"start": "random initialisation, not ImageNet"} if self.settings.pretrain.init == "random" else {}

    def fit(self, pairs: PackedCorpus, ctx: StageContext) -> dict[str, Tensor]:
        """Pre-trains SlotCon on the images; the target network's weights come back.

        Raises:
            WeightsError: The ImageNet weights are absent or of another model.
            TrainingError: The loss is not finite.
        """
        import numpy as np

        from anaus_bench.nn.encoder import Encoder, load_imagenet
        from anaus_bench.seeds import stream
        from anaus_bench.training.pretraining import pretrain

        settings = self.settings
        torch.manual_seed(stream(ctx.seed, "initial weights"))
        encoder = Encoder(settings.backbone)
        if settings.pretrain.init == "imagenet":
            load_imagenet(encoder, settings.pretrain.weights)
        objective = SlotCon(settings.slotcon)
        nets, _ = pretrain(objective, encoder, pairs, None, np.arange(len(pairs)), settings.pretrain, ctx)
        kept = {name: nets[f"target_{name}"].state_dict() for name in KEPT}
        return {
            f"{name}.{key}": value.detach().cpu().contiguous() for name in KEPT for key, value in kept[name].items()
        }

    def load(self, state: Mapping[str, Tensor], structures: Sequence[str], device: torch.device) -> None:
        """The target network in evaluation mode."""
        from anaus_bench.nn.encoder import Encoder

        nets = SlotCon(self.settings.slotcon).build(Encoder(self.settings.backbone))
        self._nets = nn.ModuleDict({name: nets[name] for name in KEPT})
        self._nets.load_state_dict(dict(state))
        self._nets.to(device).eval()

    def segment(self, images: Tensor) -> Tensor:
        """Label maps (B, H, W) uint8 of images (B, 1, H, W); ids in the order of the prototypes."""
        (recipe, _) = SlotCon(self.settings.slotcon).views(self.settings.side)
        with torch.inference_mode():
            maps = [self._group(images[part], recipe) for part in batches(len(images), BATCH)]
        return torch.cat(maps)

    def _group(self, images: Tensor, recipe: View) -> Tensor:
        from anaus_bench.corpus.pixels import normalise
        from anaus_plugins.objectives.slotcon.slots import prototype_scores

        if self._nets is None:
            raise RuntimeError("SG groups by a trained SlotCon: call load first")
        side, nets = recipe.size, self._nets
        resized = F.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)
        projections = nets["projector"](nets["encoder"](normalise(resized, recipe), (STRIDE,))[STRIDE])
        scores = prototype_scores(projections, cast("nn.Embedding", nets["prototypes"]).weight)
        return torch.stack([self._label(one, images.shape[-2:]) for one in scores])

    def _label(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Label map (H, W) uint8 of one image's scores (K, h, w)."""
        scores = F.interpolate(scores[None], size=size, mode="bilinear")[0]
        areas = scores.argmax(dim=0).flatten().bincount(minlength=len(scores)) / size.numel()
        large = areas >= torch.minimum(areas.max(), areas.new_tensor(self.settings.min_area))
        winners = scores.masked_fill(~large[:, None, None], -torch.inf).argmax(dim=0)
        ids: Tensor = torch.unique(winners, return_inverse=True)[1]
        return ids.to(torch.uint8)


@hookimpl
def anaus_mask_sources() -> list[type[LearnedSource[Any]]]:
    """Semantic groups of SlotCon."""
    return [SG]
