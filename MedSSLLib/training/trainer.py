"""The training loop: knows steps, devices, events and checkpoints; knows no method."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from MedSSLLib.config.run import OptimiserConfig
from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError, GuardError, InputError, is_out_of_memory
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import require_room
from MedSSLLib.networks.ema import WeightAverage
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.checkpoint import (
    flatten_optimiser,
    load_tensors,
    prefixed,
    restore_optimiser,
    restoring,
    save_tensors,
    unprefixed,
)
from MedSSLLib.training.devices import (
    average_gradient,
    average_gradients,
    from_first_process,
    seed_step,
)
from MedSSLLib.training.optimisers import build_optimiser, set_rate, warmup_cosine
from MedSSLLib.training.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STOP_FILE = "stop"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Numbers of one training loop; see TrainingConfig for their meaning."""

    stage: str
    seed: int
    budget: Budget
    optimiser: OptimiserConfig
    encoder_factor: float = 1.0
    accumulate: int = 1
    ema: float = 0.99
    validate_every: float = 0.1
    patience: int = 0
    checkpoint_seconds: float = 30.0


@dataclass
class TrainState:
    """What a checkpoint holds besides tensors.

    `micro_batches` are those of a step in one process, 0 where there are as many as configured.
    """

    step: int = 0
    progress: float = 0.0
    elapsed: float = 0.0
    best: float | None = None
    best_step: int = 0
    misses: int = 0
    next_validation: float = 0.0
    stopped_early: bool = False
    micro_batches: int = 0
    scores: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> TrainState:
        """The state that a checkpoint holds; earlier versions called the micro-batches parts."""
        names = {"parts": "micro_batches"}
        return cls(**{names.get(name, name): value for name, value in facts.items()})


