"""A benchmark's tables, figures and one HTML page, from its result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MedSSLLib.benchmark.recommendations import LEAST_CHOICES, markdown, recommendations
from MedSSLLib.benchmark.records import BASELINE, differences
from MedSSLLib.benchmark.tables import (
    COLUMNS,
    NOTES,
    SHOWN,
    Study,
    case_rows,
    csv_text,
    dice_interval,
    lines_of_lengths,
    mean_of,
    shown,
    table_row,
    table_rows,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_path
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Cell, Page
from MedSSLLib.reporting.plots import (
    dice_against_labels,
    dice_against_steps,
    paired_cases,
    save,
    training_curves,
)
from MedSSLLib.reporting.run_report import RESEARCH, add_environment, footer, losses


def write_tables(studies: Sequence[Study], out: Path, project: Project | None = None) -> list[Path]:
    """Write tables (Markdown, CSV), figures and ``report.html`` into a folder; returns the files.

    Args:
        studies: what was run.
        out: the folder.
        project: the benchmark's project, for training curves.

    Raises:
        InputError: there is no record.
    """
    if not studies:
        raise InputError(
            "there is no result yet", file=out, remedy="Run `medssl benchmark labels` first"
        )
    texts = {
        "tables.md": markdown(studies),
        "tables.csv": csv_text(COLUMNS, table_rows(studies)),
        "cases.csv": csv_text(tuple(case_rows(studies)[0]), case_rows(studies)),
    }
    written = []
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(out / name)
    page = Page("What each label is worth", _lead(studies), kicker="MedSSL benchmark")
    for study, prefix in zip(studies, _prefixes(studies), strict=True):
        written += _add_study(page, study, out / "figures", prefix)
    written += _add_lengths(page, studies, out / "figures")
    if project is not None:
        _add_training(page, project, studies)
    add_environment(page, studies[0].versions)
    page.section("Limits")
    page.bullets([*NOTES, *_limits(studies), *RESEARCH])
    return [*written, page.write(out / "report.html", footer())]


def _prefixes(studies: Sequence[Study]) -> list[str]:
    """What the figure files of each study begin with: its data, numbered where some are alike."""
    names = [study.data for study in studies]
    if len(set(names)) == len(names):
        return names
    return [f"{name}-{index}" for index, name in enumerate(names, 1)]


def _lead(studies: Sequence[Study]) -> str:
    names = ", ".join(dict.fromkeys(study.data for study in studies))
    return (
        f"Ways of training compared on {names}: the same labels, test cases that no run has "
        "seen, the same length "
        "of every run. Pre-training comes before that; +selftrain goes on from its row for as "
        "long again."
    )


def _add_study(page: Page, study: Study, figures: Path, prefix: str) -> list[Path]:
    page.section(study.data, f"Length: {study.length() or 'the steps of the preset'}.")
    page.bullets(recommendations(study))
    for count in study.counts:
        rows = [shown(table_row(study, count, row)) for row in study.rows(count)]
        head, rows = filled(SHOWN, rows)
        cells: list[list[Cell | str]] = [[name, *map(_cell, rest)] for name, *rest in rows]
        page.table(head, cells, caption=f"{study.volumes(count)} labelled")
    drawn = {
        f"{prefix}-labels": (
            dice_against_labels(_dice_lines(study)),
            "Mean Dice against labelled volumes, 95 % interval.",
        )
    }
    for count in study.counts:
        if pair := _pair(study, count):
            caption = (
                f"Every case with {study.volumes(count)} labelled, "
                "mean over choices; blue where it rose."
            )
            names = (BASELINE, pair.row)
            figure = paired_cases(pair.under_baseline, pair.under_row, names)
            drawn[f"{prefix}-pairs-{count}"] = figure, caption
    page.figures(*drawn.values())
    written = []
    for name, (figure, _) in drawn.items():
        written.append(save(figure, figures / f"{_file_name(name)}.png"))
    return written


def _add_lengths(page: Page, studies: Sequence[Study], figures: Path) -> list[Path]:
    written = []
    for data, lines in lines_of_lengths(studies).items():
        page.section(f"What longer training buys: {data}")
        caption = "The same choices of labelled volumes at every length; the band: 95 % interval."
        page.figures((dice_against_steps(lines), caption))
        path = figures / f"{_file_name(data)}-lengths.png"
        written.append(save(dice_against_steps(lines), path))
    return written


def _dice_lines(study: Study) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Row to ``{labelled volumes: (mean Dice, low, high)}``."""
    lines: dict[str, dict[int, tuple[float, float, float]]] = {}
    for count in study.counts:
        for row in study.rows(count):
            interval = dice_interval(study.compared(count, row))
            lines.setdefault(row, {})[study.volumes(count)] = interval
    return lines


def filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that hold nothing but dashes."""
    kept = [n for n in range(len(head)) if any(row[n] != "–" for row in rows)]

    def of(row: Sequence[str]) -> list[str]:
        return [row[n] for n in kept]

    return of(head), [of(row) for row in rows]


def _cell(text: str) -> Cell:
    """A number; its interval, if it has one, as the note."""
    value, _, interval = text.partition(" (")
    return Cell(value, interval.removesuffix(")"), number=True)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)


@dataclass(frozen=True)
class _Pair:
    """A row, and every case's mean Dice under the baseline and under the row."""

    row: str
    under_baseline: dict[str, float | None]
    under_row: dict[str, float | None]


def _pair(study: Study, count: str) -> _Pair | None:
    """The row that gains most over random, over the choices that both have; None without one."""
    gaps = differences(study.compared(count))
    if not gaps:
        return None
    best = max(gaps, key=lambda row: gaps[row]["mean"])
    first = _case_means(study, count, BASELINE, gaps[best]["choices"])
    second = _case_means(study, count, best, gaps[best]["choices"])
    return _Pair(best, {case: first.get(case) for case in second}, second)


def _case_means(
    study: Study, count: str, row: str, choices: Sequence[int]
) -> dict[str, float | None]:
    """Every case's mean Dice under a row over some of its choices."""
    values: dict[str, list[float | None]] = {}
    for record in study.of(count, row):
        if record["choice"] in choices:
            for case, dice in record["dice"].items():
                values.setdefault(case, []).append(dice)
    return {case: mean_of(values[case]) for case in sorted(values)}


def _add_training(page: Page, project: Project, studies: Sequence[Study]) -> None:
    """Loss curves of the runs of the first choice with the fewest labels."""
    study = studies[0]
    first = [r for r in study.of(study.counts[0]) if r["choice"] == 0 and "run" in r]
    runs = {record["row"]: project.run_folder(record["run"]) for record in first}
    if curves := losses(runs):
        page.section("Training")
        page.figures(
            (training_curves(curves), "Losses by step; the strong line is a running mean.")
        )


def _limits(studies: Sequence[Study]) -> list[str]:
    found = []
    for study in studies:
        choices = []
        for count in study.counts:
            choices += [len(study.of(count, row)) for row in study.rows(count)]
        cases = len(study.records[0]["dice"])
        if min(choices) < LEAST_CHOICES:
            found.append(f"{study.data}: some rows have fewer than 3 choices of labelled volumes.")
        if cases < 20:
            found.append(f"{study.data}: {cases} test cases, so that intervals are wide.")
    return [*found, "One seed: the spread between seeds is not in the intervals."]
