"""Slices of a case with its labels drawn on top: which slice to show, which way is up, contour and
fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from MedSSLLib.core.errors import printable
from MedSSLLib.images.geometry import Geometry, Volume, orient
from MedSSLLib.reporting.plots import colour_of, styled

BOLD = 0.66  # width of a bold letter, at most, over its size
_UP = {
    0: ("A", "P"),
    1: ("R", "L"),
    2: ("R", "L"),
}  # letters left and right of a slice across L, P, S


@dataclass(frozen=True)
class Panel:
    """One row of an overlay figure: a grey slice ``[row, column]`` in [0, 1] and class maps on it.

    aspect: height of a pixel over its width. letters: patient directions at the left and right edge
        ("" = unknown).
    """

    title: str
    image: np.ndarray
    labels: Mapping[str, np.ndarray | None]
    aspect: float
    letters: tuple[str, str]


def make_panel(
    title: str, image: Volume, labels: Mapping[str, Volume | None], classes: Sequence[int]
) -> Panel:
    """The slice that shows most, in radiological convention (patient's right on the left, head or
    front up).

    Args:
        title: text of the row.
        image: the scan.
        labels: column name to label volume on the same grid; ``None`` = a column with the bare
            image. The first label decides which slice is shown.
        classes: label values; the position decides the colour.
    """
    scan = orient(image, "LPS")
    oriented = {
        name: None if label is None else orient(label, "LPS").array
        for name, label in labels.items()
    }
    leading = next(
        (array for array in oriented.values() if array is not None), np.zeros(scan.array.shape)
    )
    axis = shown_axis(scan.geometry)
    index = best_slice(leading, axis, classes)
    low, high = np.percentile(scan.array, (0.5, 99.7))
    grey = np.clip(
        (_cut(scan.array, axis, index).astype(float) - low) / max(high - low, 1e-9), 0, 1
    )
    spacing = [step for number, step in enumerate(scan.geometry.spacing) if number != axis]
    maps = {
        name: None if array is None else _class_map(_cut(array, axis, index), classes)
        for name, array in oriented.items()
    }
    return Panel(title, grey, maps, spacing[1] / spacing[0], _UP[axis])


def shown_axis(geometry: Geometry) -> int:
    """The axis (0 L, 1 P, 2 S) across which slices are shown: the clearly thickest one, else S."""
    spacing = geometry.spacing
    thickest = int(np.argmax(spacing))
    return thickest if spacing[thickest] > 1.3 * sorted(spacing)[1] else 2


def best_slice(label: np.ndarray, axis: int, classes: Sequence[int]) -> int:
    """The slice of ``label`` [k, j, i] that holds the largest shares of all classes together; the
    middle if empty.
    """
    others = tuple(number for number in range(3) if number != 2 - axis)
    score = np.zeros(label.shape[2 - axis])
    for value in classes:
        area = (label == value).sum(axis=others).astype(float)
        score += np.sqrt(area / area.max()) if area.any() else 0
    return int(score.argmax()) if score.any() else len(score) // 2


def _cut(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of an LPS array as it is hung: rows run head to foot (front to back in axial
    slices).
    """
    plane = np.take(array, index, axis=2 - axis)
    return plane if axis == 2 else plane[::-1]


def _class_map(plane: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    result = np.zeros(plane.shape, dtype=int)
    for position, value in enumerate(classes, 1):
        result[plane == value] = position
    return result


@styled
def overlay_figure(panels: Sequence[Panel], names: Sequence[str], *, width: float = 9.6) -> Figure:
    """Rows of cases, columns of labels: translucent fill and contour; later columns show the first
    one's outline.

    Args:
        panels: rows with the same columns.
        names: class names by position, without background (the legend).
        width: inches.
    """
    columns = list(panels[0].labels)
    cell = width / len(columns)
    heights = [
        cell * panel.image.shape[0] * panel.aspect / panel.image.shape[1] for panel in panels
    ]
    figure = Figure(figsize=(width, sum(heights) + 0.7))
    largest = 72 * cell / (BOLD * max(len(printable(name)) + 1 for name in columns))
    grid = figure.add_gridspec(len(panels), len(columns), height_ratios=heights)
    for row, panel in enumerate(panels):
        reference = next((label for label in panel.labels.values() if label is not None), None)
        for column, (name, label) in enumerate(panel.labels.items()):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, panel, label, None if label is reference else reference, len(names))
            if row == 0:
                title = axes.set_title(printable(name), loc="center", pad=6)
                title.set_fontsize(min(title.get_fontsize(), largest))
            if column == 0:
                _write(axes, (0.025, 0.975), panel.title, va="top")
    handles = [
        Patch(facecolor=to_rgba(colour_of(n), 0.45), edgecolor=colour_of(n), label=printable(name))
        for n, name in enumerate(names, 1)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _draw(
    axes: Axes, panel: Panel, label: np.ndarray | None, reference: np.ndarray | None, classes: int
) -> None:
    axes.imshow(
        panel.image, cmap="gray", vmin=0, vmax=1, aspect=panel.aspect, interpolation="bicubic"
    )
    if label is not None:
        fill = np.zeros((*label.shape, 4))
        for number in range(1, classes + 1):
            fill[label == number] = to_rgba(colour_of(number), 0.24)
            _contour(axes, label == number, colour_of(number), 1.3, "-")
            if reference is not None:
                _contour(axes, reference == number, "white", 0.7, (0, (2.0, 1.6)))
        axes.imshow(fill, aspect=panel.aspect, interpolation="nearest")
    for place, letter, side in (
        (0.02, panel.letters[0], "left"),
        (0.98, panel.letters[1], "right"),
    ):
        _write(axes, (place, 0.5), letter, ha=side, va="center")
    axes.set_axis_off()


def _write(axes: Axes, place: tuple[float, float], text: str, **alignment: Any) -> None:
    """White text on the image, legible on bright tissue too."""
    written = axes.text(
        *place, printable(text), transform=axes.transAxes, color="white", fontsize=8, **alignment
    )
    written.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.85)])


def _contour(axes: Axes, mask: np.ndarray, colour: str, width: float, style: object) -> None:
    if mask.any():
        padded = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        axes.contour(
            columns,
            rows,
            padded,
            levels=[0.5],
            colors=[colour],
            linewidths=width,
            linestyles=[style],
        )
