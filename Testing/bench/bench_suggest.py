"""Dice against the number of annotated slices, for each way to choose the slices; resumable.

    python Testing/bench/bench_suggest.py --data DIR/cardiac --encoder PROJECT/runs/RUN --work DIR
    --out FILE

Every model starts from the same encoder and trains the same number of steps on the slices that
``medssl suggest`` names, taken from the reference labels of pool cases; scored on whole test cases.
`hybrid` chooses its first half by coverage, trains on it, and the other half by that model's doubt,
as a person would. No strategy takes more than `--per-case` slices of a case, and nothing is held
out. Repeats change the seed of training and of what is random: `random` draws other slices each
time, `even` and `coverage` name the same ones. Coverage chooses greedily, so that the slices of a
small budget are the first ones of a large one: it is asked once. A figure stands beside the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from MedSSLLib.active_learning.suggest import Suggestion, SuggestOptions, run_suggest
from MedSSLLib.benchmark.data import open_data
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.evaluation.evaluate import bootstrap_interval, evaluate_pairs
from MedSSLLib.finetuning.finetune import run_finetune
from MedSSLLib.images.labels import Annotated
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.reporting.plots import dice_against_labels, save

STRATEGIES = ("even", "random", "coverage", "hybrid")


def suggested(
    project: Project, run: str, strategy: str, budget: int, seed: int, per_case: int
) -> list[Suggestion]:
    """The slices that a strategy adds to those that are drawn."""
    options = SuggestOptions(budget, strategy, per_case=per_case, seed=seed, device="cpu")
    return run_suggest(project, run, options, Events(), project.folder / "suggested.json")


@cache
def coverage(
    folder: Path, encoder: str, budget: int, seed: int, per_case: int
) -> tuple[Suggestion, ...]:
    """The slices that coverage names where nothing is drawn yet."""
    return tuple(suggested(Project.open(folder), encoder, "coverage", budget, seed, per_case))


def draw(project: Project, references: dict[str, Path], slices: list[Suggestion]) -> Project:
    """A copy of the project whose references count on these slices, and on those drawn before."""
    drawn: dict[str, list] = defaultdict(list)
    for item in slices:
        drawn[item.case].append((item.axis, [item.index]))
    for name, pairs in drawn.items():
        before = project.case(name).annotated
        project.set_label(name, references[name])
        project.set_annotated(name, Annotated.of([*(before.slices if before else ()), *pairs]))
    return project


def choose(
    base: Project,
    references: dict[str, Path],
    encoder: str,
    strategy: str,
    budget: int,
    seed: int,
    args: argparse.Namespace,
) -> Project:
    """The project with `budget` slices drawn."""
    project = base.at(base.folder)
    if strategy in ("even", "random"):
        return draw(
            project, references, suggested(project, encoder, strategy, budget, seed, args.per_case)
        )
    if strategy == "coverage":
        covering = coverage(project.folder, encoder, max(args.budgets), seed, args.per_case)
        return draw(project, references, list(covering[:budget]))
    few = args.per_case // 2
    covering = coverage(project.folder, encoder, max(args.budgets), seed, args.per_case - few)
    project = draw(project, references, list(covering[: budget // 2]))
    first = train(project, encoder, f"first-{budget}-{seed}", seed, args)
    rest = suggested(project, first, "hybrid", budget - budget // 2, seed, few)
    return draw(project, references, rest)


def train(project: Project, encoder: str, name: str, seed: int, args: argparse.Namespace) -> str:
    """Fine-tune from the encoder; the run's name."""
    overrides = {
        "name": name,
        "init": encoder,
        "seed": seed,
        "training.steps": args.steps,
        "training.holdout": 0,
        "device": "cpu",
    }
    if not (project.run_folder(name) / WEIGHTS).exists():
        run_finetune(project, RunConfig.build("finetune", overrides=overrides), Events())
    return name


