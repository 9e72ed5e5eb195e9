"""LP-SAM's mask building (`segment`) against its encoder and decoder alone (`logits`), as a ratio in one run.

Both at the paper's size, ViT-B at 256 pixels and five structure classes, with random weights: speed does not depend on
them, but the number of connected components does, so the maps that are labelled are blobs of the size of structures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anaus_plugins.mask_sources.lpsam import LPSAM
from anaus_plugins.mask_sources.lpsam.network import LPSAMNetwork
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings
from benchmarks.speed.timing import interleaved

STRUCTURES = ("first", "second", "third", "fourth", "fifth")


class Blobs(LPSAM):
    """LP-SAM whose logits are replaced, after they were computed, by one disc per class."""

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Discs at the places of the network's own logits."""
        logits, iou = super().logits(images)
        rows, columns = torch.meshgrid(*(torch.linspace(0, 1, side) for side in logits.shape[-2:]), indexing="ij")
        centres = torch.linspace(0.2, 0.8, logits.shape[1])
        discs = 0.1 - ((rows - 0.5).square() + (columns - centres[:, None, None]).square()).sqrt()
        return logits * 0 + 100 * discs.to(logits.device), iou * 0 + 1


def measure(batch: int = 2, repeats: int = 3, device: str = "cpu") -> dict[str, float]:
    """Seconds per image of both, and their ratio."""
    place = torch.device(device)
    source = Blobs(LPSAMSettings(weights="random"))
    source.load(LPSAMNetwork(source.settings, len(STRUCTURES)).state_dict(), STRUCTURES, place)
    images = torch.randint(0, 256, (batch, 1, 256, 256), dtype=torch.uint8, device=place)
    network, whole = interleaved((lambda: source.logits(images), lambda: source.segment(images)), repeats, place)
    return {"network_s": network / batch, "segment_s": whole / batch, "ratio": whole / network}
