"""Resident memory and time per crop of the cache with many cases against few, each in a fresh
process.

    python Testing/bench/bench_cache_memory.py [--few 10] [--many 1000] [--crops 4000] [--images
    DIR] [--out FILE.json]

Two kinds of many cases: links to the same ten files under other names (which share cache entries),
and files that all differ (which do not). The ten files are those of --images, else made-up volumes.
Goal: at most 200 MiB more. Exit code 1 when it is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from MedSSLLib.data.cache import Cache  # noqa: E402
from MedSSLLib.data.plan import make_plan  # noqa: E402
from MedSSLLib.images import io  # noqa: E402
from MedSSLLib.images.geometry import Geometry, Volume  # noqa: E402
from MedSSLLib.project.manifest import Case  # noqa: E402

GOAL_MIB = 200
MADE_UP = Geometry((48, 56, 40), (1.0, 1.0, 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--crops", type=int, default=4000, help="crops read in each process")
    parser.add_argument("--images", type=Path, help="folder of images to link to")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "CASES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), int(args.measure[1]), args.crops)))
        return 0
    result = compare(args)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for kind, figures in result["kinds"].items():
        few, many = figures["few"], figures["many"]
        texts = [
            f"{part['cases']} cases {part['resident_mib']:.0f} MiB, {part['crop_cpu_ms']:.2f} ms "
            "of CPU a crop"
            for part in (few, many)
        ]
        print(f"{kind:<9} {'; '.join(texts)}; {figures['growth_mib']:+.0f} MiB")
    print(f"goal of {GOAL_MIB} MiB: {'met' if result['met'] else 'MISSED'}")
    return 0 if result["met"] else 1


def compare(args: argparse.Namespace) -> dict[str, object]:
    """Figures of both kinds, few and many cases."""
    kinds = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("links", "distinct"):
            folder = Path(scratch) / kind
            (link_files if kind == "links" else write_files)(folder, args)
            few, many = (in_new_process(folder, n, args.crops) for n in (args.few, args.many))
            kinds[kind] = {
                "few": few,
                "many": many,
                "growth_mib": many["resident_mib"] - few["resident_mib"],
            }
    return {
        "goal_mib": GOAL_MIB,
        "met": all(k["growth_mib"] <= GOAL_MIB for k in kinds.values()),
        "kinds": kinds,
        "images": str(args.images or "made up"),
        "crops": args.crops,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blosc2": blosc2.__version__,
        "machine": platform.platform(),
        "cpus": psutil.cpu_count(),
    }


def link_files(folder: Path, args: argparse.Namespace) -> None:
    """``args.many`` names for ten files."""
    folder.mkdir()
    if args.images:
        originals = io.find_images(args.images)[:10]
    else:
        write_files(folder.with_name("originals"), argparse.Namespace(many=10))
        originals = io.find_images(folder.with_name("originals"))
    for number in range(args.many):
        original = originals[number % len(originals)]
        ending = original.name[len(io.case_name(original)) :]
        (folder / f"case{number:05d}{ending}").symlink_to(original.resolve(), original.is_dir())


def write_files(folder: Path, args: argparse.Namespace) -> None:
    """``args.many`` made-up volumes, all different."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(500, 100, MADE_UP.shape).astype(np.int16)
    for number in range(args.many):
        io.write_image(
            folder / f"case{number:05d}.mha", Volume(np.roll(noise, number, 2) + number, MADE_UP)
        )


def in_new_process(folder: Path, cases: int, crops: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--crops",
        str(crops),
        "--measure",
        str(folder),
        str(cases),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(folder: Path, n: int, crops: int) -> dict[str, float]:
    """Prepare ``n`` cases, read crops of all of them, and say what this process holds."""
    paths = io.find_images(folder)[:n]
    cases = [Case(io.case_name(path), (path,)) for path in paths]
    plan = make_plan([io.read_header(path) for path in paths], modality="MR")
    started = time.perf_counter()
    cache = Cache(folder.with_name(f"cache-{folder.name}-{n}"), plan)
    refused = cache.prepare(cases).refused
    prepared, busy = time.perf_counter(), time.process_time()
    window = np.array(plan.patch if plan.dim == 3 else (1, *plan.patch))
    rng = np.random.default_rng(0)
    for number in range(crops):
        name = cases[number % n].name
        size = np.array(cache.shape(name)[1:])
        low = rng.integers(0, np.maximum(size - window, 0) + 1)
        cache.image(name, low, low + window)
    done, worked = time.perf_counter(), time.process_time()
    gc.collect()
    memory = psutil.Process().memory_full_info()
    return {
        "cases": n,
        "refused": len(refused),
        "patch": plan.patch,
        "resident_mib": memory.rss / 2**20,
        "own_mib": memory.uss / 2**20,
        "prepare_s": prepared - started,
        "crop_ms": (done - prepared) / crops * 1e3,
        "crop_cpu_ms": (worked - busy) / crops * 1e3,
    }


if __name__ == "__main__":
    sys.exit(main())
