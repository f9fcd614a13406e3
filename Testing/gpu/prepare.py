"""Put what the run needs beside torch into one small folder: preprocessed data and wheels."""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from MedSSLLib.benchmark.data import open_data
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.plan import make_plan
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.project.project import Project
from MedSSLLib.training.planning import readable_headers
from Testing.gpu.cohort import quantised, write_cohort

ROOT = Path(__file__).parents[2]
LIMIT = 60 * 2**20
NEEDED = ("lightning-fabric", "monai", "pydantic", "safetensors", "numpy", "blosc2", "packaging")
"""What the run imports; images are not opened there, nor figures drawn."""
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)) + (
    "manylinux2014_x86_64",
)
GRID, VOXELS = 2.0, 160 * 160


def main(words: Sequence[str] | None = None) -> int:
    """Prepare; 0 where the folder is complete and small enough."""
    args = parse(words)
    try:
        prepare_data(args.data, args.out / "data", args.choices, args.grid, args.voxels)
        if not args.no_wheels:
            have = canonical(args.have.split(","))
            download(wheels_needed(have), args.out / "wheels", args.python_version)
        size = require_small(args.out, args.limit * 2**20)
    except MedSSLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {size / 2**20:.1f} MiB")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="prepare.sh", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images/, labels/, splits.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument("--choices", type=int, default=4, help="choices of one volume (4)")
    parser.add_argument("--grid", type=float, default=GRID, help="in the plane, mm (2)")
    parser.add_argument("--voxels", type=int, default=VOXELS, help="of a patch (160 x 160)")
    parser.add_argument("--have", default="numpy", help="packages that are there beside torch")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python-version", default=version, help=f"of the machine ({version})")
    parser.add_argument("--no-wheels", action="store_true", help="data alone")
    parser.add_argument("--limit", type=float, default=LIMIT / 2**20, help="MiB (60)")
    return parser.parse_args(words)


def prepare_data(data: Path, out: Path, choices: int, grid: float, voxels: int) -> None:
    """Preprocess the pool and the test cases; labels of the choices alone are read and kept.

    Args:
        data: as for ``medssl benchmark labels``.
        out: the folder to write.
        choices: of one labelled volume.
        grid: spacing in the plane, mm.
        voxels: of a patch, at most.

    Raises:
        InputError: a case cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        project, found = open_data(data, Path(folder) / "project", ("1",), choices, seed=0)
        chosen = found["1"]
        plan = make_plan(
            readable_headers(project.pool),
            modality=project.modalities,
            channels=project.channels,
            dim="2d",
            voxel_budget=voxels,
            grid=grid,
        )
        cache = Cache(Path(folder) / "cache", plan)
        everything = [*project.pool, *project.test]
        cache.prepare(everything).require_all()
        _prepare_labels(project, cache, {name for names in chosen for name in names})
        labelled = sorted({name for names in chosen for name in names})
        arrays, cases = _arrays(cache, everything, labelled)
        write_cohort(
            out,
            arrays,
            {
                "plan": plan.model_dump(mode="json"),
                "values": list(project.values),
                "classes": list(project.classes),
                "pool": [case.name for case in project.pool],
                "test": [case.name for case in project.test if case.label],
                "choices": chosen,
                "cases": cases,
            },
        )


def _prepare_labels(project: Project, cache: Cache, names: set[str]) -> None:
    cases = [case for case in project.pool if case.name in names]
    prepared = cache.prepare(
        cases, labels=True, values=project.named_values, ignore=project.ignore_value
    )
    prepared.require_all()


def _arrays(
    cache: Cache, cases: Iterable[Any], labelled: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, facts = {}, {}
    for case in cases:
        size = cache.shape(case.name)[1:]
        levels, low, step = quantised(cache.image(case.name, (0, 0, 0), size))
        arrays[f"image/{case.name}"] = levels
        facts[case.name] = {
            "metadata": case.metadata,
            "low": low,
            "step": step,
            "geometry": asdict(cache.geometry(case.name)),
        }
        if case.name in labelled:
            label = cache.label(case.name, (0, 0, 0), size)
            assert label.max() <= IGNORE
            arrays[f"label/{case.name}"] = label
    return arrays, facts


def canonical(names: Iterable[str]) -> set[str]:
    """Package names in their one spelling."""
    return {canonicalize_name(name) for name in names if name}


def wheels_needed(have: set[str]) -> list[str]:
    """``NAME==VERSION`` of what the run needs, of constraints.txt, without torch and its own."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    there = have | {"torch"} | _requirements("torch")
    wanted, todo = {}, list(canonical(NEEDED))
    while todo:
        name = todo.pop()
        if name in there or name in wanted or name not in pins:
            continue
        wanted[name] = f"{name}=={pins[name]}"
        todo += _requirements(name)
    return sorted(wanted.values())


def _requirements(name: str) -> set[str]:
    """What an installed package requires here, without extras."""
    found = set()
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(canonicalize_name(requirement.name))
    return found


def download(wanted: Sequence[str], folder: Path, python_version: str) -> None:
    """Download wheels for Linux on x86-64. Raises InputError where pip cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--dest", str(folder)]
    command += ["--python-version", python_version]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    if subprocess.run([*command, *wanted], check=False).returncode:
        raise InputError(
            "pip could not download the wheels",
            remedy="See its message; --have names packages that need not be carried",
        )


def require_small(folder: Path, limit: float) -> int:
    """Bytes of a folder. Raises InputError where they are more than the limit."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > limit:
        raise InputError(
            f"has {size / 2**20:.1f} MiB, more than {limit / 2**20:g}",
            file=folder,
            remedy="Name packages that are there with --have, or give fewer cases",
        )
    return size


if __name__ == "__main__":
    sys.exit(main())
