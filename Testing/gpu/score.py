"""Score the predictions that came back, on the grid of the scans, with the real labels.

    python -m Testing.gpu.score --results OUT --prepared FOLDER/data --data DIR

Class maps are interpolated linearly class by class. Writes ``scores.json`` beside the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.core.files import write_json
from MedSSLLib.evaluation.evaluate import summarise
from MedSSLLib.evaluation.metrics import evaluate_case
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.labels import as_label_values
from MedSSLLib.inference.model import on_source
from Testing.gpu.cohort import Cohort, require_arrays


def main(words: Sequence[str] | None = None) -> int:
    """Score every table; 0 where all could be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="the --out of run.sh")
    parser.add_argument("--prepared", type=Path, required=True, help="data/ of prepare.sh")
    parser.add_argument("--data", type=Path, required=True, help="the data that were prepared")
    parser.add_argument("--tolerance", type=float, default=1.0, help="of surface Dice, mm")
    args = parser.parse_args(words)
    try:
        rows = score(args.results, Cohort.open(args.prepared), args.data, args.tolerance)
    except MedSSLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(f"{row['row']}, choice {row['choice']}: Dice {row['summary']['dice']:.4f}")
    return 0


def score(results: Path, cohort: Cohort, data: Path, tolerance: float) -> list[dict[str, Any]]:
    """A record for every model, in the manner of ``medssl benchmark labels``.

    Raises:
        InputError: a file is missing.
    """
    rows = []
    for path in sorted(results.glob("table-*.npz")):
        row = path.stem.removeprefix("table-").replace("-mixing", "+mixing")
        predictions: dict[int, dict[str, np.ndarray]] = {}
        for key, array in require_arrays(path).items():
            choice, kind, name = key.split("/", 2)
            if kind == "prediction":
                predictions.setdefault(int(choice), {})[name] = array
        for choice, classes in sorted(predictions.items()):
            rows.append({"row": row, "choice": choice, **_scored(classes, cohort, data, tolerance)})
    write_json(results / "scores.json", {"tolerance_mm": tolerance, "records": rows})
    return rows


def _scored(
    predictions: dict[str, np.ndarray], cohort: Cohort, data: Path, tolerance: float
) -> dict[str, Any]:
    values, names = cohort.facts["values"], cohort.facts["classes"]
    wanted = dict(zip(names[1:], values[1:], strict=True))
    images = {io.case_name(path): path for path in io.find_images(data / "images")}
    labels = {io.case_name(path): path for path in io.find_images(data / "labels")}
    cases = {}
    for name, classes in predictions.items():
        source = io.read_header(images[name])
        stored = cohort.facts["cases"][name]["geometry"]
        grid = Geometry(**{part: tuple(value) for part, value in stored.items()})
        found = on_source(_certain(classes, len(values)), grid, source).argmax(0)
        truth = io.read_label(labels[name], source, case=name).array
        ours = as_label_values(found.astype(np.uint8), values)
        cases[name] = evaluate_case(ours, truth, source.spacing[::-1], wanted, tolerance)
    summary = summarise(cases)
    return {
        "summary": {metric: value["mean"] for metric, value in summary.items()},
        "per_class": summary["dice"]["per_class"],
        "dice": summary["dice"]["per_case"],
    }


def _certain(classes: np.ndarray, count: int) -> torch.Tensor:
    """A class map as probabilities float32 ``[k, d, h, w]``."""
    return torch.from_numpy((classes == np.arange(count)[:, None, None, None]).astype(np.float32))


if __name__ == "__main__":
    sys.exit(main())
