"""Tables for the terminal.

Cells are plain text: nothing in a case name or DICOM field is read as markup.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.cli.command import for_terminal
from MedSSLLib.core.errors import InputError, printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from MedSSLLib.project.project import Case


Facts = dict[str, Any]
_NUMBER = re.compile(r"[+-]?[0-9.]+|[-–]?")
_WHOLE = 18  # characters of a cell that is not worth wrapping


def case_row(case: Case) -> Facts:
    """Facts of one case, from the image's header alone.

    ``problem`` says why the image cannot be read.
    """
    from MedSSLLib.images.io import read_header

    row: Facts = {
        "case": case.name,
        "role": case.role,
        "size": None,
        "spacing": None,
        "label": case.label,
        "label_missing": case.label is not None and not case.label.exists(),
        "annotated": case.annotated.to_json() if case.annotated else None,
        "metadata": case.metadata,
        "image": case.images[0],
        "problem": "",
    }
    try:
        geometry = read_header(case.images[0])
    except InputError as error:
        return row | {"problem": str(error)}
    return row | {
        "size": list(geometry.size),
        "spacing": [round(step, 4) for step in geometry.spacing],
    }


def run_row(run: Facts) -> Facts:
    """The short facts of a run summary (see ``runs.summary``)."""
    config: Facts = run["config"] or {}
    metrics: Facts = run["metrics"] or {}
    training = config.get("config", config)
    training = training if isinstance(training, dict) else {}
    return {
        "name": run["name"],
        "command": training.get("command", ""),
        "method": training.get("method", ""),
        "start": _start(training),
        "precision": config.get("precision", ""),
        "state": run["problem"].replace(f"{run['folder']}{os.sep}", "") or _state(run),
        "dice": _dice(metrics),
        "folder": run["folder"],
    }


def _state(run: Facts) -> str:
    if run["finished"]:
        return "stopped by a guard" if (run["metrics"] or {}).get("stopped") else "done"
    return "can be resumed" if run["resumable"] else "unfinished"


def print_cases(rows: Sequence[Facts]) -> None:
    """A line a case; of the metadata their names alone, below."""
    cells = []
    columns: list[str] = []
    for row in rows:
        size, spacing = (
            " x ".join(f"{n:.3g}" for n in row[key] or ()) for key in ("size", "spacing")
        )
        cells.append((row["case"], row["problem"] or size, spacing, _label(row), row["role"]))
        columns += [name for name in row["metadata"] if name not in columns]
    print_table(("case", "size", "spacing (mm)", "label", "role"), cells)
    if columns:
        print(f"Metadata: {', '.join(map(printable, columns[:8]))}{_more(len(columns) - 8)}")


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def print_runs(rows: Sequence[Facts]) -> None:
    cells = []
    for row in rows:
        dice = "" if row["dice"] is None else f"{row['dice']:.3f}"
        start = "" if row["start"] == "none" else row["start"]
        method = "" if row["method"] == "supervised" else row["method"]
        cells.append((row["name"], row["command"], method, start, row["state"], dice))
    print_table(("run", "command", "method", "from", "state", "Dice"), cells)


def print_run(run: Facts) -> None:
    """What a run reached, then how it differs from its preset, then its files."""
    row = run_row(run)
    metrics: Facts = run["metrics"] or {}
    results = [("state", row["state"]), *_results(metrics)]
    for number in metrics.get("rounds", ()):
        results.append(_round(number))
    print_table((row["name"], ""), results)
    config: Facts = run["config"] or {}
    settings = config.get("config", config)
    if isinstance(settings, dict) and settings.get("command"):
        print_table(("setting", "value"), _settings(settings, config.get("precision", "")))
    folder = Path(run["folder"])
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    print(for_terminal(f"Files in {shown_path(folder)}: {', '.join(names)}", sys.stdout))


def _results(metrics: Facts) -> list[tuple[str, str]]:
    """What ``metrics.json`` says that a person asks for."""
    from MedSSLLib.core.words import duration_words

    found = []
    if metrics.get("steps") is not None:
        took = f" in {duration_words(metrics['seconds'])}" if metrics.get("seconds") else ""
        found.append(("trained", f"{metrics['steps']} steps{took}"))
    dice = _dice(metrics)
    if metrics.get("best") is not None:
        found.append(("held-out Dice", f"{metrics['best']:.3f} at step {metrics['best_step']}"))
    elif dice is not None:
        found.append(("Dice", f"{dice:.3f}"))
    elif "validation" in metrics:
        found.append(("held-out Dice", "none: no labelled case was held out"))
    known = ("steps", "seconds", "best", "best_step", "validation", "rounds", "summary", "dice")
    for name, value in metrics.items():
        if name not in known and isinstance(value, int | float | str):
            found += [(key.replace("_", " "), text) for key, text in flat({name: value})]
    return found


def _settings(settings: Facts, precision: str) -> list[tuple[str, str]]:
    """Settings that differ from the preset."""
    from MedSSLLib.methods.options import changed_settings

    rows = [("command", settings["command"]), ("method", str(settings.get("method", "")))]
    rows.append(("preset", str(settings.get("preset", ""))))
    labelled = settings.get("labelled")
    if labelled is not None:
        rows.append(("labelled", ", ".join(labelled) or "none"))
    if settings.get("preset"):
        rows += changed_settings(settings).items()
    else:  # a run that no command of this version has made
        rows += [row for row in flat(settings) if row[0] not in ("command", "method")]
    return [*rows, ("number format", precision)] if precision else rows


def print_metrics(result: Facts) -> None:
    """The summary of ``evaluate``: a line per class, mean over cases, then the mean of classes."""
    summary = result["summary"]
    cells = []
    for name in summary["dice"]["per_class"]:
        cells.append((name, *(_short(key, summary[key]["per_class"][name]) for key in _METRICS)))
    if len(cells) > 1:
        cells.append(("mean", *(_short(key, summary[key]["mean"]) for key in _METRICS)))
    print_table(("class", *_METRICS.values()), cells)
    if undefined := summary["dice"]["undefined"]:
        print(f"{undefined} times a class is absent from prediction and reference: not counted.")
    if result["missed"]:
        print(
            f"{result['missed']} structures missed: in the reference, not in the prediction. No "
            "distance holds them."
        )


_METRICS = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "volume_ml": "ml",
    "reference_ml": "reference ml",
}
"""Metrics of the table of scores, and what they are called."""


def _short(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if "dice" in metric else f"{value:.2f}"


def print_estimates(entries: Facts) -> None:
    """Estimated Dice by case, as ``predict --quality`` writes it."""
    from MedSSLLib.evaluation.quality import estimate_text, review_text

    cells = [(name, estimate_text(one), review_text(one)) for name, one in entries.items()]
    print_table(("case", "estimated Dice", "to review"), cells)


def trained_words(command: str, metrics: dict[str, Any]) -> str:
    """``"58 steps in 59 s; held-out Dice 0.812 at step 40"``."""
    from MedSSLLib.core.words import duration_words

    words = f"{metrics.get('steps', 0)} steps in {duration_words(metrics.get('seconds') or 0)}"
    rounds = metrics.get("rounds") or []
    if rounds:
        words = f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}, {words}"
    if metrics.get("stopped"):
        return f"{words}; stopped by a guard: {metrics['stopped']}"
    if command == "pretrain":
        return words
    best = metrics.get("best")
    if best is None and rounds:
        best = rounds[-1].get("dice")
    if best is None:
        return f"{words}; no held-out case"
    step = f" at step {metrics['best_step']}" if metrics.get("best_step") else ""
    return f"{words}; held-out Dice {best:.3f}{step}"


def print_quality(quality: Facts | None) -> None:
    """Predicted against true Dice, where ``predict --quality`` was used."""
    if quality is None:
        return
    interval = "-"
    if quality["spearman_interval"]:
        interval = " to ".join(map(_number, quality["spearman_interval"]))
    cells = [
        ("n", str(quality["n"])),
        ("spearman", _number(quality["spearman"])),
        ("95 % interval", interval),
        ("mean absolute error", _number(quality["mean_absolute_error"])),
        ("inside interval", _number(quality["inside_interval"])),
        ("uncalibrated", str(quality["uncalibrated"])),
    ]
    print_table(("predicted Dice", ""), cells)
    _print_names("to review", quality["review"])
    _print_names("left out, as the run has used their labels", quality["left_out"])


def _print_names(what: str, names: Sequence[str]) -> None:
    """Names that would make a table too wide."""
    if names:
        print(f"{len(names)} {what}: {', '.join(names)}")


def print_calibration(calibration: Facts | None) -> None:
    """Whether the probabilities mean what they say, where ``predict --probabilities`` was used."""
    if calibration is not None:
        cells = [
            ("all voxels", _number(calibration["ece"])),
            ("voxels near structures", _number(calibration["ece_foreground"])),
        ]
        print_table(("expected calibration error", ""), cells)


def setting_rows(config: BaseModel | None, prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, value, help) of every field of a configuration; nothing for None."""
    rows: list[tuple[str, str, str]] = []
    if config is None:
        return rows
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if hasattr(value, "model_fields"):
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value), field.description or ""))
    return rows


