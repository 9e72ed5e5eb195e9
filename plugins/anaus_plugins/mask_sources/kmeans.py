"""K-means of superpixel features per image: the grouping of R2O (Gokul et al. 2022, arXiv:2208.11821) made offline."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from anaus_bench.hookspecs import hookimpl
from anaus_bench.interfaces import PartitionSource
from anaus_bench.lazy import F, torch
from anaus_bench.nn.weights import IMAGENET, weights_identity
from anaus_bench.settings.base import Location, Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from anaus_bench.nn.encoder import Encoder

ARCH = "resnet18"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class KMeansSettings(Settings):
    """R2O clusters the superpixels of a whole batch; stored maps must not depend on one, so each image is alone."""

    k: int = Field(8, ge=2, le=64, description="Clusters per image at most; R2O ends with 4.")
    superpixels: int = Field(100, ge=4, description="SLIC superpixels per image, about (R2O).")
    features: Literal["imagenet", "texture"] = Field(
        "imagenet",
        description="imagenet: layer 3 of a frozen ResNet-18 at 224 pixels (R2O's stage 3); texture: mean, spread, "
        "gradient and position of the superpixel, without weights.",
    )
    weights: Location = Field("official", description="ImageNet weights: official (torchvision, by hash) or a path.")
    min_area: float = Field(
        0.005, ge=0, lt=0.01, description="Share of the image below which a cluster joins the nearest."
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "demo": {"features": "texture"},
        "tiny": {"features": "texture", "superpixels": 40},
    }


class KMeans(PartitionSource[KMeansSettings]):
    """Superpixels grouped by K-means of their features, per image.

    A partition: regions need not be connected, ids by decreasing area, black margins are one region beside them.
    """

    name = "kmeans"
    version = 2
    settings_class = KMeansSettings
    reference = "R2O: Gokul et al. 2022, arXiv:2208.11821; SLIC: Achanta et al. 2012, doi:10.1109/TPAMI.2012.120"

    def identity(self) -> dict[str, str]:
        """Digest of the ImageNet weights."""
        if self.settings.features == "texture":
            return {}
        return {"weights": weights_identity(self.settings.weights, IMAGENET[ARCH])}

    def describe(self) -> dict[str, str]:
        """Says which features were clustered."""
        texture = {"features": "superpixel texture, not ImageNet features"}
        return texture if self.settings.features == "texture" else {}

    def partition(self, picture: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Cluster of each pixel; one if the picture is constant or one pixel wide."""
        from skimage.color import gray2rgb
        from skimage.segmentation import slic

        if picture.min() == picture.max() or min(picture.shape) == 1:
            return np.zeros(picture.shape, dtype=np.int64)
        rgb = gray2rgb(picture)  # type: ignore[no-untyped-call]
        superpixels = slic(rgb, n_segments=self.settings.superpixels, start_label=0)
        members = F.one_hot(torch.from_numpy(superpixels)).permute(2, 0, 1).float()  # (S, H, W)
        features = (
            _texture(picture, members) if self.settings.features == "texture" else self._imagenet(picture, members)
        )
        areas = members.sum((1, 2)).numpy()
        points = F.normalize(features, dim=1).double().numpy()
        clusters = self._cluster(points, areas, seed=_content_seed(picture))
        regions: NDArray[np.int64] = clusters[superpixels]
        return regions

    def _cluster(self, points: NDArray[np.float64], areas: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
        """Cluster (S,) of each superpixel; those below the least area go to the nearest remaining centre."""
        from sklearn import cluster

        distinct = len(np.unique(points, axis=0))
        fitted = cluster.KMeans(min(self.settings.k, distinct), n_init=4, random_state=seed).fit(points)
        shares = np.bincount(fitted.labels_, weights=areas, minlength=fitted.n_clusters) / areas.sum()
        kept = np.flatnonzero(shares >= self.settings.min_area)
        centres = fitted.cluster_centers_
        distances = np.linalg.norm(centres[:, None] - centres[kept], axis=2)  # (k, kept)
        merged: NDArray[np.int64] = kept[distances.argmin(axis=1)][fitted.labels_]
        return merged

    def _imagenet(self, picture: NDArray[np.uint8], members: Tensor) -> Tensor:
        """Mean feature (S, 256) of each superpixel, weighted by its share of each cell of the 14x14 map."""
        gray = torch.from_numpy(picture)[None, None].float() / 255
        gray = F.interpolate(gray, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (gray.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        with torch.inference_mode():
            layer3 = self._encoder.stages((gray - mean) / std)[2][0]  # (256, 14, 14)
        weights = F.adaptive_avg_pool2d(members, (layer3.shape[1], layer3.shape[2])).flatten(1)  # (S, 196)
        return weights @ layer3.flatten(1).T / weights.sum(dim=1, keepdim=True)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        from anaus_bench.nn.encoder import Encoder, load_imagenet

        encoder = Encoder(ARCH)
        load_imagenet(encoder, self.settings.weights)
        return encoder.eval().requires_grad_(False)


def _texture(pixels: NDArray[np.uint8], members: Tensor) -> Tensor:
    """Mean, spread, mean gradient and centre (y, x) of each superpixel: (S, 5), standardised over the superpixels."""
    gray = torch.from_numpy(pixels).float() / 255
    vertical, horizontal = torch.gradient(gray)
    rows, columns = torch.meshgrid(*(torch.linspace(0, 1, side) for side in gray.shape), indexing="ij")
    maps = torch.stack([gray, gray.square(), torch.hypot(vertical, horizontal), rows, columns])
    mean, square, gradient, row, column = torch.einsum("shw,fhw->fs", members, maps) / members.sum((1, 2))
    spread = (square - mean.square()).clamp(min=0).sqrt()
    columns_of = torch.stack([mean, spread, gradient, row, column], dim=1)
    return (columns_of - columns_of.mean(dim=0)) / columns_of.std(dim=0).clamp(min=1e-6)


def _content_seed(pixels: NDArray[np.uint8]) -> int:
    """A seed in [0, 2**32) from the image itself."""
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:4], "big")


@hookimpl
def anaus_mask_sources() -> list[type[PartitionSource[Any]]]:
    """K-means."""
    return [KMeans]
