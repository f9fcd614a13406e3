"""What bench_step.py, bench_predict.py and bench_views.py share: one part of the speed benchmark,
as JSON.
"""

import argparse
import json

from MedSSLLib.benchmark.speed import SpeedOptions, run_speed
from MedSSLLib.core.events import Events
from MedSSLLib.core.sinks import PlainLines


def main(part: str) -> None:
    parser = argparse.ArgumentParser(description=f"The part {part!r} of `medssl benchmark speed`.")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with Events([PlainLines.to_stderr(("metric", "warning"))]) as events:
        content = run_speed(SpeedOptions((part,), args.pairs, args.threads, args.device), events)
    print(json.dumps(content, indent=1))
