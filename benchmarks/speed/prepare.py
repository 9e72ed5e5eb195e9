"""Packing a corpus on all cores against a bare decode loop on one, in images per second.

The images are generated, 640 x 480 JPEG files under many names. The bare loop only decodes them to gray with Pillow;
packing also letterboxes and stores them, and starts its worker processes.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from anaus_bench.interfaces import StageInputs
from anaus_bench.kit.synthetic import silent_context
from anaus_bench.machine.parallel import cores
from anaus_bench.registry import Registry
from anaus_bench.simulator.phantoms import clips
from anaus_bench.stages import corpus


def measure(count: int = 6000) -> dict[str, float]:
    """Images per second of both, and the ratio of packing to the bare loop on as many cores."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        first = folder / "00000.jpg"
        (clip,) = clips("breast", "benchmark", ["benign"], frames=1, size=(480, 640), seed=0)
        Image.fromarray(clip.images[0]).save(first, quality=90)
        for number in range(1, count):
            shutil.copyfile(first, folder / f"{number:05d}.jpg")
        start = time.perf_counter()
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image:
                np.asarray(image.convert("L"))
        bare = count / (time.perf_counter() - start)
        registry = Registry()
        spec = {"size": 256, "datasets": {"images": registry.spec("datasets", registry.create("datasets", "images"))}}
        ctx = silent_context(Path(name) / "work")
        start = time.perf_counter()
        corpus.run(spec, StageInputs({}, {"images": folder}), ctx, registry)
        packed = count / (time.perf_counter() - start)
    return {
        "bare_images_per_s": bare,
        "packed_images_per_s": packed,
        "cores": cores(),
        "ratio": packed / bare / cores(),
    }
