"""Tables and a figure of what the speed benchmark measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from MedSSLLib.benchmark.tables import markdown_table
from MedSSLLib.core.files import atomic_path
from MedSSLLib.reporting.plots import NEUTRAL, PALETTE, save, styled

SPEED_COLUMNS = ("what", "MedSSL", "reference", "ratio", "goal", "")
NAMES = {"step": "training step", "predict": "prediction", "views": "two views of a batch"}
EXPLAINED = (
    "Ratio: median over {pairs} pairs timed in turn, in brackets the smallest and the largest. "
    "Training step and "
    "prediction: MedSSL / the bare network on ready data. Two views: MONAI's transforms / MedSSL."
)
QUICK = (
    "A quick run with small sizes: it shows that everything works, "
    "and says nothing about the goals."
)


def speed_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a result (SPEED_COLUMNS names the columns), as people read them."""
    rows = []
    for row in content["results"]:
        relation = "≥" if row["faster"] else "≤"
        rows.append(
            [
                f"{NAMES[row['part']]}, {row['name']}",
                _milliseconds(row["ours_s"]),
                _milliseconds(row["reference_s"]),
                f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
                f"{relation} {row['goal']:.2f}",
                _verdict(row, content["quick"]),
            ]
        )
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _verdict(row: Mapping[str, Any], quick: bool) -> str:
    if quick:
        return ""
    return "met" if row["met"] else "missed"


def notes(content: Mapping[str, Any]) -> list[str]:
    """What the figures mean, and where they were taken."""
    machine = content["machine"]
    where = (
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {content['device']}, "
    )
    where += f"PyTorch {content['versions']['torch']}, MedSSL {content['versions']['medssl']}."
    return [*([QUICK] if content["quick"] else []), EXPLAINED.format(pairs=content["pairs"]), where]


def write_report(content: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ``speed.md`` and ``speed.png`` into a folder; returns the files."""
    text = out / "speed.md"
    with atomic_path(text) as temporary:
        temporary.write_text(speed_markdown(content), encoding="utf-8")
    return [text, save(speed_figure(content["results"]), out / "speed.png")]


def speed_markdown(content: Mapping[str, Any]) -> str:
    """The table and its notes."""
    table = markdown_table(SPEED_COLUMNS, speed_rows(content))
    return "\n\n".join(["## Speed", table, *notes(content)]) + "\n"


@styled
def speed_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Each ratio with its range and its goal.

    Overheads are on the left, how many times faster on the right.

    Args:
        results: records of comparisons.
    """
    overheads = [row for row in results if not row["faster"]]
    gains = [row for row in results if row["faster"]]
    sides = [side for side in (overheads, gains) if side]
    figure = Figure(figsize=(3.9 * len(sides) + 0.6, 1.1 + 0.3 * max(map(len, sides))))
    for panel, side in enumerate(sides, 1):
        _ratios(figure.add_subplot(1, len(sides), panel), side)
    figure.legend(handles=figure.axes[0].lines[:3], loc="outside upper right", ncols=3)
    return figure


def _ratios(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    faster = rows[0]["faster"]
    for place, row in enumerate(rows):
        ends = row["lowest"], row["highest"]
        axes.plot(ends, [place] * 2, color=PALETTE[0], alpha=0.4, linewidth=3.5, label="range")
        axes.plot(row["ratio"], place, "o", color=PALETTE[0], markersize=6.5, label="median")
        axes.plot(
            row["goal"],
            place,
            "|",
            color=PALETTE[1],
            markersize=15,
            markeredgewidth=2.2,
            label="goal",
        )
    axes.axvline(1, color=NEUTRAL, linewidth=0.9, linestyle="--")
    axes.set_yticks(range(len(rows)), [f"{row['part']} {row['name']}" for row in rows])
    axes.set(
        ylim=(len(rows) - 0.5, -0.5),
        title="times faster than MONAI" if faster else "time over the bare network",
        xlabel="ratio, higher is better" if faster else "ratio, lower is better",
    )
    axes.grid(axis="y", visible=False)
