"""Vanilla SAM (Kirillov et al. 2023) prompted with a grid of points: the row without the latent prompt engine.

The paper does not say how SAM was prompted without its prompt engine (Table 2, "w/o LPE"); chosen here: everything
mode, un-adapted ViT-B, proposals painted into a label map.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from anaus_bench.corpus.label_maps import map_images, paint_proposals, picture_box
from anaus_bench.errors import WeightsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import ImageSource
from anaus_bench.lazy import torch
from anaus_bench.nn.weights import SAM_VIT_B, load_weights, unwrapped, weights_identity
from anaus_bench.settings.base import Location, Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam
    from torch import Tensor


class SAMSettings(Settings):
    """Defaults are those of SAM's automatic mask generator, which were chosen for ViT-H."""

    weights: Location = Field("official", description="SAM ViT-B: official (by hash), a path, or random (not SAM).")
    size: Literal["vit_b", "tiny"] = Field(
        "vit_b", description="vit_b: SAM ViT-B at 1024 pixels; tiny: a test network at 64 pixels, random weights only."
    )
    points_per_side: int = Field(
        32, ge=1, description="Points along each side of the prompting grid; cost is quadratic."
    )
    points_per_batch: int = Field(64, ge=1, description="Points decoded at once; bounds the memory.")
    pred_iou_thresh: float = Field(0.88, ge=0, le=1, description="Drop a mask whose IoU, as SAM predicts it, is lower.")
    stability_score_thresh: float = Field(
        0.95, ge=0, le=1, description="Drop a mask that changes more than this when its threshold is shifted (IoU)."
    )
    stability_score_offset: float = Field(1.0, gt=0, description="Shift of the threshold, in logits, both ways.")
    box_nms_thresh: float = Field(
        0.7, ge=0, le=1, description="Drop the lower of two masks whose boxes' IoU is above it."
    )
    crop_n_layers: int = Field(0, ge=0, description="Also run on 4^i overlapping crops, for i up to this number.")
    max_structures: int = Field(15, ge=1, le=255, description="Paint at most this many masks, by SAM's predicted IoU.")
    min_area: float = Field(
        0.001, ge=0, lt=1, description="Least share of the image of a mask, and of its visible part."
    )
    max_area: float = Field(0.95, gt=0, le=1, description="Largest share of the image of a mask.")

    @model_validator(mode="after")
    def _no_weights_for_tiny(self) -> SAMSettings:
        if self.size == "tiny" and self.weights != "random":
            raise ValueError(f"size tiny has no published weights, found weights {self.weights!r}; use weights: random")
        return self

    # Scores of random weights say nothing, so nothing is dropped by them.
    _TINY: ClassVar[Mapping[str, Any]] = {
        "weights": "random",
        "size": "tiny",
        "points_per_side": 4,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": _TINY, "tiny": _TINY}


class SAM(ImageSource[SAMSettings]):
    """SAM without adaptation, in everything mode.

    Painted proposals: id 0 is what none covers, the whole image where SAM finds nothing.
    """

    name = "sam"
    settings_class = SAMSettings
    reference = "Kirillov et al., Segment anything, ICCV 2023, arXiv:2304.02643"

    def identity(self) -> dict[str, str]:
        """Digest of the weights; empty if random.

        Raises:
            WeightsError: The weights file is absent.
        """
        if self.settings.weights == "random":
            return {}
        return {"weights": weights_identity(self.settings.weights, SAM_VIT_B)}

    def describe(self) -> dict[str, str]:
        """Says when this is not SAM."""
        if self.settings.weights == "random":
            return {"weights": f"sam: random weights (size {self.settings.size}), not SAM: its masks mean nothing"}
        return {}

    def segment(self, images: Tensor) -> Tensor:
        """Label maps (B, H, W) uint8 of images (B, 1, H, W).

        Raises:
            WeightsError: The weights are absent or of another model.
        """
        self._generator.predictor.model.to(images.device)
        return map_images(images, self._paint)

    def _paint(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        inside = picture_box(image)
        proposals = self._generator.generate(np.repeat(image[inside][..., None], 3, axis=2))
        masks = np.zeros((len(proposals), *image.shape), dtype=bool)
        for mask, proposal in zip(masks, proposals, strict=True):
            mask[inside] = proposal["segmentation"]
        return paint_proposals(
            masks,
            np.array([proposal["predicted_iou"] for proposal in proposals]),
            max_regions=self.settings.max_structures,
            min_area=self.settings.min_area,
            max_area=self.settings.max_area,
        )

    @cached_property
    def _generator(self) -> SamAutomaticMaskGenerator:
        from segment_anything import SamAutomaticMaskGenerator

        of_generator = {
            "points_per_side",
            "points_per_batch",
            "pred_iou_thresh",
            "stability_score_thresh",
            "stability_score_offset",
            "box_nms_thresh",
            "crop_n_layers",
        }
        return SamAutomaticMaskGenerator(self._network(), **self.settings.model_dump(include=of_generator))

    def _network(self) -> Sam:
        """SAM in eval mode on the CPU; random weights are always the same."""
        from segment_anything import sam_model_registry

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _tiny_sam() if self.settings.size == "tiny" else sam_model_registry["vit_b"]()
        if self.settings.weights != "random":
            state = load_weights(self.settings.weights, SAM_VIT_B)
            _load(network, unwrapped(state, network.state_dict(), self.settings.weights), self.settings.weights)
        return network.eval().requires_grad_(False)


def _load(network: Sam, state: Mapping[str, Tensor], source: str) -> None:
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise WeightsError(
            f"{source} is no SAM ViT-B: {len(wrong)} tensors are missing, surplus or of another shape, the first "
            f"{wrong[0]!r}; expected {SAM_VIT_B.file_name}"
        )
    network.load_state_dict(state)


def _tiny_sam() -> Sam:
    """SAM's modules at 64 pixels with 4 x 4 patches; 100 thousand parameters."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    side, patch, width = 64, 16, 32
    grid = side // patch
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=width,
            use_rel_pos=True,
            window_size=2,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(side, side), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, num_heads=2, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )


@hookimpl
def anaus_mask_sources() -> list[type[ImageSource[Any]]]:
    """Vanilla SAM."""
    return [SAM]
