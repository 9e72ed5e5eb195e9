"""Draws held-out cases of a cell: input, mask-source regions, ground truth, prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anaus_bench.corpus.packed import Entry, letterbox
from anaus_bench.datasets.folds import read_folds
from anaus_bench.interfaces import Case, MaskSource, OracleSource, StageContext, StageInputs, StoredSource
from anaus_bench.pictures import Column, draw_panel
from anaus_bench.planning.specs import PanelSpec
from anaus_bench.registry import Registry
from anaus_bench.stages.inputs import open_task, ready_source

CASES = 6


def run(spec: PanelSpec, inputs: StageInputs, ctx: StageContext, registry: Registry) -> dict[str, Any]:
    """Writes `panel.png`."""
    task, dataset, index = open_task(spec, inputs, registry)
    folds = read_folds(dataset, index, inputs.folders["folds"])
    everything = [(fold, case) for fold in folds for case in fold.test]
    # Evenly over all folds and classes, without a look at the scores.
    chosen = [everything[number] for number in np.linspace(0, len(everything) - 1, CASES).round().astype(int)]
    source = None
    if spec.masks is not None:
        source = ready_source(registry.build(spec.masks), inputs.folders.get("fit"), ctx.device)
        blind = isinstance(source, OracleSource) and any(case.read().mask is None for _, case in chosen)
        if blind or isinstance(source, StoredSource):
            source = None  # it has nothing to show here
    rows = []
    for fold, case in chosen:
        picture = case.read()
        truth, predicted, caption = task.draw(case, inputs.folders[f"fold{fold.number}"])
        columns = [Column("input", picture.image)]
        if source is not None:
            image, regions = _regions(source, case, spec.size, ctx.device)
            columns.append(Column(f"{source.name} regions", image, regions=regions))
        if truth is not None:
            columns.append(Column("ground truth", picture.image, contour=truth, colour="lime"))
        columns.append(Column("prediction", picture.image, contour=predicted, colour="orange", caption=caption))
        rows.append((case.sample.sample_id, columns))
    mark = "generated phantoms" if index.phantom else "pre-trained on phantoms" if inputs.phantom else ""
    draw_panel(rows, ctx.out / "panel.png", title=task.name, mark=mark)
    return {"cases": [case.sample.sample_id for _, case in chosen], "phantom": index.phantom}


def _regions(
    source: MaskSource[Any], case: Case, size: int, device: torch.device
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The case packed as in a corpus, and the mask source's label map of it, both cut to the valid box."""
    picture = case.read()
    size = min(size, max(picture.image.shape))
    image, box = letterbox(picture.image, size, labels=False)
    top, left, height, width = box
    truth = None
    if picture.mask is not None:
        truth = torch.from_numpy(letterbox(picture.mask, size, labels=True)[0])[None].to(device)
    images = torch.from_numpy(image)[None, None].to(device)
    entry = Entry(case.sample.sample_id, "", case.sample.group_id, -1, None, None, None, box)
    label_map = source.label_maps(images, truth, (entry,))[0].cpu().numpy()
    inside = slice(top, top + height), slice(left, left + width)
    return image[inside], label_map[inside]
