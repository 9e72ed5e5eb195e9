"""The damage function of AnaUS (Eq. 6): D = occlusion after noise after shuffle, on patches."""

from __future__ import annotations

import torch
from torch import Tensor

from anaus_bench.distributed.group import own_rows, world_size
from anaus_bench.seeds import stream


def damage(images: Tensor, *, patch: int, shuffle: float, noise: float, occlusion: float, seed: int) -> Tensor:
    """Shuffled, noisy, occluded images; with all factors 0 the images as they are. The input is not changed.

    Which patches are hit is the same on every device; permutations and noise are a function of the seed and the device.
    Several processes draw for the images of all and each takes its own.

    Args:
        images: (B, 1, H, H) float32 in [0, 1].
        patch: Side of a patch in pixels; divides H.
        shuffle: Probability that the pixels of a patch are permuted.
        noise: Standard deviation of Gaussian noise, clipped to [0, 1] afterwards.
        occlusion: Probability that a patch is set to 0.
        seed: Of all that is drawn.
    """
    count, _, side, _ = images.shape
    cells, pixels = side // patch, patch**2
    host = torch.Generator().manual_seed(stream(seed, "damaged patches"))
    local = torch.Generator(images.device).manual_seed(stream(seed, "damaged pixels"))
    own, everyone = own_rows(count * cells**2), world_size() * count * cells**2
    is_shuffled, is_occluded = torch.rand(2, everyone, generator=host) < torch.tensor([[shuffle], [occlusion]])
    first, number = int(is_shuffled[: own.start].sum()), int(is_shuffled.sum())
    shuffled = is_shuffled[own].nonzero().flatten().to(images.device, non_blocking=True)
    occluded = is_occluded[own].nonzero().flatten().to(images.device, non_blocking=True)

    patches = images.reshape(count, cells, patch, cells, patch).transpose(2, 3).reshape(-1, pixels)
    order = torch.rand(number, pixels, generator=local, device=images.device)[first:][: len(shuffled)].argsort(dim=1)
    patches = patches.index_copy(0, shuffled, patches[shuffled].gather(1, order))
    if noise > 0:
        gaussian = torch.randn(everyone, pixels, generator=local, device=images.device)[own]
        patches = patches.add(gaussian, alpha=noise).clamp_(0, 1)
    patches = patches.index_fill(0, occluded, 0.0)
    return patches.view(count, cells, cells, patch, patch).transpose(2, 3).reshape(images.shape)
