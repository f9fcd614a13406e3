"""What the adapters of other programs share: the data of a job, and scoring by the benchmark's own
code.

    python Testing/bench/peers/NAME.py --data DIR --labelled NAMES --minutes M --threads N --out DIR

DIR is what ``medssl benchmark labels --data`` takes. NAMES are case names separated by commas, or
``COUNT:CHOICE``, such as ``8:0``, for a choice that the benchmark takes from its ``splits.json``. A
peer sees the labelled cases and the test images, nothing else.
Its predictions go to ``OUT/ROW-COUNT-CHOICE/predictions``, on the source grid; ``OUT/results.json``
has the form of the benchmark's result file, so that ``medssl benchmark tables --results OURS
OUT/results.json --out DIR`` sets both side by side. ``--like OURS`` takes over the settings of our
file, so that the rows come into one table; its runs must not have trained longer than the peer may.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OVERRUN = 1.02  # a run stops after the step in which its minutes end
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from MedSSLLib.benchmark.data import choices_of, open_data  # noqa: E402
from MedSSLLib.benchmark.protocol import score_test_cases  # noqa: E402
from MedSSLLib.core.errors import InputError, MedSSLError  # noqa: E402
from MedSSLLib.core.files import read_json, write_json  # noqa: E402
from MedSSLLib.images import io  # noqa: E402
from MedSSLLib.images.geometry import Volume  # noqa: E402
from MedSSLLib.images.labels import class_indices  # noqa: E402
from MedSSLLib.project.project import Project  # noqa: E402
from MedSSLLib.training.run_folder import versions  # noqa: E402


@dataclass(frozen=True)
class Job:
    """What a peer is given.

    Attributes:
        project: the benchmark's project.
        labelled: cases to train on.
        minutes: wall-clock of training; reading and preprocessing do not count, as they do not for
            MedSSL.
        threads: processor cores to use.
        out: folder of everything it writes.
    """

    project: Project
    labelled: tuple[str, ...]
    minutes: float
    threads: int
    out: Path

    @property
    def predictions(self) -> Path:
        return self.out / "predictions"

    def write_data(self, folder: Path) -> None:
        """``train/CASE.nii.gz``, ``train-labels/CASE.nii.gz`` (class indices) and
        ``test/CASE.nii.gz``.
        """
        if self.project.channels != 1:
            raise InputError(f"{self.project.channels} channels", remedy="Peers are set up for one")
        for name in self.labelled:
            case = self.project.case(name)
            if case.label is None:
                raise InputError("has no label", case=name, remedy="Name labelled cases")
            image = io.read_image(case.images[0], case=name)
            label = io.read_label(case.label, image.geometry, case=name)
            classes = class_indices(
                label.array, self.project.values, ignore=self.project.ignore_value
            )
            io.write_image(folder / "train" / f"{name}.nii.gz", image)
            io.write_image(
                folder / "train-labels" / f"{name}.nii.gz", Volume(classes, image.geometry)
            )
        for case in self.project.test:
            io.write_image(
                folder / "test" / f"{case.name}.nii.gz",
                io.read_image(case.images[0], case=case.name),
            )

    def write_prediction(self, name: str, classes: np.ndarray) -> None:
        """Class indices ``[k, j, i]`` of a test case as the project's label values, on the source
        grid.
        """
        geometry = io.read_header(self.project.case(name).images[0])
        if classes.shape != geometry.shape:
            raise InputError(
                f"the prediction has shape {classes.shape}, the image {geometry.shape}", case=name
            )
        values = np.asarray(self.project.values, np.uint8)[classes]
        io.write_image(self.predictions / f"{name}.nii.gz", Volume(values, geometry))


def run(
    row: str,
    work: Callable[[Job, argparse.Namespace], dict[str, Any]],
    parser: argparse.ArgumentParser,
) -> int:
    """Give the job to a peer, score what it predicted and write the result file; returns an exit
    code.

    Args:
        row: its name in tables.
        work: trains and predicts; returns ``steps``, ``training_s`` and what else is worth keeping.
        parser: with the options of its own.
    """
    args = add_options(parser).parse_args()
    try:
        record = _record(row, work, args)
    except (MedSSLError, subprocess.CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(
        json.dumps(
            {key: record[key] for key in ("row", "labelled", "summary", "steps", "training_s")},
            indent=1,
        )
    )
    return 0


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labelled", required=True, metavar="NAMES|COUNT:CHOICE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--like", type=Path, metavar="OURS", help="a result file of the benchmark to stand beside"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1.0, help="of surface Dice, mm, without --like"
    )
    return parser


def _record(
    row: str, work: Callable[[Job, argparse.Namespace], dict[str, Any]], args: argparse.Namespace
) -> dict:
    settings = settings_of(args)
    project, _ = open_data(
        args.data, args.out / "project" / args.data.resolve().name, (), 1, seed=0
    )
    count, choice, labelled = chosen(args.labelled, args.data)
    out = args.out / f"{row}-{count}-{choice}"
    job = Job(project, labelled, args.minutes, args.threads, out)
    out.mkdir(parents=True, exist_ok=True)
    facts = work(job, args)
    missing = {case.name for case in project.test} - {
        io.case_name(path) for path in job.predictions.glob("*.nii.gz")
    }
    if missing:
        raise InputError(
            f"{len(missing)} test cases have no prediction", case=min(missing), file=job.predictions
        )
    scored = score_test_cases(project, job.predictions, float(settings["tolerance"]))
    record = {
        "row": row,
        "count": count,
        "choice": choice,
        "labelled": list(labelled),
        **scored,
        **facts,
    }
    _keep(args.out / "results.json", project.name, settings, record)
    return record


def settings_of(args: argparse.Namespace) -> dict[str, str]:
    """The settings that our file and the peer's have in common.

    Raises:
        InputError: ours trained for longer than the peer may.
    """
    if args.like is None:
        return {"minutes": str(args.minutes), "tolerance": str(args.tolerance)}
    ours = read_json(args.like)
    longest = max((_seconds(record) for record in ours["records"]), default=0.0) / 60
    if longest > args.minutes * OVERRUN:
        raise InputError(
            f"has runs of {longest:.1f} minutes, longer than {args.minutes}",
            file=args.like,
            remedy="Give the peer at least as many --minutes",
        )
    settings: dict[str, str] = ours["settings"]
    return settings


def _seconds(record: dict[str, Any]) -> float:
    """Seconds of training of our record; of self-training with the pseudo-labels and the row it
    went on from.
    """
    alone = record["command_s"] + record["base"]["training_s"] if "base" in record else 0.0
    return max(record["training_s"] or 0.0, alone)


def chosen(text: str, data: Path) -> tuple[str, int, tuple[str, ...]]:
    """Number of labelled cases, number of the choice in ``splits.json`` (0 if it is none), and the
    cases.
    """
    path = data / "splits.json"
    known = json.loads(path.read_text())["labelled"] if path.exists() else {}
    count, colon, number = text.partition(":")
    if colon:
        choices = choices_of(known, count)
        if not number.isdigit() or int(number) >= len(choices):
            raise InputError(f"--labelled {text!r} is no choice of splits.json", file=path)
        return count, int(number), tuple(choices[int(number)])
    names = [name.strip() for name in text.split(",") if name.strip()]
    same = [
        n
        for n, some in enumerate(choices_of(known, str(len(names))))
        if sorted(some) == sorted(names)
    ]
    return str(len(names)), same[0] if same else 0, tuple(names)


def _keep(path: Path, data: str, settings: dict[str, str], record: dict[str, Any]) -> None:
    """Write the result file; other choices that it holds are kept."""
    key = [record[name] for name in ("row", "count", "choice")]
    before = read_json(path)["records"] if path.exists() else []
    records = [r for r in before if [r[name] for name in ("row", "count", "choice")] != key]
    write_json(
        path,
        {
            "bench": "protocol",
            "data": data,
            "settings": settings,
            "versions": versions(),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            "records": [*records, record],
        },
    )
