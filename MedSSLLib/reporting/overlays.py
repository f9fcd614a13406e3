"""Slices of a case with its labels on top: which slice, which way up, contour, fill."""

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
from MedSSLLib.images.labels import Annotated, counted_mask
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
    """The slice that shows most, in radiological convention.

    The patient's right is on the left, head or front up.

    Args:
        title: text of the row.
        image: the scan.
        labels: column name to label volume on the same grid; ``None`` = a column with the bare
            image. The first label decides which slice is shown.
        classes: label values; the position decides the colour.
    """
    scan = orient(image, "LPS")
    oriented = _oriented(labels)
    found = [array for array in oriented.values() if array is not None]
    axis = shown_axis(scan.geometry)
    index = best_slice(found[0] if found else np.zeros(scan.array.shape), axis, classes)
    return _panel_at(title, scan, oriented, classes, (axis, index))


def volume_panels(
    image: Volume, label: Volume, classes: Sequence[int], drawn: Annotated | None, count: int = 5
) -> list[Panel]:
    """A row for each of a few slices of a label, evenly spaced from its first to its last slice.

    Args:
        image: the scan.
        label: on the same grid.
        classes: label values; the position decides the colour.
        drawn: slices that a person has drawn; their rows say so.
        count: most rows.
    """
    scan, oriented = orient(image, "LPS"), _oriented({"scan": None, "filled in": label})
    axis = shown_axis(scan.geometry)
    array = oriented["filled in"]
    assert array is not None
    across = np.moveaxis(array, 2 - axis, 0)
    shown = np.flatnonzero(np.isin(across, list(classes)).any(axis=(1, 2)))
    if not len(shown):
        shown = np.array([len(across) // 2])
    ends = np.linspace(shown[0], shown[-1], min(count, len(shown)))
    mask = None
    if drawn is not None:
        counted = counted_mask(image.array.shape, drawn).astype(np.uint8)
        mask = np.moveaxis(orient(Volume(counted, image.geometry), "LPS").array, 2 - axis, 0)
    panels = []
    for index in np.unique(ends.round().astype(int)):
        by_hand = mask is not None and bool(mask[index].all())
        title = f"slice {index + 1} of {len(across)}{', drawn' if by_hand else ''}"
        panels.append(_panel_at(title, scan, oriented, classes, (axis, int(index))))
    return panels


def _oriented(labels: Mapping[str, Volume | None]) -> dict[str, np.ndarray | None]:
    found: dict[str, np.ndarray | None] = {}
    for name, label in labels.items():
        found[name] = None if label is None else orient(label, "LPS").array
    return found


def _panel_at(
    title: str,
    scan: Volume,
    labels: Mapping[str, np.ndarray | None],
    classes: Sequence[int],
    at: tuple[int, int],
) -> Panel:
    """The slice ``at`` (axis, index) of an LPS scan with labels on the same grid."""
    axis, index = at
    maps: dict[str, np.ndarray | None] = {}
    for name, array in labels.items():
        maps[name] = None if array is None else _class_map(_cut(array, axis, index), classes)
    low, high = np.percentile(scan.array, (0.5, 99.7))
    plane = _cut(scan.array, axis, index).astype(float)
    grey = np.clip((plane - low) / max(high - low, 1e-9), 0, 1)
    across, down = (scan.geometry.spacing[other] for other in range(3) if other != axis)
    return Panel(title, grey, maps, down / across, _UP[axis])


def shown_axis(geometry: Geometry) -> int:
    """The axis (0 L, 1 P, 2 S) across which slices are shown: the clearly thickest one, else S."""
    spacing = geometry.spacing
    thickest = int(np.argmax(spacing))
    return thickest if spacing[thickest] > 1.3 * sorted(spacing)[1] else 2


def best_slice(label: np.ndarray, axis: int, classes: Sequence[int]) -> int:
    """The slice of ``label`` [k, j, i] that holds most of all classes together.

    The middle if it is empty.
    """
    slices = np.moveaxis(label, 2 - axis, 0)
    score = np.zeros(len(slices))
    for value in classes:
        area = (slices == value).sum(axis=(1, 2)).astype(float)
        if area.any():
            score += np.sqrt(area / area.max())
    return int(score.argmax()) if score.any() else len(score) // 2


def _cut(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice of an LPS array as it is hung.

    Rows run head to foot, or front to back in axial slices.
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
    """Rows of cases, columns of labels: translucent fill and contour.

    Later columns show the outline of the first label.

    Args:
        panels: rows with the same columns.
        names: class names by position, without background (the legend).
        width: inches.
    """
    columns = list(panels[0].labels)
    cell = width / len(columns)
    longest = max(columns, key=lambda name: len(printable(name)))
    heights = []
    for panel in panels:
        rows, across = panel.image.shape
        heights.append(cell * rows * panel.aspect / across)
    figure = Figure(figsize=(width, sum(heights) + 0.7))
    grid = figure.add_gridspec(len(panels), len(columns), height_ratios=heights)
    for row, panel in enumerate(panels):
        reference = next((label for label in panel.labels.values() if label is not None), None)
        for column, (name, label) in enumerate(panel.labels.items()):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, panel, label, None if label is reference else reference, len(names))
            if row == 0:
                _add_title(axes, name, cell, len(printable(longest)))
            if column == 0:
                _write(axes, (0.025, 0.975), panel.title, va="top")
    handles = []
    for number, name in enumerate(names, 1):
        fill, edge = to_rgba(colour_of(number), 0.45), colour_of(number)
        handles.append(Patch(facecolor=fill, edgecolor=edge, label=printable(name)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _add_title(axes: Axes, text: str, width: float, longest: int) -> None:
    """The title of a column, small enough for the longest one to fit the width in inches."""
    title = axes.set_title(printable(text), loc="center", pad=6)
    title.set_fontsize(min(title.get_fontsize(), 72 * width / (BOLD * (longest + 1))))


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
