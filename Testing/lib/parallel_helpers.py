"""Two gloo processes against one on the same global batch, on any device."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedSSLLib.config.run import AugmentConfig, NetworkConfig, OptimiserConfig
from MedSSLLib.core.events import Events
from MedSSLLib.data.patch_samplers import Pick, SegmentationSampler, ViewSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.methods import load_method
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.networks.unet import SegmentationNet, build_encoder
from MedSSLLib.pretraining.task import PretrainTask
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.devices import from_first_process, gather_embeddings, sum_over_processes
from MedSSLLib.training.trainer import LoopConfig, Trainer
from Testing.lib.core_helpers import MemoryReader, lone_fabric
from Testing.lib.step_helpers import take_step

STRIDES = ((1, 1), (2, 2))
TASKS = ("segmentation", "simclr", "gcl", "byol", "pgl")


def reader():
    rng = np.random.default_rng(0)
    label = np.zeros((6, 24, 24), np.uint8)
    label[2:5, 5:15, 5:15] = 1
    names = [f"c{i}" for i in range(4)]
    images = {n: rng.normal(size=(1, 6, 24, 24)).astype(np.float32) for n in names}
    return MemoryReader(images, dict.fromkeys(names, label))


def make_task(kind, device):
    torch.manual_seed(0)
    encoder = build_encoder(2, 1, STRIDES, NetworkConfig(widths=(4, 8), norm="group"))
    if kind == "segmentation":
        plan = Plan(
            dim=2,
            spacing=(None, 1, 1),
            slice_axis="own",
            modality=("MR",),
            channels=1,
            patch=(16, 16),
            strides=STRIDES,
        )
        sampler = SegmentationSampler(
            reader=reader(),
            cases=("c0", "c1"),
            patch=(16, 16),
            spacing=(1.0, 1.0),
            augment=AugmentConfig(),
            batch=4,
            foreground=0.5,
            seed=0,
        )
        return SegmentationTask(SegmentationNet(encoder, 2).to(device), sampler, plan, device)
    method = load_method(kind)
    meta = {"patient": 2} if method.needs_meta else {}
    context = MethodContext(2, 1, (16, 16), meta, gather_embeddings, sum_over_processes)
    options = {"pixel": False} if kind == "gcl" else {"head_norm": "group"}
    module = method(encoder, method.Config(**options), context).to(device)

    def pick(rng, step):
        return [
            Pick(f"c{i}", int(rng.integers(6)), {"patient": i % 2} if meta else {})
            for i in range(4)
        ]

    sampler = ViewSampler(
        reader=reader(),
        pick=pick,
        patch=(16, 16),
        spacing=(1.0, 1.0),
        augment=AugmentConfig(),
        views=2,
        scale=(1.1, 1.4),
        min_overlap=0.3,
        flip=0.5,
        rotation=0.0,
        seed=0,
    )
    return PretrainTask(module, sampler, device)


def make_trainer(kind, folder, rank=0, world=1, *, budget=None, device="cpu"):
    fabric = lone_fabric(device)
    fabric.global_rank, fabric.world_size, fabric.is_global_zero = rank, world, rank == 0
    config = LoopConfig(
        stage="x",
        seed=0,
        budget=budget or Budget(steps=3),
        optimiser=OptimiserConfig(name="sgd", lr=1e-3, clip=0),
    )
    return Trainer(make_task(kind, torch.device(device)), config, fabric, folder, Events())


def gradients_of_a_step(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gradients by name, and losses, of one step; on the CPU."""
    trainer.module.train()
    losses = take_step(trainer)
    named = trainer.module.named_parameters()
    gradients = {name: p.grad.cpu().clone() for name, p in named if p.grad is not None}
    return gradients, {name: loss.cpu() for name, loss in losses.items()}


def process(rank: int, folder: Path, device: str = "cpu") -> None:
    """What one of the two does; writes ``RANK.pt``."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    results = {}
    for kind in TASKS:
        results[kind] = gradients_of_a_step(make_trainer(kind, folder, rank, 2, device=device))
    results["agreed"] = from_first_process([rank + 0.25, 7.0 * rank])
    own = folder / str(rank)
    timed = make_trainer("segmentation", own, rank, 2, budget=Budget(seconds=0.5), device=device)
    losses = timed.task.losses
    timed.task.losses = lambda *a: time.sleep(0.02 * rank) or losses(*a)  # clocks that disagree
    timed.run()
    weights = {name: t.cpu() for name, t in timed.module.state_dict().items()}
    results["timed"] = (timed.state.step, timed.state.progress, weights)
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def run_two(folder: Path, device: str = "cpu") -> list[dict[str, Any]]:
    """What the two processes found. CUDA does not survive a fork, so there they start anew."""
    for rank in range(2):
        (folder / str(rank)).mkdir()
    start = "fork" if device == "cpu" else "spawn"
    torch.multiprocessing.start_processes(process, (folder, device), nprocs=2, start_method=start)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
