"""The model that learns: network, steps, the average that predicts, and when the loss is flat."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from MedSSLLib.config.commands import LiveConfig
from MedSSLLib.core.errors import GuardError
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.finetuning.labelled_data import make_sampler
from MedSSLLib.finetuning.mean_teacher import statistics_kept
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.images.components import connected_on_slices, piece_facts
from MedSSLLib.inference.model import Model
from MedSSLLib.live.labels import FreshSlice, LiveLabels, LiveSampler
from MedSSLLib.networks.ema import WeightAverage
from MedSSLLib.networks.unet import SegmentationNet
from MedSSLLib.training.budget import EndlessBudget
from MedSSLLib.training.context import TrainingContext
from MedSSLLib.training.stages import build_network, loop_config
from MedSSLLib.training.trainer import Trainer

LIVE_STAGE = "live"


@dataclass
class Plateau:
    """Tells when the loss no longer falls.

    Attributes:
        window: steps whose mean is compared with that of as many before.
        gain: share of the loss; a smaller fall is none.
        least: steps before which it is not flat.
        most: steps after which it counts as flat.
    """

    window: int
    gain: float
    least: int
    most: int
    steps: int = 0
    _losses: deque[float] = field(default_factory=deque)

    def note(self, loss: float) -> None:
        """Count a step."""
        self.steps += 1
        self._losses.append(loss)
        if len(self._losses) > 2 * self.window:
            self._losses.popleft()

    def reset(self) -> None:
        """Something has changed: begin anew."""
        self.steps = 0
        self._losses.clear()

    @property
    def flat(self) -> bool:
        """Whether there is little left to gain."""
        if self.steps >= self.most:
            return True
        if self.steps < self.least or len(self._losses) < 2 * self.window:
            return False
        before, now = np.asarray(self._losses).reshape(2, -1).mean(1)
        return bool(now > (1 - self.gain) * before)


@dataclass(frozen=True)
class Earlier:
    """Weights from before the classes changed.

    Attributes:
        tensors: of the network, by name.
        values: label values in class order, with background.
        step: steps taken.
    """

    tensors: Mapping[str, Tensor]
    values: tuple[int, ...]
    step: int


class Learner:
    """A network that is trained step by step on whatever is drawn by then.

    Attributes:
        net: the network.
        plan: of the data.
        labels: what is drawn.
        trainer: takes the steps.
        mixed_cases: names of the cases whose pseudo-labels teach.
        started_whole: whether decoder and classifier came with the start.
        first_step: steps before the classes were what they are.
        classes: names, with background.
        values: label values, with background.
    """

    def __init__(
        self,
        context: TrainingContext,
        plan: Plan,
        labels: LiveLabels,
        options: LiveConfig,
        earlier: Earlier | None = None,
    ) -> None:
        """With `earlier` weights, of other classes, in place of those of the start or the
        checkpoint.

        Raises InputError for a damaged checkpoint where the run goes on.
        """
        self.context, self.plan, self.labels, self.options = context, plan, labels, options
        self.classes, self.values = context.project.classes, context.project.values
        self.net = build_network(context, plan, context.start)
        self._sampler = _live_sampler(context, plan, labels, options)
        self.plain = SegmentationTask(
            module=self.net,
            sampler=self._sampler,
            plan=plan,
            device=context.device,
            frozen=context.config.freeze_encoder,
        )
        budget = EndlessBudget(context.config.optimiser.warmup, options.warmup_steps)
        loop = loop_config(context.config, LIVE_STAGE, budget)
        self.trainer = Trainer(self.plain, loop, context.fabric, context.folder, context.events)
        self.started_whole = False
        self.first_step = 0 if earlier is None else earlier.step
        if earlier is not None:
            self._take_over(earlier.tensors, earlier.values)
            self.trainer.state.step = earlier.step
        elif context.config.resume:
            self.trainer.resume()
        else:
            self._adopt_whole_start()
        budget.start(self.trainer.state.step, self.trainer.state.progress)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._mixing: MixingTask | None = None
        self.mixed_cases: tuple[str, ...] = ()
        self.plateau = Plateau(
            options.flat_steps, options.flat_gain, options.least_steps, options.most_steps
        )
        self.net.train()

    @property
    def step(self) -> int:
        """Steps so far."""
        return self.trainer.state.step

    @property
    def taught(self) -> bool:
        """Whether the weights can segment anything yet."""
        return self.step > 0 or self.started_whole

    def _adopt_whole_start(self) -> None:
        """Take over decoder and classifier too where the start segments the same classes."""
        start = self.context.start
        if start is None or not start.recorded or start.config.command == "pretrain":
            return
        if (start.data.classes, start.data.values) == (self.classes, self.values):
            self.started_whole = self._take_over(start.tensors, self.values)

    def _take_over(self, tensors: Mapping[str, Tensor], values: Sequence[int]) -> bool:
        """Load every tensor that fits; a classifier's rows go to the classes of the same values.

        Returns:
            Whether all of the network was loaded.
        """
        state, own = {}, self.net.state_dict()
        for name, target in own.items():
            found = tensors.get(name)
            if found is not None and name.partition(".")[0] in ("head", "coarse_heads"):
                found = _rows_of_values(target, found, values, self.values)
            if found is not None and found.shape == target.shape:
                state[name] = found.to(target.dtype)
        self.net.load_state_dict(state, strict=False)
        self.trainer.average = WeightAverage(self.net, self.trainer.average.decay)
        return len(state) == len(own)

    def earlier(self) -> Earlier:
        """The averaged weights and what is needed to go on from them with other classes."""
        return Earlier(self.trainer.final_weights(), self.values, self.step)

    def teach(self, fresh: Sequence[FreshSlice]) -> None:
        """Train on the drawn slices of now, with a share of the batch for `fresh` ones."""
        shown = tuple(item for item in fresh if item.places and item.case in self.labels.names)
        self._sampler = replace(self._sampler, cases=self.labels.names, fresh=shown)
        self.plain.sampler = self._sampler
        if self._mixing is not None:
            self._mixing.sampler = self._sampler

    def mix_with(self, other: SegmentationSampler | None) -> None:
        """Mix drawn slices with `other` patches, whose labels are pseudo-labels; None: no more."""
        self._mixing, self.mixed_cases = None, ()
        if other is not None:
            self.mixed_cases = tuple(dict.fromkeys(other.cases))
            self._mixing = MixingTask(
                self.net,
                self._sampler,
                self.plan,
                self.context.device,
                frozen=self.plain.frozen,
                other=other,
                classes=len(self.classes),
                mix=Mix(weight=self.options.pseudo_weight),
            )
        self.teach(self._sampler.fresh)

    @property
    def mixes(self) -> bool:
        """Whether unlabelled scans teach too."""
        return self._mixing is not None

    def advance(self) -> float:
        """One step; returns the loss.

        Raises:
            GuardError: the loss is not finite, or there is no memory.
        """
        losses = self._step()
        loss = math.fsum(float(value) for value in losses.values())
        if not math.isfinite(loss):
            raise GuardError(
                f"The loss is not a finite number at step {self.step}. The last good checkpoint is "
                f"kept. Lower optimiser.lr (now {self.context.config.optimiser.lr:g}) or use "
                "--precision 32."
            )
        self.plateau.note(loss)
        return loss

    def _step(self) -> dict[str, Tensor]:
        """A step on drawn slices as they are, or every other time mixed with unlabelled scans.

        New slices are learnt from as they are. The running statistics of batch normalisation stay
        those of drawn slices: of mixed ones they made predictions a fifth too large.
        """
        if self._mixing is None or self._sampler.fresh or self.step % 2:
            self.trainer.task = self.plain
            return self.trainer.next_step(self._loader)
        self.trainer.task = self._mixing
        with statistics_kept(self.net):
            return self.trainer.next_step(self._loader)

    @contextmanager
    def predicting(self) -> Iterator[Model]:
        """Within the context the averaged weights are in place, as a model that keeps every piece
        unless it is told which classes are one.
        """
        with self.trainer.average.applied():
            self.net.eval()
            try:
                yield self.model()
            finally:
                self.net.train()

    def model(self, connected: Sequence[int] = ()) -> Model:
        """The network as it is, to predict with.

        Args:
            connected: classes that annotated slices show in one piece.
        """
        return Model(
            network=self.net,
            plan=self.plan,
            values=self.values,
            classes=self.classes,
            device=self.context.device,
            precision=self.context.precision,
            connected_on_slices=tuple(connected),
        )

    @contextmanager
    def averaged(self) -> Iterator[SegmentationNet]:
        """Within the context the network carries the averaged weights."""
        with self.trainer.average.applied():
            yield self.net

    def pieces(self) -> tuple[list[int], bool, list[int]]:
        """What the drawn labels tell of pieces: classes in one piece, whether all of the foreground
        is, and classes that slices show in one piece.
        """
        maps = [self.labels.whole(name) for name in self.labels.names]
        single, foreground = piece_facts(maps, len(self.classes))
        return single, foreground, connected_on_slices(maps, len(self.classes))

    def keep_checkpoint(self) -> None:
        """Write the trainer's checkpoint.

        Raises:
            GuardError: a weight is not finite; the file is left as it is.
        """
        self.trainer.save()

    def close(self) -> None:
        """Let the loader's thread end."""
        self._loader.shutdown()


def _rows_of_values(
    target: Tensor, found: Tensor, theirs: Sequence[int], own: Sequence[int]
) -> Tensor:
    """A classifier's weight or bias, row by row from the class of the same label value."""
    result = target.detach().cpu().clone()
    for row, value in enumerate(own):
        if value in theirs and found.shape[1:] == target.shape[1:]:
            result[row] = found[list(theirs).index(value)]
    return result


def _live_sampler(
    context: TrainingContext, plan: Plan, labels: LiveLabels, options: LiveConfig
) -> LiveSampler:
    base = make_sampler(context, plan, labels.cache, ())
    given = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return LiveSampler(**given | {"reader": labels}, fresh_share=options.fresh_share)
