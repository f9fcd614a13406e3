"""Soft pseudo-labels: what a voxel is taught and how much it counts, on views, in the loss and in a
run.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.core.files import read_json
from MedSSLLib.data.batch import make_views
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.preprocessing.image import preprocess_image
from MedSSLLib.data.preprocessing.label import preprocess_label
from MedSSLLib.finetuning.segmentation_task import SegmentationTask
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import IGNORE, Annotated, counted_mask
from MedSSLLib.inference.model import Model
from MedSSLLib.losses.dice_ce import dice_ce
from MedSSLLib.project.manifest import Case
from MedSSLLib.selftraining import pseudo_labels, selftrain
from MedSSLLib.selftraining.cleaning import Cleaned
from MedSSLLib.selftraining.local_contrast_task import JointTask
from MedSSLLib.selftraining.pseudo_labels import PseudoOptions, write_pseudo_labels
from MedSSLLib.selftraining.soft_labels import SoftLabels, write_probabilities
from MedSSLLib.training.checkpoint import load_tensors
from Testing.lib.core_helpers import PLAIN
from Testing.lib.selftraining.test_selftrain import project_of, settings
from Testing.lib.semi_helpers import CPU, PATCH, network, plan, reader, sampler

SHAPE, CLASSES = (4, 5, 6), 3


@pytest.fixture
def stored(tmp_path):
    """Random probabilities of case x, rounded as they are stored, the class map they stand for, and
    their reader.
    """
    rng = np.random.default_rng(0)
    steps = rng.multinomial(255, (0.5, 0.3, 0.2), SHAPE).transpose(3, 0, 1, 2)
    probabilities = steps / 255
    own = probabilities.argmax(0).astype(np.uint8)
    own[rng.random(SHAPE) < 0.2] = IGNORE  # drawn, accepted or cleaned
    slanted = (
        rng.random(SHAPE) < 0.1
    )  # the class map was resampled, so it is not the likeliest class everywhere
    own[slanted & (own != IGNORE)] = (own[slanted & (own != IGNORE)] + 1) % CLASSES
    write_probabilities(tmp_path, "x", probabilities, own, 3)
    return probabilities, own, SoftLabels(tmp_path, CLASSES, frozenset("x"))


def by_hand(probabilities, own, label, lo):
    """Voxel by voxel: probability times confidence where the model decides; the class alone
    elsewhere; or nothing.
    """
    result = np.zeros((CLASSES, *label.shape))
    for index in np.ndindex(label.shape):
        value, place = label[index], tuple(np.add(index, lo))
        if value == IGNORE:
            continue
        inside = all(0 <= a < n for a, n in zip(place, SHAPE, strict=True))
        if inside and own[place] == value:
            p = probabilities[(slice(None), *place)]
            result[(slice(None), *index)] = p * p.max()
        else:
            result[(value, *index)] = 1
    return result


@pytest.mark.parametrize(
    ("lo", "size"), [((0, 0, 0), SHAPE), ((1, 2, 3), (2, 2, 2)), ((-2, 3, -1), (5, 6, 4))]
)
def test_targets_are_probabilities_times_the_confidence(stored, lo, size):
    probabilities, own, soft = stored
    rng = np.random.default_rng(1)
    classes = np.where(own == IGNORE, probabilities.argmax(0), own)
    whole = np.pad(classes, 8, constant_values=IGNORE)  # outside the volume nothing counts
    label = whole[tuple(slice(a + 8, a + 8 + n) for a, n in zip(lo, size, strict=True))].astype(
        np.uint8
    )
    changed = (rng.random(size) < 0.3) & (label != IGNORE)
    label[changed] = (label[changed] + 1) % CLASSES  # a person changed the file afterwards
    label[rng.random(size) < 0.1] = IGNORE
    found = soft.targets("x", lo, label)
    assert found.dtype == np.float32 and np.allclose(
        found, by_hand(probabilities, own, label, lo), atol=1e-6
    )


def test_drawn_cases_count_fully(stored):
    label = np.random.default_rng(0).integers(0, CLASSES, SHAPE).astype(np.uint8)
    label[0, 0] = IGNORE
    found = stored[2].targets("drawn", (0, 0, 0), label)
    assert np.array_equal(found.sum(0), label != IGNORE) and np.array_equal(
        found.argmax(0)[1:], label[1:]
    )


@pytest.mark.parametrize("missing", [False, True])
def test_a_missing_or_damaged_file_is_an_error_that_says_how_to_make_it_again(
    stored, tmp_path, missing
):
    path = tmp_path / "probabilities" / "x" / "data.b2nd"
    path.unlink() if missing else path.write_bytes(b"no")
    with pytest.raises(InputError, match=f"x.*missing or damaged. Remove {tmp_path} and resume"):
        stored[2].targets("x", (0, 0, 0), np.zeros(SHAPE, np.uint8))


GRIDS = [(1.0, 1.0, 3.0), (1.3, 0.8, 2.0)]  # that of training, and another one


def round_of(tmp_path, spacing, **changes):
    """Weights and class map on the training grid of a case with a drawn slice, and where that slice
    lies.
    """
    rng = np.random.default_rng(3)
    source = Geometry((20, 16, 8), spacing)
    made = make_plan([Geometry((20, 16, 8), GRIDS[0])], modality="MR", dim="3d")
    io.write_image(
        tmp_path / "x.nrrd", Volume(rng.normal(size=source.shape).astype(np.float32), source)
    )
    drawn = np.ones(source.shape, np.int16)
    io.write_image(tmp_path / "drawn.nrrd", Volume(drawn, source))
    case = Case("x", (tmp_path / "x.nrrd",), tmp_path / "drawn.nrrd", Annotated.of([(2, [3])]))
    _, grid = preprocess_image([io.read_image(case.images[0])], made)
    noise = ndimage.gaussian_filter(rng.normal(size=(CLASSES, *grid.shape)), (0, 1, 2, 2))
    found = torch.from_numpy(12 * noise).softmax(0)
    whole = Model(
        network=None,
        plan=made,
        values=(0, 1, 2),
        classes=("background", "a", "b"),
        device=torch.device("cpu"),
        precision="32",
        single_component=(1, 2),
    )
    model = SimpleNamespace(
        probabilities=lambda volumes: (found, grid),
        plan=made,
        class_map=whole.class_map,
        kept=whole.kept,
        classes=whole.classes,
    )
    names = {0: "background", 1: "a", 2: "b"}
    project = SimpleNamespace(
        values=tuple(names), classes=tuple(names.values()), labels=names, ignore_value=None
    )
    options = PseudoOptions(clean="none", soft=True, shapes=False)
    summary = write_pseudo_labels(
        project, model, [case], tmp_path / "r", replace(options, **changes)
    )
    label = preprocess_label(io.read_label(tmp_path / "r" / "x.nii.gz", source), grid)
    targets = SoftLabels(tmp_path / "r", CLASSES, frozenset(summary["kept"])).targets(
        "x", (0, 0, 0), label
    )
    drawn = (
        preprocess_label(
            Volume(counted_mask(source.shape, case.annotated).astype(np.uint8), source), grid
        )
        > 0
    )
    return targets, label, found.numpy(), drawn


@pytest.mark.parametrize("spacing", GRIDS)
def test_drawn_slices_are_certain_and_all_else_counts_by_confidence_on_any_grid(tmp_path, spacing):
    """The class map went over the scan's grid, so beside an edge it may differ from the likeliest
    class.
    """
    targets, label, found, drawn = round_of(tmp_path, spacing)
    assert drawn.any() and (targets[:, drawn] == np.array([0, 1, 0])[:, None]).all()
    far = ~ndimage.binary_dilation(drawn, iterations=2)
    assert far.any() and np.allclose(targets[:, far], (found * found.max(0))[:, far], atol=0.01)
    assert (label[far] != found.argmax(0)[far]).any() == (spacing != GRIDS[0])


@pytest.mark.parametrize("spacing", GRIDS)
def test_what_clean_up_changed_is_certain(tmp_path, spacing):
    plain, before, *_ = round_of(tmp_path / "a", spacing)
    targets, label, *_ = round_of(tmp_path / "b", spacing, clean="components")
    changed = before != label
    certain = (targets.max(0) == 1) & (targets.argmax(0) == label)
    assert changed.any() and certain[changed].mean() > (0.999 if spacing == GRIDS[0] else 0.9)
    assert targets.sum(0).mean() < 1 and plain.sum(0).mean() < targets.sum(0).mean()


@pytest.mark.parametrize("spacing", GRIDS)
def test_doubtful_pieces_count_neither_as_structure_nor_as_background(
    tmp_path, monkeypatch, spacing
):
    """In doubt is here every voxel of class 2 in one half of the scan, whatever its piece."""

    def half_in_doubt(model, classes, likely, drawn):
        doubtful = classes == 2
        doubtful[..., : classes.shape[-1] // 2] = False
        return Cleaned(classes, doubtful)

    monkeypatch.setattr(pseudo_labels, "cleaned", half_in_doubt)
    targets, label, _, drawn = round_of(tmp_path, spacing, clean="components")
    second = (label == 2) & (np.arange(label.shape[-1]) >= label.shape[-1] // 2)
    core = ndimage.binary_erosion(second, iterations=1) if spacing != GRIDS[0] else second
    assert core.sum() > 20 and not targets[:, core].any()
    far = ~ndimage.binary_dilation(second, iterations=2)
    assert targets[:, far].sum(0).min() > 0.1, "all else counts"
    assert (targets[:, drawn].sum(0) == 1).all(), "and what a person has drawn"
    row = read_json(tmp_path / "r" / "summary.json")["cases"]["x"]
    assert not row["taken_away"] and list(row["in_doubt"]) == ["b"], "that is said"
    assert row["voxels"]["b"] < (io.read_image(tmp_path / "r" / "x.nii.gz").array == 2).sum()


@pytest.mark.parametrize("spacing", GRIDS)
def test_an_accepted_case_is_certain_everywhere(tmp_path, spacing):
    round_of(tmp_path, spacing)
    (tmp_path / "r").rename(tmp_path / "before")
    targets, label, *_ = round_of(tmp_path, spacing, accept=("x",), fixed=tmp_path / "before")
    assert np.array_equal(targets, label == np.arange(CLASSES)[:, None, None, None])
    targets, *_ = round_of(tmp_path / "other", spacing, accept=("x",))
    assert (targets.sum(0) < 0.99).any(), "used in any case, but nobody has looked at it"


def test_with_a_random_field_its_probabilities_teach(tmp_path):
    """The class map follows the smoothed probabilities; so do the targets."""
    targets, _, found, drawn = round_of(tmp_path, GRIDS[0], clean="crf")
    confidence = io.read_image(
        tmp_path / "r" / "confidence" / "x.nii.gz"
    ).array  # on the training grid here
    as_file = np.isclose(np.sqrt(targets.max(0)), confidence, atol=0.005)
    assert (as_file | (targets.max(0) == 1)).all() and as_file[~drawn].mean() > 0.6
    assert not np.allclose(confidence, found.max(0), atol=0.05)


def test_the_shapes_between_drawn_slices_count_in_the_targets(tmp_path):
    """All that is drawn is class 1: beside that slice the shapes make it likelier, far away they do
    not.
    """
    plain, *_ = round_of(tmp_path / "a", GRIDS[0])
    shaped, _, _, drawn = round_of(tmp_path / "b", GRIDS[0], shapes=True)
    beside = ndimage.binary_dilation(drawn, iterations=1) & ~drawn
    share = [
        targets[1, beside].mean() / targets[:, beside].sum(0).mean() for targets in (plain, shaped)
    ]
    assert share[1] > 0.9 > 0.5 > share[0]


def written(folder, dim, sure=1.0):
    """A sampler of c0 (drawn) and c1, whose pseudo-labels the model is `sure` of."""
    source = reader(("c0", "c1"))
    label = source.labels["c1"]
    ones = (label == np.arange(CLASSES)[:, None, None, None]).astype(float)
    write_probabilities(folder, "c1", ones * sure + (1 - ones) * (1 - sure) / 2, label, dim)
    return sampler(dim, source=source, soft=SoftLabels(folder, CLASSES, frozenset({"c1"})))


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
        made = JointTask(
            labelled=labelled,
            contrast=source,
            classes=CLASSES,
            matching="inter",
            weight=0.0,
            pseudo_weight=1.0,
        )
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
    made = JointTask(
        labelled=labelled,
        contrast=written(tmp_path, 2),
        classes=CLASSES,
        matching="intra",
        weight=0.1,
        pseudo_weight=1.0,
    )
    first, second = made.host_batch(0, 0, 1)[1]
    assert first.targets is not None and second.targets is None
    assert set(made.losses(made.device_batch(made.host_batch(0, 0, 1)), 0.0)) == {
        "segmentation",
        "contrast",
        "pseudo",
    }


@pytest.mark.parametrize("dim", ["2d", "3d"])
def test_a_run_with_soft_pseudo_labels(tmp_path, dim):
    """Probabilities of every round lie beside its class maps on the training grid, and change what
    is learnt.
    """
    project = project_of(tmp_path)
    found = {}
    for soft in (True, False):
        folder = selftrain.run_selftrain(
            project,
            settings(
                name=f"soft-{soft}", dim=dim, options__soft=soft, options__confident=0.9 * soft
            ),
            Events(),
        )
        entries = {path.name for path in folder.glob("pseudo/round-*/probabilities/*")}
        assert entries == ({"case1", "case2"} if soft else set())
        found[soft] = load_tensors(folder / "weights.safetensors")[0]
    assert any(not torch.equal(found[True][name], found[False][name]) for name in found[True])
