"""LP-SAM (AnaUS, arXiv:2605.25402, Sec. 2.1): SAM adapted to ultrasound, prompted by query tokens instead of a user."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anaus_bench.errors import WeightsError
from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import LearnedSource, StageContext
from anaus_bench.lazy import F, torch
from anaus_bench.machine.files import file_digest
from anaus_bench.machine.home import expanded
from anaus_bench.nn.weights import SAM_VIT_B, load_weights, read_state, unwrapped, weights_identity
from anaus_bench.seeds import stream
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings

if TYPE_CHECKING:
    from torch import Tensor

    from anaus_bench.corpus.packed import Entry, PackedCorpus
    from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork


class LPSAM(LearnedSource[LPSAMSettings]):
    """Anatomical structures: the connected parts of the mask of each structure class it was trained on."""

    name = "lpsam"
    settings_class = LPSAMSettings
    reference = "AnaUS, arXiv:2605.25402; SAM: Kirillov et al. 2023, arXiv:2304.02643"

    @property
    def needs_fit(self) -> bool:
        """Unless a trained state is given."""
        return self.settings.trained is None

    def identity(self) -> dict[str, str]:
        """Digest of the trained state, else of the SAM weights it starts from.

        Raises:
            WeightsError: The file is absent.
        """
        if self.settings.trained is not None:
            return {"trained": file_digest(_trained_file(self.settings.trained))}
        if self.settings.weights == "random":
            return {}
        return {"weights": weights_identity(self.settings.weights, SAM_VIT_B)}

    def describe(self) -> dict[str, str]:
        """Says aloud a random start, or that the state is from elsewhere."""
        if self.settings.trained is not None:
            return {
                "trained": "a network trained elsewhere, not fitted here; the images it was trained on are unknown, "
                "the task's may be among them"
            }
        return {"weights": "random initialisation, not SAM"} if self.settings.weights == "random" else {}

    def paired_corpora(self) -> str:
        """Names of the data sets with masks; none of a trained state."""
        return self.settings.pairs if self.needs_fit else ""

    def fit(self, pairs: PackedCorpus, ctx: StageContext) -> dict[str, Tensor]:
        """Both training stages; the whole network's state on the CPU.

        Raises:
            DataError: `pairs` has no masks.
            WeightsError: The SAM weights are absent, damaged or of another model.
        """
        from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
        from anaus_plugins.mask_sources.lpsam.sam_weights import load_sam
        from anaus_plugins.mask_sources.lpsam.training import fit_network

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(ctx.seed, "initial weights"))
            net = LPSAMNetwork(self.settings, len(pairs.structures))
        for remark in self.describe().values():
            ctx.progress.note(f"lpsam: {remark}")
        if self.settings.weights != "random":
            state = load_weights(self.settings.weights, SAM_VIT_B)
            load_sam(net, unwrapped(state, net.state_dict(), self.settings.weights), self.settings.weights)
        fit_network(net, pairs, self.settings, ctx)
        return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}

    def load(self, state: Mapping[str, Tensor], structures: Sequence[str], device: torch.device) -> None:
        """Builds the network with the state of `fit`, on `device`."""
        net = self._empty_network(len(structures))
        net.load_state_dict(state, assign=True)
        self._net = net.to(device)

    @functools.cached_property
    def _net(self) -> LPSAMNetwork:
        """The network that segments: set by `load` after a fit, else that of `settings.trained`."""
        from anaus_plugins.mask_sources.lpsam.authors import from_authors

        assert self.settings.trained is not None, "load comes first"
        file = _trained_file(self.settings.trained)
        net = self._empty_network(structures=1)
        net.load_state_dict(from_authors(read_state(file), net.state_dict(), str(file)), assign=True)
        return net

    def _empty_network(self, structures: int) -> LPSAMNetwork:
        """Without values, in eval mode, frozen."""
        from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork

        with torch.device("meta"):
            net = LPSAMNetwork(self.settings, structures)
        return net.eval().requires_grad_(False)

    def segment(self, images: Tensor) -> Tensor:
        """Id 0 is the background, 1, 2, ... the structures from the largest to the smallest."""
        return self._structures(self.class_maps(*self.logits(images), images.shape[-2:])).to(images.device)

    def label_maps(self, images: Tensor, truth: Tensor | None, entries: Sequence[Entry]) -> Tensor:
        """As `segment`; a network that stretches is given the pictures alone; all around them is background."""
        if self.settings.aspect == "kept":
            return self.segment(images)
        boxes = torch.tensor([entry.box for entry in entries], dtype=torch.float32)
        logits, iou = self.logits(images, boxes)
        maps = torch.zeros_like(images[:, 0])
        for number, (top, left, height, width) in enumerate(boxes.long().tolist()):
            classes = self.class_maps(logits[number, None], iou[number, None], (height, width))
            maps[number, top : top + height, left : left + width] = self._structures(classes)[0]
        return maps

    def _structures(self, classes: Tensor) -> Tensor:
        """Connected parts of class maps (B, H, W) uint8 as label maps of that shape, on the CPU."""
        from anaus_bench.corpus.label_maps import split_components

        least = self.settings.min_area * classes.shape[1] * classes.shape[2]
        split = functools.partial(split_components, min_area=least, most=self.settings.max_structures)
        with ThreadPoolExecutor() as pool:  # the labelling runs outside the interpreter's lock
            maps = list(pool.map(split, classes.cpu().numpy()))
        return torch.from_numpy(np.stack(maps))

    def logits(self, images: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network alone: logits (B, K, h, w) float32 of each structure class, and its predicted IoU (B, K) float32.

        Args:
            images: (B, 1, H, W) uint8.
            boxes: (B, 4) valid boxes of square images that are stretched to the network's square, or None.
        """
        from anaus_plugins.mask_sources.lpsam.training import autocast, to_side

        net = self._net.to(images.device)
        with torch.inference_mode(), autocast(images.device, self.settings.precision):
            logits, iou = net(to_side(images, self.settings.size.side, boxes))
        return logits.float(), iou.float()

    def class_maps(self, logits: Tensor, iou: Tensor, size: Sequence[int]) -> Tensor:
        """Class of each pixel (B, H, W) uint8, 0 = background; overlaps go to the most probable class.

        Args:
            logits: (B, K, h, w).
            iou: Predicted IoU of each map, (B, K).
            size: (H, W).
        """
        settings = self.settings
        probability = F.interpolate(logits.sigmoid(), size=tuple(size), mode="bilinear", align_corners=False)
        inside = probability > settings.threshold
        mean = (probability * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        kept = (iou.clamp(0, 1) >= settings.min_iou) & (mean >= settings.min_probability)
        best, winner = (probability * kept[:, :, None, None]).max(dim=1)
        return torch.where(best > settings.threshold, winner + 1, 0).to(torch.uint8)


def _trained_file(path: str) -> Path:
    file = expanded(path)
    if not file.is_file():
        raise WeightsError(f"trained state {path!r} not found; masks.trained is the path of a state dict of LP-SAM")
    return file


@hookimpl
def anaus_mask_sources() -> list[type[LearnedSource[Any]]]:
    """LP-SAM."""
    return [LPSAM]
