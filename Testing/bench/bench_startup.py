"""How long ``medssl --help`` takes, in fresh processes, against bare Python; and that nothing heavy
is loaded.

    python Testing/bench/bench_startup.py [--runs 15] [--out FILE.json]

Goal: at most 0.3 s (median). Exit code 1 when it is missed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_SECONDS = 0.3
HEAVY = ("torch", "monai", "SimpleITK", "numpy", "pydantic", "rich", "matplotlib")
ROOT = Path(__file__).parents[2]
CASES = {
    "bare python": ["-c", "pass"],
    "medssl --help": ["-m", "MedSSLLib", "--help"],
    "medssl finetune --help": ["-m", "MedSSLLib", "finetune", "--help"],
}


def seconds(arguments: list[str], runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
        )
        times.append(round(time.perf_counter() - started, 4))
    return times


def loaded() -> list[str]:
    code = "import sys; from MedSSLLib.cli.main import main; main(['--help']); "
    code += f"print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout.splitlines()[-1].split()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds(CASES["medssl --help"], 1)  # writes the byte code
    times = {name: seconds(words, args.runs) for name, words in CASES.items()}
    result = {
        "goal_seconds": GOAL_SECONDS,
        "median_seconds": {name: statistics.median(t) for name, t in times.items()},
        "seconds": times,
        "heavy_packages_loaded": loaded(),
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, median in result["median_seconds"].items():
        print(f"{name:<24}{median:.3f} s")
    print(f"heavy packages loaded: {', '.join(result['heavy_packages_loaded']) or 'none'}")
    met = (
        result["median_seconds"]["medssl --help"] <= GOAL_SECONDS
        and not result["heavy_packages_loaded"]
    )
    print(f"goal of {GOAL_SECONDS} s: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
