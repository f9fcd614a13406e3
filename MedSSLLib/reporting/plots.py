"""Plots in one style: colour-blind-safe, transparent, legible on white and dark pages.

The colours are those of Okabe and Ito 2008.

Every function returns a matplotlib ``Figure`` made without pyplot, so nothing is global and no
display is needed. Save it with :func:`save` or turn it into bytes with :func:`to_png`.
"""

from __future__ import annotations

import io as streams
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from MedSSLLib.core.files import atomic_path

NEUTRAL = "#727780"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8f98")
"""Series, in order of use."""
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
"""Classes, in order of class index from 1; chosen to stand out on grey images."""
_STYLE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "semibold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": NEUTRAL,
    "axes.titlecolor": NEUTRAL,
    "text.color": NEUTRAL,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "axes.grid": True,
    "grid.color": NEUTRAL,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
}
Curves = Mapping[str, Sequence[tuple[float, float]]]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function in the house style, leaving matplotlib's own settings as they were."""

    @wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Figure:
        with _house_style():
            return draw(*args, **kwargs)

    return wrapped


def colour_of(index: int) -> str:
    """The colour of class ``index`` (from 1)."""
    return CLASS_COLOURS[(index - 1) % len(CLASS_COLOURS)]


def save(figure: Figure, path: Path | str, *, dpi: int = 160) -> Path:
    """Write a figure as PNG, atomically; returns the path."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(to_png(figure, dpi=dpi))
    return Path(path)


def to_png(figure: Figure, *, dpi: int = 160) -> bytes:
    """PNG bytes of a figure, transparent outside its images."""
    stream = streams.BytesIO()
    with _house_style():
        figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


@styled
def training_curves(
    runs: Mapping[str, Curves], *, ylabel: str = "loss", bounds: tuple[float, float] | None = None
) -> Figure:
    """One panel per quantity, one line per run: raw values faint, a running mean strong.

    Args:
        runs: run name to quantity name to ``[(step, value), ...]``.
        ylabel: the axis' name, shared by all panels.
        bounds: limits of the vertical axis; ``None`` = from the data.
    """
    names: list[str] = []
    for curves in runs.values():
        names += [name for name in curves if name not in names]
    figure = Figure(figsize=(3.3 * max(1, len(names)), 2.6))
    shown: dict[str, Artist] = {}
    for panel, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), panel + 1)
        for number, (run, curves) in enumerate(runs.items()):
            _curve(axes, curves.get(name, ()), PALETTE[number % len(PALETTE)], run)
        axes.set(title=name.replace("_", " "), xlabel="step", ylim=bounds)
        if panel == 0:
            axes.set_ylabel(ylabel)
        for line in axes.lines:
            if line.get_label() in runs:
                shown[str(line.get_label())] = line
    if len(runs) > 1 and shown:
        legend_above(figure, list(shown.values()), list(shown), columns=4)
    return figure


def legend_above(
    figure: Figure,
    handles: Sequence[Artist] | None = None,
    names: Sequence[str] = (),
    *,
    columns: int = 3,
) -> None:
    """The legend above a figure, in as many columns as fit.

    It names what the figure shows unless told; its rows make the figure higher.
    """
    if handles is None:
        handles, names = figure.axes[0].get_legend_handles_labels()
    for count in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(handles, names, loc="outside upper center", ncols=count)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(handles) / count) - 1))


def _curve(axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str) -> None:
    if not points:
        return
    steps, values = np.asarray(points, dtype=float).T
    if len(steps) < 12:
        axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
    axes.plot(steps, running_mean(values, max(3, len(values) // 20)), color=colour, label=label)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over up to ``window`` values, same length.

    NaN are left out; the ends use what there is.
    """
    kernel, present = np.ones(min(window, len(values))), ~np.isnan(values)
    total = np.convolve(np.where(present, values, 0.0), kernel, "same")
    count = np.convolve(present.astype(float), kernel, "same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


@styled
def dice_against_labels(
    results: Mapping[str, Mapping[int, tuple[float, float, float]]],
    *,
    xlabel: str = "labelled volumes",
) -> Figure:
    """Mean Dice against the number of labelled volumes, with intervals.

    Args:
        results: method to ``{labelled volumes: (mean, low, high)}``.
        xlabel: what is counted.
    """
    figure = Figure(figsize=(4.7, 3.6))
    axes = figure.add_subplot()
    counts = sorted(set().union(*results.values()))
    for number, (method, rows) in enumerate(results.items()):
        shift = (number - (len(results) - 1) / 2) * 0.06
        own = sorted(rows)
        mean, low, high = np.array([rows[count] for count in own]).T
        axes.errorbar(
            np.searchsorted(counts, own) + shift,
            mean,
            [mean - low, high - mean],
            color=PALETTE[number % len(PALETTE)],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set_xticks(range(len(counts)), list(map(str, counts)))
    axes.set(xlabel=xlabel, ylabel="mean Dice", xlim=(-0.5, len(counts) - 0.5))
    legend_above(figure)
    return figure


def counted_log(axes: Axes) -> None:
    """A logarithmic x axis of whole numbers, written as people write them: 1, 2, 5, 10, ..."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


@styled
def dice_against_steps(
    results: Mapping[str, Mapping[int, tuple[float, float, float]]],
) -> Figure:
    """Mean Dice against the length of training, with intervals.

    Args:
        results: line to ``{training steps in all: (mean, low, high)}``.
    """
    figure = Figure(figsize=(6.2, 3.8))
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(results.items()):
        color = PALETTE[number % len(PALETTE)]
        steps = sorted(points)
        mean, low, high = np.array([points[step] for step in steps]).T
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, mean, color=color, marker="o", label=name)
    axes.set(xlabel="training steps", ylabel="mean Dice")
    counted_log(axes)
    legend_above(figure)
    return figure


@styled
def paired_cases(
    first: Mapping[str, float | None],
    second: Mapping[str, float | None],
    names: tuple[str, str],
    *,
    metric: str = "Dice",
) -> Figure:
    """Every case's value under two methods, joined: who gained, who lost, and the means.

    Args:
        first: case to value under the first method; ``None`` = undefined, left out.
        second: the same under the second.
        names: the two methods.
        metric: the axis' name.
    """
    pairs = []
    for case, before in first.items():
        after = second.get(case)
        if before is not None and after is not None:
            pairs.append((before, after))
    figure = Figure(figsize=(3.6, 3.4))
    axes = figure.add_subplot()
    style: dict[str, Any] = {"alpha": 0.7, "linewidth": 1.1, "marker": "o", "markersize": 3.2}
    for before, after in pairs:
        axes.plot((0, 1), (before, after), color=PALETTE[0 if after >= before else 1], **style)
    if pairs:
        _draw_means(axes, *np.array(pairs).mean(axis=0))
    axes.set_xticks((0, 1), names)
    axes.set(xlim=(-0.45, 1.45), ylabel=metric)
    axes.grid(axis="x", visible=False)
    return figure


def _draw_means(axes: Axes, before: float, after: float) -> None:
    axes.plot((0, 1), (before, after), color=NEUTRAL, linewidth=2.6, marker="D", markersize=6)
    for place, mean, side in ((0, before, "right"), (1, after, "left")):
        axes.annotate(
            f"{mean:.3f}",
            (place, mean),
            xytext=(18 * place - 9, 0),
            ha=side,
            va="center",
            textcoords="offset points",
            weight="semibold",
        )


@styled
def class_spread(
    cases: Mapping[str, Mapping[str, float | None]], *, metric: str = "Dice"
) -> Figure:
    """One row per class: every case as a dot, the median as a bar.

    Args:
        cases: case to ``{class: value}``; ``None`` = undefined, left out.
        metric: the axis' name.
    """
    classes = list(next(iter(cases.values()), {}))
    figure = Figure(figsize=(5.2, 0.9 + 0.55 * max(1, len(classes))))
    axes = figure.add_subplot()
    generator = np.random.default_rng(0)
    for row, name in enumerate(classes):
        found = [case.get(name) for case in cases.values()]
        values = np.array([value for value in found if value is not None], dtype=float)
        places = row + generator.uniform(-0.16, 0.16, len(values))
        axes.plot(values, places, "o", color=colour_of(row + 1), alpha=0.65, markersize=5)
        if len(values):
            axes.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color=NEUTRAL, linewidth=2.6)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel=f"{metric} (bar: median)", ylim=(len(classes) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    return figure


@styled
def volume_agreement(volumes: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Bland-Altman plot per class, with limits of agreement.

    Difference against mean of measured and reference volume.

    Args:
        volumes: class to ``[(measured ml, reference ml), ...]``.
    """
    names = list(volumes)
    figure = Figure(figsize=(3.3 * max(1, len(names)), 2.7))
    for panel, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), panel + 1)
        measured, reference = np.asarray(volumes[name], dtype=float).reshape(-1, 2).T
        difference = measured - reference
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        axes.plot(
            (measured + reference) / 2,
            difference,
            "o",
            color=colour_of(panel + 1),
            alpha=0.8,
            markersize=5,
        )
        if len(difference) > 1:
            bias, limit = difference.mean(), 1.96 * difference.std(ddof=1)
            for value, style in ((bias, "-"), (bias - limit, "--"), (bias + limit, "--")):
                axes.axhline(value, color=PALETTE[1], linewidth=1.1, linestyle=style)
        axes.set(
            title=name,
            xlabel="mean of both, ml",
            ylabel="measured − reference, ml" if panel == 0 else "",
        )
    return figure


@styled
def reliability_diagram(bins: Mapping[str, Sequence[float]], ece: float) -> Figure:
    """Accuracy against confidence of the predicted class in equal bins (Guo et al. 2017, figure 1).

    Args:
        bins: ``count``, ``confidence`` and ``accuracy`` of every bin, as
            :mod:`MedSSLLib.evaluation.calibration` records them.
        ece: expected calibration error, for the title.
    """
    count, confidence, accuracy = (
        np.asarray(bins[name], float) for name in ("count", "confidence", "accuracy")
    )
    figure = Figure(figsize=(3.6, 3.4))
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), color=NEUTRAL, linewidth=0.9, linestyle="--")
    filled = count > 0
    axes.bar(
        confidence[filled], accuracy[filled], width=0.85 / len(count), color=PALETTE[0], alpha=0.75
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="confidence",
        ylabel="accuracy",
        title=f"calibration error {ece:.3f}",
    )
    return figure


@contextmanager
def _house_style() -> Iterator[None]:
    """The style for the time of a call.

    A preferred font or a glyph that is missing is not worth a message.
    """
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
