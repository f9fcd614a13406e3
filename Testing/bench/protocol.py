"""The label-efficiency protocol on a data set with ``splits.json``, through the commands a user has.

    python Testing/bench/protocol.py --data DIR --count 8 --minutes 10 --out results.json
    python Testing/bench/protocol.py --data DIR --count 1 --choices 3 --rows random,pgl,pgl-frozen,byol,restoration \
        --pretrain-minutes 10 --minutes 3 --out results.json

For every choice of labelled volumes: ``medssl finetune`` (once per row, everything else equal), ``predict`` and
``evaluate`` on the test cases at native resolution. A row is ``random``, a pre-training method or one of VARIANTS,
each with ``-frozen`` for a fixed encoder, and ``+mean-teacher``, ``+mixup`` or ``+selftrain`` for what comes on top;
``+selftrain`` goes on from the finished run of the row without it, so that row must be scored too.
The result file holds per-case values, the settings, versions and paired differences to ``random`` with a bootstrap
interval over cases x choices. Rows that the file holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

from MedSSLLib.cli import main as medssl
from MedSSLLib.evaluate import bootstrap_interval
from MedSSLLib.files import read_json, write_json
from MedSSLLib.io import case_name, find_images
from MedSSLLib.project import Project
from MedSSLLib.runfolder import versions

VARIANTS = {
    "gcl-image": ("gcl", "options.pixel=false"),
    "gcl-sum": ("gcl", "options.pixel=false", "options.gradient=sum"),
    "gcl-patient": ("gcl", "options.pixel=false", 'options.meta=["patient"]'),
    "gcl-position": ("gcl", "options.pixel=false", 'options.meta=["position"]'),
    "gcl-phase": ("gcl", "options.pixel=false", 'options.meta=["phase"]'),
    "gcl-no-filter": ("gcl", "options.grad_filter=false"),
    "pgl-no-scale": ("pgl", "options.use_scale_prior=false"),
    "pgl-no-flip": ("pgl", "options.use_flip_prior=false"),
}
"""Ablations: the method and its settings."""
ON_TOP = {"mean-teacher": ("--semi", "mean-teacher"), "mixup": ("--mixup", "0.2")}


def run(*args: object) -> None:
    """One ``medssl`` command; ends the script when it fails."""
    words = [str(arg) for arg in args]
    print("medssl", *words, flush=True)
    if code := medssl(words):
        raise SystemExit(code)


def split_cases(data: Path) -> tuple[list[str], dict]:
    """Test cases and the splits; a split by patient names patients."""
    splits = json.loads((data / "splits.json").read_text())
    names = [case_name(path) for path in find_images(data / "images")]
    by_patient = splits["unit"] == "patient"
    test = [n for n in names if (n.split("_")[0] if by_patient else n) in set(splits["test"])]
    return test, splits


def open_project(data: Path, work: Path, test: list[str]) -> Project:
    """The project, made on the first call; no label is read before a choice names its volumes."""
    folder = work / data.name
    if not (folder / "medssl.json").exists():
        metadata = ("--metadata", data / "metadata.csv") if (data / "metadata.csv").exists() else ()
        run("init", folder, "--images", data / "images", "--labels", data / "labels", *metadata,
            "--labelled", "", "--test", ",".join(test), "--quiet")  # fmt: skip
    return Project.open(folder)


def length(args: argparse.Namespace, minutes: float | None) -> tuple[object, ...]:
    return ("--steps", args.steps) if args.steps else ("--minutes", minutes)


def initialisation(args: argparse.Namespace, project: Project, row: str) -> tuple[object, ...]:
    """Options of ``finetune`` for a row; pre-trains first where that was not done."""
    if row == "random":
        return ()
    encoder = row.removesuffix("-frozen")
    method, *settings = VARIANTS.get(encoder, (encoder,))
    name = f"{encoder}-{args.tag}"
    if not finished(project, name):
        run("pretrain", project.folder, "--method", method, "--name", name, "--quiet",
            *(("--steps", args.pretrain_steps) if args.pretrain_steps else ("--minutes", args.pretrain_minutes)),
            *sets([*args.pretrain_set, *settings]))  # fmt: skip
    return ("--init", name, *(("--freeze-encoder",) if row.endswith("-frozen") else ()))


def train(args: argparse.Namespace, project: Project, row: str, choice: int, labelled: list[str]) -> str:
    """Train the row on the choice unless that was done; returns the run's name."""
    name = f"{row}-{args.count}-{choice}-{args.tag}".replace("+", "-")
    base, _, on_top = row.partition("+")
    common = ("--name", name, "--labelled", ",".join(labelled), "--quiet", *length(args, args.minutes))
    if finished(project, name):
        pass
    elif on_top == "selftrain":
        start = train(args, project, base, choice, labelled)
        run("selftrain", project.folder, "--from", start, *common, *sets(args.selftrain_set))
    else:
        run("finetune", project.folder, *common, *initialisation(args, project, base), *ON_TOP.get(on_top, ()),
            *sets(args.set))  # fmt: skip
    return name


