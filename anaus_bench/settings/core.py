"""The settings that no plugin owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from anaus_bench.settings.base import Location, Settings


class CorpusSettings(Settings):
    """How a corpus is packed, and how much of it is used."""

    size: int = Field(
        512,
        ge=16,
        le=1024,
        description="Side of the packed images in pixels, or that of the largest where all are smaller. Views are cut "
        "from them, the authors' from whole frames: at 256 the median crop of a 4:3 frame is enlarged.",
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the clips of each data set to pre-train on (Fig. 5c: 0.5 to 1). Smaller shares are parts "
        "of larger ones of the same seed, alike for all methods; masks are made of the whole.",
    )
    overlap: Literal["refuse", "exclude", "allow"] = Field(
        "refuse", description="What to do with corpus images that stand in the task's data (same clip, near-duplicate)."
    )
    unreadable: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What to do with files that cannot be decoded: name all of them and stop, or leave them "
        "out, which is recorded.",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"demo": {"size": 128}, "tiny": {"size": 64}}


class PhantomSettings(Settings):
    """How many images are generated where a data set is not given (presets `demo` and `tiny`, data set `phantom`)."""

    train: int = Field(2000, ge=4, description="Images to pre-train on and to fit a mask source on.")
    task: int = Field(160, ge=4, description="Images of a task.")
    size: int = Field(256, ge=32, le=1024, description="Side in pixels.")
    seed: int = Field(0, ge=0, description="Seed of the patients; those of tasks differ from those of corpora.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"train": 240, "task": 60},
        "tiny": {"train": 24, "task": 12, "size": 96},
    }


Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean."""


class PretrainSettings(Settings):
    """The protocol that all objectives share (`matched`): AnaUS Sec. 3.1 and its released configuration."""

    size: int = Field(224, ge=32, description="Side of the views in pixels; a multiple of 32.", multiple_of=32)
    batch: int = Field(192, ge=2, description="Images per step, over all devices.")
    epochs: int = Field(300, ge=1, description="Passes over the corpus; steps = epochs x floor(images / batch).")
    steps: int | None = Field(None, ge=1, description="Number of steps, in place of epochs.")
    optimiser: Literal["lars", "sgd", "adam", "adamw"] = Field(
        "lars", description="LARS as in BYOL; the rest as in torch."
    )
    base_lr: float = Field(0.3, gt=0, description="Learning rate; with lr_scaling that of 256 images.")
    lr_scaling: bool = Field(True, description="Whether lr = base_lr x batch / 256.")
    schedule: Literal["cosine", "constant", "fixmatch", "held_cosine"] = Field(
        "cosine",
        description="After the warm-up: half a cosine to lr_end, no change, cos(7 pi t / 16), or USCL's: the peak for "
        "hold_epochs, then half a cosine as long as the run, which the end of the run cuts off.",
    )
    hold_epochs: float = Field(0, ge=0, description="Epochs at the peak, of held_cosine (USCL 10).")
    lr_end: float = Field(0.0, ge=0, le=1, description="Last learning rate of the cosine, as a share of the peak.")
    warmup_epochs: float = Field(3, ge=0, description="Linear warm-up from 0, in epochs (with steps: of `epochs`).")
    weight_decay: float = Field(1e-6, ge=0, description="Not applied to biases and norm parameters.")
    weight_decay_end: float | None = Field(
        None, ge=0, description="Last weight decay, reached along half a cosine (DINO Sec. 3.2: 0.4); null: constant."
    )
    decay_norms: bool = Field(
        False, description="Decay biases and norm parameters as well, as torch does unless told otherwise (MoCo)."
    )
    sgd_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of LARS and SGD.")
    nesterov: bool = Field(False, description="Nesterov's momentum, of SGD.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Of Adam and AdamW.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient.")
    lars: Literal["standard", "official"] = Field(
        "standard", description="Denominator and momentum buffer of LARS: BYOL's, or those of the authors' code."
    )
    init: Literal["imagenet", "random"] = Field(
        "imagenet", description="What the encoder starts from (AnaUS Sec. 3.1)."
    )
    weights: Location = Field("official", description="ImageNet weights: official (torchvision, by hash) or a path.")
    sync_bn: bool = Field(
        True, description="With several processes: batch norm takes its statistics over the batches of all (SyncBN)."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on CUDA, else fp32.")
    channels_last: bool = Field(True, description="Memory format of images and convolutions.")
    compile: bool = Field(False, description="torch.compile the networks.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"init": "random", "lars": "official"},
        # LARS hardly moves in so few steps of so few images.
        "demo": {
            "size": 64,
            "batch": 16,
            "steps": 40,
            "init": "random",
            "optimiser": "adamw",
            "base_lr": 1e-3,
            "lr_scaling": False,
        },
        "tiny": {"size": 32, "batch": 4, "steps": 2, "init": "random"},
    }

    @model_validator(mode="after")
    def _nesterov_has_a_momentum(self) -> Self:
        if self.nesterov and (self.optimiser != "sgd" or self.sgd_momentum == 0):
            raise ValueError(
                f"nesterov=true is of optimiser=sgd with sgd_momentum above 0, found optimiser={self.optimiser} and "
                f"sgd_momentum={self.sgd_momentum:g}; set nesterov=false"
            )
        return self


class FinetuneSettings(Settings):
    """What is kept of a cell's folds."""

    keep: Literal["networks", "predictions"] = Field(
        "networks",
        description="networks: each fold's fine-tuned network is kept, so that other images can be predicted without "
        "training; predictions: the disk is spared, and a network lives as long as its fold is at work.",
    )


# Section of the settings that no plugin owns -> its class.
CORE_SETTINGS: Mapping[str, type[Settings]] = {
    "corpus": CorpusSettings,
    "phantom": PhantomSettings,
    "pretrain": PretrainSettings,
    "finetune": FinetuneSettings,
}
