"""Which model of a self-training run is kept: that of the last round, unless another is better.

Where labelled cases are held out, their Dice decides. Where none is, nothing can say how good a
model is on other scans; two things can show that a round has made it worse. A model that is unsure
contradicts itself when a scan is a little changed, and one that has learnt from wrong pseudo-labels
no longer agrees with what a person has drawn. The latter counts little: Dice on the cases trained
on falls anyway as a model gives up what is peculiar to them. Not from the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from MedSSLLib.active_learning.strategies import even_order
from MedSSLLib.data.cache import Cache
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.finetuning.segmentation_task import validation_dice
from MedSSLLib.inference.model import Model
from MedSSLLib.inference.sliding_window import predict_varied
from MedSSLLib.project.manifest import Case

CASES = 4  # that a model is judged on; not from the paper
CHANGES = ((0.8, 1.0), (1.0, 0.85))  # contrast and size of the changed scans; not from the paper
# by how much an earlier round must be better where agreement speaks for it: at least, in standard
# errors of the difference between the same scans, and enough whatever the error, which is large
# where some scans collapse; not from the paper
CLEARLY, SURELY, ENOUGH = 0.01, 2.0, 0.1
OF_LABELLED = 0.1  # weight of the Dice on cases trained on, of agreement 1; not from the paper
PREDICTIONS = CASES * (1 + len(CHANGES))
"""How many a judgement takes, about."""


@dataclass(frozen=True)
class Judgement:
    """What speaks for a model, all in [0, 1].

    Attributes:
        held_out: mean Dice of held-out labelled cases; None without.
        labelled: mean Dice of cases that it was trained on, over what was drawn.
        agreements: Dice between predictions of a scan and of the same scan changed in contrast and
            size, for each of some unlabelled cases.
    """

    held_out: float | None
    labelled: float
    agreements: tuple[float, ...] = ()

    @property
    def agreement(self) -> float | None:
        """The mean over the unlabelled cases; None without."""
        return float(np.mean(self.agreements)) if self.agreements else None

    @property
    def score(self) -> float:
        """The held-out Dice, or else the weighted mean of the others."""
        if self.held_out is not None:
            return self.held_out
        if self.agreement is None:
            return self.labelled
        return (self.agreement + OF_LABELLED * self.labelled) / (1 + OF_LABELLED)

    def to_json(self) -> dict[str, float]:
        """Its numbers, for ``metrics.json``."""
        names = ("held_out", "labelled", "agreement", "score")
        found = {name: getattr(self, name) for name in names}
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def clearly_better(self, last: Judgement) -> bool:
        """Whether it is to be kept instead of the last one, judged on the same cases.

        Agreement of four scans differs between equally good rounds by hundredths. That of one scan
        alone tells nothing below ENOUGH.
        """
        gain = self.score - last.score
        if self.held_out is not None:
            return gain > 0
        differences = np.subtract(self.agreements, last.agreements)
        if not len(differences):
            return gain > CLEARLY
        error = np.inf
        if len(differences) > 1:
            error = differences.std(ddof=1) / len(differences) ** 0.5 / (1 + OF_LABELLED)
        return gain > min(max(CLEARLY, SURELY * error), ENOUGH)


def some(cases: Sequence[Case]) -> list[str]:
    """Names of at most CASES of them, of different patients and phases where there are."""
    order = even_order([False] * len(cases), [case.patient for case in cases], CASES)
    return [cases[position].name for position in sorted(order[:CASES])]


def judge(
    model: Model,
    cache: Cache,
    *,
    held_out: Sequence[str],
    labelled: Sequence[str],
    unlabelled: Sequence[str],
) -> Judgement:
    """A model's judgement.

    Args:
        model: with its network in evaluation mode.
        cache: holds the images, and the labels of the first two.
        held_out: names of held-out labelled cases.
        labelled: names of labelled cases trained on.
        unlabelled: names of other cases.
    """

    def dice(names: Sequence[str]) -> float | None:
        found = validation_dice(model.network, cache, names, model.plan, model.device)
        return found.get("score")

    if held_out:
        return Judgement(dice(held_out), dice(labelled) or 0.0)
    agreements = tuple(agreement(model, whole_image(cache, name)) for name in unlabelled)
    return Judgement(None, dice(labelled) or 0.0, agreements)


def whole_image(cache: Cache, name: str) -> np.ndarray:
    """A preprocessed case ``[c, d, h, w]``."""
    return cache.image(name, (0, 0, 0), cache.shape(name)[1:])


@torch.inference_mode()
def agreement(model: Model, image: np.ndarray) -> float:
    """Mean Dice between the prediction of a preprocessed image and those of its changes."""
    plain = model.class_map(model.on_grid(image).numpy())
    found = []
    for change in CHANGES:
        likely = predict_varied(model.network, image, model.plan, model.device, change)
        found.append(foreground_dice(plain, model.class_map(likely.numpy())))
    return float(np.mean(found))


def best_of(judgements: Mapping[str, Judgement]) -> str:
    """The name of the model to keep: the last one, unless others are clearly better; the best of
    these.
    """
    *earlier, last = judgements
    better = [name for name in earlier if judgements[name].clearly_better(judgements[last])]
    return max(reversed(better), key=lambda name: judgements[name].score, default=last)


def in_words(judgements: Mapping[str, Judgement], kept: str) -> str:
    """What a person is told where an earlier model is kept."""
    last = list(judgements)[-1]
    what = "the first model" if kept == "first" else f"the model of {kept}"
    measured = "Dice on held-out cases"
    if judgements[last].held_out is None:
        measured = (
            "agreement with the labels and between predictions of changed scans, as no labelled "
            "case is held out"
        )
    scores = f"{judgements[last].score:.3f} against {judgements[kept].score:.3f}"
    return (
        f"Self-training ended worse than it was before, so {what} is kept ({scores}; {measured})."
    )
