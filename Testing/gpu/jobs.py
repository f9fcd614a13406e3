"""What one process trains for the tables: an encoder, or a model of one choice of labels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedSSLLib.config.messages import chosen
from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.events import Events
from MedSSLLib.data.batch_samplers import MetaPicker
from MedSSLLib.data.meta_labels import build_metalabels
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.finetuning.mixing_task import Mix, MixingTask, TeacherMixingTask
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.inference.sliding_window import predict_probabilities
from MedSSLLib.methods import load_method
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.options import configured
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, place
from MedSSLLib.pretraining.task import PretrainTask, view_sampler
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.checkpoint import transfer, unprefixed
from MedSSLLib.training.devices import make_fabric, seed_step
from MedSSLLib.training.trainer import LoopConfig, Trainer
from Testing.gpu.cohort import Cohort
from Testing.gpu.resident import Store, resident

TINY = {"network.widths": (4, 8, 8), "training.batch": 4}
PRETRAIN_BATCH, FINETUNE_BATCH = 48, 16
ROTATION = 30.0


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        data: the folder of the cohort.
        device: where it runs.
        row: of the table, as in ``medssl benchmark labels``; 'gcl' with no choice is the encoder.
        choice: number of the choice of labels; None for the encoder.
        seconds, steps: how long; one of them.
        tiny: a dry run.
        encoder: weights to start from.
    """

    data: Path
    device: str
    row: str
    choice: int | None
    seconds: float | None = None
    steps: int | None = None
    tiny: bool = False
    encoder: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The job in words."""
        return f"{self.row} encoder" if self.choice is None else f"{self.row}, choice {self.choice}"

    def config(self) -> RunConfig:
        """The settings of the run, those of the standard preset but for what is said here."""
        given: dict[str, Any] = {"device": self.device}
        if self.choice is None:
            given |= {"training.batch": PRETRAIN_BATCH, "options.rotation": ROTATION}
            return configured("pretrain", method="gcl", overrides=given | self._tiny())
        given |= {"training.batch": FINETUNE_BATCH}
        given |= {"semi": "mixing"} if "mixing" in self.row else {}
        given |= {"init": "encoder"} if self.encoder else {}
        return configured("finetune", overrides=given | self._tiny())

    def _tiny(self) -> dict[str, Any]:
        return TINY if self.tiny else {}


def train(job: Job) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train; facts, and arrays: weights, and class maps of the test cases on the training grid."""
    cohort, config, device = Cohort.open(job.data), job.config(), torch.device(job.device)
    seed_step(config.seed, 0)
    encoder = build_encoder(
        cohort.plan.dim, cohort.plan.channels, cohort.plan.strides, config.network
    )
    if job.encoder:
        transfer(encoder, {name: torch.from_numpy(w) for name, w in job.encoder.items()})
    if job.choice is None:
        task: Any = _pretraining(cohort, config, encoder, device)
    else:
        task = _segmentation(cohort, config, encoder, device, cohort.choices[job.choice])
    trainer, weights = _run(job, config, task)
    facts = {"steps": trainer.state.step, "seconds": round(trainer.state.elapsed, 1)}
    if device.type == "cuda":
        facts["peak_mib"] = torch.cuda.max_memory_allocated(device) >> 20
    if job.choice is None:
        kept = {f"weights/{name}": w for name, w in unprefixed("encoder", weights).items()}
        return facts, {name: tensor.numpy() for name, tensor in kept.items()}
    task.module.load_state_dict(weights)
    net = task.mixing.module if isinstance(task, TeacherMixingTask) else task.module
    return {**facts, "labelled": cohort.choices[job.choice]}, _outcome(cohort, net, device)


def _run(job: Job, config: RunConfig, task: Any) -> tuple[Trainer, dict[str, Tensor]]:
    budget = Budget(steps=job.steps, seconds=job.seconds)
    loop = LoopConfig(
        stage="table",
        seed=config.seed,
        budget=budget,
        optimiser=config.optimiser,
        encoder_factor=config.optimiser.encoder_lr if job.encoder else 1.0,
        ema=config.training.ema,
        validate_every=config.training.validate_every,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task, loop, make_fabric(config), Path(folder), Events())
        return trainer, trainer.run()


def _pretraining(
    cohort: Cohort, config: RunConfig, encoder: Any, device: torch.device
) -> PretrainTask:
    """GCL over the pool, as ``medssl pretrain`` sets it up."""
    plan, reader, pool = cohort.plan, cohort.reader, cohort.facts["pool"]
    cases = cohort.cases(pool)
    kind = load_method(config.method)
    options = chosen(kind.Config, config.options)
    slices = [reader.shape(name)[1] for name in pool] if plan.dim == 2 else None
    meta = build_metalabels(cases, slices)
    picker = MetaPicker(reader, cases, config.training.batch, meta, plan.dim, config.seed)
    method = kind(
        encoder,
        options,
        MethodContext(plan.dim, plan.channels, plan.patch, meta.counts, seed=config.seed),
    )
    place(method, device, plan.dim)
    sampler = view_sampler(
        method,
        config=config,
        reader=reader,
        pick=picker,
        patch=plan.patch,
        spacing=_spacing(cohort),
    )
    store = Store.of(reader, pool, plan.dim, device)
    return PretrainTask(method, resident(sampler, store), device)


def _segmentation(
    cohort: Cohort, config: RunConfig, encoder: Any, device: torch.device, labelled: list[str]
) -> SegmentationTask | TeacherMixingTask:
    """Fine-tuning on the labelled cases, with mixing where the settings ask for it."""
    plan, reader = cohort.plan, cohort.reader
    classes = len(cohort.facts["classes"])
    net = SegmentationNet(encoder, classes, config.network.deep_supervision)
    place(net, device, plan.dim)
    mixes = config.semi == "mixing"
    everything = [*labelled, *(name for name in cohort.facts["pool"] if name not in labelled)]
    store = Store.of(reader, everything if mixes else labelled, plan.dim, device, labelled)
    sampler = resident(
        SegmentationSampler(
            reader=reader,
            cases=tuple(labelled),
            patch=plan.patch,
            spacing=_spacing(cohort),
            augment=config.augment,
            batch=config.training.batch,
            foreground=config.training.foreground,
            seed=config.seed,
        ),
        store,
    )
    if not mixes:
        return SegmentationTask(net, sampler, plan, device)
    other = replace(sampler, cases=tuple(everything), labelled=False, seed=config.seed + 1)
    mix = Mix(threshold=config.confident)
    return TeacherMixingTask(
        MixingTask(net, sampler, plan, device, other=other, classes=classes, mix=mix)
    )


def _spacing(cohort: Cohort) -> tuple[float, ...]:
    return tuple(float(mm) for mm in cohort.plan.spacing[3 - cohort.plan.dim :] if mm)


def _outcome(cohort: Cohort, net: SegmentationNet, device: torch.device) -> dict[str, np.ndarray]:
    """Weights, convolutions in float16, and the class map of every test case."""
    arrays = {}
    for name, tensor in net.state_dict().items():
        half = tensor.is_floating_point() and tensor.dim() > 1
        arrays[f"weights/{name}"] = (tensor.half() if half else tensor).cpu().numpy()
    net.eval()
    for name in cohort.facts["test"]:
        image = cohort.reader.images[name]
        probabilities = predict_probabilities(net, image, cohort.plan, device)
        arrays[f"prediction/{name}"] = probabilities.argmax(0).to(torch.uint8).numpy()
    return arrays
