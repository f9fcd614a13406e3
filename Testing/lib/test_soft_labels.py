"""Soft pseudo-labels: what a voxel is taught and how much it counts, on views, in the loss and in a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedSSLLib import selftrain
from MedSSLLib.checkpoint import load_tensors
from MedSSLLib.errors import MedSSLError
from MedSSLLib.events import Events
from MedSSLLib.joint import JointTask
from MedSSLLib.labels import IGNORE
from MedSSLLib.losses import dice_ce
from MedSSLLib.sampling import make_views
from MedSSLLib.segmentation import SegmentationTask
from MedSSLLib.soft_labels import SoftLabels, write_probabilities
from Testing.lib.core_helpers import PLAIN
from Testing.lib.semi_helpers import CPU, PATCH, network, plan, reader, sampler
from Testing.lib.test_selftrain import project_of, settings

SHAPE, CLASSES = (4, 5, 6), 3


@pytest.fixture
def stored(tmp_path):
    """Random probabilities of case x, rounded as they are stored, and their reader."""
    rng = np.random.default_rng(0)
    steps = rng.multinomial(255, (0.5, 0.3, 0.2), SHAPE).transpose(3, 0, 1, 2)
    probabilities = steps / 255
    write_probabilities(tmp_path, "x", probabilities, 3)
    return probabilities, SoftLabels(tmp_path, CLASSES)


def by_hand(probabilities, label, lo):
    """Voxel by voxel: probability times confidence; the class alone where it is not the likeliest; else nothing."""
    result = np.zeros((CLASSES, *label.shape))
    for index in np.ndindex(label.shape):
        value, place = label[index], tuple(np.add(index, lo))
        if value == IGNORE:
            continue
        inside = all(0 <= a < n for a, n in zip(place, SHAPE, strict=True))
        p = probabilities[(slice(None), *place)] if inside else np.zeros(CLASSES)
        if p.argmax() == value and inside:
            result[(slice(None), *index)] = p * p.max()
        else:
            result[(value, *index)] = 1
    return result


@pytest.mark.parametrize(("lo", "size"), [((0, 0, 0), SHAPE), ((1, 2, 3), (2, 2, 2)), ((-2, 3, -1), (5, 6, 4))])
def test_targets_are_probabilities_times_the_confidence(stored, lo, size):
    probabilities, soft = stored
    rng = np.random.default_rng(1)
    whole = np.pad(probabilities.argmax(0), 8, constant_values=IGNORE)  # outside the volume nothing counts
    label = whole[tuple(slice(a + 8, a + 8 + n) for a, n in zip(lo, size, strict=True))].astype(np.uint8)
    changed = (rng.random(size) < 0.3) & (label != IGNORE)
    label[changed] = (label[changed] + 1) % CLASSES  # cleaned, or drawn by a person
    label[rng.random(size) < 0.1] = IGNORE
    found = soft.targets("x", lo, label)
    assert found.dtype == np.float32 and np.allclose(found, by_hand(probabilities, label, lo), atol=1e-6)


def test_drawn_cases_count_fully(stored):
    label = np.random.default_rng(0).integers(0, CLASSES, SHAPE).astype(np.uint8)
    label[0, 0] = IGNORE
    found = stored[1].targets("drawn", (0, 0, 0), label)
    assert np.array_equal(found.sum(0), label != IGNORE) and np.array_equal(found.argmax(0)[1:], label[1:])


def test_a_damaged_file_is_an_error(stored, tmp_path):
    (tmp_path / "probabilities" / "x" / "data.b2nd").write_bytes(b"no")
    with pytest.raises(MedSSLError, match="damaged"):
        stored[1].targets("x", (0, 0, 0), np.zeros(SHAPE, np.uint8))


def written(folder, dim, sure=1.0):
    """A sampler of c0 (drawn) and c1, whose pseudo-labels the model is `sure` of."""
    source = reader(("c0", "c1"))
    label = source.labels["c1"]
    ones = (label == np.arange(CLASSES)[:, None, None, None]).astype(float)
    write_probabilities(folder, "c1", ones * sure + (1 - ones) * (1 - sure) / 2, dim)
    return sampler(dim, source=source, soft=SoftLabels(folder, CLASSES))


@pytest.mark.parametrize("dim", [2, 3])
def test_targets_follow_the_class_maps_through_turns_flips_and_deformation(tmp_path, dim):
    """Linear and nearest resampling agree away from edges; outside the window nothing counts."""
    made = written(tmp_path, dim)
    batch = make_views(made.sample(0), PATCH[dim], CPU)
    counted = batch.labels != IGNORE
    assert batch.targets.shape == (2, 1, CLASSES, *PATCH[dim])
    assert (batch.targets.sum(2)[~counted] == 0).all() and counted.any()
    agree = (batch.targets.argmax(2) == batch.labels) | ~counted
    assert agree.float().mean() > 0.97
    assert len(batch.labels[counted].unique()) == CLASSES


@pytest.mark.parametrize("dim", [2, 3])
def test_the_loss_weighs_pseudo_labels_by_confidence(tmp_path, dim):
    """Certain pseudo-labels teach what class maps do; unsure ones count less beside drawn cases."""
    losses = {}
    for sure in (1.0, 0.6):
        source = replace(written(tmp_path / str(sure), dim, sure), augment=PLAIN, batch=4)
        labelled = SegmentationTask(network(dim), sampler(dim), plan(dim), CPU)
        made = JointTask(labelled, source, CLASSES, "inter", 0.0, 1.0)
        made.module.eval()
        batch = made.device_batch(made.host_batch(0, 0, 1))
        view = batch[1][0]
        losses[sure] = made.losses(batch, 0.0)["pseudo"]
        weight = view.targets[:, 0].sum(1)[view.labels[:, 0] != IGNORE]
        assert {round(float(x), 2) for x in weight.unique()} == {1.0, sure}
        logits = made.module(view.images[:, 0])[0]
        hard = dice_ce(logits, view.labels[:, 0])
        assert torch.isclose(losses[sure], hard, atol=1e-5) == (sure == 1.0)


def test_both_views_of_intra_matching_share_the_targets(tmp_path):
    labelled = SegmentationTask(network(2), sampler(2), plan(2), CPU)
    made = JointTask(labelled, written(tmp_path, 2), CLASSES, "intra", 0.1, 1.0)
    first, second = made.host_batch(0, 0, 1)[1]
    assert first.targets is not None and second.targets is None
    assert set(made.losses(made.device_batch(made.host_batch(0, 0, 1)), 0.0)) == {"segmentation", "contrast", "pseudo"}


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_a_run_with_soft_pseudo_labels(tmp_path, dim):
    """Probabilities of every round lie beside its class maps on the training grid, and change what is learnt."""
    project = project_of(tmp_path)
    found = {}
    for soft in (True, False):
        folder = selftrain.run_selftrain(project, settings(name=f"soft-{soft}", dim=dim, options__soft=soft), Events())
        entries = {path.name for path in folder.glob("pseudo/round-*/probabilities/*")}
        assert entries == ({"case1", "case2"} if soft else set())
        found[soft] = load_tensors(folder / "weights.safetensors")[0]
    assert any(not torch.equal(found[True][name], found[False][name]) for name in found[True])
