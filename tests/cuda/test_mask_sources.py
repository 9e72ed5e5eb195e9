"""Mask sources on the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from anaus_bench.interfaces import LearnedSource, StageContext, StoredSource
from anaus_bench.kit.synthetic import synthetic_corpus
from anaus_bench.registry import Registry
from tests.cuda.conftest import CPU, Placement

pytestmark = pytest.mark.cuda

REGISTRY = Registry()
CLASSES = {name: REGISTRY.get("mask_sources", name) for name in REGISTRY.names("mask_sources")}


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if not issubclass(cls, StoredSource)])
def test_a_mask_source_is_fitted_and_segments_on_the_device_and_touches_no_other(
    name: str, device: torch.device, context_on: Callable[..., StageContext]
) -> None:
    source, corpus = REGISTRY.create("mask_sources", name, "tiny"), synthetic_corpus(8)
    images = torch.from_numpy(corpus.images[:4])[:, None].to(device)
    truth = torch.from_numpy(corpus.truth[:4]).to(device)  # type: ignore[index]

    with Placement() as placement:
        if isinstance(source, LearnedSource):
            state = source.fit(corpus, context_on(device))
            assert all(value.device == CPU and bool(value.isfinite().all()) for value in state.values())
            source.load(state, corpus.structures, device)
        maps = source.label_maps(images, truth, corpus.entries[:4])

    assert (maps.device, maps.dtype, maps.shape) == (device, torch.uint8, (4, *corpus.images.shape[1:]))
    assert placement.devices <= {CPU, device}
