"""The segmentation task: its loss over levels, and Dice over counted voxels."""

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.data.patch_samplers import SegmentationSampler
from MedSSLLib.data.plan import Plan
from MedSSLLib.evaluation.metrics import dice_per_class
from MedSSLLib.finetuning.segmentation_task import SegmentationTask, validation_dice
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.dice_ce import dice_ce, segmentation_loss
from MedSSLLib.networks.unet import SegmentationNet, build_encoder
from Testing.lib.core_helpers import PLAIN, MemoryReader


def test_levels_weigh_one_half_quarter_over_every_nth_voxel():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 8, 12), dtype=torch.uint8)
    labels[0, :2] = IGNORE
    logits = [torch.randn(2, 3, 8, 12), torch.randn(2, 3, 4, 6), torch.randn(2, 3, 2, 6)]
    terms = [
        dice_ce(logits[0], labels),
        dice_ce(logits[1], labels[:, ::2, ::2]),
        dice_ce(logits[2], labels[:, ::4, ::2]),
    ]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4) / 1.75
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    torch.testing.assert_close(segmentation_loss(logits[:1], labels), terms[0])


def test_dice_per_class_by_hand():
    label = np.array([0, 1, 1, 2, IGNORE, IGNORE, 0])
    prediction = np.array([0, 1, 2, 2, 1, 2, 1])
    found = dice_per_class(prediction, label, 4)
    assert found[:2] == [2 * 1 / (2 + 2), 2 * 1 / (2 + 1)] and np.isnan(found[2])


def task(frozen=False):
    plan = Plan(
        dim=2,
        spacing=(None, 1.0, 1.0),
        slice_axis="own",
        modality=("MR",),
        channels=1,
        patch=(8, 8),
        strides=((1, 1), (2, 2)),
    )
    rng = np.random.default_rng(0)
    label = np.zeros((4, 12, 12), np.uint8)
    label[:, 3:9, 3:9] = 1
    label[0] = IGNORE
    reader = MemoryReader(
        {
            "a": (label[None] == 1) * 2
            - 1
            + 0.1 * rng.normal(size=(1, 4, 12, 12)).astype(np.float32)
        },
        {"a": label},
    )
    reader.images["a"] = reader.images["a"].astype(np.float32)
    net = SegmentationNet(build_encoder(2, 1, plan.strides, NetworkConfig(widths=(4, 8))), 2)
    if frozen:
        net.encoder.requires_grad_(False)
    sampler = SegmentationSampler(
        reader=reader,
        cases=("a",),
        patch=(8, 8),
        spacing=(1.0, 1.0),
        augment=PLAIN,
        batch=4,
        foreground=0.5,
        seed=0,
    )
    return SegmentationTask(net, sampler, plan, torch.device("cpu"), ("a",), frozen)


def test_validation_counts_annotated_voxels_only():
    class Threshold(torch.nn.Module):
        def forward(self, x):
            return torch.cat([-x, x], 1)

    t = task()
    figures = validation_dice(Threshold(), t.sampler.reader, ["a"], t.plan, t.device)
    assert figures == {"dice_1": 1.0, "score": 1.0}
    t.sampler.reader.images["a"][0, 0] = 5  # wrong everywhere on a slice that does not count
    assert validation_dice(Threshold(), t.sampler.reader, ["a"], t.plan, t.device)["score"] == 1.0
    t.sampler.reader.images["a"][0, 1] = 5
    assert validation_dice(Threshold(), t.sampler.reader, ["a"], t.plan, t.device)[
        "score"
    ] == pytest.approx(2 * 108 / (144 + 72 + 108))
    assert validation_dice(Threshold(), t.sampler.reader, [], t.plan, t.device) == {}


def test_a_frozen_encoder_keeps_weights_and_statistics():
    t = task(frozen=True)
    before = {n: x.clone() for n, x in t.module.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in t.module.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        t.module.train()
        t.losses(t.device_batch(t.host_batch(step, 0, 1)), 0.0)["segmentation"].backward()
        optimiser.step()
    changed = {
        n.split(".")[0] for n, x in t.module.state_dict().items() if not torch.equal(x, before[n])
    }
    assert changed == {"decoder", "head"}
