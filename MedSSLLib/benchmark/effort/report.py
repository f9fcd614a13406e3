"""Table, figure and page of what the benchmark of effort measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from MedSSLLib.benchmark.effort.trials import EFFORT_VERSION, LEVELS, RESULTS
from MedSSLLib.benchmark.records import Record
from MedSSLLib.benchmark.tables import markdown_table
from MedSSLLib.core.files import atomic_path, read_json
from MedSSLLib.core.words import amount
from MedSSLLib.reporting.html import Cell, Page
from MedSSLLib.reporting.plots import PALETTE, counted_log, legend_above, save, styled
from MedSSLLib.reporting.run_report import RESEARCH, footer

WAY_NAMES = {
    "live": "live, with proposals",
    "live-no-mixing": "live, without mixing",
    "even": "evenly spaced slices, training at the end",
    "complete": "case by case, completed",
}
EFFORT_COLUMNS = ("Dice", "way", "slices", "voxels changed", "contour, mm", "reached by")
COURSE_COLUMNS = (
    "slices",
    "way",
    "Dice",
    "seeds from, to",
    "voxels changed",
    "of their structures",
    "of those proposed",
)
TICKS_APART = 1.25  # ratio of two labelled numbers of slices
_NONE = "–"


def effort_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a result (EFFORT_COLUMNS names the columns), as people read them.

    A level counts as reached at the first scored number of slices with that mean Dice; the mean is
    over the seeds that reach it.
    """
    rows = []
    for level in LEVELS:
        for way, trials in _trials(content["records"]).items():
            first = [found for trial in trials if (found := reached(trial, level))]
            words = [_NONE] * 3
            if first:
                words = [_mean(first, key) for key in ("slices", "voxels", "contour_mm")]
            name = WAY_NAMES.get(way, way)
            rows.append([f"{level:.2f}", name, *words, f"{len(first)} of {len(trials)}"])
    return rows


def reached(trial: Sequence[Record], level: float) -> Record | None:
    """The first record, by slices, whose mean Dice is at least a level."""
    for record in sorted(trial, key=lambda found: found["slices"]):
        if record["mean"] is not None and record["mean"] >= level:
            return record
    return None


