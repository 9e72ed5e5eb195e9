"""USF-MAE (Megahed et al. 2025, arXiv:2510.22990): a masked autoencoder goes on from ImageNet to ultrasound.

The method is MAE's (He et al. 2022, arXiv:2111.06377): an encoder sees a quarter of the patches, a small decoder
predicts the pixels of the others. What the paper leaves open follows the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pydantic

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import Objective
from anaus_bench.lazy import nn, torch
from anaus_bench.nn.backbones import VITS
from anaus_bench.nn.weights import MAE_VIT_B, PublishedWeights
from anaus_bench.settings.base import Settings
from anaus_bench.settings.fields import CropArea

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.batch import Batch
    from anaus_bench.corpus.view import View
    from anaus_bench.nn.encoder import Encoder
    from anaus_bench.nn.vit import ViT
    from anaus_plugins.objectives.usfmae.autoencoder import Decoder


class USFMAESettings(Settings):
    """Defaults are those of the authors' code, which builds on MAE's ViT-B/16."""

    mask_ratio: float = pydantic.Field(0.75, gt=0, lt=1, description="Share of patches that are masked")
    standardise_patches: bool = pydantic.Field(
        False,
        description="Whether targets are patches of mean 0 and variance 1 (MAE's better variant); else the normalised "
        "image's pixels, as in the authors' code",
    )
    decoder_dim: int = pydantic.Field(512, ge=4, multiple_of=4, description="Width of the decoder's tokens")
    decoder_depth: int = pydantic.Field(8, ge=1, description="Blocks of the decoder")
    decoder_heads: int = pydantic.Field(16, ge=1, description="Attention heads of a decoder's block")
    crop_area: CropArea = pydantic.Field(
        (0.5, 1.0), description="Range of a crop's share of the image; the code's 0.5 to 2 redraws what does not fit"
    )
    rotation: float = pydantic.Field(
        90.0, ge=0, le=180, description="Largest counter-clockwise rotation in degrees, drawn from 0; black comes in"
    )
    vertical_flip: float = pydantic.Field(0.5, ge=0, le=1, description="Probability of a flip upside down")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"decoder_dim": 128, "decoder_depth": 2, "decoder_heads": 4},
        "tiny": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    }

    @pydantic.model_validator(mode="after")
    def _heads_divide_the_width(self) -> USFMAESettings:
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim {self.decoder_dim} is no multiple of decoder_heads {self.decoder_heads}")
        return self


class USFMAE(Objective[USFMAESettings]):
    """Reconstructs the pixels of masked patches from a few visible ones; needs a vision transformer.

    Networks: `encoder`, with fixed sine positions, and `decoder`.
    """

    name = "usfmae"
    settings_class = USFMAESettings
    reference = "Megahed et al., USF-MAE: ultrasound self-supervised foundation model, 2025, arXiv:2510.22990"
    backbones: ClassVar[tuple[str, ...]] = tuple(VITS)
    imagenet: ClassVar[Mapping[str, PublishedWeights]] = {"vit_b_16": MAE_VIT_B}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Of the authors' grid the smaller rate and decay: 3e-4 x 128 / 256, whatever the batch, down to 1e-5.
        "native": {
            "optimiser": "adamw",
            "base_lr": 1.5e-4,
            "lr_scaling": False,
            "lr_end": 1 / 15,
            "batch": 64,
            "epochs": 100,
            "warmup_epochs": 10,
            "weight_decay": 0.01,
            "decay_norms": True,
            "clip": 1.0,
        },
    }

    def __init__(self, settings: USFMAESettings) -> None:
        super().__init__(settings)
        self._start: tuple[Mapping[str, Tensor], str] | None = None

    def default_backbone(self, preset: str) -> str:
        """ViT-B/16, or the smallest one for the small presets."""
        return "vit_ti_16" if preset in ("demo", "tiny") else "vit_b_16"

    def describe(self) -> dict[str, str]:
        """Says what cannot be matched with the other methods."""
        return {"backbone": "a vision transformer: parameters and compute are not those of the ResNets"}

    def views(self, size: int) -> tuple[View, ...]:
        """One flipped crop; the loss turns it (the authors turn first and crop after)."""
        from anaus_bench.corpus.view import View

        crop = self.settings.crop_area
        return (View(size, crop, interpolation="bilinear"),)

    def load_imagenet(self, encoder: Encoder, source: str) -> None:
        """Reads the masked autoencoder of ImageNet; `build` then loads encoder and decoder from it."""
        from anaus_bench.nn.weights import load_weights

        self._start = load_weights(source, self.imagenet[encoder.arch]), source

    def build(self, encoder: Encoder, num_classes: int = 0) -> nn.ModuleDict:
        """Encoder and decoder, as `load_imagenet` found them or at random."""
        from anaus_plugins.objectives.usfmae.autoencoder import Decoder, load_autoencoder

        settings, backbone = self.settings, cast("ViT", encoder.backbone)
        decoder = Decoder(encoder.feature_dim, settings.decoder_dim, settings.decoder_depth, settings.decoder_heads)
        if self._start is not None:
            load_autoencoder(backbone, decoder, *self._start)
        backbone.fix_positions()
        return nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(self, nets: nn.ModuleDict, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the pixels of the masked patches (MAE Sec. 3)."""
        from anaus_bench.nn.pooling import embedding_spread
        from anaus_bench.nn.vit import grid_of
        from anaus_plugins.objectives.usfmae.autoencoder import draw_mask, patchify, standardise, take

        generator = torch.Generator().manual_seed(batch.seed)
        images = self._turned(batch, generator)
        rows, columns = grid_of(images)
        places = draw_mask(len(images), rows * columns, self.settings.mask_ratio, generator)
        visible, masked = (part.to(images.device, non_blocking=True) for part in places)

        backbone = cast("ViT", cast("Encoder", nets["encoder"]).backbone)
        tokens = backbone.encode(take(backbone.embed(images), visible))
        predictions = cast("Decoder", nets["decoder"])(tokens, visible, (rows, columns))

        targets = patchify(images)
        if self.settings.standardise_patches:
            targets = standardise(targets)
        hidden = take(targets, masked)
        loss = (take(predictions, masked).float() - hidden).square().mean()
        logs = {
            "explained": 1 - loss.detach() / hidden.var(correction=0).clamp(min=1e-6),  # 0: no better than one gray
            "feature_std": embedding_spread(tokens[:, 1:].mean(dim=1)),
        }
        return loss, logs

    def _turned(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The views (B, 3, S, S), each flipped upside down and rotated by its own draw; black comes in."""
        from anaus_bench.distributed.group import rand_rows
        from anaus_plugins.objectives.usfmae.rotation import rotate

        (images,), (recipe,), (crop,) = batch.views, batch.recipes, batch.crops
        flip_draw, turn_draw = rand_rows(len(images), 2, generator=generator).unbind(dim=1)
        flipped = flip_draw < self.settings.vertical_flip
        upside_down = flipped.to(images.device, non_blocking=True)[:, None, None, None]
        # A mirrored image turns the other way round: the authors rotate before they flip.
        degrees = self.settings.rotation * torch.where(flipped ^ crop.flip, -turn_draw, turn_draw)
        images = torch.where(upside_down, images.flip(2), images)
        if self.settings.rotation == 0:
            return images
        black = -torch.tensor(recipe.mean) / torch.tensor(recipe.std)
        return rotate(images, degrees, black)


@hookimpl
def anaus_objectives() -> list[type[Objective[Any]]]:
    """The objective of this module."""
    return [USFMAE]
