"""The result file of the protocol: rows, records, the settings they share, differences."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.evaluation.evaluate import averaged_within, bootstrap_interval
from MedSSLLib.methods import known_methods
from MedSSLLib.methods.options import own_options
from MedSSLLib.training.run_folder import versions

BASELINE = "random"
RESULTS_VERSION = 1
Record = dict[str, Any]
_MAY_GROW = ("rows", "count", "choices")
_EMPTY = ("", "None", "[]", "{}")
_EARLY = {
    "set": "settings",
    "pretrain_set": "pretrain_settings",
    "selftrain_set": "selftrain_settings",
}


def given(settings: Mapping[str, str], name: str) -> str:
    """A setting of a result file as text, '' where it is not set.

    It is also '' for minutes where steps decide.
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
    """Settings and records of a result file to which rows are added.

    Of a new one where there is none.

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
    content = read_json(results, newest_version=RESULTS_VERSION)
    if content.get("bench") != "protocol" or content.get("data") != data:
        raise InputError(
            f"holds results of {content.get('data')!r}, not of {data!r}",
            file=results,
            remedy="Choose another --out",
        )
    theirs: dict[str, str] = content.get("settings", {})
    differing = _differing(theirs, ours | _as_early(values))
    if differing:
        raise InputError(
            f"was made with other settings: {'; '.join(sorted(differing))}",
            file=results,
            remedy="Choose another --out, and another --tag where there is one",
        )
    return theirs, complete_records(content)


def _as_early(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings of each kind of run as early files spell them: a list of KEY=VALUE."""
    found = {}
    for old, new in _EARLY.items():
        found[old] = str([f"{key}={value}" for key, value in (values.get(new) or {}).items()])
    return found