def score(project: Project, run: str) -> dict[str, float | None]:
    """Mean Dice of every test case; None where neither the reference nor the prediction shows a
    structure.
    """
    out = project.folder / "predictions" / run
    run_predict(project, run, out, Events(), cases=",".join(case.name for case in project.test))
    pairs = {
        case.name: (out / f"{case.name}.nii.gz", case.label) for case in project.test if case.label
    }
    classes = dict(zip(project.classes[1:], project.values[1:], strict=True))
    return evaluate_pairs(pairs, classes=classes)["summary"]["dice"]["per_case"]


def by_patient(dice: dict[str, float | None], patients: dict[str, str]) -> list[float]:
    """Mean of each patient's cases, as cases of one patient are not independent."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in dice.items():
        found[patients[name]].append(np.nan if value is None else value)
    return [float(np.nanmean(values)) for values in found.values()]


def summary(records: list[dict], patients: dict[str, str]) -> dict[str, dict]:
    """Per budget what every strategy reaches, and hybrid has over each other one: mean and 95 %
    interval.
    """
    found = {}
    for budget in sorted({record["budget"] for record in records}):
        tables = {
            s: {
                r["repeat"]: np.array(by_patient(r["dice"], patients))
                for r in records
                if (r["budget"], r["strategy"]) == (budget, s)
            }
            for s in STRATEGIES
        }
        tables = {s: table for s, table in tables.items() if table}
        row = {
            s: {
                "interval": [round(v, 4) for v in bootstrap_interval(np.array([*t.values()]))],
                "repeats": len(t),
            }
            for s, t in tables.items()
        }
        for s in sorted(tables.keys() - {"hybrid"}) if "hybrid" in tables else ():
            both = sorted(tables[s].keys() & tables["hybrid"].keys())
            if not both:
                continue
            interval = bootstrap_interval(
                np.array([tables["hybrid"][n] - tables[s][n] for n in both])
            )
            row[f"hybrid minus {s}"] = [round(value, 4) for value in interval]
        found[str(budget)] = row
    return found


def figure(found: dict[str, dict]) -> Figure:
    """Dice against the number of slices, one line a strategy."""
    lines = {
        s: {int(n): tuple(row[s]["interval"]) for n, row in found.items() if s in row}
        for s in STRATEGIES
    }
    return dice_against_labels(
        {s: line for s, line in lines.items() if line}, xlabel="annotated slices"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--encoder", type=Path, required=True, help="folder of a finished pre-training run"
    )
    parser.add_argument("--work", type=Path, default=Path("bench-suggest"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--per-case", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base, _ = open_data(args.data, args.work / args.data.name, (), 0, 0)
    encoder = "encoder"
    if not base.run_folder(encoder).exists():
        shutil.copytree(args.encoder, base.run_folder(encoder))
    references = {case.name: args.data / "labels" / f"{case.name}.nii.gz" for case in base.pool}
    patients = {case.name: case.patient for case in base.test}
    settings = {"steps": args.steps, "per_case": args.per_case, "encoder": args.encoder.name}
    before = read_json(args.out) if args.out.exists() else {"settings": settings, "records": []}
    if before["settings"] != settings:
        raise SystemExit(
            f"{args.out} has other settings: {before['settings']}; choose another --out and --work"
        )
    records = before["records"]
    done = {(r["repeat"], r["budget"], r["strategy"]) for r in records}
    for repeat in range(args.repeats):
        for budget in args.budgets:
            for strategy in args.strategies:
                if (repeat, budget, strategy) in done:
                    continue
                project = choose(base, references, encoder, strategy, budget, repeat, args)
                run = train(project, encoder, f"{strategy}-{budget}-{repeat}", repeat, args)
                slices = {
                    case.name: case.annotated.to_json() for case in project.pool if case.annotated
                }
                records.append(
                    {
                        "repeat": repeat,
                        "budget": budget,
                        "strategy": strategy,
                        "slices": slices,
                        "dice": score(project, run),
                    }
                )
                found = summary(records, patients)
                write_json(
                    args.out,
                    {
                        "bench": "suggest",
                        "data": args.data.name,
                        "settings": settings,
                        "command": " ".join(["python", *sys.argv]),
                        "summary": found,
                        "records": records,
                    },
                )
                save(figure(found), args.out.with_suffix(".png"))
                print(repeat, budget, strategy, found[str(budget)][strategy], flush=True)
    json.dump(summary(records, patients), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