def course_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The rows of every scored number of slices (COURSE_COLUMNS), as people read them.

    The two last columns are voxels changed over voxels of structures, of all slices that were drawn
    and of those that began as a proposal, summed over the seeds.
    """
    rows: list[tuple[int, list[str]]] = []
    for way, trials in _trials(content["records"]).items():
        by_count: dict[int, list[Record]] = {}
        for record in (record for trial in trials for record in trial):
            by_count.setdefault(record["slices"], []).append(record)
        for count, records in by_count.items():
            dice = [record["mean"] for record in records if record["mean"] is not None]
            corrected = [record.get("corrected", {}) for record in records]
            words = [str(count), WAY_NAMES.get(way, way), _NONE, _NONE]
            if dice:
                words[2] = f"{np.mean(dice):.3f}"
            if len(dice) > 1:
                words[3] = f"{min(dice):.3f}, {max(dice):.3f}"
            changed = f"{np.mean([record['voxels'] for record in records]):,.0f}"
            rows.append((count, [*words, changed, _share(records), _share(corrected)]))
    return [words for _, words in sorted(rows, key=lambda row: row[0])]


def _share(parts: Sequence[Mapping[str, int]]) -> str:
    """Voxels changed in percent of voxels of structures, summed over parts; older files do not
    hold them.
    """
    parts = [part for part in parts if "structure" in part]
    structure = sum(part["structure"] for part in parts)
    if not structure:
        return _NONE
    return f"{100 * sum(part['voxels'] for part in parts) / structure:.0f} %"


def _mean(records: Sequence[Record], key: str) -> str:
    return amount(float(np.mean([record[key] for record in records])))


def _trials(records: Sequence[Record]) -> dict[str, list[list[Record]]]:
    """Way to its trials, a list of records for each seed."""
    found: dict[str, dict[int, list[Record]]] = {}
    for record in records:
        found.setdefault(record["way"], {}).setdefault(record["seed"], []).append(record)
    return {way: list(seeds.values()) for way, seeds in found.items()}


def effort_notes(content: Mapping[str, Any]) -> list[str]:
    """What was assumed, and what the numbers mean."""
    settings = content["settings"]
    tests = len(content["records"][0]["dice"]) if content["records"] else 0
    scored = sorted({record["slices"] for record in content["records"]})
    return [
        f"A scripted person takes {settings['seconds']:g} s a slice, and training "
        f"{settings['rate']:g} steps a second meanwhile: both are assumptions.",
        "Voxels changed: those whose class the person sets, from the proposal or from an empty "
        "slice; of their structures: over what drawing those slices takes from nothing. "
        "Contour: added path length (Vaassen et al. 2020).",
        f"Mean Dice over classes and {tests} test cases at native resolution, scored after "
        f"{', '.join(map(str, scored))} slices. Training at the end has as many steps as live "
        "training had until then, and begins anew for every number of slices.",
        "Completed volumes are taken as they are; correcting them would be further work.",
    ]


def load_efforts(files: Sequence[Path]) -> tuple[list[dict[str, Any]], list[Path]]:
    """The results of this benchmark among files, and the other files.

    Files of the same data, version and settings are put together; a trial that two of them hold
    comes once, from the first.
    """
    found: dict[str, dict[str, Any]] = {}
    others: list[Path] = []
    for file in files:
        content = read_json(file)
        if content.get("bench") != "effort":
            others.append(file)
            continue
        content = read_json(file, newest_version=EFFORT_VERSION)
        same = {key: content.get(key) for key in ("data", "format_version", "settings")}
        known = found.setdefault(json.dumps(same, sort_keys=True), {**content, "records": []})
        held = {(record["way"], record["seed"]) for record in known["records"]}
        known["records"] += [r for r in content["records"] if (r["way"], r["seed"]) not in held]
    return [content for content in found.values() if content["records"]], others


def write_effort_report(
    content: Mapping[str, Any], out: Path, name: str = RESULTS.removesuffix(".json")
) -> list[Path]:
    """Write a table, a figure and a page (``NAME.md``, ``.png``, ``.html``) into a folder.

    Returns the files.
    """
    rows, notes = effort_rows(content), effort_notes(content)
    out.mkdir(parents=True, exist_ok=True)
    text = out / f"{name}.md"
    with atomic_path(text) as temporary:
        parts = [f"## Effort on {content['data']}", markdown_table(EFFORT_COLUMNS, rows)]
        parts += [markdown_table(COURSE_COLUMNS, course_rows(content)), *notes]
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    picture = save(effort_figure(content["records"]), out / f"{name}.png")
    page = Page(
        "How much must be drawn",
        f"Ways to annotate compared on {content['data']}, by the work of a scripted person.",
        kicker="MedSSL benchmark",
    )
    page.section("Dice by what was drawn")
    page.figures((effort_figure(content["records"]), "Mean over seeds; the band is their range."))
    page.section("In numbers")
    cells: list[list[Cell | str]] = []
    for level, way, *numbers in rows:
        cells.append([level, way, *(Cell(number, "", number=True) for number in numbers)])
    page.table(list(EFFORT_COLUMNS), cells, caption="Until the mean Dice is reached")
    cells = []
    for count, way, *numbers in course_rows(content):
        cells.append([count, way, *(Cell(number, "", number=True) for number in numbers)])
    page.table(list(COURSE_COLUMNS), cells, caption="After so many slices")
    page.section("Limits")
    page.bullets([*notes, *RESEARCH])
    return [text, picture, page.write(out / f"{name}.html", footer())]


def write_efforts(contents: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Reports of several results, named after their data and where needed numbered; the files."""
    written: list[Path] = []
    for number, content in enumerate(contents):
        same = sum(other["data"] == content["data"] for other in contents[:number])
        name = f"effort-{content['data']}" + (f"-{same + 1}" if same else "")
        written += write_effort_report(content, out, name)
    return written


@styled
def effort_figure(records: Sequence[Record]) -> Figure:
    """Mean Dice against drawn slices and against changed voxels, a line a way.

    Args:
        records: of the result file.
    """
    figure = Figure(figsize=(8.6, 3.7))
    axes = [figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)]
    for number, (way, trials) in enumerate(_trials(records).items()):
        color = PALETTE[number % len(PALETTE)]
        for panel, key in zip(axes, ("slices", "voxels"), strict=True):
            x, mean, low, high = _course(trials, key)
            panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            panel.plot(x, mean, color=color, marker="o", label=WAY_NAMES.get(way, way))
    for panel, words in zip(axes, ("drawn slices", "voxels changed"), strict=True):
        panel.set(xlabel=f"{words} (logarithmic)", ylabel="mean Dice", ylim=(0, 1))
        counted_log(panel)
        for level in LEVELS:
            panel.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    scored = sorted({record["slices"] for record in records}, reverse=True)
    ticks = scored[:1]
    for number in scored[1:]:  # labels of nearer ones would touch
        ticks += [number] * (ticks[-1] >= TICKS_APART * number)
    axes[0].xaxis.set_major_locator(FixedLocator(ticks[::-1]))
    legend_above(figure)
    return figure


def _course(trials: Sequence[Sequence[Record]], key: str) -> tuple[list[float], ...]:
    """Mean of a number, and mean, least and greatest Dice over seeds, for every scored count."""
    by_count: dict[int, list[Record]] = {}
    for record in (record for trial in trials for record in trial):
        by_count.setdefault(record["slices"], []).append(record)
    course: tuple[list[float], ...] = ([], [], [], [])
    for count in sorted(by_count):
        dice = [record["mean"] or 0.0 for record in by_count[count]]
        x = float(np.mean([record[key] for record in by_count[count]]))
        for part, value in zip(course, (x, np.mean(dice), min(dice), max(dice)), strict=True):
            part.append(float(value))
    return course
