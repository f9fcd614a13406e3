"""The prepared run for a graphics card, whole, tiny and on the processor: ``Testing/gpu``."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from Testing.gpu import prepare, score
from Testing.lib.core_helpers import write_case

ROOT = Path(__file__).parents[3]
NOT_CARRIED = ("SimpleITK", "matplotlib", "scipy", "pydicom", "psutil", "rich", "nibabel")
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_CARRIED}))
from Testing.gpu.main import main
sys.exit(main())
"""


@pytest.fixture
def data(tmp_path):
    """Three patients in two phases and a test patient, as folders of a benchmark."""
    rows = []
    for patient in range(4):
        for phase in range(2):
            name = f"p{patient}_{phase}"
            write_case(tmp_path / "decathlon", name, 2 * patient + phase, spacing=(1, 1, 4))
            rows.append([name, f"p{patient}", "AB"[phase]])
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "decathlon" / "imagesTr").rename(folder / "images")
    (tmp_path / "decathlon" / "labelsTr").rename(folder / "labels")
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["case", "patient", "phase"], *rows])
    splits = {"unit": "patient", "test": ["p3"], "labelled": {"1": [["p0_0"]]}}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def strings(*words):
    return [str(word) for word in words]


@pytest.mark.timeout(1800)
def test_the_dry_run_passes_without_what_is_not_carried_and_is_scored(data, tmp_path, capsys):
    carried, out = tmp_path / "carried", tmp_path / "out"
    words = ["--data", data, "--out", carried, "--no-wheels"]
    words += ["--choices", 1, "--grid", 1, "--voxels", 512]
    assert prepare.main(strings(*words, "--limit", 0.001)) == 2
    assert "more than 0.001" in capsys.readouterr().err
    with np.load(carried / "data" / "arrays.npz") as arrays:
        assert [key for key in arrays if key.startswith("label")] == ["label/p0_0"]

    words = ["--dry-run", "--data", carried / "data", "--out", out, "--processes", 1]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *strings(*words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json")}
    assert set(found) == {"smoke", "checks", "throughput", "tables"}
    assert all(part["finished"] and part["entries"] for part in found.values())
    assert all(e["ok"] is not False for part in found.values() for e in part["entries"])
    steps = {e.get("row"): e["steps"] for e in found["tables"]["entries"] if "steps" in e}
    assert steps["gcl"] == steps["random"], "rows that are compared are equally long"
    assert steps["gcl+mixing-teacher"] == steps["random+mixing-teacher"] > 1

    words = ["--results", out, "--prepared", carried / "data", "--data", data]
    assert score.main(strings(*words)) == 0
    records = json.loads((out / "scores.json").read_text("utf-8"))["records"]
    assert {record["row"] for record in records} == set(steps)
    assert all(set(record["dice"]) == {"p3_0", "p3_1"} for record in records)
