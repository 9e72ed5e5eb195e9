"""Settings of Mask R-CNN.

The paper names Mask R-CNN and the weight decay; the rest follows the scripts the protocol stems from (Meta-USCL: SGD,
warm-up, steps) where they say something, else torchvision's and detectron2's common defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from anaus_bench.settings.base import Settings


class MaskRCNNSettings(Settings):
    """Defaults as in downstream tables of the paper, completed as the descriptions say."""

    size: int = Field(
        512, ge=32, description="shortest side of the resized image, px; the longest is at most 1.67 times it"
    )
    smallest_anchor: float | None = Field(
        None, gt=0, description="anchor side at stride 4, px of the resized image, doubled per level; none: size / 16"
    )
    transfer: Literal["backbone", "backbone+fpn"] = Field(
        "backbone", description="what is taken from pre-training; the pyramid only from methods that train one"
    )
    trainable_layers: int = Field(
        3,
        ge=0,
        le=5,
        description="unfrozen parts of the backbone from the top: layer4, 3, 2, 1, stem (torchvision: 3); of a ViT the "
        "quarters of its blocks, stem",
    )
    norm: Literal["frozen", "bn", "gn"] = Field(
        "frozen",
        description="BatchNorm of the backbone: frozen as in the encoder, or trained where its layers are (bn; needed "
        "from random weights); gn: frozen, with GroupNorm(32) in pyramid and heads; a ViT and its pyramid always have "
        "layer norm",
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd (Meta-USCL), or adamw as ViTDet trains transformers: with base_lr=1e-4, weight_decay=0.1",
    )
    base_lr: float = Field(0.005, gt=0, description="learning rate (Meta-USCL; the paper gives none)")
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum (Meta-USCL)")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay (Sec. 4)")
    batch_size: int = Field(2, ge=1, description="images per step (Meta-USCL)")
    epochs: int = Field(30, ge=1, description="passes over the training images (Meta-USCL)")
    lr_step: int = Field(10, ge=1, description="epochs between decays of the learning rate (Meta-USCL)")
    lr_factor: float = Field(0.1, gt=0, le=1, description="factor of each decay (Meta-USCL)")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up (Meta-USCL)")
    warmup_start: float = Field(1e-3, gt=0, le=1, description="share of the learning rate at step 0 (Meta-USCL)")
    gradient_clip: float | None = Field(5.0, gt=0, description="largest norm of the gradient; none: not clipped")
    rois: int = Field(
        128, ge=1, description="regions per image that train the heads (libraries: 512, for many objects)"
    )
    proposals: int = Field(
        1000, ge=1, description="proposals per image after suppression (twice as many per level before)"
    )
    detections: int = Field(100, ge=1, description="detections stored per image at most (COCO's rule)")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast trunks on CUDA, boxes and losses in fp32; a CPU is always fp32"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Meta-USCL's scripts, from which the paper's protocol stems.
        "official": {
            "size": 800,
            "smallest_anchor": 32.0,
            "norm": "bn",
            "weight_decay": 5e-4,
            "gradient_clip": None,
            "rois": 512,
            "proposals": 2000,
        },
        "demo": {
            "size": 96,
            "trainable_layers": 5,
            "norm": "bn",
            "base_lr": 0.02,
            "epochs": 12,
            "lr_step": 10,
            "warmup_epochs": 0.5,
            "rois": 32,
            "proposals": 100,
            "detections": 10,
        },
        "tiny": {
            "size": 64,
            "trainable_layers": 5,
            "norm": "bn",
            "epochs": 1,
            "rois": 8,
            "proposals": 16,
            "detections": 3,
        },
    }
