"""What live training leaves on the disk: checkpoint, weights, runs, and what it has learnt from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.live.learner import Learner
from MedSSLLib.live.teaching import Teaching
from MedSSLLib.live.watch import SlicePlace
from MedSSLLib.project.project import Project
from MedSSLLib.training.context import TrainingContext, record
from MedSSLLib.training.run_folder import RunFolder, renew_data, write_config
from MedSSLLib.training.stages import finish, keep_segmentation

_FILE, _FORMAT, _FORMAT_VERSION = "live.json", "medssl-live", 1


class Keeper:
    """Writes a live run's files.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path, events: Events) -> None:
        self.folder = folder
        self._events = events
        self._began = self._saved = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint, or since the start."""
        return time.monotonic() - self._saved

    def checkpoint(self, teaching: Teaching) -> None:
        """Write the checkpoint, and what has been learnt from beside it.

        Raises:
            GuardError: a weight is not finite; the checkpoint is left as it is.
            MedSSLError: the disk is full.
        """
        learner = teaching.learner
        if learner is None:
            return
        learner.keep_checkpoint()
        watch = teaching.watch
        write_json(
            self.folder / _FILE,
            {
                "format": _FORMAT,
                "format_version": _FORMAT_VERSION,
                "epoch": teaching.epoch,
                "versions": watch.versions,
                "digests": {name: _written(found) for name, found in watch.digests.items()},
                "scores": list(teaching.scores.rows.values()),
            },
        )
        self._saved = time.monotonic()

    def take_up(self, teaching: Teaching) -> None:
        """Let the watch and the scores go on from what an earlier process wrote.

        Raises:
            InputError: the file is damaged or newer than this version.
        """
        path = self.folder / _FILE
        if not path.exists():
            return
        content = read_json(path, format_name=_FORMAT, newest_version=_FORMAT_VERSION)
        try:
            digests = {name: _read(found) for name, found in content["digests"].items()}
            teaching.watch.take_up(content["versions"], digests)
            teaching.take_up(int(content["epoch"]), digests)
            for row in content["scores"]:
                teaching.scores.rows[row["case"], (row["axis"], row["index"])] = row
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"is malformed ({type(error).__name__}: {error})",
                file=path,
                remedy="Start a new live run without --resume",
            ) from error

    def begin(self, learner: Learner, project: Project) -> None:
        """Record the settings of a new run, or what has become of the data of one that goes on."""
        context = learner.context
        facts = self._facts(learner, project)
        if not RunFolder(self.folder).recorded:
            fresh = replace(context, config=context.config.override({"resume": False}))
            record(fresh, learner.plan, facts)
        else:
            renew_data(self.folder, facts)

    def keep_weights(self, teaching: Teaching) -> None:
        """Write checkpoint, metrics, model card and weights, so that the run counts as finished."""
        learner = teaching.learner
        if learner is None:
            return
        self.checkpoint(teaching)
        renew_data(self.folder, self._facts(learner, teaching.watch.project))
        with learner.averaged() as net:
            keep_segmentation(self._context(learner), net, self.metrics(teaching))
        self._tell(self.folder)

    def save_as(self, name: str, teaching: Teaching) -> None:
        """Write a finished run of another name with the weights of now.

        Raises:
            InputError: the name is no name or taken, or there is nothing to save yet.
        """
        learner = teaching.learner
        if learner is None:
            raise InputError(
                "nothing is learnt yet that could be saved", remedy="Draw a slice first"
            )
        folder = learner.context.project.run_folder(name)
        if folder.exists():
            raise InputError(
                f"run {name!r} exists already", file=folder, remedy="Choose another name"
            )
        context = learner.context
        config = context.config.override({"name": name, "resume": False})
        facts = {
            **RunFolder(self.folder).data.model_dump(mode="json"),
            **self._facts(learner, teaching.watch.project),
        }
        write_config(folder, config, learner.plan, facts, context.precision)
        run = RunFolder(folder)
        with learner.averaged() as net:
            kept = replace(context, run=run, config=config)
            keep_segmentation(kept, net, self.metrics(teaching))
        self._tell(folder)

    def end(self, teaching: Teaching) -> None:
        """Finish the run as any other."""
        learner = teaching.learner
        if learner is None:
            self._events.emit("done", command="live", run="", message="Nothing was drawn.")
            return
        self.checkpoint(teaching)
        renew_data(self.folder, self._facts(learner, teaching.watch.project))
        with learner.averaged() as net:
            finish(self._context(learner), net, self.metrics(teaching))

    def metrics(self, teaching: Teaching) -> dict[str, Any]:
        """What goes into ``metrics.json``."""
        learner = teaching.learner
        assert learner is not None
        scores = teaching.scores
        return {
            "steps": learner.step,
            "seconds": round(learner.trainer.config.budget.elapsed, 1),
            "slices": teaching.slices,
            "cases": len(teaching.watch.digests),
            "mixing": learner.mixes,
            "last_slices": scores.summary(),
            "scores": list(scores.rows.values()),
        }

    def _tell(self, folder: Path) -> None:
        self._events.emit("saved", run=folder.name, path=folder)

    def _context(self, learner: Learner) -> TrainingContext:
        """The context with the run as it is recorded now."""
        return replace(learner.context, run=RunFolder(self.folder))

    def _facts(self, learner: Learner, project: Project) -> dict[str, Any]:
        """What is known of the data, as RunData holds it; the project is that of now."""
        names = learner.labels.names
        single, foreground, connected = learner.pieces()
        annotated = {}
        for case in project.cases:
            if case.name in names and case.annotated:
                annotated[case.name] = case.annotated.to_json()
        return {
            "classes": list(learner.classes),
            "values": list(learner.values),
            "labelled": list(names),
            "validation": [],
            "unlabelled": list(learner.mixed_cases),
            "annotated": annotated,
            "single_component": single,
            "single_foreground": foreground,
            "connected_on_slices": connected,
        }


def _written(digests: Mapping[SlicePlace, str]) -> dict[str, str]:
    return {f"{axis}:{index}": digest for (axis, index), digest in digests.items()}


def _read(digests: Mapping[str, str]) -> dict[SlicePlace, str]:
    found = {}
    for text, digest in digests.items():
        axis, _, index = text.partition(":")
        found[int(axis), int(index)] = str(digest)
    return found