def _differing(theirs: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """In words, the settings that both have and that differ."""
    found = []
    for name in theirs.keys() & asked.keys() - set(_MAY_GROW):
        there, here = given(theirs, name), given(asked, name)
        if there != here:
            found.append(f"{name} {there or 'not set'} there, {here or 'not set'} here")
    return found


def require_same_labels(
    results: Path, records: Sequence[Record], choices: Mapping[str, Sequence[Any]]
) -> None:
    """Raises InputError for a record whose choice now has other labelled volumes."""
    for record in records:
        sets = choices.get(record["count"], ())
        if record["choice"] >= len(sets):
            continue
        now = sets[record["choice"]]
        if set(record["labelled"]) != set(now):
            raise InputError(
                f"holds {record['row']!r} with {', '.join(record['labelled'][:3])} labelled, now "
                f"choice {record['choice']} of {record['count']} has {', '.join(now[:3])}",
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
    by_count: dict[str, list[Record]] = {}
    for record in records:
        by_count.setdefault(record["count"], []).append(record)
    done = [record["row"] for record in records]
    grown = {
        "rows": ",".join(dict.fromkeys([*done, *rows])),
        "count": ",".join(by_count),
        "choices": str(max((record["choice"] + 1 for record in records), default=0)),
    }
    write_json(
        results,
        {
            "bench": "protocol",
            "format_version": RESULTS_VERSION,
            "data": data,
            "settings": {**settings, **grown},
            "versions": versions(),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "difference_to_random": {count: differences(of) for count, of in by_count.items()},
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
    records = []
    for record in content["records"]:
        records.append({"count": count or str(len(record["labelled"])), **record})
    by_key = {(r["row"], r["count"], r["choice"]): r for r in records}
    found = []
    for record in records:
        base = by_key.get((base_row(record["row"]), record["count"], record["choice"]))
        if base is not None and base is not record and "base" not in record:
            record = record | on_base(record, base)
        found.append(record)
    return found


def base_row(row: str) -> str:
    """The row that self-training goes on from; the row itself without self-training."""
    return row.removesuffix("+selftrain").removesuffix("+mixing")


def on_base(own: Mapping[str, Any], base: Mapping[str, Any]) -> Record:
    """Steps and seconds of training of a row and the row it goes on from.

    Those of the latter alone are in ``base``.
    """
    first, total = {}, {}
    for key in ("steps", "training_s"):
        before, after = base.get(key), own.get(key)
        first[key] = before
        total[key] = None if before is None or after is None else round(before + after, 1)
    return {**total, "base": first}


def by_patient(
    table: np.ndarray, cases: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Values ``[choices, cases]`` averaged within patients, where the records know them."""
    patients: dict[str, str] = {}
    for record in records:
        patients |= record.get("patients", {})
    return averaged_within(table, [patients.get(case, case) for case in cases])


def differences(
    records: Sequence[Mapping[str, Any]], level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """Paired difference of every row to ``random`` over patients and choices.

    The records are of one number of labels.
    """
    found = {}
    for row in dict.fromkeys(record["row"] for record in records):
        if row != BASELINE and (gap := difference(records, row, BASELINE, level)):
            found[row] = gap
    return found


def difference(
    records: Sequence[Mapping[str, Any]], row: str, other: str, level: float = 0.95
) -> dict[str, Any]:
    """Mean paired difference in Dice of two rows with its bootstrap interval.

    {} where no choice has both.

    The cases of a patient are no independent evidence: they are averaged first, where records know
    the patients.
    """
    own, theirs = _dice_by_choice(records, row), _dice_by_choice(records, other)
    choices = [choice for choice in own if choice in theirs]
    if not choices:
        return {}
    cases = sorted(set().union(*(own[choice] for choice in choices)))
    table = np.full((len(choices), len(cases)), np.nan)
    for line, choice in enumerate(choices):
        for column, case in enumerate(cases):
            value, reference = own[choice].get(case), theirs[choice].get(case)
            if value is not None and reference is not None:
                table[line, column] = value - reference
    if np.isnan(table).all():
        return {}
    mean, low, high = bootstrap_interval(by_patient(table, cases, records), level=level)
    return {"mean": mean, "low": low, "high": high, "choices": choices}


def _dice_by_choice(
    records: Sequence[Mapping[str, Any]], row: str
) -> dict[int, Mapping[str, float | None]]:
    """Of one row: choice to ``{case: Dice}``."""
    return {record["choice"]: record["dice"] for record in records if record["row"] == row}


def require_one_network(before: RunConfig, after: RunConfig) -> None:
    """Refuse rows that would differ in more than their start.

    A pre-trained encoder brings its network and patch along; rows that start anew must have the
    same.

    Raises:
        InputError: the configurations of pre-training and of fine-tuning differ in them.
    """
    theirs, ours = _network(before), _network(after)
    differing = []
    for key, value in ours.items():
        if theirs[key] != value:
            differing.append(f"{key} {theirs[key]} in pre-training, {value} in fine-tuning")
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
        "training.grid": config.training.grid,
    }


def unlike(theirs: RunConfig, ours: RunConfig) -> list[str]:
    """In words, what of the run that is asked for is otherwise in the one there.

    Options left open do not count.
    """
    there, here = _decisive(theirs), _decisive(ours)
    recorded = {key: theirs.options[key] for key in ours.options if key in theirs.options}
    wanted, found = _read(ours, ours.options), _read(ours, recorded)
    for key in ours.options:
        here[f"options.{key}"] = json.dumps(wanted[key])
        there[f"options.{key}"] = json.dumps(found[key] if key in recorded else None)
    return [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
    ]


def _read(config: RunConfig, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options as the kind of run reads them: "2" is 2."""
    own = own_options(config.command, config.method, options)
    return options if own is None else own.model_dump(mode="json")


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


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gcl-image": ("gcl", {"options.pixel": False}),
    "gcl-sum": ("gcl", {"options.pixel": False, "options.gradient": "sum"}),
    "gcl-patient": ("gcl", {"options.pixel": False, "options.meta": ["patient"]}),
    "gcl-position": ("gcl", {"options.pixel": False, "options.meta": ["position"]}),
    "gcl-phase": ("gcl", {"options.pixel": False, "options.meta": ["phase"]}),
    "gcl-no-filter": ("gcl", {"options.grad_filter": False}),
    "pgl-no-scale": ("pgl", {"options.use_scale_prior": False}),
    "pgl-no-flip": ("pgl", {"options.use_flip_prior": False}),
}
"""Ablations: the method and its settings."""
GOES_ON = {"mixing": "mixing", "selftrain": "contrast"}
"""Self-training from the row before: its recipe, by what comes on top."""
ON_TOP: dict[str, dict[str, Any]] = {
    "mean-teacher": {"semi": "mean-teacher"},
    "mixing-teacher": {"semi": "mixing"},
    "mixup": {"mixup": 0.2},
    "mixing": {},
    "selftrain": {},
    "longer": {},
}


_ROW = re.compile(
    r"(?P<encoder>.+?)(?P<frozen>-frozen)?(-(?P<slices>[1-9][0-9]*)-slices)?([+](?P<on_top>.+))?"
)


class RowParts(NamedTuple):
    """What a row is made of.

    Attributes:
        encoder: ``random``, a method or one of ABLATIONS.
        frozen: whether the encoder is fixed.
        slices: annotated slices of every labelled volume; 0 for whole volumes.
        on_top: what comes on top; '' for nothing.
    """

    encoder: str
    frozen: bool = False
    slices: int = 0
    on_top: str = ""


def parse_row(row: str) -> RowParts:
    """The parts of a row's name.

    Raises:
        InputError: no such row.
    """
    known = (BASELINE, *known_methods(), *ABLATIONS)
    if found := _ROW.fullmatch(row):
        parts = RowParts(
            found["encoder"],
            bool(found["frozen"]),
            int(found["slices"] or 0),
            found["on_top"] or "",
        )
        fits = parts.encoder in known and parts.on_top in ("", *ON_TOP)
        if fits and not (parts.frozen and parts.encoder == BASELINE):
            return parts
    raise InputError(
        f"method {row!r} is unknown",
        remedy=f"Use {', '.join(known)}; all but random with -frozen; each with -3-slices (or "
        f"another number); then +{', +'.join(ON_TOP)}",
    )


def pretraining_of(encoder: str) -> tuple[str, dict[str, Any]]:
    """The method that pre-trains an encoder, and its settings."""
    return ABLATIONS.get(encoder, (encoder, {}))


def baseline_of(row: str) -> str:
    """The random start that a row is judged against.

    It has as many annotated slices of every volume.
    """
    found = _ROW.fullmatch(row)
    return f"{BASELINE}-{found['slices']}-slices" if found and found["slices"] else BASELINE
