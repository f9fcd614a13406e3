"""The result file of the protocol: its records, the settings that all of them share, and paired
differences.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.evaluation.evaluate import averaged_within, bootstrap_interval
from MedSSLLib.training.run_folder import versions

BASELINE = "random"
FORMAT_VERSION = 1
Record = dict[str, Any]
_MAY_GROW = ("rows", "count", "choices")
_EMPTY = ("", "None", "[]", "{}")
_EARLY = {
    "set": "settings",
    "pretrain_set": "pretrain_settings",
    "selftrain_set": "selftrain_settings",
}


def given(settings: Mapping[str, str], name: str) -> str:
    """A setting of a result file as text; '' where it is not set, or of minutes where steps
    decide.
    """
    if name.endswith("minutes") and given(settings, name.removesuffix("minutes") + "steps"):
        return ""
    text = settings.get(name, "")
    return "" if text in _EMPTY else text


def as_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a result file holds them."""
    return {name: "" if value is None else str(value) for name, value in values.items()}


def read_results(
    results: Path, data: str, values: Mapping[str, Any]
) -> tuple[dict[str, str], list[Record]]:
    """Settings and records of a result file to which rows are added; of a new one where there is
    none.

    Args:
        results: the file.
        data: name of the data.
        values: what is asked for. Settings that the file of an earlier version lacks stay unknown.

    Raises:
        InputError: it holds other data, or was made with other settings.
    """
    ours = as_settings(values)
    if not results.exists():
        return ours, []
    content = read_json(results, newest_version=FORMAT_VERSION)
    if content.get("bench") != "protocol" or content.get("data") != data:
        raise InputError(
            f"holds results of {content.get('data')!r}, not of {data!r}",
            file=results,
            remedy="Choose another --out",
        )
    theirs: dict[str, str] = content.get("settings", {})
    early = {
        old: str([f"{key}={value}" for key, value in (values.get(new) or {}).items()])
        for old, new in _EARLY.items()
    }
    asked = ours | early
    differing = [
        f"{name} {given(theirs, name) or 'not set'} there, {given(asked, name) or 'not set'} here"
        for name in theirs.keys() & asked.keys() - set(_MAY_GROW)
        if given(theirs, name) != given(asked, name)
    ]
    if differing:
        raise InputError(
            f"was made with other settings: {'; '.join(sorted(differing))}",
            file=results,
            remedy="Choose another --out, and another --tag where there is one",
        )
    return theirs, complete_records(content)


def require_same_labels(
    results: Path, records: Sequence[Record], choices: Mapping[str, Sequence[Any]]
) -> None:
    """Raises InputError for a record whose choice now has other labelled volumes."""
    for record in records:
        sets = choices.get(record["count"], ())
        if record["choice"] < len(sets) and set(record["labelled"]) != set(sets[record["choice"]]):
            raise InputError(
                f"holds {record['row']!r} with {', '.join(record['labelled'][:3])} labelled, now "
                "choice "
                f"{record['choice']} of {record['count']} has "
                f"{', '.join(sets[record['choice']][:3])}",
                file=results,
                remedy="Choose another --out, and another --tag where there is one",
            )


def write_results(
    results: Path,
    data: str,
    settings: Mapping[str, str],
    records: Sequence[Record],
    rows: Sequence[str],
) -> None:
    """Write the result file; ``rows`` are those asked for, done or not."""
    counts = dict.fromkeys(record["count"] for record in records)
    grown = {
        "rows": ",".join(dict.fromkeys([*(record["row"] for record in records), *rows])),
        "count": ",".join(counts),
        "choices": str(max((r["choice"] + 1 for r in records), default=0)),
    }
    write_json(
        results,
        {
            "bench": "protocol",
            "format_version": FORMAT_VERSION,
            "data": data,
            "settings": {**settings, **grown},
            "versions": versions(),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "difference_to_random": {
                count: differences([r for r in records if r["count"] == count]) for count in counts
            },
            "records": records,
        },
    )


def same(record: Mapping[str, Any], row: str, count: str, choice: int) -> bool:
    """Whether a record is of this row, number of labels and choice."""
    return (record["row"], record["count"], record["choice"]) == (row, count, choice)


