"""Completing one volume from 3 or 5 drawn slices: `medssl complete` against Slicer's two tools, on
pool cases.

    python Testing/bench/bench_complete.py --data DIR --out FILE --slicer-python PYTHON

DIR holds the data sets with ``images``, ``labels``, ``splits.json``. PYTHON is an interpreter with
slicer-core, in an environment of its own, that runs slicer_baselines.py. Slices are simulated
evenly over the labelled extent. Test cases are not touched. The first cases of the fixed order
(`--skip`) served to choose the settings and are left out.

Scores are mean Dice over the structures, over the slices that were not drawn and over the whole
volume. Besides the command, its two halves are scored: the interpolated shapes alone and the
network alone. Differences come with a 95 % Student interval over cases, paired. The file is
rewritten after every case.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from MedSSLLib.config.commands import CompletionConfig
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import write_json
from MedSSLLib.finetuning.complete import run_complete
from MedSSLLib.images import io
from MedSSLLib.images.labels import IGNORE, Annotated, sparse_label
from MedSSLLib.images.shape_interpolation import shape_distances
from MedSSLLib.inference.model import PredictOptions, load_model, predict_case
from MedSSLLib.project.project import Project

BASELINES = Path(__file__).with_name("slicer_baselines.py")
SLICER = {"fill": "fill between slices", "grow": "grow from seeds"}


def pool_order(data: Path) -> tuple[list[str], list[str]]:
    """Pool cases in a fixed random order, and the test selection."""
    splits = json.loads((data / "splits.json").read_text())
    names = sorted(io.case_name(path) for path in io.find_images(data / "images"))
    unit = (lambda name: name) if splits["unit"] == "case" else (lambda name: name.split("_")[0])
    pool = [name for name in names if unit(name) in splits["pool"]]
    return [pool[i] for i in np.random.default_rng(7).permutation(len(pool))], splits["test"]


def open_project(data: Path, folder: Path, cases: list[str], test: list[str]) -> Project:
    project = Project.create(
        folder,
        data / "images",
        labels=data / "labels",
        metadata=data / "metadata.csv",
        labelled=",".join(cases),
        test=",".join(test),
    )
    project.save()
    return project


def dice(found: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> float:
    """Mean over the structures of the volume; one that is nowhere among the counted voxels is left
    out.
    """
    scores = []
    for value in np.unique(truth[truth > 0]):
        a, b = (found == value) & counted, (truth == value) & counted
        if a.any() or b.any():
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def by_slicer(
    python: Path, image: np.ndarray, drawn: np.ndarray, spacing: tuple, classes: int
) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "job.npz", image=image, drawn=drawn, spacing=spacing, classes=classes
        )
        subprocess.run([python, BASELINES, folder], check=True)
        return {what: np.load(Path(folder) / f"job.{key}.npy") for key, what in SLICER.items()}


def one_case(args: argparse.Namespace, project: Project, init: str, name: str, slices: int) -> dict:
    """Scores of every method on one case."""
    case = project.case(name)
    image = io.read_image(case.images[0])
    truth = io.read_label(case.label, image.geometry).array
    overrides = {
        "options.case": name,
        "annotated_slices": slices,
        "training.steps": args.steps,
        "init": init,
        "training.batch": args.batch,
        "dim": args.dim,
        "device": "cpu",
    }
    started = time.perf_counter(), time.process_time()
    path = run_complete(project, RunConfig.build("complete", overrides=overrides), Events())
    seconds, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    facts = json.loads((path.parent / "config.json").read_text())["data"]["annotated"][name]
    annotated = Annotated.from_json(facts)
    drawn = sparse_label(truth, annotated)
    classes = len(project.classes)
    spacing = image.geometry.spacing
    results = {"complete": io.read_label(path, image.geometry).array}
    results["shapes alone"] = shape_distances(drawn, annotated, spacing, classes)[0].argmax(0)
    _, network = predict_case(
        load_model(path.parent, "cpu"), [image], PredictOptions(components="all")
    )
    results["network alone"] = np.where(drawn == IGNORE, network.argmax(0), drawn)
    results |= by_slicer(args.slicer_python, image.array, drawn, spacing, classes)
    assert np.array_equal(results["complete"][drawn != IGNORE], truth[drawn != IGNORE])
    everything = np.ones(truth.shape, bool)
    scores = {
        what: {
            "undrawn": dice(found, truth, drawn == IGNORE),
            "whole": dice(found, truth, everything),
        }
        for what, found in results.items()
    }
    return {
        "annotated": facts,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "dice": scores,
    }


def summary(cases: dict[str, dict]) -> dict:
    """Mean Dice of every method, and what `complete` has over each other one."""
    result = {}
    for region in ("undrawn", "whole"):
        table = {
            what: np.array([case["dice"][what][region] for case in cases.values()])
            for what in next(iter(cases.values()))["dice"]
        }
        gains = {
            what: gain(table["complete"] - values)
            for what, values in table.items()
            if what != "complete"
        }
        result[region] = {
            "mean": {what: round(float(v.mean()), 4) for what, v in table.items()},
            "complete minus": gains,
        }
    return {"n": len(cases), **result}


def gain(differences: np.ndarray) -> dict:
    """Mean paired difference with its 95 % Student interval; no interval from one case."""
    n, mean = len(differences), float(differences.mean())
    half = (
        stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    )
    low, high = (None, None) if n < 2 else (round(mean - half, 4), round(mean + half, 4))
    return {"mean": round(mean, 4), "low": low, "high": high, "wins": int((differences > 0).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=["hippocampus", "cardiac"])
    parser.add_argument("--slices", nargs="+", type=int, default=[3, 5])
    parser.add_argument("--cases", type=int, default=4, help="cases of each set")
    parser.add_argument(
        "--skip", type=int, default=8, help="first cases, which settings were chosen on"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--dim", choices=("auto", "2d", "3d"), default="auto")
    parser.add_argument(
        "--init", nargs="*", default=[], metavar="SET=WEIGHTS", help="pre-trained weights of a set"
    )
    parser.add_argument("--slicer-python", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    init = dict(item.split("=", 1) for item in args.init)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "threads": 1,
        "settings": CompletionConfig().model_dump(exclude={"case", "out"}),
        "sets": {},
    }
    with tempfile.TemporaryDirectory() as work:
        chosen = {name: pool_order(args.data / name) for name in args.sets}
        kept = slice(args.skip, args.skip + args.cases)
        projects = {
            name: open_project(args.data / name, Path(work) / name, order[kept], test)
            for name, (order, test) in chosen.items()
        }
        for number in range(args.cases):  # all sets and budgets advance together
            for name in args.sets:
                case = chosen[name][0][kept][number]
                for slices in args.slices:
                    row = one_case(args, projects[name], init.get(name, "none"), case, slices)
                    part = (
                        result["sets"].setdefault(name, {}).setdefault(str(slices), {"cases": {}})
                    )
                    part["cases"][case] = row
                    part["summary"] = summary(part["cases"])
                    write_json(args.out, result)


if __name__ == "__main__":
    main()
