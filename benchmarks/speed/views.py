"""Batched views against per-image PIL transforms of the same recipe, one thread each, as a ratio in one run.

Both make the two views of AnaUS at 224 pixels and their label maps from packed 256-pixel images. The reference is
torchvision's pipeline on PIL images: resized crop (bicubic, nearest for the map), flip, colour jitter, grayscale, blur,
solarisation, tensor, normalisation.
"""

from __future__ import annotations

import itertools
import random

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv

from anaus_bench.corpus.batch import make_batch
from anaus_bench.corpus.view import Blur, Jitter, Solarise, View
from benchmarks.speed.timing import interleaved

JITTER = Jitter()
PAIRS = ((Blur(), Solarise(0.0)), (Blur(0.1), Solarise(0.2)))
RECIPES = tuple(View(crop_area=(0.2, 1.0), operations=(JITTER, *pair)) for pair in PAIRS)


class PerImage:
    """One view of one PIL image and its label map."""

    def __init__(self, recipe: View, blur: Blur, solarise: Solarise) -> None:
        self.recipe = recipe
        jitter = tv.ColorJitter(JITTER.brightness, JITTER.contrast, saturation=0.2, hue=0.1)
        self.photometry = tv.Compose(
            [
                tv.RandomApply([jitter], JITTER.probability),
                tv.RandomGrayscale(0.2),
                tv.RandomApply([tv.GaussianBlur(23, blur.sigma)], blur.probability),
                tv.RandomSolarize(128, solarise.probability),
                tv.PILToTensor(),
                tv.ToDtype(torch.float32, scale=True),
                tv.Normalize(recipe.mean, recipe.std),
            ]
        )
        self.crop = tv.RandomResizedCrop(recipe.size, recipe.crop_area, recipe.crop_ratio)

    def __call__(self, image: Image.Image, label_map: Image.Image) -> tuple[Tensor, Tensor]:
        """View (3, size, size) float32, normalised, and its label map (1, size, size) uint8."""
        box = self.crop.make_params([image])
        where = (box["top"], box["left"], box["height"], box["width"], [self.recipe.size] * 2)
        image = tv.functional.resized_crop(image, *where, interpolation=InterpolationMode.BICUBIC)
        label_map = tv.functional.resized_crop(label_map, *where, interpolation=InterpolationMode.NEAREST)
        if random.random() < self.recipe.flip:
            image, label_map = tv.functional.horizontal_flip(image), tv.functional.horizontal_flip(label_map)
        return self.photometry(image), tv.functional.pil_to_tensor(label_map)


def measure(batch: int = 32, repeats: int = 5) -> dict[str, float]:
    """Source images per second of both (two views each, medians of interleaved repeats) and their ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(batch, repeats)
    finally:
        torch.set_num_threads(threads)


def _measure(batch: int, repeats: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 256, 256), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 6, (batch, 256, 256), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 256.0, 256.0]]).repeat(batch, 1)
    labels, indices = torch.full((batch,), -1), torch.arange(batch)
    pictures = [Image.fromarray(image.numpy()).convert("RGB") for image in images]
    maps = [Image.fromarray(label_map.numpy()) for label_map in masks]
    transforms = [PerImage(recipe, *pair) for recipe, pair in zip(RECIPES, PAIRS, strict=True)]

    steps = itertools.count()

    def per_image() -> None:
        for transform in transforms:
            pairs = [transform(picture, label_map) for picture, label_map in zip(pictures, maps, strict=True)]
            torch.stack([view for view, _ in pairs])
            torch.cat([label_map for _, label_map in pairs])

    def batched() -> None:
        make_batch(images, masks, boxes, labels, indices, RECIPES, seed=0, step=next(steps))

    slow, fast = interleaved((per_image, batched), repeats, torch.device("cpu"))
    return {"per_image_images_per_s": batch / slow, "batched_images_per_s": batch / fast, "ratio": slow / fast}
