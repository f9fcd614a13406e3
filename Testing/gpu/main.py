"""Checks, throughput and tables on a card, in a given number of minutes; see README.md."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.training.devices import resolve_device
from Testing.gpu import guards, numerics, tables, throughput
from Testing.gpu.results import Results, Setting
from Testing.lib.step_helpers import TINY, kinds, take_step

SMOKE_STEPS = 20


def check_smoke(setting: Setting, results: Results) -> None:
    """Some steps of every kind; the first failure ends the run."""
    size = TINY if setting.tiny else numerics.SIZE
    for dim in (2, 3):
        for kind in kinds(dim):
            if not _smoke(kind, dim, setting, size, results):
                return


def _smoke(kind: str, dim: int, setting: Setting, size: Any, results: Results) -> bool:
    """Whether the steps end with finite losses and weights."""
    count = 1 if setting.tiny else SMOKE_STEPS
    name = f"{kind} {dim}d"
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = guards.placed_trainer(kind, dim, setting, size, Path(folder))
            for step in range(count):
                losses = take_step(trainer, step)
        except (RuntimeError, MedSSLError) as error:
            return results.add(name, False, error=str(error).split("\n")[0])
    found = {loss: float(value) for loss, value in losses.items()}
    ok = all(map(math.isfinite, found.values()))
    ok = ok and all(bool(p.isfinite().all()) for p in trainer.parameters)
    return results.add(name, ok, steps=count, losses=found)


def check_all(setting: Setting, results: Results) -> None:
    """Every check; one that breaks off is a failure and keeps no other from running."""
    for check in (
        numerics.check_steps,
        numerics.check_resident,
        guards.check_waiting,
        guards.check_resume,
        guards.check_memory,
        guards.check_two_processes,
    ):
        if setting.left <= 0:
            results.add(check.__name__, False, error="no time was left")
            continue
        guarded(check, setting, results)


def guarded(part: Callable[[Setting, Results], None], setting: Setting, results: Results) -> None:
    """Run a part; what it raises is an entry that failed."""
    try:
        part(setting, results)
    except Exception as error:
        results.add(part.__name__, False, error=f"{type(error).__name__}: {error}")


PARTS: dict[str, Callable[[Setting, Results], None]] = {
    "smoke": check_smoke,
    "checks": check_all,
    "throughput": throughput.run,
    "tables": tables.run,
}
"""In the order in which they run."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder that prepare.sh made, for the tables")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (10)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them (all)")
    parser.add_argument("--processes", type=int, default=9, help="that train side by side (9)")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the processor")
    args = parser.parse_args(words)
    unknown = sorted(set(args.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"{', '.join(unknown)} is no part: use {', '.join(PARTS)}")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; 0 where nothing failed."""
    started = time.monotonic()
    args = parse(words)
    try:
        device = resolve_device("cpu" if args.dry_run else args.device)
    except MedSSLError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    args.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        device=device,
        out=args.out,
        ends=started + 60 * args.minutes,
        data=args.data,
        tiny=args.dry_run,
        processes=args.processes,
    )
    failed = False
    for name, part in PARTS.items():
        if name not in args.parts.split(","):
            continue
        results = Results(name, setting)
        guarded(part, setting, results)
        results.finished = True
        results.write()
        failed |= results.failed
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if name == "smoke" and failed:
            break
    print(f"{'failed' if failed else 'passed'} in {time.monotonic() - started:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
