"""The preprocessed labelled cases of a run, and the samplers that draw from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.cache import Cache
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.images.components import piece_facts, undivided_on_slices
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.context import (
    Preparation,
)


@dataclass(frozen=True)
class LabelledData:
    """The preprocessed labelled cases: those trained on and those held out."""

    plan: Plan
    cache: Cache
    training: tuple[Case, ...]
    held_out: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()

    def facts(self, classes: int) -> dict[str, Any]:
        """Names, annotated slices and what the labels tell of pieces, for the record."""
        cases = self.training + self.held_out
        annotated = {c.name: c.annotated.to_json() for c in cases if c.annotated}
        slices_alone = len(annotated) == len(cases)
        one_piece, connected = piece_facts(self.labels(whole=True), classes)
        return {
            "labelled": [c.name for c in self.training],
            "validation": [c.name for c in self.held_out],
            "unlabelled": [c.name for c in self.unlabelled],
            "annotated": annotated,
            "fingerprint": self.cache.fingerprint(),
            "one_piece": one_piece,
            "connected": connected,
            "undivided": undivided_on_slices(self.labels(whole=False), classes)
            if slices_alone
            else [],
        }

    def labels(self, *, whole: bool) -> Iterator[np.ndarray]:
        """Class maps of the cases with a label, of those annotated as a whole or of those with
        annotated slices.
        """
        for case in self.training + self.held_out:
            if whole == (not case.annotated):
                yield self.cache.label(case.name, (0, 0, 0), self.cache.shape(case.name)[1:])


def check_structures(ready: Preparation, cache: Cache, training: Sequence[Case]) -> None:
    """Warn of classes that no label shows where it counts: a network cannot learn them.

    Raises:
        InputError: there is no structure at all.
    """
    shown = {value for case in training for value in cache.counts(case.name)}
    unseen = [
        name for index, name in enumerate(ready.project.classes) if index and index not in shown
    ]
    if not shown - {0}:
        raise InputError(
            f"the labels of {', '.join(case.name for case in training[:5])} show background alone",
            file=str(ready.project.folder),
            remedy="Label cases, or mark slices, that show structures",
        )
    if unseen:
        ready.events.emit(
            "warning",
            message=f"No labelled case that is trained on shows {', '.join(unseen)}: "
            "the model will not find it.",
        )


def add_unlabelled(ready: Preparation, cache: Cache, labelled: Sequence[Case]) -> tuple[Case, ...]:
    """Images of the pool's other cases, added to the cache; no label is read.

    Raises:
        InputError: there is none.
    """
    names = {case.name for case in labelled}
    others = tuple(case for case in ready.project.pool if case.name not in names)
    refused = {case.name for case, _ in cache.prepare(others)}
    usable = tuple(case for case in others if case.name not in refused)
    if not usable:
        raise InputError(
            "no unlabelled case can be used",
            file=str(ready.project.folder),
            remedy="Add unlabelled cases, or leave out --semi",
        )
    return usable


def make_sampler(
    ready: Preparation, plan: Plan, cache: Cache, cases: Sequence[Case], **changes: Any
) -> SegmentationSampler:
    """The sampler of patches for a plan; `changes` replace its other attributes."""
    config = ready.config
    spacing = tuple(float(mm) for mm in plan.spacing[3 - plan.dim :] if mm)
    sampler = SegmentationSampler(
        cache,
        tuple(c.name for c in cases),
        plan.patch,
        spacing,
        config.augment,
        ready.batch(plan),
        config.training.foreground,
        config.seed,
    )
    return replace(sampler, **changes)
