"""Two gloo processes against one on the same global batch: gradients, weights, clocks."""

import time

import numpy as np
import pytest
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

STRIDES, CPU = ((1, 1), (2, 2)), torch.device("cpu")
TASKS = ("segmentation", "simclr", "gcl", "byol", "pgl")


def reader():
    rng = np.random.default_rng(0)
    label = np.zeros((6, 24, 24), np.uint8)
    label[2:5, 5:15, 5:15] = 1
    names = [f"c{i}" for i in range(4)]
    images = {n: rng.normal(size=(1, 6, 24, 24)).astype(np.float32) for n in names}
    return MemoryReader(images, dict.fromkeys(names, label))


def make_task(kind):
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
        return SegmentationTask(SegmentationNet(encoder, 2), sampler, plan, CPU)
    method = load_method(kind)
    meta = {"patient": 2} if method.needs_meta else {}
    context = MethodContext(2, 1, (16, 16), meta, gather_embeddings, sum_over_processes)
    options = {"pixel": False} if kind == "gcl" else {"head_norm": "group"}
    module = method(encoder, method.Config(**options), context)

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
    return PretrainTask(module, sampler, CPU)


def make_trainer(kind, folder, rank=0, world=1, budget=None):
    fabric = lone_fabric()
    fabric.global_rank, fabric.world_size, fabric.is_global_zero = rank, world, rank == 0
    config = LoopConfig(
        stage="x",
        seed=0,
        budget=budget or Budget(steps=3),
        optimiser=OptimiserConfig(name="sgd", lr=1e-3, clip=0),
    )
    return Trainer(make_task(kind), config, fabric, folder, Events())


class Ready:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


def one_step(trainer):
    rank, world = trainer.fabric.global_rank, trainer.fabric.world_size
    trainer.module.train()
    losses = trainer._step([Ready(trainer.task.host_batch(0, rank, world))])
    return {
        n: p.grad.clone() for n, p in trainer.module.named_parameters() if p.grad is not None
    }, losses


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    results = {kind: one_step(make_trainer(kind, folder, rank, 2)) for kind in TASKS}
    results["agreed"] = from_first_process([rank + 0.25, 7.0 * rank])
    timed = make_trainer("segmentation", folder / str(rank), rank, 2, Budget(seconds=0.5))
    losses = timed.task.losses
    timed.task.losses = lambda *a: time.sleep(0.02 * rank) or losses(*a)  # clocks that disagree
    timed.run()
    results["timed"] = (timed.state.step, timed.state.progress, timed.module.state_dict())
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    for rank in range(2):
        (folder / str(rank)).mkdir()
    torch.multiprocessing.start_processes(process, (folder,), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_give_the_gradients_of_one(two, tmp_path, kind):
    expected, losses = one_step(make_trainer(kind, tmp_path))
    for rank in range(2):
        found, theirs = two[rank][kind]
        assert (
            found.keys() == expected.keys() and max(g.abs().max() for g in expected.values()) > 1e-3
        )
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
        for name, value in losses.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5)


def test_processes_take_the_first_ones_clock(two):
    assert two[0]["agreed"] == two[1]["agreed"] == [0.25, 0.0]
    (step, progress, weights), (other_step, other_progress, other) = (
        two[0]["timed"],
        two[1]["timed"],
    )
    assert step == other_step >= 2 and progress == other_progress == 1
    assert all(torch.equal(t, other[n]) for n, t in weights.items()), (
        "both processes hold the same weights"
    )
