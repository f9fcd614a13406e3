"""A benchmark's tables, figures and one HTML page, from its result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MedSSLLib.benchmark.records import BASELINE, difference
from MedSSLLib.benchmark.tables import (
    HEAD,
    NOTES,
    SHOWN,
    Study,
    case_rows,
    csv_text,
    dice_interval,
    markdown,
    mean_of,
    recommendations,
    shown,
    table_row,
    table_rows,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import atomic_path
from MedSSLLib.project.project import Project
from MedSSLLib.reporting.html import Cell, Page
from MedSSLLib.reporting.plots import dice_against_labels, paired_cases, save, training_curves
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
        "tables.csv": csv_text(HEAD, table_rows(studies)),
        "cases.csv": csv_text(tuple(case_rows(studies)[0]), case_rows(studies)),
    }
    written = []
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(out / name)
    page = Page("What each label is worth", _lead(studies), kicker="MedSSL benchmark")
    for index, study in enumerate(studies, 1):
        prefix = (
            study.data
            if len({s.data for s in studies}) == len(studies)
            else f"{study.data}-{index}"
        )
        written += _add_study(page, study, out / "figures", prefix)
    if project is not None:
        _add_training(page, project, studies)
    add_environment(page, studies[0].versions)
    page.section("Limits")
    page.bullets([*NOTES, *_limits(studies), *RESEARCH])
    return [*written, page.write(out / "report.html", footer())]


def _lead(studies: Sequence[Study]) -> str:
    names = ", ".join(dict.fromkeys(study.data for study in studies))
    return (
        f"Ways of training compared on {names}: the same labels, test cases that no run has "
        "seen, the same length "
        "of every run. Pre-training comes before that; +selftrain goes on from its row for as "
        "long again."
    )


def _add_study(page: Page, study: Study, figures: Path, prefix: str) -> list[Path]:
    page.section(study.data, f"Length: {study.length() or 'that of the preset'}.")
    page.bullets(recommendations(study))
    for count in study.counts:
        head, rows = filled(
            SHOWN, [shown(table_row(study, count, row)) for row in study.rows(count)]
        )
        page.table(
            head,
            [[name, *map(_cell, rest)] for name, *rest in rows],
            caption=f"{study.volumes(count)} labelled",
        )
    names = dict.fromkeys(row for count in study.counts for row in study.rows(count))
    lines = {
        row: {
            study.volumes(c): dice_interval(study.compared(c, row))
            for c in study.counts
            if study.of(c, row)
        }
        for row in names
    }
    drawn = {
        f"{prefix}-labels": (
            dice_against_labels(lines),
            "Mean Dice against labelled volumes, 95 % interval.",
        )
    }
    for count in study.counts:
        if pair := _pair(study, count):
            row, first, second = pair
            caption = (
                f"Every case with {study.volumes(count)} labelled, "
                "mean over choices; blue where it rose."
            )
            drawn[f"{prefix}-pairs-{count}"] = paired_cases(first, second, (BASELINE, row)), caption
    page.figures(*drawn.values())
    return [
        save(figure, figures / f"{_file_name(name)}.png") for name, (figure, _) in drawn.items()
    ]


def filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that hold nothing but dashes."""
    kept = [n for n in range(len(head)) if any(row[n] != "–" for row in rows)]
    return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]


def _cell(text: str) -> Cell:
    """A number; its interval, if it has one, as the note."""
    value, _, interval = text.partition(" (")
    return Cell(value, interval.removesuffix(")"), number=True)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)


def _pair(
    study: Study, count: str
) -> tuple[str, dict[str, float | None], dict[str, float | None]] | None:
    """The row that gains most over random, and every case's mean Dice under both, over the choices
    that both have.
    """
    gaps = {
        row: difference(study.compared(count), row, BASELINE)
        for row in study.rows(count)
        if row != BASELINE
    }
    gaps = {row: gap for row, gap in gaps.items() if gap}
    if not gaps:
        return None
    best = max(gaps, key=lambda row: gaps[row]["mean"])
    first, second = (
        [r for r in study.of(count, row) if r["choice"] in gaps[best]["choices"]]
        for row in (BASELINE, best)
    )
    cases = sorted(set().union(*(record["dice"] for record in second)))
    return best, *(
        {n: mean_of(r["dice"].get(n) for r in part) for n in cases} for part in (first, second)
    )  # type: ignore[return-value]


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
        choices = [len(study.of(count, row)) for count in study.counts for row in study.rows(count)]
        cases = len(study.records[0]["dice"])
        if min(choices) < 3:
            found.append(f"{study.data}: some rows have fewer than 3 choices of labelled volumes.")
        if cases < 20:
            found.append(f"{study.data}: {cases} test cases, so that intervals are wide.")
    return [*found, "One seed: the spread between seeds is not in the intervals."]
