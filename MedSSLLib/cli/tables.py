"""Tables for the terminal. Cells are plain text: nothing in a case name or DICOM field is read as
markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.core.errors import InputError, printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from MedSSLLib.project.project import Case


Row = dict[str, Any]


def case_row(case: Case) -> Row:
    """Facts of one case, from the image's header alone. ``problem`` says why the image cannot be
    read.
    """
    from MedSSLLib.images.io import read_header

    row: Row = {
        "case": case.name,
        "role": case.role,
        "size": None,
        "spacing": None,
        "label": case.label,
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


def run_row(run: Row) -> Row:
    """The short facts of a run summary (see ``runs.summary``)."""
    config: Row = run["config"] or {}
    metrics: Row = run["metrics"] or {}
    training = config.get("config", config)
    training = training if isinstance(training, dict) else {}
    done = "stopped by a guard" if metrics.get("stopped") else "done"
    state = done if run["finished"] else "can be resumed" if run["resumable"] else "unfinished"
    return {
        "name": run["name"],
        "command": training.get("command", ""),
        "method": training.get("method", ""),
        "start": _start(training),
        "precision": config.get("precision", ""),
        "state": run["problem"] or state,
        "dice": _dice(metrics),
        "folder": run["folder"],
    }


def print_cases(rows: Sequence[Row]) -> None:
    cells = []
    for row in rows:
        size, spacing = (
            " x ".join(f"{n:g}" for n in row[key] or ()) for key in ("size", "spacing")
        )
        cells.append(
            (row["case"], row["problem"] or size, spacing, _label(row), row["role"], _metadata(row))
        )
    print_table(("case", "size", "spacing (mm)", "label", "role", "metadata"), cells)


def print_runs(rows: Sequence[Row]) -> None:
    cells = [
        (
            row["name"],
            row["command"],
            row["method"],
            row["start"],
            row["state"],
            "" if row["dice"] is None else f"{row['dice']:.3f}",
        )
        for row in rows
    ]
    print_table(("run", "command", "method", "start", "state", "Dice"), cells)


def print_run(run: Row) -> None:
    row = run_row(run)
    facts = [(name, str(value)) for name, value in row.items() if value not in (None, "")]
    print_table(("", ""), facts)
    config: Row = run["config"] or {}
    print_table(("setting", "value"), list(flat(config.get("config", config))))
    if run["metrics"]:
        metrics = run["metrics"].get("summary", run["metrics"])
        rest = {name: value for name, value in metrics.items() if name != "rounds"}
        print_table(
            ("metric", "value"), [*flat(rest), *(_round(row) for row in metrics.get("rounds", ()))]
        )
    files = sorted(path.relative_to(run["folder"]) for path in Path(run["folder"]).iterdir())
    print_table(("file",), [(str(path),) for path in files])


def print_metrics(result: Row) -> None:
    """The summary of ``evaluate``: a line per metric, mean over cases, then per class."""
    summary = result["summary"]
    classes = list(summary["dice"]["per_class"])
    cells = []
    for name, entry in summary.items():
        numbers = [
            _number(entry["mean"]),
            *(_number(entry["per_class"].get(label)) for label in classes),
        ]
        cells.append((name.replace("_", " "), *numbers, str(entry["n"]), str(entry["undefined"])))
    print_table(("metric", "mean", *classes, "n", "undefined"), cells)
    if result["missed"]:
        print(
            f"{result['missed']} structures missed: in the reference, not in the prediction. No "
            "distance holds them."
        )


def print_estimates(entries: Row) -> None:
    """Estimated Dice by case, as ``predict --quality`` writes it."""
    from MedSSLLib.evaluation.quality import estimate_text, review_text

    cells = [(name, estimate_text(one), review_text(one)) for name, one in entries.items()]
    print_table(("case", "estimated Dice", "to review"), cells)


def print_quality(quality: Row | None) -> None:
    """Predicted against true Dice, where ``predict --quality`` was used."""
    if quality is not None:
        low, high = quality["spearman_interval"] or (None, None)
        cells = [
            ("n", str(quality["n"])),
            ("spearman", _number(quality["spearman"])),
            ("95 % interval", f"{_number(low)} to {_number(high)}" if low is not None else "-"),
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


def print_calibration(calibration: Row | None) -> None:
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


def flat(tree: Row, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested dictionaries as (dotted key, text) pairs."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout, unless it has no rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, show_header=any(head), pad_edge=False, expand=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _console().print(table)


def _console() -> Console:
    """Stdout; a pipe gets long lines rather than folded cells."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def _start(settings: Row) -> str:
    """The run or file that a run started from, as in RunConfig.origin."""
    options = settings.get("options") if settings.get("command") == "selftrain" else None
    return (options.get("start") if isinstance(options, dict) else "") or settings.get("init", "")


def _round(row: Row) -> tuple[str, str]:
    """A round of self-training in words."""
    pseudo = row["pseudo"]
    words = [
        f"{len(pseudo['kept'])} of {len(pseudo['cases'])} pseudo-labels used",
        f"{row['steps']} steps in {row['seconds']:g} s",
    ]
    if row.get("dice") is not None:
        words.append(f"validation Dice {row['dice']:.3f}")
    return f"round {row['round']}", ", ".join(words)


def _label(row: Row) -> str:
    if row["label"] is None:
        return "-"
    if row["role"] == "unlabelled":
        return "present, not read"
    if row["annotated"] is None:
        return "all slices"
    return ", ".join(
        f"{len(part['indices'])} slices of {'ijk'[part['axis']]}" for part in row["annotated"]
    )


def _metadata(row: Row, shown: int = 3) -> str:
    entries = [f"{key} {value}" for key, value in row["metadata"].items()]
    more = [f"{len(entries) - shown} more"] if len(entries) > shown else []
    return ", ".join(entries[:shown] + more)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _dice(metrics: Row) -> float | None:
    """The headline number wherever a run keeps it."""
    summary = metrics.get("summary")
    dice = (summary if isinstance(summary, dict) else metrics).get("dice")
    dice = dice.get("mean") if isinstance(dice, dict) else dice
    return float(dice) if isinstance(dice, (int, float)) else None