class Trainer:
    """Runs a task to the end of its budget, or to cancellation.

    It resumes exactly where a checkpoint was written.
    """

    def __init__(
        self, task: Task, config: LoopConfig, fabric: Fabric, folder: Path, events: Events
    ) -> None:
        self.task, self.config = task, config
        self.fabric, self.folder, self.events = fabric, folder, events
        self.module = task.module
        self.optimiser = build_optimiser(self.module, config.optimiser, config.encoder_factor)
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.average = WeightAverage(self.module, config.ema)
        self.rule = task.gradient_rule()
        if self.rule is not None and config.accumulate > 1:
            raise InputError(
                "a gradient rule needs the whole batch at once",
                remedy="Set training.accumulate to 1",
            )
        self.scaler = torch.amp.GradScaler(
            fabric.device.type, enabled=fabric._precision.precision == "16-mixed"
        )
        self.state = TrainState(next_validation=config.validate_every)
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def checkpoint_path(self) -> Path:
        """The file that holds everything needed to resume this stage."""
        return self.folder / "checkpoint" / f"{self.config.stage}.safetensors"

    def run(self) -> dict[str, Tensor]:
        """Train; returns the weights to keep: the best validated average, else the last average.

        Raises:
            CancelledError: a stop file appeared or the process was asked to end; the checkpoint is
                written.
            GuardError: a loss or weight is not finite, or the task's check failed; the last good
                checkpoint is kept.
        """
        budget, state = self.config.budget, self.state
        budget.start(state.step, state.progress, state.elapsed)
        last_saved = time.monotonic()
        require_room(self.folder, 4 * sum(p.nbytes for p in self.parameters))
        self.module.train()
        with interrupts.deferred(), ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
            upcoming = self._load(loader, state.step)
            while not (budget.finished or state.stopped_early):
                host, upcoming = upcoming, self._load(loader, state.step + 1)
                losses = self._attempt(host)
                if losses is None:
                    upcoming = self._load(loader, state.step)
                    continue
                asked = self._advance()
                self._report(losses)
                if state.progress >= min(1.0, state.next_validation):
                    self._validate()
                if asked:
                    self.save()
                    raise CancelledError(
                        f"Stopped at step {state.step}; go on: --resume --name {self.folder.name}."
                    )
                if time.monotonic() - last_saved > self.config.checkpoint_seconds:
                    self.save()
                    last_saved = time.monotonic()
        self.save()
        return self.final_weights()

    def next_step(self, loader: ThreadPoolExecutor) -> dict[str, Tensor]:
        """One step outside of :meth:`run`, for a loop that has more to do than to train.

        Returns:
            The losses, 0-d.

        Raises:
            GuardError: memory ran out and the batch cannot be split further.
        """
        losses = None
        while losses is None:
            losses = self._attempt(self._load(loader, self.state.step))
        self._advance()
        return losses

    def final_weights(self) -> dict[str, Tensor]:
        """The weights to keep, on the CPU."""
        if self.best_weights is not None:
            return self.best_weights
        with self.average.applied():
            return self._copied_weights()

    def _copied_weights(self) -> dict[str, Tensor]:
        return {name: t.detach().cpu().clone() for name, t in self.module.state_dict().items()}

    def _load(self, loader: ThreadPoolExecutor, step: int) -> list[Future[Any]]:
        """The micro-batches of a step that are this process's own, as they become ready."""
        own = self.state.micro_batches or self.config.accumulate
        everyone, first = self.fabric.world_size * own, self.fabric.global_rank * own
        return [
            loader.submit(self.task.host_batch, step, micro_batch, everyone)
            for micro_batch in range(first, first + own)
        ]

    def _attempt(self, micro_batches: list[Future[Any]]) -> dict[str, Tensor] | None:
        """One step; None where memory ran out and the batch is now split twice as finely.

        Raises:
            GuardError: memory ran out and the batch cannot be split further.
        """
        try:
            return self._step(micro_batches)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).split("\n")[0] or "no more memory"
        torch.cuda.empty_cache()  # does nothing without CUDA
        self._split_further(2 * len(micro_batches), problem)
        return None

    def _split_further(self, micro_batches: int, problem: str) -> None:
        step = self.state.step
        try:
            if self.rule is not None or self.fabric.world_size > 1:
                raise InputError("this batch is needed whole")
            self.task.host_batch(step, 0, micro_batches)
        except InputError as error:
            raise GuardError(
                f"Out of memory at step {step + 1} ({problem}), and {error.finding}. The last "
                "checkpoint is kept. Use a smaller --batch or a smaller patch "
                "(--set training.voxels=N)."
            ) from None
        self.state.micro_batches = micro_batches
        self.events.emit(
            "warning",
            message=f"Out of memory at step {step + 1} ({problem}). "
            f"From now on each batch is computed in {micro_batches} parts.",
        )

    def _step(self, micro_batches: list[Future[Any]]) -> dict[str, Tensor]:
        """One optimiser step; nothing in here waits for the device."""
        seed_step(self.config.seed, self.state.step)
        set_rate(self.optimiser, warmup_cosine(self.state.progress, self.config.optimiser.warmup))
        self.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        count = len(micro_batches)
        for micro_batch in micro_batches:
            batch = self.task.device_batch(micro_batch.result())
            with self.fabric.autocast():
                losses = self.task.losses(batch, self.state.progress)
            self._backward(losses, 1 / count)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach() / count
        self._update()
        self.task.after_step(self.state.progress)
        self.average.update()
        return totals

    def _backward(self, losses: dict[str, Tensor], weight: float) -> None:
        scaled = {name: self.scaler.scale(loss * weight) for name, loss in losses.items()}
        if self.rule is None:
            torch.stack(list(scaled.values())).sum().backward()
            return
        shared = self.task.shared()
        known = {id(p) for p in shared}
        others = [p for p in self.parameters if id(p) not in known]
        self.rule(scaled, shared, others, average_gradient)

    def _update(self) -> None:
        if self.rule is None:
            average_gradients(self.parameters)
        self.scaler.unscale_(self.optimiser)
        if self.config.optimiser.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.optimiser.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def _report(self, losses: dict[str, Tensor]) -> None:
        budget = self.config.budget
        if not self.events.due(self.config.stage, self.state.step, budget.steps):
            return
        metrics = _read({**losses, **self.task.diagnostics()})
        bad = [name for name in losses if not math.isfinite(metrics[name])]
        if bad:
            raise self._not_finite(f"The loss {', '.join(bad)} is")
        others = {name: value for name, value in metrics.items() if name not in losses}
        self.events.progress(
            self.config.stage,
            self.state.step,
            budget.steps,
            {name: metrics[name] for name in losses},
            seconds_left=budget.seconds_left,
            steps_per_second=budget.rate,
            **({"figures": others} if others else {}),
        )
        self.task.check(metrics, self.state.progress)

    def _advance(self) -> bool:
        """Count the step; whether a stop was asked for.

        All processes take the clock and the answer of the first one.
        """
        budget, state = self.config.budget, self.state
        state.step, progress, elapsed = budget.advance()
        asked = interrupts.requested() or os.path.exists(self.folder / STOP_FILE)
        state.progress, state.elapsed, stop = from_first_process([progress, elapsed, float(asked)])
        budget.progress = state.progress
        return bool(stop)

    def _validate(self) -> None:
        """Validate the averaged weights on the first process and keep the best.

        Training stops early when patience has run out.
        """
        state, started = self.state, time.monotonic()
        while state.next_validation <= state.progress:
            state.next_validation += self.config.validate_every
        with self.average.applied():
            self.module.eval()
            own = self.task.validate() if self.fabric.is_global_zero else None
            metrics = self.fabric.broadcast(own)
            self.module.train()
            if not metrics:
                return
            self.events.emit("metric", stage=self.config.stage, step=state.step, **metrics)
            self._note_score(metrics)
        self.config.budget.pause(time.monotonic() - started)
        state.stopped_early = bool(self.config.patience) and state.misses >= self.config.patience

    def _note_score(self, metrics: dict[str, float]) -> None:
        """Keep the module's weights where they are the best so far.

        Of equals, where no structure is found yet, those that were trained longest.
        """
        state, score = self.state, metrics["score"]
        state.scores.append({"step": state.step, **metrics})
        better = state.best is None or score > state.best
        state.misses = 0 if better else state.misses + 1
        if better or score == state.best:
            state.best, state.best_step = score, state.step
            self.best_weights = self._copied_weights()

    def save(self) -> None:
        """Write the checkpoint (first process only).

        Raises:
            GuardError: a weight is not finite; the file is left as it is.
        """
        if not self.fabric.is_global_zero:
            return
        started = time.monotonic()
        weights = [t for t in self.module.state_dict().values() if t.is_floating_point()]
        if not bool(torch.stack([t.isfinite().all() for t in weights]).all()):
            raise self._not_finite("A weight is")
        tensors = {
            **prefixed("module", self.module.state_dict()),
            **prefixed("optimiser", flatten_optimiser(self.optimiser)),
            **prefixed("average", self.average.state_dict()),
            **prefixed("rule", {} if self.rule is None else self.rule.state_dict()),
            **prefixed("best", self.best_weights or {}),
        }
        save_tensors(
            self.checkpoint_path,
            tensors,
            {"state": vars(self.state), "scaler": self.scaler.state_dict()},
        )
        self.events.emit(
            "checkpoint",
            stage=self.config.stage,
            step=self.state.step,
            path=str(self.checkpoint_path),
        )
        self.config.budget.pause(time.monotonic() - started)

    def _not_finite(self, what: str) -> GuardError:
        return GuardError(
            f"{what} not a finite number at step {self.state.step}. The last good checkpoint is "
            f"kept. Lower optimiser.lr (now {self.config.optimiser.lr:g}) or use --precision 32."
        )

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one."""
        if not self.checkpoint_path.exists():
            return False
        tensors, facts = load_tensors(self.checkpoint_path)
        with restoring(self.checkpoint_path):
            self.module.load_state_dict(unprefixed("module", tensors))
            restore_optimiser(self.optimiser, unprefixed("optimiser", tensors))
            self.average.load_state_dict(unprefixed("average", tensors))
            if self.rule is not None:
                self.rule.load_state_dict(unprefixed("rule", tensors))
            self.best_weights = unprefixed("best", tensors) or None
            self.state = TrainState.from_facts(facts["state"])
            if facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
        return True


def _read(metrics: dict[str, Tensor]) -> dict[str, float]:
    """All of them in one transfer."""
    numbers = [torch.as_tensor(x).detach().float().reshape(()) for x in metrics.values()]
    return dict(zip(metrics, torch.stack(numbers).tolist(), strict=True))
