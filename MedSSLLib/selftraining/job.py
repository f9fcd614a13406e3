"""One self-training run: its data, its settings, what it has reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from MedSSLLib.config.commands import SelfTrainConfig
from MedSSLLib.finetuning.labelled_data import LabelledData
from MedSSLLib.inference.model import Model
from MedSSLLib.networks.unet import SegmentationNet
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining.best_round import PREDICTIONS
from MedSSLLib.selftraining.pseudo_labels import PseudoOptions
from MedSSLLib.selftraining.schedule import Schedule
from MedSSLLib.selftraining.start import latest_pseudo_labels
from MedSSLLib.training.context import TrainingContext
from MedSSLLib.training.run_folder import RunFolder


@dataclass(kw_only=True)
class Job:
    """One self-training run: its data, its settings, and what it has reached.

    Attributes:
        context: of the run; what it starts from is `model`, else what the encoder starts from.
        data: its cases.
        options: its own settings.
        model: the run that stage 1 is taken from, None when it is trained here.
        single_component, connected_on_slices, single_foreground: what the labels tell of pieces, as
            in RunData.
        first: steps and seconds of stage 1 where it is trained here.
        rows: metrics of the finished rounds.
        good: the last network that is worth keeping.
        fitting: rounds that the time limit has room for, once a prediction has been timed.
    """

    context: TrainingContext
    data: LabelledData
    options: SelfTrainConfig
    model: RunFolder | None
    single_component: tuple[int, ...] = ()
    connected_on_slices: tuple[int, ...] = ()
    single_foreground: bool = False
    first: dict[str, Any] = field(default_factory=lambda: {"steps": 0, "seconds": 0.0})
    rows: list[dict[str, Any]] = field(default_factory=list)
    good: SegmentationNet | None = None
    fitting: int | None = None

    @property
    def targets(self) -> tuple[Case, ...]:
        """Unlabelled cases, and labelled ones with only some slices annotated."""
        return self.data.unlabelled + tuple(case for case in self.data.training if case.annotated)

    @property
    def pseudo(self) -> PseudoOptions:
        """What concerns the pseudo-labels; a person has looked at those of the run started from."""
        own = self.options
        return PseudoOptions(
            clean=own.clean,
            filter=own.filter,
            threshold=own.threshold,
            accept=own.accept,
            reject=own.reject,
            fixed=latest_pseudo_labels(self.model),
            start=own.start,
            soft=own.likely,
            shapes=own.shapes,
        )

    @property
    def rounds(self) -> int:
        """How many rounds are made."""
        return self.options.rounds if self.fitting is None else self.fitting

    def fit_rounds(self, predicted: float) -> None:
        """Make as many rounds as there is time for, and say so where they are fewer than asked.

        Args:
            predicted: seconds that the first prediction of pseudo-labels took.
        """
        self.fitting = self.schedule.affordable(self.spent, predicted)
        if self.fitting < self.options.rounds:
            self.context.warn(
                f"Predicting the pseudo-labels takes {predicted / 60:.1f} minutes each time, so "
                f"{self.fitting} of {self.options.rounds} rounds are made. For more of them give "
                "more --minutes."
            )

    @property
    def schedule(self) -> Schedule:
        """How the time is shared out."""
        first = 0.0 if self.model else self.options.first_share
        rounds, closing = self.rounds, 0.0
        if self.options.keep == "best":
            closing = (rounds + 1) * PREDICTIONS / len(self.targets)
        return Schedule(self.context.config, rounds, first, closing)

    @property
    def spent(self) -> float:
        """Seconds of training and of predicting pseudo-labels in the finished stages."""
        predicted = sum(row["pseudo"].get("seconds", 0.0) for row in self.rows)
        return float(sum(stage["seconds"] for stage in (self.first, *self.rows)) + predicted)

    @property
    def step_time(self) -> float | None:
        """Seconds of a step of the last stage; None before the first one."""
        last = self.rows[-1] if self.rows else self.first
        return last["seconds"] / last["steps"] if last["steps"] else None

    @property
    def metrics(self) -> dict[str, Any]:
        """What goes into ``metrics.json``.

        The seconds are those of training and of predicting pseudo-labels.
        """
        steps = sum(stage["steps"] for stage in (self.first, *self.rows))
        return {"rounds": self.rows, "steps": steps, "seconds": round(self.spent, 1)}

    def model_of(self, network: SegmentationNet) -> Model:
        """A network of this run, ready to predict as the finished run will."""
        project = self.context.project
        return Model(
            network=network.eval(),
            plan=self.data.plan,
            values=project.values,
            classes=project.classes,
            device=self.context.device,
            precision=self.context.precision,
            single_component=self.single_component,
            connected_on_slices=self.connected_on_slices,
            single_foreground=self.single_foreground,
        )
