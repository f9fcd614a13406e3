"""From result files of the protocol to tables and a recommendation in words."""

from __future__ import annotations

import ast
import csv
import io as streams
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.benchmark.records import (
    BASELINE,
    RESULTS_VERSION,
    by_patient,
    complete_records,
    difference,
    given,
)
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json
from MedSSLLib.evaluation.evaluate import bootstrap_interval

# settings that may differ between files set side by side
_NOT_COMPARED = ("count", "choices", "rows", "tag")
# settings that say how long a training is
_LENGTHS = ("steps", "minutes", "measured_steps")
_RUN_LENGTHS = ("training.steps", "training.minutes")
COLUMNS = (
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


Line = dict[int, tuple[float, float, float]]


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

        def size(count: str) -> tuple[bool, int]:
            return count == "all", int(count) if count.isdigit() else 0

        return sorted({record["count"] for record in self.records}, key=size)

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
        """As `of`, over the choices that every row has, so that rows can be compared.

        Where there is none, all.
        """
        records, common = self.of(count, row), self.common(count)
        if not common:
            return records
        return [record for record in records if record["choice"] in common]

    def volumes(self, count: str) -> int:
        """How many volumes were labelled."""
        return max(len(record["labelled"]) for record in self.of(count))

    def length(self) -> str:
        """The length of every training, in words."""
        parts = []
        for prefix, name in (("", "training"), ("pretrain_", "pre-training")):
            if steps := given(self.settings, f"{prefix}steps"):
                parts.append(f"{name} {steps} steps")
            elif minutes := given(self.settings, f"{prefix}minutes"):
                measured = given(self.settings, "measured_steps") if not prefix else ""
                steps = f" ({measured} steps)" if measured else ""
                parts.append(f"{name} {minutes} min{steps}")
        return ", ".join(parts)


def load_studies(files: Sequence[Path]) -> list[Study]:
    """Result files as studies; files of the same data and settings are put together.

    Raises:
        InputError: a file is not a result of the protocol, or two files hold the same row
            differently.
    """
    found: dict[tuple[Any, ...], Study] = {}
    for file in files:
        content = read_json(file, newest_version=RESULTS_VERSION)
        if content.get("bench") != "protocol" or not isinstance(content.get("records"), list):
            raise InputError(
                "is not a result of the benchmark",
                file=file,
                remedy="Give files named results.json",
            )
        settings = content.get("settings", {})
        key = (content["data"], *_compared_settings(settings))
        known = found[key].records if key in found else ()
        records = _merged(known, complete_records(content), file)
        found[key] = Study(content["data"], settings, content.get("versions", {}), records)
    return [study for study in found.values() if study.records]


def _compared_settings(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    """The settings in which files of one study must agree, sorted."""
    fixed = []
    for name, value in settings.items():
        if name not in _NOT_COMPARED and value not in ("", "None", "[]"):
            fixed.append((name, value))
    return sorted(fixed)


def _merged(
    known: Sequence[Mapping[str, Any]], further: Sequence[Mapping[str, Any]], file: Path
) -> tuple[Mapping[str, Any], ...]:
    """Records of two files, each once. Raises InputError where they hold a row differently."""
    records = {(r["row"], r["count"], r["choice"]): r for r in known}
    for record in further:
        first = records.setdefault((record["row"], record["count"], record["choice"]), record)
        if first["dice"] != record["dice"]:
            raise InputError(
                f"holds {record['row']!r} with other values than a file before it",
                file=file,
                remedy="Give one of them",
            )
    return tuple(records.values())


def base_of(row: str) -> str:
    """What a row with something on top is compared with; '' for others."""
    return row.partition("+")[0] if "+" in row else ""


def dice_interval(records: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean Dice over patients and choices with its 95 % bootstrap interval."""
    cases = sorted(set().union(*(record["dice"] for record in records)))
    table = np.full((len(records), len(cases)), np.nan)
    for choice, record in enumerate(records):
        for column, case in enumerate(cases):
            value = record["dice"].get(case)
            if value is not None:
                table[choice, column] = value
    return bootstrap_interval(by_patient(table, cases, records))


def lines_of_lengths(studies: Sequence[Study]) -> dict[str, dict[str, Line]]:
    """Data set to its lines, ``{row and labels: {steps: (mean Dice, low, high)}}``.

    Steps are those of a row in all, with the rows that it goes on from; the mean, where choices
    differ in them. A line joins studies whose settings differ in length alone, and every point of
    it is over the same labelled volumes. Where there are none, or one point only, there is no line.
    """
    found: dict[tuple[Any, ...], dict[int, dict[str, Mapping[str, Any]]]] = {}
    for study in studies:
        for count, row in ((c, r) for c in study.counts for r in study.rows(c)):
            records = study.of(count, row)
            steps = mean_of(record.get("steps") for record in records)
            if steps is None:
                continue
            scale = str(records[0].get("intensities", ""))  # a rule of normalisation is a setting
            settings = {**_settings_but_length(study.settings), "intensities": scale}
            key = (study.data, f"{row}, {study.volumes(count)} labelled", *sorted(settings.items()))
            points = found.setdefault(key, {}).setdefault(round(steps), {})
            points.update({",".join(sorted(r["labelled"])): r for r in records})
    lines: dict[str, dict[str, Line]] = {}
    for (data, name, *_), line in found.items():
        shared = set.intersection(*(set(choices) for choices in line.values()))
        if len(line) < 2 or not shared:
            continue
        own = lines.setdefault(data, {})
        number = sum(other.startswith(name) for other in own)
        own[f"{name} ({number + 1})" if number else name] = {
            steps: dice_interval([choices[choice] for choice in sorted(shared)])
            for steps, choices in sorted(line.items())
        }
    return lines


def _settings_but_length(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in settings.items() if k not in (*_LENGTHS, *_NOT_COMPARED)}
    for name in ("settings", "selftrain_settings"):
        own = settings.get(name) or "{}"
        try:
            given = ast.literal_eval(own)
            kept[name] = str({k: v for k, v in given.items() if k not in _RUN_LENGTHS})
        except (ValueError, SyntaxError, AttributeError):
            kept[name] = own  # as it is: it joins what has the same
    return kept


def table_rows(studies: Iterable[Study]) -> list[dict[str, Any]]:
    """One row per study, number of labels and method, with the values that COLUMNS names."""
    rows = []
    for study in studies:
        for count in study.counts:
            rows += [table_row(study, count, row) for row in study.rows(count)]
    return rows


def table_row(study: Study, count: str, row: str) -> dict[str, Any]:
    records = study.compared(count, row)
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "data": study.data,
        "labelled": study.volumes(count),
        "row": row,
        "choices": len(records),
        "cases": len(records[0]["dice"]),
    }
    values["dice"], values["dice_low"], values["dice_high"] = dice_interval(records)
    for key in ("hd95_mm", "surface_dice"):
        values[key] = mean_of(record["summary"].get(key) for record in records)
    for key in ("steps", "training_s", "pretraining_s"):
        values[key] = mean_of(record.get(key) for record in records)
    missed = [record.get("missed") for record in records]
    values["missed"] = None if None in missed else sum(missed)
    for prefix, other in (("random", BASELINE), ("base", base_of(row))):
        if other and row != other:
            gap = difference(study.compared(count), row, other)
            values[f"against_{prefix}"] = gap.get("mean")
            values[f"{prefix}_low"], values[f"{prefix}_high"] = gap.get("low"), gap.get("high")
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
    rows = []
    for study in studies:
        for record in study.records:
            facts = {
                "data": study.data,
                "labelled": len(record["labelled"]),
                "row": record["row"],
                "choice": record["choice"],
            }
            rows += [facts | {"case": case, "dice": v} for case, v in record["dice"].items()]
    return rows


def shown(row: Mapping[str, Any]) -> list[str]:
    """A table row as people read it."""
    missed = "" if row["missed"] is None else f" ({row['missed']} missed)"
    return [
        row["row"],
        _with_interval(row, "dice", "dice"),
        _with_interval(row, "against_random", "random", sign="+"),
        _with_interval(row, "against_base", "base", sign="+"),
        _number(row["hd95_mm"], 1) + missed,
        _number(row["surface_dice"], 3),
        str(row["choices"]),
        str(row["cases"]),
        _number(row["steps"], 0),
        _number(row["training_s"], 0),
        _number(row["pretraining_s"], 0),
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


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
    "Steps and training: all runs of a row but pre-training. With +selftrain and +mixing they are "
    "those of the row it goes on from "
    "and of self-training, which takes the same length again.",
)
"""What the tables hold, in words."""


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(row: Mapping[str, Any], value: str, ends: str, sign: str = "") -> str:
    """A value with its interval in brackets, ``ENDS_low`` to ``ENDS_high``."""
    if row[value] is None:
        return "–"
    low, high = row[f"{ends}_low"], row[f"{ends}_high"]
    return f"{row[value]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
