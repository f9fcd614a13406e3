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
from MedSSLLib.images.components import connected_on_slices, piece_facts
from MedSSLLib.project.manifest import Case
from MedSSLLib.training.context import TrainingContext


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
        annotated = {case.name: case.annotated.to_json() for case in cases if case.annotated}
        connected: list[int] = []
        if len(annotated) == len(cases):
            connected = connected_on_slices(self.labels(whole=False), classes)
        single, foreground = piece_facts(self.labels(whole=True), classes)
        return {
            "labelled": _names(self.training),
            "validation": _names(self.held_out),
            "unlabelled": _names(self.unlabelled),
            "annotated": annotated,
            "fingerprint": self.cache.fingerprint(),
            "single_component": single,
            "single_foreground": foreground,
            "connected_on_slices": connected,
        }

    def labels(self, *, whole: bool) -> Iterator[np.ndarray]:
        """Class maps of the cases annotated as a whole, or of those with annotated slices."""
        for case in self.training + self.held_out:
            if whole == (not case.annotated):
                yield self.cache.label(case.name, (0, 0, 0), self.cache.shape(case.name)[1:])


def _names(cases: Sequence[Case]) -> list[str]:
    return [case.name for case in cases]


def check_structures(context: TrainingContext, cache: Cache, training: Sequence[Case]) -> None:
    """Warn of classes that no label shows where it counts: a network cannot learn them.

    Raises:
        InputError: there is no structure at all.
    """
    shown = {value for case in training for value in cache.counts(case.name)}
    if not shown - {0}:
        raise InputError(
            f"the labels of {', '.join(case.name for case in training[:5])} show background alone",
            file=str(context.project.folder),
            remedy="Label cases, or mark slices, that show structures",
        )
    names = enumerate(context.project.classes)
    unseen = [name for index, name in names if index and index not in shown]
    if unseen:
        context.warn(
            f"No labelled case that is trained on shows {', '.join(unseen)}: "
            "the model will not find it."
        )


def add_unlabelled(
    context: TrainingContext, cache: Cache, labelled: Sequence[Case]
) -> tuple[Case, ...]:
    """Images of the pool's other cases, added to the cache; no label is read.

    Those that cannot be used are named in warnings.
    """
    names = {case.name for case in labelled}
    others = [case for case in context.project.pool if case.name not in names]
    prepared = cache.prepare(others)
    prepared.report(context.events)
    return prepared.usable


def make_sampler(
    context: TrainingContext, plan: Plan, cache: Cache, cases: Sequence[Case], **changes: Any
) -> SegmentationSampler:
    """The sampler of patches for a plan; `changes` replace its other attributes."""
    config = context.config
    sampler = SegmentationSampler(
        reader=cache,
        cases=tuple(case.name for case in cases),
        patch=plan.patch,
        spacing=tuple(float(mm) for mm in plan.spacing[3 - plan.dim :] if mm),
        augment=config.augment,
        batch=context.batch(plan),
        foreground=config.training.foreground,
        seed=config.seed,
    )
    return replace(sampler, **changes)