def complete_records(content: Mapping[str, Any]) -> list[Record]:
    """The records of a result file with what early files lack.

    That is ``count``, which was in their settings only, and the length of the row that
    self-training went on from.
    """
    count = str(content.get("settings", {}).get("count", ""))
    records = [
        {"count": count or str(len(record["labelled"])), **record} for record in content["records"]
    ]
    by_key = {(r["row"], r["count"], r["choice"]): r for r in records}
    found = []
    for record in records:
        base = by_key.get(
            (record["row"].removesuffix("+selftrain"), record["count"], record["choice"])
        )
        whole = base is None or base is record or "base" in record
        found.append(record if whole or base is None else record | on_base(record, base))
    return found


def on_base(own: Mapping[str, Any], base: Mapping[str, Any]) -> Record:
    """Steps and seconds of training of a row and the row it goes on from, and of the latter alone
    (``base``).
    """
    first = {key: base.get(key) for key in ("steps", "training_s")}
    total = {
        key: None if None in (value, own.get(key)) else round(value + own[key], 1)
        for key, value in first.items()
    }
    return {**total, "base": first}


def by_patient(
    table: np.ndarray, cases: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Values ``[choices, cases]`` averaged within patients, where the records know them."""
    patients = {
        case: name for record in records for case, name in record.get("patients", {}).items()
    }
    return averaged_within(table, [patients.get(case, case) for case in cases])


def differences(
    records: Sequence[Mapping[str, Any]], level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Paired difference of every row to ``random`` over patients x choices; records of one number
    of labels.
    """
    rows = dict.fromkeys(record["row"] for record in records)
    found = {row: difference(records, row, BASELINE, level) for row in rows if row != BASELINE}
    return {row: value for row, value in found.items() if value}


def difference(
    records: Sequence[Mapping[str, Any]], row: str, other: str, level: float = 0.95
) -> dict[str, Any]:
    """Mean paired difference in Dice of two rows with its bootstrap interval; {} where no choice
    has both.

    The cases of a patient are no independent evidence: they are averaged first, where records know
    the patients.
    """
    by_key = {(record["row"], record["choice"]): record["dice"] for record in records}
    choices = [c for r, c in by_key if r == row and (other, c) in by_key]
    if not choices:
        return {}
    cases = sorted(set.union(*(set(by_key[row, c]) for c in choices)))
    table = np.array(
        [[_less(by_key[row, c].get(n), by_key[other, c].get(n)) for n in cases] for c in choices]
    )
    if np.isnan(table).all():
        return {}
    mean, low, high = bootstrap_interval(by_patient(table, cases, records), level=level)
    return {"mean": mean, "low": low, "high": high, "choices": choices}


def _less(value: float | None, other: float | None) -> float:
    return float("nan") if value is None or other is None else value - other


def require_one_network(before: RunConfig, after: RunConfig) -> None:
    """A pre-trained encoder brings its network and patch along: rows that start anew must have the
    same.

    Raises:
        InputError: the configurations of pre-training and of fine-tuning differ in them.
    """
    theirs, ours = _network(before), _network(after)
    differing = [
        f"{key} {theirs[key]} in pre-training, {ours[key]} in fine-tuning"
        for key in ours
        if theirs[key] != ours[key]
    ]
    if differing:
        raise InputError(
            f"rows would differ in more than their start: {'; '.join(differing)}",
            remedy="Give the same with --set and --pretrain-set",
        )


def _network(config: RunConfig) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "network.widths": config.network.widths,
        "network.norm": config.network.norm,
        "training.voxels": config.training.voxels,
    }


def unlike(theirs: RunConfig, ours: RunConfig) -> list[str]:
    """In words, what of the run that is asked for is otherwise in the one there; options left open
    do not count.
    """
    there, here = _decisive(theirs), _decisive(ours)
    for key, value in ours.options.items():
        here[f"options.{key}"], there[f"options.{key}"] = (
            json.dumps(value),
            json.dumps(theirs.options.get(key)),
        )
    return [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
    ]


def _decisive(config: RunConfig) -> dict[str, str]:
    training = config.training
    length = f"{training.minutes} minutes" if training.minutes else f"{training.steps} steps"
    labelled = "all" if config.labelled is None else ",".join(sorted(config.labelled))
    return {
        "length": length,
        "preset": config.preset,
        "seed": str(config.seed),
        "labelled": labelled,
    }
