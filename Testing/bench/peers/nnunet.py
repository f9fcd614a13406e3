"""nnU-Net v2 as a peer: fingerprint, plan and preprocessing by its own command, then its trainer
for M minutes.

    python Testing/bench/peers/environment.py nnunet
    python Testing/bench/peers/nnunet.py --data DIR --labelled 8:0 --minutes 10 --threads 1 --out
    OUT

Everything is nnU-Net's: plans, augmentation, loss, optimiser, sliding window, test-time mirroring.
Two things are set for a run of minutes instead of days (nnunet_worker.py): its polynomial schedule
runs over the time instead of over 1,000 epochs, and the time is spent on training alone, without
its validation after every epoch. It trains on all labelled volumes (fold "all"). ``--batch``
changes the batch of the plans, as nnU-Net's documents suggest for small
machines: its own choice assumes a graphics card of 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peer
from environment import interpreter

DATA_SET = "Dataset001_Peer"
WORKER = Path(__file__).with_name("nnunet_worker.py")


def work(job: peer.Job, args: argparse.Namespace) -> dict[str, Any]:
    python = args.python or interpreter("nnunet")
    if not python.exists():
        raise peer.InputError(
            "does not exist",
            file=python,
            remedy="Run python Testing/bench/peers/environment.py nnunet, or give --python",
        )
    folder = job.out / "nnunet"
    shutil.rmtree(folder, ignore_errors=True)
    raw = prepare_raw(job, folder)
    environment = os.environ | {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_def_n_proc": str(job.threads),
        "nnUNet_compile": "false",
        "OMP_NUM_THREADS": str(job.threads),
    }
    count = str(job.threads)
    plan = [
        str(python.with_name("nnUNetv2_plan_and_preprocess")),
        "-d",
        "1",
        "-c",
        args.configuration,
        "-npfp",
        count,
        "-np",
        count,
        "--verify_dataset_integrity",
    ]
    train = [
        str(python),
        str(WORKER),
        "--minutes",
        str(job.minutes),
        "--threads",
        count,
        "--configuration",
        args.configuration,
        "--images",
        str(raw / "imagesTs"),
        "--out",
        str(folder / "predicted"),
    ]
    if args.batch:
        train += ["--batch", str(args.batch)]
    for command, helpers in (
        (plan, job.threads),
        (train, job.threads - 1),
    ):  # planning refuses 0, training takes it
        subprocess.run(command, check=True, env=environment | {"nnUNet_n_proc_DA": str(helpers)})
    for case in job.project.test:
        found = peer.io.read_image(folder / "predicted" / f"{case.name}.nii.gz", case=case.name)
        job.write_prediction(case.name, found.array.astype(int))
    return json.loads((folder / "predicted" / "facts.json").read_text())


def prepare_raw(job: peer.Job, folder: Path) -> Path:
    """nnU-Net's raw data set."""
    raw = folder / "raw" / DATA_SET
    job.write_data(folder / "data")
    for source, target, ending in (
        ("train", "imagesTr", "_0000"),
        ("train-labels", "labelsTr", ""),
        ("test", "imagesTs", "_0000"),
    ):
        (raw / target).mkdir(parents=True, exist_ok=True)
        for path in (folder / "data" / source).glob("*.nii.gz"):
            path.rename(raw / target / f"{peer.io.case_name(path)}{ending}.nii.gz")
    (raw / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT" if "CT" in job.project.modalities else "MRI"},
                "labels": {"background": 0}
                | {f"class{n}": n for n in range(1, len(job.project.classes))},
                "numTraining": len(job.labelled),
                "file_ending": ".nii.gz",
            },
            indent=1,
        )
    )
    return raw


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configuration", default="3d_fullres", choices=("2d", "3d_fullres"))
    parser.add_argument("--batch", type=int, help="batch size instead of that of the plans")
    parser.add_argument(
        "--python", type=Path, help="interpreter with nnunetv2 (default: that of environment.py)"
    )
    sys.exit(peer.run("nnU-Net", work, parser))
