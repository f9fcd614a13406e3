"""One stage of a run: its network, budget and loop, and what is kept at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.files import write_json
from MedSSLLib.data.plan import Plan
from MedSSLLib.networks.unet import SegmentationNet, place
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.context import (
    Preparation,
    make_encoder,
)
from MedSSLLib.training.devices import seed_step
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.trainer import LoopConfig, Task, Trainer


def build_network(ready: Preparation, plan: Plan, init: Path | None) -> SegmentationNet:
    """The network on the device, seeded, with a transferred encoder when there is one; the transfer
    is reported.
    """
    seed_step(ready.config.seed, 0)
    encoder, report = make_encoder(ready, plan, init)
    if report is not None:
        ready.events.emit(
            "metric", stage="transfer", tensors_loaded=len(report.loaded), report=report.text()
        )
    net = SegmentationNet(
        encoder, len(ready.project.classes), ready.config.network.deep_supervision
    )
    if ready.config.freeze_encoder:
        net.encoder.requires_grad_(False)
    place(net, ready.device, plan.dim)
    return net


def stage_budget(config: RunConfig, share: float = 1.0) -> Budget:
    """The budget of one stage that may use `share` of the run's steps or minutes."""
    training = config.training
    if training.minutes:
        return Budget(seconds=training.minutes * 60 * share)
    return Budget(steps=max(1, round(training.steps * share)))


def fit(ready: Preparation, task: Task, budget: Budget, stage: str = "finetune") -> dict[str, Any]:
    """Train a task's module in place (it ends with the weights to keep); returns what is worth
    recording.
    """
    trainer = Trainer(
        task, loop_config(ready.config, stage, budget), ready.fabric, ready.folder, ready.events
    )
    if ready.config.resume:
        trainer.resume()
    task.module.load_state_dict(trainer.run())
    state = trainer.state
    return {
        "steps": state.step,
        "seconds": round(state.elapsed, 1),
        "validation": state.scores,
        "best": state.best,
        "best_step": state.best_step,
    }


def loop_config(config: RunConfig, stage: str, budget: Budget) -> LoopConfig:
    """The trainer's numbers for one stage of a run."""
    training = config.training
    factor = config.optimiser.encoder_lr if config.init not in ("", "none") else 1.0
    return LoopConfig(
        stage,
        config.seed,
        budget,
        config.optimiser,
        factor,
        training.accumulate,
        training.ema,
        training.validate_every,
        training.patience,
    )


def finish(
    ready: Preparation, plan: Plan, net: SegmentationNet, figures: dict[str, Any], **told: Any
) -> None:
    """Keep the weights, then metrics and the model card; `told` joins the last event."""
    if not ready.fabric.is_global_zero:
        return
    state = net.state_dict()
    write_json(ready.folder / "metrics.json", figures)
    write_model_card(ready.folder, ready.project, ready.config, plan, figures)
    save_tensors(
        ready.folder / WEIGHTS,
        state,
        {"classes": list(ready.project.classes), "kind": "segmentation"},
    )
    ready.events.emit(
        "done", run=ready.folder.name, folder=str(ready.folder), **_plain(figures), **told
    )


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float | str)}
