"""The joint stage: what each part of the loss sees, pairs and views, class separation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedSSLLib.data.batch import Batch
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.images.labels import IGNORE
from MedSSLLib.losses.dice_ce import dice_ce
from MedSSLLib.losses.local_contrast import local_contrast, sample_anchors
from MedSSLLib.selftraining.local_contrast_task import JointTask, separation
from Testing.lib.case_helpers import each
from Testing.lib.semi_helpers import CPU, network, plan, reader, sampler


def task(dim=2, matching="inter", weight=0.5, pseudo_weight=0.0, batch=3, **source):
    labelled = SegmentationTask(network(dim), sampler(dim, source=reader(**source)), plan(dim), CPU)
    everything = reader(("c0", "c1", "c2", "c3"))
    contrast = sampler(dim, ("c0", "c1", "c2", "c3"), batch=batch, source=everything)
    return JointTask(
        labelled=labelled,
        contrast=replace(contrast, foreground=1.0, seed=1),
        classes=3,
        matching=matching,
        weight=weight,
        pseudo_weight=pseudo_weight,
    )


def batches(made, step=0):
    return made.device_batch(made.host_batch(step, 0, 1))


@pytest.mark.parametrize("dim", [2, 3])
def test_segmentation_ignores_voxels_that_are_not_labelled(dim):
    """Where only a slice is annotated, changing what the network says elsewhere changes no gradient
    of that part.
    """
    made = task(dim, sparse=("c0", "c1"))
    (labelled, views) = batches(made)
    counted = labelled.labels[:, 0] != IGNORE
    assert dim == 2 or 0 < counted.float().mean() < 0.5
    logits = made.module.network(labelled.images[:, 0])
    changed = torch.where(counted.unsqueeze(1), logits, torch.randn_like(logits) * 9)
    found = made.losses((labelled, views), 0.0)["segmentation"]
    assert torch.allclose(found, dice_ce(logits, labelled.labels[:, 0]), atol=1e-5)
    assert torch.allclose(
        dice_ce(changed, labelled.labels[:, 0]), dice_ce(logits, labelled.labels[:, 0])
    )
    nothing = Batch(labelled.images, None, torch.full_like(labelled.labels, IGNORE))
    assert made.losses((nothing, views), 0.0)["segmentation"].item() == 0


@each("matching", ["inter", "intra"])
@each("dim", [2, 3])
def test_the_contrast_is_lambda_times_the_local_contrastive_loss(dim, matching):
    """Recomputed from the projections; two views of an image form one image with twice the
    pixels.
    """
    made = task(dim, matching, weight=0.5)
    made.module.eval()
    labelled, views = batches(made)
    features = [made.module(v.images[:, 0])[1] for v in views]
    labels, partner = (
        views[0].labels[:, 0],
        views[0].meta["partner"] if matching == "inter" else None,
    )
    if matching == "intra":
        labels, joined = (
            labels.flatten(1).repeat(1, 2),
            torch.cat([f.flatten(2) for f in features], 2),
        )
    else:
        labels, joined = labels.flatten(1), features[0].flatten(2)
    anchors = sample_anchors(labels, 3, views[0].meta["noise"])
    expected = local_contrast(joined, labels, anchors, partner, 0.1)
    losses = made.losses((labelled, views), 0.0)
    assert expected > 0 and torch.allclose(losses["contrast"], 0.5 * expected, rtol=1e-4)
    assert torch.allclose(made.diagnostics()["local_contrast"], expected, rtol=1e-4)
    assert set(losses) == {"segmentation", "contrast"}


@each("n", [2, 3, 5])
def test_the_partner_is_another_image(n):
    made = task(batch=n)
    for step in range(20):
        partner = made.host_batch(step, 0, 1)[1][0].meta["partner"].numpy()
        assert (partner != np.arange(n)).all() and sorted(partner) == list(range(n))


def test_partners_change_between_steps():
    made = task(batch=5)
    assert (
        len(
            {
                tuple(made.host_batch(step, 0, 1)[1][0].meta["partner"].tolist())
                for step in range(12)
            }
        )
        > 1
    )


def test_intra_joins_two_views_of_the_same_geometry():
    made = task(matching="intra")
    _, (first, second) = made.host_batch(0, 0, 1)
    assert first.windows is second.windows and first.geometry is second.geometry
    _, (a, b) = batches(made)
    assert torch.equal(a.labels, b.labels) and not torch.allclose(a.images, b.images)
    assert len(task(matching="inter").host_batch(0, 0, 1)[1]) == 1


def test_contrast_teaches_the_network_below_the_head_and_not_the_classifier():
    made = task()
    made.losses(batches(made), 0.0)["contrast"].backward()
    touched = {
        n.split(".")[0] for n, p in made.module.network.named_parameters() if p.grad is not None
    }
    assert touched == {"encoder", "decoder"}
    assert all(p.grad is not None for p in made.module.projector.parameters())


def test_pseudo_labels_join_the_segmentation_only_with_a_weight():
    made = task(pseudo_weight=0.25)
    made.module.eval()
    labelled, views = batches(made)
    expected = dice_ce(made.module(views[0].images[:, 0])[0], views[0].labels[:, 0])
    assert torch.allclose(made.losses((labelled, views), 0.0)["pseudo"], 0.25 * expected, rtol=1e-4)


def test_batches_are_a_function_of_the_step():
    made = task()
    a, b, c = (made.host_batch(step, 0, 1)[1][0].meta["noise"] for step in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (3, 2, 3) and a.min() >= 0 and a.max() < 1


def test_separation_in_closed_form():
    """Two classes: same direction 0, orthogonal 1, opposite 2; a single foreground class 1."""
    labels = torch.tensor([[1, 1, 2, 2, 0]])
    for direction, expected in (([1.0, 0.0], 0.0), ([0.0, 1.0], 1.0), ([-2.0, 0.0], 2.0)):
        x, y = direction
        features = torch.tensor([[[3.0, 3.0, x, x, 7], [0.0, 0.0, y, y, 7]]])
        assert separation(features, labels, 3).item() == pytest.approx(expected, abs=1e-6)
    assert separation(features, labels.clamp_max(1), 2).item() == 1
