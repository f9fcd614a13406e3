"""Whether two versions of the library train and predict the same, bit for bit.

    python Testing/bench/compare_versions.py OTHER_CHECKOUT [--out FOLDER] [--only NAME ...]

Each version works through the same commands on its own copy of a simulated project, from the same
seed, on one thread and in float32: pre-training by PGL and GCL, fine-tuning in 2D and 3D with and
without extras, self-training, completion and prediction. Then every tensor that was written, every
voxel that was predicted and every figure but times are compared. Exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
CASES = 8
LABELLED = 4
SMALL = ["--set", "network.widths=[4,8]", "--set", "training.voxels=512"]
LOOP = ["--batch", "4", "--seed", "7", "--device", "cpu", "--precision", "32", "--quiet"]
TRAIN = [*SMALL, *LOOP]
SIMPLE = ["--device", "cpu", "--precision", "32", "--quiet"]
DEEP = ["--set", "network.deep_supervision=true"]
ALL_PREDICTED = ["--probabilities", "--uncertainty", "--quality"]

Commands = dict[str, list[str]]

# every command names its run; PROJECT and OUT are put in
COMMANDS: Commands = {
    "pgl": ["pretrain", "PROJECT", "--method", "pgl", "--dim", "3d", "--steps", "4", *TRAIN],
    "gcl": ["pretrain", "PROJECT", "--method", "gcl", "--dim", "2d", "--steps", "4", *TRAIN],
    "plain": ["finetune", "PROJECT", "--dim", "3d", "--steps", "6", *DEEP, *TRAIN],
    "from-gcl": [
        *["finetune", "PROJECT", "--init", "gcl", "--steps", "80"],
        *["--set", "optimiser.lr=0.02", *TRAIN],
    ],
    "extras": [
        *["finetune", "PROJECT", "--init", "pgl", "--steps", "6"],
        *["--semi", "mean-teacher", "--mixup", "0.3", "--annotated-slices", "3"],
        *["--set", "training.folds=2", *TRAIN],
    ],
    "self": [
        *["selftrain", "PROJECT", "--from", "from-gcl", "--rounds", "2", "--steps", "8"],
        *["--set", "options.soft=true", "--set", "options.matching=intra", *TRAIN],
    ],
    "self-first": [
        *["selftrain", "PROJECT", "--init", "pgl", "--rounds", "1", "--steps", "120"],
        *["--annotated-slices", "3", "--set", "optimiser.lr=0.02", *TRAIN],
    ],
    "filled": [
        *["complete", "PROJECT", "--case", "case1", "--steps", "6"],
        *["--annotated-slices", "3", *TRAIN],
    ],
}
PREDICTIONS: Commands = {
    run: ["predict", "PROJECT", "--run", run, *ALL_PREDICTED, *SIMPLE]
    for run in ("plain", "extras", "self")
}


def simulate(folder: Path) -> None:
    """Eight noisy scans of two overlapping ellipsoids, four of them with labels, two a patient."""
    rng = np.random.default_rng(3)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (12, 28, 26)], indexing="ij")
    rows = ["case,patient,phase"]
    for number in range(CASES):
        centre = rng.uniform(-0.15, 0.15, 3)
        radius = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) ** 0.5
        label = (radius < 0.8).astype(np.uint8) + (radius < 0.45)
        image = 300.0 * label + rng.normal(200, 60, label.shape)
        name = f"case{number}"
        _write(folder / "images" / f"{name}.nii.gz", image.astype(np.int16))
        if number < LABELLED:
            _write(folder / "labels" / f"{name}.nii.gz", label)
        rows.append(f"{name},p{number // 2},{'ab'[number % 2]}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.2, 1.2, 2.0))
    SimpleITK.WriteImage(image, str(path))


def work(checkout: Path, data: Path, out: Path, only: list[str]) -> None:
    """All commands by one checkout, in one process; results lie in `out`."""
    project = out / "project"
    calls = [_init(project, data)]
    for run, words in COMMANDS.items():
        if not only or run in only:
            calls.append([*_placed(words, project), "--name", run])
    for run, words in PREDICTIONS.items():
        if not only or run in only:
            calls.append([*_placed(words, project), "--out", str(out / "predicted" / run)])
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CALLS, json.dumps(calls)]
    done = subprocess.run(command, cwd=checkout, env=environment)
    if done.returncode:
        sys.exit(f"{checkout}: ended with {done.returncode}")
    print(f"  {len(calls)} commands: {time.monotonic() - started:.1f} s", flush=True)


_CALLS = """
import json, sys
from MedSSLLib.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    if code not in (None, 0, 1):  # 1: a case was left out
        sys.exit(f"{' '.join(words)} ended with {code}")
    print(" ", words[0], words[-1], flush=True)
"""


def _init(project: Path, data: Path) -> list[str]:
    inputs = ["--images", str(data / "images"), "--labels", str(data / "labels")]
    return ["init", str(project), *inputs, "--metadata", str(data / "table.csv"), "--quiet"]


def _placed(words: list[str], project: Path) -> list[str]:
    return [str(project) if word == "PROJECT" else word for word in words]


def differences(first: Path, second: Path) -> tuple[int, list[str]]:
    """How many files were compared, and what differs."""
    compared, found = 0, []
    for pattern, read in (("weights.safetensors", _tensors), ("*.nii.gz", _voxels)):
        names = _names(first, pattern) | _names(second, pattern)
        for name in sorted(names):
            compared += 1
            found += _compared(name, first / name, second / name, read)
    for pattern in ("metrics.json", "quality.json", "summary.json", "embedding.json"):
        for name in sorted(_names(first, pattern) | _names(second, pattern)):
            compared += 1
            found += _compared(name, first / name, second / name, _figures)
    return compared, found


def _names(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def _compared(name: str, one: Path, other: Path, read: Any) -> list[str]:
    for path in (one, other):
        if not path.exists():
            return [f"{name}: missing in {path.parents[len(Path(name).parents) - 1]}"]
    return [f"{name}: {text}" for text in _unlike(read(one), read(other))]


def _tensors(path: Path) -> dict[str, np.ndarray]:
    return load_file(str(path))


def _voxels(path: Path) -> dict[str, np.ndarray]:
    """The voxels; label values of any integer type are equal where the values are."""
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return {"voxels": array.astype(np.int64) if array.dtype.kind in "iu" else array}


def _figures(path: Path) -> dict[str, np.ndarray]:
    return _flat(json.loads(path.read_text(encoding="utf-8")))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Numbers and texts of nested objects and lists by their path; times are left out."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = ((str(index), item) for index, item in enumerate(value))
    else:
        return {name: np.asarray(value)}
    flat: dict[str, Any] = {}
    for key, item in pairs:
        if key != "seconds":
            flat |= _flat(item, f"{name}/{key}")
    return flat


def _unlike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    found = [f"only one has {name}" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            found.append(f"{name} differs")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    parser.add_argument("--out", type=Path, help="where results are kept and reused")
    parser.add_argument("--only", nargs="*", default=[], help="names of runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        simulate(out / "data")
        for name, checkout in (("other", given.other.resolve()), ("this", ROOT)):
            print(f"{name}: {checkout}", flush=True)
            if (out / name).exists():
                print("  as found in --out")
                continue
            (out / name).mkdir(parents=True)
            work(checkout, out / "data", out / name, given.only)
        compared, found = differences(out / "other", out / "this")
    print(f"{compared} files compared, {len(found)} differences")
    print("\n".join(found))
    return 1 if found or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
