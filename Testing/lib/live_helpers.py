"""A live training process, driven as the panel drives it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from MedSSLLib.images import io
from MedSSLLib.images.geometry import Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project.project import Project
from Testing.lib.core_helpers import write_case

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "network.widths": "[8, 16]",
    "training.batch": "4",
    "training.voxels": "512",
    "options.known_after": "4",
    "options.look_every": "0.05",
    "options.flat_steps": "5",
    "options.least_steps": "12",
    "options.most_steps": "40",
    "options.mixing_dice": "0",
    "options.mixing_agreement": "0",
}
"""Settings of a process that has learnt and rests within seconds, and mixes however poor it is."""


class LiveProcess:
    """``medssl live`` as a process of its own.

    Attributes:
        events: all so far.
    """

    def __init__(self, project: Path, *options: str, settings: dict[str, str] | None = None):
        chosen = TINY if settings is None else settings
        words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "MedSSLLib", "live", str(project), *options, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # noqa: S603
            [*command, "--device", "cpu", "--requests", "-", "--events", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        self.events: list[dict] = []
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()
        self._stderr: list[str] = []
        for stream, take in (("stdout", self._take), ("stderr", self._note)):
            threading.Thread(
                target=lambda s=stream, t=take: [t(x) for x in getattr(self._process, s)],
                daemon=True,
            ).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        """What it wrote for people."""
        return "".join(self._stderr)

    def _take(self, line: bytes) -> None:
        event = json.loads(line)
        event["arrived"] = time.time()
        self._arrived.put(event)

    def _note(self, line: bytes) -> None:
        self._stderr.append(line.decode("utf-8", "replace"))

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def wait_for(self, kind: str, seconds: float = 240.0, **fields) -> dict:
        """The next event of a kind whose fields have these values, or fulfil these conditions."""
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            try:
                event = self._arrived.get(timeout=0.2)
            except queue.Empty:
                if self._process.poll() is not None and self._arrived.empty():
                    break
                continue
            self.events.append(event)
            if event["event"] == kind and all(
                value(event.get(name)) if callable(value) else event.get(name) == value
                for name, value in fields.items()
            ):
                return event
        last = "\n".join(str(event) for event in self.events[-8:])
        raise AssertionError(f"no {kind} {fields}\nlast events:\n{last}\n{self.said[-2000:]}")

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]

    def end(self, how: str = "stop", seconds: float = 240.0) -> int:
        """Ask to stop, close the stream of requests ('close'), send 'TERM' or 'KILL', or just
        wait.
        """
        if how == "stop":
            self.ask("stop")
        elif how == "close":
            assert self._process.stdin is not None
            self._process.stdin.close()
        elif how == "TERM":
            self._process.terminate()
        elif how == "KILL":
            self._process.kill()
        code = self._process.wait(seconds)
        time.sleep(0.05)
        while not self._arrived.empty():
            self.events.append(self._arrived.get())
        return code

    def __enter__(self) -> LiveProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Person:
    """Draws slices of a project's cases as the panel does: the label file, then the manifest."""

    def __init__(self, folder: Path, cases: int = 4, test: str = "") -> None:
        """A project of bright ellipsoids on noise, not labelled; the truth lies elsewhere."""
        for index in range(cases):
            write_case(folder / "data", f"case{index}", index, spacing=(1.0, 1.0, 3.0))
        self.truth = folder / "data" / "labelsTr"
        self.labels = folder / "drawn"
        self.project = Project.create(folder / "project", folder / "data" / "imagesTr")
        self.project.set_labels({0: "background", 1: "blob"})
        if test:
            self.project.set_roles(test=test)
        self.project.save()

    @property
    def folder(self) -> Path:
        return self.project.folder

    def draw(self, name: str, *slices: int) -> Path:
        """Draw further slices of a case as they are in truth; returns the label file."""
        case = self.project.case(name)
        before = dict(case.annotated.slices).get(2, ()) if case.annotated else ()
        return self.write(name, sorted({*before, *slices}))

    def write(self, name: str, slices, change=None, partly=()) -> Path:
        """Write the label of exactly these slices; `change` edits the array first."""
        case = self.project.case(name)
        header = io.read_header(case.images[0])
        truth = io.read_label(self.truth / f"{name}.nii.gz", header).array
        array = np.zeros_like(truth)
        array[list(slices)] = truth[list(slices)]
        if change is not None:
            change(array)
        path = self.labels / f"{name}.nii.gz"
        io.write_image(path, Volume(array, header), like=case.images[0])
        self.project.set_label(name, path)
        self.project.set_annotated(name, Annotated.of([(2, slices)], [(2, partly)]))
        self.project.save()
        return path
