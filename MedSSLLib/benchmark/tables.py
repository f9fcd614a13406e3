"""From result files of the protocol to tables and a recommendation in words."""

from __future__ import annotations

import csv
import io as streams
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.benchmark.protocol import baseline_of
from MedSSLLib.benchmark.records import (
    BASELINE,
    FORMAT_VERSION,
    by_patient,
    complete_records,
    difference,
    given,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json
from MedSSLLib.evaluation.evaluate import bootstrap_interval

_NOT_COMPARED = (
    "count",
    "choices",
    "rows",
    "tag",
)  # settings that may differ between files set side by side
LEAST_CHOICES = 3  # of labelled volumes, for a recommendation; not from the paper
LONGER = (
    1.05  # so many times the baseline's length is longer: a time limit is not kept to the second
)
HEAD = (
    "data",
    "labelled",
    "row",
    "choices",
    "cases",
    "dice",
    "dice_low",
    "dice_high",
    "hd95_mm",
    "missed",
    "surface_dice",
    "against_random",
    "random_low",
    "random_high",
    "against_base",
    "base_low",
    "base_high",
    "steps",
    "training_s",
    "pretraining_s",
)


@dataclass(frozen=True)
class Study:
    """Records that may be compared: one data set, one length and one set of settings."""

    data: str
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    records: tuple[Mapping[str, Any], ...]

    @property
    def counts(self) -> list[str]:
        """Numbers of labelled volumes, smallest first, 'all' last."""
        found = {record["count"] for record in self.records}
        return sorted(
            found, key=lambda count: (count == "all", int(count) if count.isdigit() else 0)
        )

    def rows(self, count: str) -> list[str]:
        """Rows scored with that many labels, the baseline first."""
        found = list(dict.fromkeys(r["row"] for r in self.records if r["count"] == count))
        return sorted(found, key=lambda row: row != BASELINE)

    def of(self, count: str, row: str = "") -> list[Mapping[str, Any]]:
        """Records of one number of labels, and of one row."""
        return [r for r in self.records if r["count"] == count and row in ("", r["row"])]

    def common(self, count: str) -> set[int]:
        """Choices of labelled volumes that every row has."""
        by_row = [{record["choice"] for record in self.of(count, row)} for row in self.rows(count)]
        return set.intersection(*by_row)

    def compared(self, count: str, row: str = "") -> list[Mapping[str, Any]]:
        """As `of`, over the choices that every row has, so that rows can be compared; where there
        is none, all.
        """
        records, common = self.of(count, row), self.common(count)
        return [record for record in records if record["choice"] in common] if common else records

    def volumes(self, count: str) -> int:
        """How many volumes were labelled."""
        return max(len(record["labelled"]) for record in self.of(count))

    def length(self) -> str:
        """The length of every training, in words."""
        parts = []
        for prefix, name in (("", "training"), ("pretrain_", "pre-training")):
            steps, minutes = (
                given(self.settings, f"{prefix}{unit}") for unit in ("steps", "minutes")
            )
            length = f"{steps} steps" if steps else f"{minutes} min" if minutes else ""
            parts += [f"{name} {length}"] if length else []
        return ", ".join(parts)


def load_studies(files: Sequence[Path]) -> list[Study]:
    """Result files as studies; files of the same data and settings are put together.

    Raises:
        InputError: a file is not a result of the protocol, or two files hold the same row
            differently.
    """
    found: dict[tuple[Any, ...], Study] = {}
    for file in files:
        content = read_json(file, newest_version=FORMAT_VERSION)
        if content.get("bench") != "protocol" or not isinstance(content.get("records"), list):
            raise InputError(
                "is not a result of the benchmark",
                file=file,
                remedy="Give files named results.json",
            )
        settings = content.get("settings", {})
        fixed = {
            k: v
            for k, v in settings.items()
            if k not in _NOT_COMPARED and v not in ("", "None", "[]")
        }
        key = (content["data"], *sorted(fixed.items()))
        known = found[key].records if key in found else ()
        records = {(r["row"], r["count"], r["choice"]): r for r in known}
        for record in complete_records(content):
            same = records.setdefault((record["row"], record["count"], record["choice"]), record)
            if same["dice"] != record["dice"]:
                raise InputError(
                    f"holds {record['row']!r} with other values than a file before it",
                    file=file,
                    remedy="Give one of them",
                )
        found[key] = Study(
            content["data"], settings, content.get("versions", {}), tuple(records.values())
        )
    return [study for study in found.values() if study.records]


def base_of(row: str) -> str:
    """What a row with something on top is compared with; '' for others."""
    return row.partition("+")[0] if "+" in row else ""


def dice_interval(records: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean Dice over patients and choices with its 95 % bootstrap interval."""
    cases = sorted(set().union(*(record["dice"] for record in records)))
    table = [[np.nan if r["dice"].get(n) is None else r["dice"][n] for n in cases] for r in records]
    return bootstrap_interval(by_patient(np.array(table, float), cases, records))


def table_rows(studies: Iterable[Study]) -> list[dict[str, Any]]:
    """One row per study, number of labels and method: what the tables show (HEAD names the
    columns).
    """
    return [
        table_row(study, count, row)
        for study in studies
        for count in study.counts
        for row in study.rows(count)
    ]


def table_row(study: Study, count: str, row: str) -> dict[str, Any]:
    records = study.compared(count, row)
    values: dict[str, Any] = dict.fromkeys(HEAD)
    values |= {
        "data": study.data,
        "labelled": study.volumes(count),
        "row": row,
        "choices": len(records),
        "cases": len(records[0]["dice"]),
    }
    values |= dict(zip(("dice", "dice_low", "dice_high"), dice_interval(records), strict=True))
    for key in ("hd95_mm", "surface_dice"):
        values[key] = mean_of(record["summary"].get(key) for record in records)
    for key in ("steps", "training_s", "pretraining_s"):
        values[key] = mean_of(record.get(key) for record in records)
    missed = [record.get("missed") for record in records]
    values["missed"] = None if None in missed else sum(missed)
    for name, prefix, other in (
        ("against_random", "random", BASELINE),
        ("against_base", "base", base_of(row)),
    ):
        gap = difference(study.compared(count), row, other) if other and row != other else {}
        values |= {
            name: gap.get("mean"),
            f"{prefix}_low": gap.get("low"),
            f"{prefix}_high": gap.get("high"),
        }
    return values


def mean_of(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def csv_text(head: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV; undefined values are empty, numbers are not rounded."""
    stream = streams.StringIO()
    writer = csv.DictWriter(stream, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def case_rows(studies: Iterable[Study]) -> list[dict[str, Any]]:
    """One row per case, method and choice."""
    return [
        {
            "data": study.data,
            "labelled": len(r["labelled"]),
            "row": r["row"],
            "choice": r["choice"],
            "case": case,
            "dice": value,
        }
        for study in studies
        for r in study.records
        for case, value in r["dice"].items()
    ]


def shown(row: Mapping[str, Any]) -> list[str]:
    """A table row as people read it."""
    return [
        row["row"],
        _with_interval(row, "dice", "dice_low", "dice_high"),
        _with_interval(row, "against_random", "random_low", "random_high", signed=True),
        _with_interval(row, "against_base", "base_low", "base_high", signed=True),
        _number(row["hd95_mm"], 1)
        + ("" if row["missed"] is None else f" ({row['missed']} missed)"),
        _number(row["surface_dice"], 3),
        str(row["choices"]),
        str(row["cases"]),
        _number(row["steps"], 0),
        _number(row["training_s"], 0),
        _number(row["pretraining_s"], 0),
    ]


SHOWN = (
    "method",
    "Dice",
    "against random",
    "against its base",
    "HD95, mm",
    "surface Dice",
    "choices",
    "cases",
    "steps",
    "training, s",
    "pre-training, s",
)
"""The columns of :func:`shown`; values with an interval have it in brackets."""
NOTES = (
    "Means are over the choices of labelled volumes that every row of a table has. Intervals: 95 "
    "%, bootstrap over "
    "choices and test patients (test cases, where patients are not known); the cases of a "
    "patient are averaged first.",
    "The interval behind a recommendation is wider: the best of several rows is picked after all "
    "were seen, so the 5 % "
    "that an interval may miss are shared among them (Bonferroni).",
    "HD95 leaves out a structure that a prediction lacks, as its distance is undefined; in "
    "brackets, how many were "
    "missed, over cases and choices.",
    "Steps and training: all runs of a row but pre-training. With +selftrain they are those of "
    "the row it goes on from "
    "and of self-training, which takes the same length again.",
)
"""What the tables hold, in words."""


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def _with_interval(
    row: Mapping[str, Any], value: str, low: str, high: str, signed: bool = False
) -> str:
    if row[value] is None:
        return "–"
    sign = "+" if signed else ""
    return f"{row[value]:{sign}.3f} ({row[low]:{sign}.3f} to {row[high]:{sign}.3f})"


def recommendations(study: Study) -> list[str]:
    """Which method suits these data, a sentence or two per number of labels, with the evidence.

    Rows of a few slices are compared among themselves, not with rows that see whole labels. The
    best row is chosen after seeing all, so its interval is widened for the number of rows compared
    (Bonferroni).
    """
    return [
        _recommendation(study, count, baseline)
        for count in study.counts
        for baseline in dict.fromkeys(map(baseline_of, study.rows(count)))
    ]


def _recommendation(study: Study, count: str, baseline: str) -> str:
    """The words for rows of as many annotated slices as `baseline` has."""
    rows = [row for row in study.rows(count) if baseline_of(row) == baseline]
    volumes, records, slices = (
        study.volumes(count),
        study.compared(count),
        baseline.removeprefix(f"{BASELINE}-"),
    )
    labels = f"With {volumes} labelled volume{'s' if volumes != 1 else ''}"
    labels += "" if baseline == BASELINE else f" ({slices.replace('-', ' ')} of each)"
    if not study.common(count):
        return (
            f"{labels}: nothing to compare, "
            "as no choice of labelled volumes was scored with every row."
        )
    others = [row for row in rows if row != baseline]
    gaps = {row: difference(records, row, baseline, 1 - 0.05 / len(others)) for row in others}
    gaps = {row: gap for row, gap in gaps.items() if gap}
    if not gaps:
        means = {row: dice_interval(study.compared(count, row))[0] for row in rows}
        listed = ", ".join(f"{row} {mean:.3f}" for row, mean in means.items())
        return f"{labels}: nothing to compare ({listed})."
    best = max(gaps, key=lambda row: gaps[row]["mean"])
    verdict = _verdict(best, baseline, gaps[best], 1 - 0.05 / len(others))
    return f"{labels}: {verdict}{_longer(study, count, best)}"


def _verdict(best: str, baseline: str, gap: Mapping[str, Any], level: float) -> str:
    """What to do, and the evidence."""
    choices = (
        f"{len(gap['choices'])} choice{'s' if len(gap['choices']) != 1 else ''} of labelled volumes"
    )
    interval = f"{100 * level:.3g} % interval {gap['low']:+.3f} to {gap['high']:+.3f}"
    evidence = f"{gap['mean']:+.3f} Dice against {baseline}, {interval}, over {choices}"
    if len(gap["choices"]) < LEAST_CHOICES:
        return (
            f"no recommendation, which takes {LEAST_CHOICES} choices of labelled volumes; the "
            "best beside "
            f"{baseline} is {best} ({evidence}), where the interval speaks of test cases only, "
            "not of other "
            "choices."
        )
    if gap["low"] > 0:
        return f"take {best} ({evidence})."
    if gap["high"] < 0:
        return f"stay with {baseline}; the best other, {best}, is worse ({evidence})."
    simplest = f"{baseline.capitalize()} is the simplest."
    return f"no difference shown; the best beside {baseline} is {best} ({evidence}). {simplest}"


def _longer(study: Study, count: str, row: str) -> str:
    """The caveat of a row that trained longer than the baseline, by time where time was the limit,
    else by steps.

    With the row that trained on labels alone for that length, what self-training has over it.
    """
    timed, baseline = given(study.settings, "minutes"), baseline_of(row)
    key, unit = ("training_s", "s") if timed else ("steps", "steps")
    own, base = (
        mean_of(record.get(key) for record in study.compared(count, name))
        for name in (row, baseline)
    )
    if own is None or base is None or own <= LONGER * base:
        return ""
    said = f" {row} trained longer than {baseline}, {own:.0f} {unit} against {base:.0f}"
    as_long = row.removesuffix("+selftrain") + "+longer"
    gap = difference(study.compared(count), row, as_long)
    if not gap:
        return f"{said}: part of a gain may come from the length."
    return (
        f"{said}; against {as_long}, which trained as long on the labels alone, it has "
        f"{gap['mean']:+.3f} "
        f"({gap['low']:+.3f} to {gap['high']:+.3f})."
    )


def markdown(studies: Sequence[Study]) -> str:
    """Tables and recommendations as Markdown."""
    parts = []
    for study in studies:
        parts.append(f"## {study.data} ({study.length()})")
        for count in study.counts:
            rows = [
                shown(row) for row in (table_row(study, count, name) for name in study.rows(count))
            ]
            lines = [f"| {' | '.join(row)} |" for row in (SHOWN, ["---"] * len(SHOWN), *rows)]
            parts += [f"### {study.volumes(count)} labelled", "\n".join(lines)]
        parts += ["\n".join(f"- {text}" for text in recommendations(study))]
    parts += NOTES
    return "\n\n".join(parts) + "\n"