def flat(tree: Facts, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested dictionaries as (dotted key, text) pairs."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_path(path: Path) -> str:
    """A path as a person would type it: below the current folder without what leads there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout, unless it has no rows; columns without a value are left out.

    The first column is never wrapped. On a terminal the others are, where they must be; a pipe
    gets long lines. Columns of numbers are set to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, show_header=any(head), show_edge=False, pad_edge=False)
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    for column in kept:
        cells = [row[column] for row in rows]
        table.add_column(
            head[column],
            overflow="fold",
            no_wrap=column == 0 or max(map(len, cells)) <= _WHOLE,
            justify="right" if all(map(_NUMBER.fullmatch, cells)) else "left",
        )
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in kept))
    console = _console()
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join([*lines, ""]))


def _console() -> Console:
    """Stdout; a pipe gets long lines rather than folded cells."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


def _start(settings: Facts) -> str:
    """The run or file that a run started from, as in RunConfig.origin."""
    if settings.get("command") == "selftrain":
        options = settings.get("options")
        if isinstance(options, dict) and options.get("start"):
            return str(options["start"])
    return str(settings.get("init", ""))


def _round(row: Facts) -> tuple[str, str]:
    """A round of self-training in words."""
    pseudo = row["pseudo"]
    words = [
        f"{len(pseudo['kept'])} of {len(pseudo['cases'])} pseudo-labels used",
        f"{row['steps']} steps in {row['seconds']:g} s",
    ]
    if row.get("dice") is not None:
        words.append(f"validation Dice {row['dice']:.3f}")
    return f"round {row['round']}", ", ".join(words)


def _label(row: Facts) -> str:
    if row["label"] is None:
        return ""
    if row["role"] == "unlabelled":
        return "not read"
    if row["label_missing"]:
        return "file is missing"
    if row["annotated"] is None:
        return "all slices"
    parts = [f"{len(part['indices'])} of {'ijk'[part['axis']]}" for part in row["annotated"]]
    return f"slices: {', '.join(parts)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _dice(metrics: Facts) -> float | None:
    """The headline number wherever a run keeps it."""
    dice = metrics.get("dice")
    if isinstance(metrics.get("summary"), dict):
        dice = metrics["summary"].get("dice")
    if isinstance(dice, dict):
        dice = dice.get("mean")
    if dice is None:
        dice = metrics.get("best")
    return float(dice) if isinstance(dice, int | float) else None
