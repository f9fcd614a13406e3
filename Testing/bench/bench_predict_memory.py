"""Peak memory of segmenting one large scan: 512 x 512 x 800 voxels of CT, 25 classes, by default.

    python Testing/bench/bench_predict_memory.py [K J I] [--classes N] [--widths 8,16,16]

The weights are random: what is found is noise in pieces, the hardest case for the pieces too. Goal:
3 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.events import Events
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.inference.model import network_of
from MedSSLLib.inference.predict import run_predict
from MedSSLLib.project.project import Project
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.run_folder import write_config

GOAL_GIB = 3.0


def phantom(geometry: Geometry, path: Path) -> None:
    """A body of soft tissue with noise, in air."""
    rng = np.random.default_rng(0)
    array = np.empty(geometry.shape, np.int16)
    rows, columns = np.ogrid[: array.shape[1], : array.shape[2]]
    middle = (np.array(array.shape[1:]) - 1) / 2
    body = ((rows - middle[0]) / 190) ** 2 + ((columns - middle[1]) / 230) ** 2 < 1
    for plane in array:
        plane[:] = np.where(body, 40, -1000) + rng.normal(0, 20, body.shape)
    io.write_image(path, Volume(array, geometry))


def make_run(project: Project, geometry: Geometry, classes: int, widths: list[int]) -> None:
    """A run with random weights."""
    plan = make_plan([geometry], modality="CT", dim="3d")
    config = RunConfig.build("finetune").override({"network.widths": widths, "name": "r"})
    plan = plan.model_copy(update={"strides": plan.strides[: len(widths)]})
    names = ["background", *(f"class {n}" for n in range(1, classes))]
    every = list(range(1, classes))
    facts = {
        "classes": names,
        "values": list(range(classes)),
        "single_component": every,
        "single_foreground": True,
    }
    folder = project.run_folder("r")
    folder.mkdir(parents=True)
    write_config(folder, config, plan, facts)
    torch.manual_seed(0)
    save_tensors(folder / WEIGHTS, network_of(config, plan, classes).state_dict(), {})


def peak_gib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int, nargs="*", default=[800, 512, 512], metavar="N")
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--widths", default="8,16,16")
    args = parser.parse_args()
    geometry = Geometry(tuple(reversed(args.size)), (0.8, 0.8, 1.0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        phantom(geometry, folder / "images" / "scan.nii")
        project = Project.create(folder / "p", folder / "images")
        make_run(project, geometry, args.classes, [int(n) for n in args.widths.split(",")])
        before, start = peak_gib(), time.monotonic()
        run_predict(project, "r", folder / "out", Events())
        result = {
            "size": args.size,
            "classes": args.classes,
            "seconds": round(time.monotonic() - start),
            "gib_before": round(before, 2),
            "gib": round(peak_gib(), 2),
            "goal_gib": GOAL_GIB,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
