"""Pictures: grids of ultrasound images with contours and regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anaus_bench.metrics.label_maps import boundaries


@dataclass(frozen=True)
class Column:
    """One picture of a row.

    Attributes:
        title: Heading of its column.
        image: (H, W) uint8.
        contour: (H, W) ids, each of which is outlined but 0, or None.
        colour: Of the outline.
        regions: (H, W) uint8 label map drawn in transparent colours with white borders, or None; id 0 stays clear.
        caption: Text below.
    """

    title: str
    image: NDArray[np.uint8]
    contour: NDArray[np.uint8] | None = None
    colour: str = "orange"
    regions: NDArray[np.uint8] | None = None
    caption: str = ""


def draw_panel(rows: Sequence[tuple[str, Sequence[Column]]], path: Path, *, title: str, mark: str = "") -> None:
    """Writes a PNG: one row per (name, columns); all rows have the same columns.

    Args:
        rows: Name and pictures of each row.
        path: Where to write.
        title: Heading.
        mark: What a viewer must not overlook, such as that the images are generated.
    """
    from matplotlib.figure import Figure

    wide = len(rows[0][1])
    figure = Figure(figsize=(2.2 * wide, 2.3 * len(rows) + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), wide, squeeze=False)
    for row, (name, columns) in enumerate(rows):
        for number, (axis, column) in enumerate(zip(axes[row], columns, strict=True)):
            _draw(axis, column)
            if row == 0:
                axis.set_title(column.title, fontsize=9)
            axis.set_xlabel(column.caption, fontsize=7)
            if number == 0:
                axis.set_ylabel(name if len(name) <= 32 else f"...{name[-29:]}", fontsize=6)
    figure.suptitle(f"{title} ({mark})" if mark else title, fontsize=10)
    figure.savefig(path)


def draw_bars(
    labels: Sequence[str], groups: Mapping[str, Sequence[float]], path: Path, *, title: str, mark: str = ""
) -> None:
    """Writes a PNG: grouped bars of values in [0, 1], a group per label, a colour per name in `groups`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * len(labels) + 3, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * width
        axes.bar(places, values, width, label=name)
    axes.set_xticks(range(len(labels)), [label.replace(" ", "\n", 1) for label in labels], fontsize=7)
    axes.set_ylim(0, 1)
    figure.legend(loc="outside right upper", fontsize=7)
    axes.set_title(f"{title} ({mark})" if mark else title, fontsize=10)
    figure.savefig(path)


def _draw(axis: object, column: Column) -> None:
    from matplotlib import colormaps
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    axis.imshow(column.image, cmap="gray", vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    if column.regions is not None:
        # Steps of the golden ratio: neighbouring ids differ most in hue.
        colours = colormaps["hsv"](column.regions * 0.618 % 1)
        colours[..., 3] = np.where(column.regions > 0, 0.35, 0.0)
        colours[boundaries(column.regions)] = (1.0, 1.0, 1.0, 0.8)
        axis.imshow(colours, interpolation="nearest")
    for structure in np.unique(column.contour[column.contour > 0]) if column.contour is not None else ():
        axis.contour(column.contour == structure, levels=[0.5], colors=[column.colour], linewidths=1.0)
