"""One stage of a run: its network, budget and loop, and what is kept at its end."""

from __future__ import annotations

from typing import Any

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.files import write_json
from MedSSLLib.data.plan import Plan
from MedSSLLib.networks.unet import SegmentationNet, place
from MedSSLLib.project.runs import WEIGHTS
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.checkpoint import save_tensors
from MedSSLLib.training.context import TrainingContext, make_encoder
from MedSSLLib.training.devices import seed_step
from MedSSLLib.training.model_card import write_model_card
from MedSSLLib.training.run_folder import RunFolder
from MedSSLLib.training.task import Task
from MedSSLLib.training.trainer import LoopConfig, Trainer


def build_network(context: TrainingContext, plan: Plan, start: RunFolder | None) -> SegmentationNet:
    """The network on the device, seeded, with the encoder of `start` where there is one."""
    seed_step(context.config.seed, 0)
    encoder = make_encoder(context, plan, start)
    deep = context.config.network.deep_supervision
    net = SegmentationNet(encoder, len(context.project.classes), deep)
    if context.config.freeze_encoder:
        net.encoder.requires_grad_(False)
    place(net, context.device, plan.dim)
    return net


def stage_budget(config: RunConfig, fraction: float = 1.0) -> Budget:
    """The budget of one stage that may use a fraction of the run's steps or minutes."""
    training = config.training
    if training.minutes:
        return Budget(seconds=training.minutes * 60 * fraction)
    return Budget(steps=max(1, round(training.steps * fraction)))


def fit(
    context: TrainingContext, task: Task, budget: Budget, stage: str = "finetune"
) -> dict[str, Any]:
    """Train a task's module in place; it ends with the weights to keep.

    Returns:
        What is worth recording: steps, seconds, the scores of all validations, the best of them.
    """
    trainer = make_trainer(context, task, budget, stage)
    task.module.load_state_dict(trainer.run())
    state = trainer.state
    return {
        "steps": state.step,
        "seconds": round(state.elapsed, 1),
        "validation": state.scores,
        "best": state.best,
        "best_step": state.best_step,
    }


def make_trainer(context: TrainingContext, task: Task, budget: Budget, stage: str) -> Trainer:
    """The trainer of one stage, at its checkpoint where the run goes on."""
    loop = loop_config(context.config, stage, budget)
    trainer = Trainer(task, loop, context.fabric, context.folder, context.events)
    if context.config.resume:
        trainer.resume()
    return trainer


def loop_config(config: RunConfig, stage: str, budget: Budget) -> LoopConfig:
    """The trainer's numbers for one stage of a run."""
    training = config.training
    transferred = config.init not in ("", "none")
    return LoopConfig(
        stage=stage,
        seed=config.seed,
        budget=budget,
        optimiser=config.optimiser,
        encoder_factor=config.optimiser.encoder_lr if transferred else 1.0,
        accumulate=training.accumulate,
        ema=training.ema,
        validate_every=training.validate_every,
        patience=training.patience,
    )


def finish(
    context: TrainingContext, net: SegmentationNet, metrics: dict[str, Any], **told: Any
) -> None:
    """Keep metrics, model card and weights; `told` joins the last event."""
    if not context.is_first:
        return
    keep_segmentation(context, net, metrics)
    plain = {key: value for key, value in metrics.items() if isinstance(value, int | float | str)}
    run = context.run
    context.events.emit("done", run=run.name, folder=str(run.folder), **plain, **told)


def keep_segmentation(
    context: TrainingContext, net: SegmentationNet, metrics: dict[str, Any]
) -> None:
    """Write metrics, model card and, last, the weights: what makes a run a finished one."""
    folder = context.folder
    write_json(folder / "metrics.json", metrics)
    write_model_card(context.run, context.project, metrics)
    facts = {"classes": list(context.project.classes), "kind": "segmentation"}
    save_tensors(folder / WEIGHTS, net.state_dict(), facts)
