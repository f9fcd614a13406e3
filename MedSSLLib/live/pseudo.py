"""Pseudo-labels of a few scans, renewed one after the other while the model learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.finetuning.labelled_data import make_sampler
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.inference.model import Model
from MedSSLLib.inference.sliding_window import predict_varied
from MedSSLLib.live.labels import LiveLabels
from MedSSLLib.live.learner import Learner
from MedSSLLib.live.previews import CHUNK
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining.cleaning import cleaned

LARGEST = 2**25  # voxels of a scan that is pseudo-labelled; not from a paper
SMALLER = (1.0, 0.85)  # contrast and size of the changed scan; not from a paper


class PseudoLabels:
    """Class maps that the model has made of some cases, for mixing.

    What a person has drawn of a case stands in its map as drawn; where the model is less confident
    than ``options.confident``, and in pieces that are in doubt, nothing counts. Cases take turns to
    be renewed. One on which the model contradicts itself, when the scan is made smaller, does not
    teach until it no longer does: on scans of another kind than the drawn ones a model fails, and
    would learn its failure.

    Attributes:
        learner: the model.
        held: the maps.
    """

    def __init__(self, learner: Learner, cases: Sequence[Case]) -> None:
        self.learner = learner
        self._confident = learner.options.confident
        self._agreement = learner.options.mixing_agreement
        self._cases = list(cases)
        self._turn = 0
        self.held = LiveLabels(learner.labels.cache)

    @property
    def complete(self) -> bool:
        """Whether every case had its turn."""
        return self._turn >= len(self._cases)

    def renew(self) -> Iterator[None]:
        """Make the map of the next case, chunk by chunk: work between two yields is short."""
        case = self._cases[self._turn % len(self._cases)]
        self._turn += 1
        learner, cache = self.learner, self.held.cache
        try:
            cache.prepare([case]).require_all()
        except InputError:
            return  # it was reported where it was asked for; the others teach
        yield
        size = cache.shape(case.name)[1:]
        if np.prod(size) > LARGEST:
            return
        classes, likely = np.empty(size, np.uint8), np.empty(size, np.float32)
        smaller = np.empty(size, np.uint8)
        for first in range(0, size[0], step := chunk_of(size, learner.plan.patch)):
            last = min(first + step, size[0])
            image = cache.image(case.name, (first, 0, 0), (last, *size[1:]))
            with learner.predicting() as model:
                classes[first:last], likely[first:last] = _predicted(model, image)
            yield
            if self._agreement:
                with learner.predicting() as model:
                    smaller[first:last] = _predicted_smaller(model, image)
                yield
        if self._agreement and foreground_dice(classes, smaller) < self._agreement:
            self.held.drop(case.name)
            return
        single, _, connected = learner.pieces()
        drawn = learner.labels.whole(case.name)
        decided, doubtful = cleaned(learner.model((*single, *connected)), classes, likely, drawn)
        # what clean-up has changed is certain
        decided[doubtful | ((likely < self._confident) & (decided == classes))] = IGNORE
        self.held.hold(case.name, np.where(drawn == IGNORE, decided, drawn))

    def sampler(self) -> SegmentationSampler | None:
        """Patches of the cases in which a structure was found; None without such a case."""
        shown = [case for case in self._cases if set(self.held.counts(case.name)) - {0}]
        if not shown:
            return None
        context, plan = self.learner.context, self.learner.plan
        seed = context.config.seed + 1
        return make_sampler(context, plan, self.held.cache, shown, reader=self.held, seed=seed)


def chunk_of(size: Sequence[int], patch: Sequence[int]) -> int:
    """Grid slices that are predicted at a time; in 3D at least as many as a patch has."""
    fitting = max(1, CHUNK // (size[1] * size[2]))
    return max(fitting, patch[0]) if len(patch) == 3 else fitting


def _predicted(model: Model, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and their probabilities ``[d, h, w]`` of a preprocessed image."""
    found, index = model.on_grid(image).max(0)
    return index.numpy().astype(np.uint8), found.numpy()


def _predicted_smaller(model: Model, image: np.ndarray) -> np.ndarray:
    """Classes ``[d, h, w]`` of a preprocessed image, predicted from it at a smaller size."""
    likely = predict_varied(model.network, image, model.plan, model.device, SMALLER)
    return likely.argmax(0).to(torch.uint8).numpy()