def finished(project: Project, name: str) -> bool:
    return (project.run_folder(name) / "weights.safetensors").exists()


def score(args: argparse.Namespace, project: Project, row: str, choice: int, labelled: list[str]) -> dict:
    """Train, predict and evaluate one row on one choice."""
    started = time.monotonic()
    name = train(args, project, row, choice, labelled)
    trained = time.monotonic() - started
    out = project.folder / "predictions" / name
    run("predict", project.folder, "--run", name, "--cases", ",".join(c.name for c in project.test), "--out", out, "-q")
    run("evaluate", "--predictions", out, "--references", args.data / "labels", "--out", out / "metrics.json", "-q",
        "--tolerance", args.tolerance)  # fmt: skip
    metrics = read_json(out / "metrics.json")
    training = read_json(project.run_folder(name) / "metrics.json")
    summary = {k: v["mean"] for k, v in metrics["summary"].items() if isinstance(v, dict) and "mean" in v}
    return {"row": row, "choice": choice, "labelled": labelled, "summary": summary,
            "per_class": metrics["summary"]["dice"]["per_class"], "dice": metrics["summary"]["dice"]["per_case"],
            "steps": training["steps"], "training_s": training["seconds"], "command_s": round(trained, 1)}


def sets(items: list[str]) -> list[object]:
    return [word for item in items for word in ("--set", item)]


def differences(records: list[dict]) -> dict[str, dict]:
    """Paired difference of every row to ``random`` over cases x choices."""
    found = {}
    by_key = {(r["row"], r["choice"]): r["dice"] for r in records}
    for row in dict.fromkeys(r["row"] for r in records):
        choices = [c for r, c in by_key if r == row and ("random", c) in by_key]
        if row == "random" or not choices:
            continue
        cases = sorted(by_key[row, choices[0]])
        pairs = [[by_key[row, c][n] - by_key["random", c][n] for n in cases] for c in choices]
        mean, low, high = bootstrap_interval(np.asarray(pairs, float))
        found[row] = {"mean": mean, "low": low, "high": high, "choices": choices}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("bench-projects"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", default="1", help="labelled volumes: 1, 2, 8 or all")
    parser.add_argument("--choices", type=int, default=1)
    parser.add_argument("--rows", default="random")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pretrain-minutes", type=float, default=10.0)
    parser.add_argument("--pretrain-steps", type=int)
    parser.add_argument("--tolerance", type=float, default=1.0, help="of surface Dice, mm")
    parser.add_argument("--tag", default="bench", help="part of the run names")
    parser.add_argument("--set", action="append", default=[], help="setting of every fine-tuning")
    parser.add_argument("--pretrain-set", action="append", default=[], help="setting of every pre-training")
    parser.add_argument("--selftrain-set", action="append", default=[], help="setting of every self-training")
    args = parser.parse_args()
    test, splits = split_cases(args.data)
    project = open_project(args.data, args.work, test)
    chosen = {"all": [[c.name for c in project.pool]]}.get(args.count) or splits["labelled"][args.count]
    records = read_json(args.out)["records"] if args.out.exists() else []
    for choice, labelled in enumerate(chosen[: args.choices]):
        for row in args.rows.split(","):
            if not any((r["row"], r["choice"]) == (row, choice) for r in records):
                records.append(score(args, project, row, choice, labelled))
            settings = {k: str(v) for k, v in vars(args).items() if k not in ("work", "out", "data")}
            write_json(args.out, {
                "bench": "protocol", "data": args.data.name, "settings": settings, "versions": versions(),
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
                "difference_to_random": differences(records), "records": records,
            })  # fmt: skip
    for record in records:
        print(record["row"], record["choice"], {k: round(v, 4) for k, v in record["summary"].items() if v is not None})
    print(json.dumps(differences(records), indent=1))


if __name__ == "__main__":
    main()
