"""The tables at scale: several processes side by side on one card, the most valuable rows first.

One encoder is pre-trained by GCL while models of every choice of labels start at random, with and
without mixing. Then the same models start from the encoder and take as many steps each.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from Testing.gpu.cohort import Cohort, write_arrays
from Testing.gpu.jobs import Job, train
from Testing.gpu.results import Results, Setting

GCL_SECONDS, MODEL_SECONDS = 240.0, 150.0
"""Of the encoder, and of every model; shorter alike where less time is left."""
MARGIN = 30.0  # seconds for starting processes, predictions and writing
TINY_SECONDS = 0.8
ROWS = ("random", "random+mixing-teacher")
Arrays = dict[str, np.ndarray]


def run(setting: Setting, results: Results) -> None:
    """Train all rows of the table.

    Raises:
        InputError: no data were given.
    """
    if setting.data is None:
        raise InputError(
            "the tables need data",
            remedy="Give --data the folder that prepare.sh made, or leave tables out of --parts",
        )
    Tables(setting, results).run()


class Tables:
    """The rows as they are trained."""

    def __init__(self, setting: Setting, results: Results) -> None:
        assert setting.data is not None
        self.setting, self.results, self.data = setting, results, setting.data
        self.choices = range(len(Cohort.open(self.data).choices))
        self.steps: dict[tuple[str, int], int] = {}
        self.files: dict[str, Arrays] = {}
        usable = setting.left - MARGIN
        self.share = min(1.0, usable / (GCL_SECONDS + MODEL_SECONDS))
        if setting.tiny:
            self.share = TINY_SECONDS / GCL_SECONDS

    def run(self) -> None:
        """Both phases."""
        if not self.results.add("time", self.share > 0, seconds_left=round(self.setting.left)):
            return
        encoder = self._job("gcl", None, seconds=GCL_SECONDS * self.share)
        random = []
        for row in ROWS:
            for choice in self.choices:
                random.append(self._job(row, choice, seconds=MODEL_SECONDS * self.share))
        with side_by_side(self.setting) as pool:
            self._train(pool, [encoder, *random])
            weights = {
                name.removeprefix("encoder/weights/"): array
                for name, array in self.files.get("gcl", {}).items()
            }
            if not weights:
                return
            after = []
            for job in random:
                steps = self.steps.get((job.row, job.choice))
                row = job.row.replace("random", "gcl")
                if steps:
                    after.append(replace(job, row=row, seconds=None, steps=steps, encoder=weights))
            self._train(pool, after)

    def _job(self, row: str, choice: int | None, **length: Any) -> Job:
        setting = self.setting
        return Job(self.data, str(setting.device), row, choice, tiny=setting.tiny, **length)

    def _train(self, pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> None:
        """Train jobs side by side, and keep each one's outcome when it is there."""
        running: dict[Future, Job] = {pool.submit(train, job): job for job in jobs}
        waiting = dict(running)
        try:
            for future in as_completed(running, timeout=max(1.0, self.setting.left)):
                self._keep(waiting.pop(future), future)
        except TimeoutError:
            for job in waiting.values():
                self.results.add(job.name, False, error="no time was left")

    def _keep(self, job: Job, future: Future) -> None:
        error = future.exception()
        if error is not None:
            self.results.add(job.name, False, error=f"{type(error).__name__}: {error}")
            return
        facts, arrays = future.result()
        finite = all(np.isfinite(a).all() for n, a in arrays.items() if n.startswith("weights"))
        prefix = "encoder" if job.choice is None else str(job.choice)
        content = self.files.setdefault(job.row, {})
        content |= {f"{prefix}/{name}": array for name, array in arrays.items()}
        file = f"table-{job.row.replace('+', '-')}.npz"
        write_arrays(self.setting.out / file, content)
        if job.choice is not None:
            self.steps[job.row, job.choice] = facts["steps"]
        row = {"row": job.row, "choice": job.choice, "file": file}
        self.results.add(job.name, bool(finite), **row, **facts)


@contextmanager
def side_by_side(setting: Setting) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the device; what still runs at the end is ended.

    CUDA does not survive a fork, so on a card they start anew.
    """
    start = "spawn" if setting.on_card else "fork"
    context = multiprocessing.get_context(start)
    pool = ProcessPoolExecutor(setting.processes, mp_context=context)
    try:
        yield pool
    finally:
        own = list((pool._processes or {}).values())
        late = setting.left <= 0
        pool.shutdown(wait=not late, cancel_futures=True)
        for process in own if late else ():
            process.terminate()
