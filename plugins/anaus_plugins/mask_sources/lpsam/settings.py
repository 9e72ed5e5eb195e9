"""Settings of LP-SAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from anaus_bench.settings.base import Location, Settings

# The network of the authors' code, and how it is given images.
_AUTHORS: Mapping[str, Any] = {"adapter": "samus", "lpe": "official", "tokens": "joint", "aspect": "stretched"}


class NetworkSize(Settings):
    """Dimensions of the network; the defaults are SAM ViT-B at 256 pixels."""

    side: int = Field(
        256, ge=32, multiple_of=8, description="Side of the network's input in pixels; patches are 8 apart."
    )
    depth: int = Field(12, ge=1, description="Number of transformer blocks of the image encoder.")
    dim: int = Field(768, ge=16, description="Width of the blocks.")
    heads: int = Field(12, ge=1, description="Attention heads of a block.")
    global_blocks: tuple[int, ...] = Field(
        (2, 5, 8, 11), description="Blocks with global attention; the others use windows."
    )
    window: int = Field(14, ge=1, description="Side of an attention window in patches.")
    prompt_dim: int = Field(
        256, ge=32, multiple_of=32, description="Width of image embedding, prompts and mask decoder."
    )

    @model_validator(mode="after")
    def _fits(self) -> NetworkSize:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks {self.global_blocks} must lie in 0..{self.depth - 1}")
        return self

    @property
    def grid(self) -> int:
        """Side of the patch grid."""
        return self.side // 8


class LPSAMSettings(Settings):
    """Defaults follow the text (AnaUS Sec. 2.1, 3.1), `official` the authors' code. Two values are stage 1, stage 2."""

    pairs: str = Field("ddti+tg3k+camus", description="Data sets with masks to train on, joined by + (Sec. 3.1).")
    weights: Location = Field("official", description="SAM ViT-B: official (by hash), a path, or random (not SAM).")
    trained: Location | None = Field(
        None,
        description="Path of a whole LP-SAM, trained and saved by the authors' code, used as it is: nothing is fitted. "
        "Implies adapter samus, lpe official, tokens joint and aspect stretched.",
    )
    size: NetworkSize = Field(NetworkSize.model_validate({}), description="Dimensions of the network.")

    aspect: Literal["kept", "stretched"] = Field(
        "kept",
        description="How an image becomes the network's square: letterboxed as packed, or stretched (the code), its "
        "label map back into the image's own box.",
    )
    adapter: Literal["paper", "samus"] = Field(
        "paper",
        description="paper: space and MLP adapter in every block (13.0 M, Medical SAM Adapter's placement); samus: the "
        "authors' encoder with a CNN branch and cross-attention in the global blocks (39.7 M).",
    )
    adapter_dim: int = Field(352, ge=1, description="Bottleneck d' of the paper adapters; 352 gives the paper's 13 M.")
    lpe: Literal["paper", "official"] = Field(
        "paper",
        description="Latent prompt engine by eqs. 1-3, or as coded: no residual and norm in CPA, F_c carried on.",
    )
    rounds: int = Field(4, ge=1, description="Rounds N of the prompt engine (Table 3).")
    refine_fc: bool = Field(
        True, description="Convolve F_c in each round (2.4 M, reaches the paper's 7.0 M); with lpe official always."
    )
    tokens: Literal["per_class", "joint"] = Field(
        "per_class",
        description="One query token per structure class, decoded one by one; or all together for one mask.",
    )
    joint_tokens: int = Field(2, ge=1, description="Number of query tokens with tokens joint (the code's).")

    stage1: Literal["adapters", "all"] = Field(
        "adapters",
        description="What stage 1 trains; all: all of SAM too, for a random start where nothing is worth freezing.",
    )
    train_mask_decoder: bool = Field(
        False,
        description="Stage 2 trains the mask decoder too (the code; with it the paper's 11.1 M); the text freezes it.",
    )
    cache_features: bool = Field(
        False, description="Stage 2 computes the frozen image features once (float16, in memory) and does not augment."
    )
    alpha: float = Field(0.8, ge=0, le=1, description="Loss = (1 - alpha) BCE + alpha Dice; 0.8 in the code.")
    pos_weight: float = Field(1.0, gt=0, description="Weight of foreground pixels in the BCE; 2 in the code.")
    dice: Literal["image", "batch"] = Field(
        "image", description="Dice sums per image, then the mean; or over the batch (code)."
    )
    box_prompt: float = Field(
        0.0, ge=0, le=1, description="Probability that stage 1 also gives the structure's jittered box."
    )
    lr: float = Field(5e-4, gt=0, description="Learning rate of Adam, constant (Sec. 3.1).")
    batch: tuple[int, int] = Field((16, 16), description="Image-structure pairs per step (Sec. 3.1).")
    epochs: tuple[int, int] = Field((200, 100), description="Passes over the pairs (Sec. 3.1).")
    steps: tuple[int, int] | None = Field(None, description="Numbers of steps, in place of epochs.")
    augment: bool = Field(
        True, description="Gamma, rotation, scale and crop, contrast, each with probability 0.5 (code)."
    )
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of each data set's groups held out to choose the best epoch by the Dice of what is there.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on CUDA, else fp32.")

    threshold: float = Field(
        0.5, gt=0, lt=1, description="A pixel with foreground probability above it is a structure's."
    )
    min_iou: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Drop a map whose IoU, as SAM predicts it, is lower; 0: none. No stage trains that prediction.",
    )
    min_probability: float = Field(
        0.5, ge=0, le=1, description="Drop a map whose mean foreground probability is lower."
    )
    min_area: float = Field(
        0.001, ge=0, lt=1, description="Drop connected components smaller than this share of the image."
    )
    max_structures: int = Field(15, ge=1, le=255, description="Keep at most this many components, the largest.")

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        given = isinstance(values, Mapping) and values.get("trained") is not None
        return {**_AUTHORS, **values} if given else values

    @field_validator("adapter", "lpe", "tokens", "aspect")
    @classmethod
    def _as_trained(cls, value: str, info: ValidationInfo) -> str:
        needed = _AUTHORS[str(info.field_name)]
        if info.data.get("trained") is not None and value != needed:
            raise ValueError(f"masks.trained is a network with {info.field_name} {needed}; leave this setting out")
        return value

    @field_validator("batch", "epochs", "steps")
    @classmethod
    def _positive(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("both stages need at least 1")
        return value

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            **_AUTHORS,
            "train_mask_decoder": True,
            "pos_weight": 2.0,
            "dice": "batch",
            "batch": (8, 32),
            "epochs": (200, 200),
            "min_probability": 0.0,
        },
        "demo": {
            "pairs": "phantom",
            "weights": "random",
            "size": {"side": 96, "depth": 3, "dim": 96, "heads": 4, "global_blocks": (0, 1, 2), "prompt_dim": 64},
            "adapter_dim": 32,
            "rounds": 2,
            "stage1": "all",
            "train_mask_decoder": True,
            "steps": (110, 110),
        },
        "tiny": {
            "pairs": "phantom",
            "weights": "random",
            "size": {
                "side": 64,
                "depth": 2,
                "dim": 32,
                "heads": 2,
                "global_blocks": (1,),
                "window": 4,
                "prompt_dim": 32,
            },
            "adapter_dim": 8,
            "rounds": 1,
            "stage1": "all",
            "train_mask_decoder": True,
            "batch": (4, 4),
            "steps": (4, 4),
        },
    }
