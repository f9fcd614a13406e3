"""Records and result files of the label-efficiency protocol, and a training that takes no time."""

import json

import numpy as np

from MedSSLLib.benchmark import protocol
from MedSSLLib.benchmark.protocol import Protocol
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.project.runs import RUN_FORMAT, RUN_VERSION
from Testing.lib.core_helpers import write_case

TINY = {"network.widths": "[4, 8]", "training.voxels": "512", "training.batch": "2"}


def record(row, choice, dice, count="2"):
    cases = {f"c{n}": value for n, value in enumerate(dice)}
    return {
        "row": row,
        "count": count,
        "choice": choice,
        "labelled": ["x"] * int(count),
        "dice": cases,
        "summary": {"dice": float(np.mean(dice)), "hd95_mm": 3.0, "surface_dice": None},
        "steps": 10,
        "training_s": 2.0,
    }


def result_file(path, records, **changes):
    content = {
        "bench": "protocol",
        "data": "heart",
        "settings": {"steps": "10"},
        "versions": {"python": "3"},
        "records": records,
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def make_folder(path):
    """Images and labels of eight cases, no splits."""
    for index in range(8):
        write_case(path, f"case{index}", index, shape=(10, 12, 12))
    (path / "imagesTr").rename(path / "images")
    (path / "labelsTr").rename(path / "labels")
    return path


def tiny_protocol(*rows, **changes):
    given = {"settings": TINY, "pretrain_settings": TINY, "selftrain_settings": TINY} | changes
    return Protocol(rows, steps=2, pretrain_steps=2, device="cpu", **given)


def write_settings(run, config):
    """``config.json`` with the settings and the plan of a run."""
    plan = make_plan([Geometry((12, 12, 10))], modality="MR")
    content = {
        "format": RUN_FORMAT,
        "format_version": RUN_VERSION,
        "config": config.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
    }
    (run / "config.json").write_text(json.dumps(content))


def without_training(monkeypatch):
    """Runs that only write what the benchmark reads of them, and perfect predictions; returns the
    list of runs.
    """
    calls = []

    def trained(project, config, events):
        calls.append(config)
        run = project.run_folder(config.name)
        run.mkdir(parents=True)
        write_settings(run, config)
        (run / "weights.safetensors").touch()
        steps = config.training.steps
        (run / "metrics.json").write_text(json.dumps({"steps": steps, "seconds": steps / 4}))

    def predicted(project, run, out, events, **_):
        out.mkdir(parents=True, exist_ok=True)
        for case in project.test:
            (out / f"{case.name}.nii.gz").write_bytes(case.label.read_bytes())

    for name in ("run_pretrain", "run_finetune", "run_selftrain"):
        monkeypatch.setattr(protocol, name, trained)
    monkeypatch.setattr(protocol, "run_predict", predicted)
    return calls
