"""What reports say about pre-training and about self-training's rounds."""

import json
import re

import numpy as np
import pytest
import torch

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events
from MedSSLLib.data.meta_labels import MetaLabels
from MedSSLLib.data.plan import Plan
from MedSSLLib.evaluation.scoring import dice_against
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume
from MedSSLLib.images.labels import Annotated
from MedSSLLib.inference.embedding_map import (
    MAP_FILE,
    MOST_SLICES,
    map_slices,
    principal_components,
    slices_on_map,
)
from MedSSLLib.losses.contrastive import pixel_contrast
from MedSSLLib.networks.unet import build_encoder
from MedSSLLib.pretraining.pretrain import run_pretrain
from MedSSLLib.project.manifest import Case
from MedSSLLib.project.project import Project
from MedSSLLib.reporting import diagnostics
from MedSSLLib.reporting import rounds as rounds_section
from MedSSLLib.reporting.diagnostics import embedding_map
from MedSSLLib.reporting.html import Page
from MedSSLLib.reporting.plots import to_png
from MedSSLLib.reporting.run_report import write_run_report
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import tiny_config, tiny_project

KINDS = ("non_conflicting", "slightly_conflicting", "conflicting")


def write_events(folder, rows):
    lines = [
        json.dumps({"event": "progress", "time": 0.0, "stage": "pretrain", "losses": {}, **row})
        for row in rows
    ]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "events.jsonl"


def test_a_step_run_again_after_a_resume_counts_once(tmp_path):
    rows = [
        {"step": step, "figures": {"cosine": value}}
        for step, value in ((1, 0.1), (3, 0.3), (2, 0.2), (3, 0.4))
    ]
    assert diagnostics.diagnostics(write_events(tmp_path, rows)) == {
        "cosine": [(1, 0.1), (2, 0.2), (3, 0.4)]
    }


def test_a_run_without_events_has_no_figures(tmp_path):
    assert diagnostics.diagnostics(tmp_path / "events.jsonl") == {}


def test_shares_are_stacked_to_one():
    shares = np.asarray([[0.7, 0.5, 0.2], [0.2, 0.3, 0.3], [0.1, 0.2, 0.5]])
    figure = diagnostics.conflict_plot(
        {k: list(enumerate(s)) for k, s in zip(KINDS, shares, strict=True)}
    )
    areas = figure.axes[0].collections
    tops = [np.asarray(area.get_paths()[0].vertices)[:, 1].max() for area in areas]
    assert len(areas) == 3
    assert tops[-1] == pytest.approx(1.0)


@each(
    "name, sentences",
    [
        ("pgl", ["mismatched places", "collapsed", "both views show", "rises to 1"]),
        ("simclr", ["the other one of the same image"]),
        ("restoration", ["restored ones explain"]),
        ("gcl", ["GCL Fig. 3", "nearest slice", "GradMitigator"]),
    ],
)
def test_pages_show_what_the_method_measures(tmp_path, name, sentences):
    pgl = {
        "cosine": 0.9,
        "cosine_mismatched": 0.5,
        "feature_std": 0.7,
        "shared": 0.8,
        "ema_momentum": 0.99,
    }
    others = {"simclr": {"retrieval": 0.5}, "restoration": {"explained": 0.4}}
    gcl = {
        "retrieval/patient": 0.3,
        "gradient/cosine/patient-phase": 0.2,
        "gradient/target_cosine": 0.1,
    }
    gcl |= {f"gradient/{kind}": share for kind, share in zip(KINDS, (0.5, 0.3, 0.2), strict=True)}
    write_events(
        tmp_path,
        [{"step": s, "figures": ({"pgl": pgl, "gcl": gcl} | others)[name]} for s in range(1, 4)],
    )
    page = Page("x", "y")
    diagnostics.add_diagnosis(page, tmp_path)
    text = page.write(tmp_path / "page.html", "").read_text(encoding="utf-8")
    assert all(sentence in text for sentence in sentences)


def text_of(tmp_path, add):
    page = Page("x", "y")
    add(page)
    return page.write(tmp_path / "page.html", "").read_text(encoding="utf-8")


def test_a_pool_that_grows_is_drawn_with_the_reason_for_higher_losses(tmp_path):
    write_events(
        tmp_path,
        [
            {"step": step, "figures": {"pool": size}}
            for step, size in ((1, 1.0), (2, 2.0), (3, 4.0))
        ],
    )
    text = text_of(tmp_path, lambda page: diagnostics.add_pool(page, tmp_path))
    assert "<img" in text and "ln 4 = 1.39" in text
    write_events(tmp_path, [{"step": step, "figures": {"pool": 1.0}} for step in (1, 2)])
    assert "<img" not in text_of(tmp_path, lambda page: diagnostics.add_pool(page, tmp_path))


def test_the_least_pixel_loss_of_k_positives_is_ln_k():
    """What the caption of the pool says: equal positives, far from all negatives."""
    direction = torch.eye(3, dtype=torch.float64)[0]
    for k in (1, 2, 4):
        others = torch.stack([direction] * k + [-direction] * 5)[None]
        pool = torch.arange(k)[None, None]
        loss = pixel_contrast(direction[None, None], others, pool, pool[..., :0], 0.01)
        assert float(loss) == pytest.approx(np.log(k), abs=1e-9)


def test_meta_labels_are_tabulated_with_the_reason_where_one_is_not_used(tmp_path):
    facts = {
        "meta": {"patient": 5, "phase": 2},
        "anchors_with_positive": {"patient": 0.125},
        "anchors_with_positive_in_another_patient": {"phase": 0.5},
        "dropped": {"site<": "it has one class only"},
    }
    text = text_of(tmp_path, lambda page: diagnostics.add_meta_labels(page, facts))
    cells = [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    ]
    assert [row for row in cells if row] == [
        ["patient", "5", "12%", "–", "used"],
        ["phase", "2", "–", "50%", "used"],
        ["site&lt;", "–", "–", "–", "not used: it has one class only"],
    ]
    assert "<table" not in text_of(
        tmp_path, lambda page: diagnostics.add_meta_labels(page, {"steps": 3})
    )


def test_the_legend_of_the_map_lies_below_the_dots():
    rng = np.random.default_rng(0)
    labels = {
        "few": {
            "values": rng.integers(0, 7, 40).tolist(),
            "classes": [f"a class {n}" for n in range(7)],
        },
        "many": {"values": list(range(40)), "classes": [f"p{n}" for n in range(40)]},
    }
    figure = embedding_map(
        {"points": rng.normal(size=(40, 2)).tolist(), "labels": labels, "explained": [0.5, 0.2]}
    )
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    assert not legend.overlaps(axes.get_window_extent()) and not legend.overlaps(
        axes.xaxis.label.get_window_extent()
    )
    assert (
        legend.y0 >= 0
        and axes.get_window_extent().height > 150
        and figure.axes[1].get_legend() is None
    )


@pytest.fixture
def trained(tmp_path):
    """A project, and a run folder with pseudo-labels of two rounds for four cases."""
    geometry = Geometry((6, 5, 4), (1.0, 1.0, 3.0))
    rng = np.random.default_rng(0)
    folder, rounds = tmp_path / "run", []
    (tmp_path / "images").mkdir()
    for number in range(4):
        io.write_image(
            tmp_path / "images" / f"c{number}.nii.gz",
            Volume(rng.normal(size=(4, 5, 6)).astype(np.float32), geometry),
        )
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    (tmp_path / "labels").mkdir()
    io.write_image(tmp_path / "labels" / "c0.nii.gz", Volume(label, geometry))
    for part in (1, 2):
        cases = {}
        for number in range(4):
            io.write_image(
                folder / "pseudo" / f"round-{part}" / f"c{number}.nii.gz", Volume(label, geometry)
            )
            cases[f"c{number}"] = {
                "voxels": {"class_1": 10 * number * part},
                "confidence": 0.9 - 0.1 * number,
                "agreement": None,
            }
        rounds.append(
            {
                "round": part,
                "pseudo": {"cases": cases, "kept": ["c0", "c1", "c2"]},
                "dice": None,
                "separation": 0.25 * part,
            }
        )
    project = Project.create(tmp_path / "project", tmp_path / "images", labels=tmp_path / "labels")
    assert project.classes[1:] == ("class_1",)
    return project, folder, rounds


def test_rounds_are_tabulated_with_means_over_cases(trained):
    project, _, rounds = trained
    row = rounds_section._round_row(project, rounds[1])
    assert row == ["2", "4", "3", "0.750", "30", "0.500", "–"]


def test_least_certain_case_first_and_every_round_beside_it(trained, tmp_path):
    project, folder, rounds = trained
    assert rounds_section._cases_shown(rounds[0]["pseudo"]["cases"])[0] == "c3"
    assert rounds_section._cases_shown(rounds[0]["pseudo"]["cases"])[-1] == "c0"
    panel = rounds_section._panel(project, folder, "c3")
    assert list(panel.labels) == ["scan", "before round 1", "before round 2"]
    page = Page("x", "y")
    rounds_section.add_rounds(page, project, folder, rounds)
    assert "Pseudo-labels before each round" in page.write(tmp_path / "page.html", "").read_text(
        encoding="utf-8"
    )


def test_pseudo_labels_are_scored_by_labels_that_training_did_not_read(trained, tmp_path):
    project, folder, rounds = trained
    references = tmp_path / "references"
    grid = io.read_header(tmp_path / "images" / "c1.nii.gz")
    for name, voxels in (("c1", 8), ("c2", 4), ("c3", 0)):  # of the 8 voxels of a pseudo-label
        label = np.zeros(8, np.uint8)
        label[:voxels] = 1
        array = np.zeros((4, 5, 6), np.uint8)
        array[1:3, 1:3, 1:3] = label.reshape(2, 2, 2)
        io.write_image(references / f"{name}.nii.gz", Volume(array, grid))
    assert dice_against(project, folder / "pseudo" / "round-1", references) == {
        "c1": 1.0,
        "c2": pytest.approx(2 * 4 / 12),
        "c3": 0.0,
    }
    page = Page("x", "y")
    rounds_section.add_rounds(page, project, folder, rounds, references)
    text = page.write(tmp_path / "page.html", "").read_text(encoding="utf-8")
    assert "pseudo-label Dice (cases)" in text and "0.556 (3)" in text
    drawn = Annotated.of([(0, [1])])
    project.set_label("c1", references / "c1.nii.gz")
    project.set_annotated("c1", drawn)
    assert set(dice_against(project, folder / "pseudo" / "round-1", references)) == {"c2", "c3"}, (
        "drawn by a person"
    )


def test_pseudo_labels_are_not_scored_where_the_reference_is_to_be_ignored(trained, tmp_path):
    project, folder, _ = trained
    array = np.zeros((4, 5, 6), np.uint8)
    array[1, 1:3, 1:3], array[2, 1:3, 1:3] = 1, 9
    io.write_image(
        tmp_path / "references" / "c2.nii.gz",
        Volume(array, io.read_header(tmp_path / "images" / "c2.nii.gz")),
    )
    project.set_labels({0: "background", 1: "class_1", 9: "ignore"})
    assert dice_against(project, folder / "pseudo" / "round-1", tmp_path / "references") == {
        "c2": 1.0
    }


def test_references_that_fit_no_pseudo_label_are_refused(trained, tmp_path):
    project, folder, rounds = trained
    (tmp_path / "labels" / "c0.nii.gz").rename(tmp_path / "labels" / "other.nii.gz")
    with pytest.raises(InputError, match="none of the labels"):
        rounds_section.add_rounds(Page("x", "y"), project, folder, rounds, tmp_path / "labels")
    with pytest.raises(InputError, match="no pseudo-labels to score"):
        rounds_section.add_rounds(Page("x", "y"), project, folder, [], tmp_path / "labels")


def test_a_vanished_scan_leaves_its_panel_out(trained, tmp_path):
    project, folder, _ = trained
    (tmp_path / "images" / "c3.nii.gz").unlink()
    assert rounds_section._panel(project, folder, "c3") is None


def test_principal_components_against_the_covariance():
    table = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([5, 3, 1, 1, 0.1, 0]) + 7
    points, shares = principal_components(table, 2)
    variance, axes = np.linalg.eigh(np.cov(table.T))
    np.testing.assert_allclose(shares, variance[::-1][:2] / variance.sum())
    np.testing.assert_allclose(
        np.abs(points), np.abs((table - table.mean(0)) @ axes[:, ::-1][:, :2]), atol=1e-9
    )
    assert (points.max(0) >= -points.min(0)).all()
    single, none = principal_components(np.ones((3, 1)), 2)
    assert not single.any() and not none.any()


class Scans:
    """What a map asks of the cache: preprocessed images ``[c, d, h, w]`` by name."""

    def __init__(self, **images):
        self.images = images

    def shape(self, name):
        return self.images[name].shape

    def image(self, name, low, high):
        return self.images[name]


def mapped(**images):
    """The map of some images by a fixed random encoder."""
    torch.manual_seed(0)
    encoder = build_encoder(2, 1, ((1, 1), (2, 2)), NetworkConfig(widths=(4, 8)))
    cases = [Case(name, (f"{name}.nii.gz",)) for name in images]
    slices = np.array([image.shape[1] for image in images.values()])
    meta = MetaLabels({"patient": tuple(images)}, {"patient": np.arange(len(images))}, slices)
    plan = Plan(
        dim=2,
        spacing=(None, 1.0, 1.0),
        slice_axis="own",
        modality=("MR",),
        channels=1,
        patch=(16, 16),
        strides=((1, 1), (2, 2)),
    )
    return map_slices(encoder, Scans(**images), cases, meta, plan, torch.device("cpu"))


def test_empty_slices_change_nothing_of_a_map():
    """Air above and below moves no dot: neither the scale nor the components know of it."""
    one, two = np.random.default_rng(1).normal(size=(2, 1, 5, 16, 16)).astype(np.float32)
    air = np.full((1, 3, 16, 16), -9.0, np.float32)
    padded = mapped(one=np.concatenate([air, one, air[:, :2]], 1), two=two)
    alone = mapped(one=one, two=two)
    np.testing.assert_allclose(padded["points"], alone["points"], atol=1e-5)
    np.testing.assert_allclose(padded["explained"], alone["explained"], atol=1e-6)
    assert padded["slices"] == [["one", n] for n in range(3, 8)] + [["two", n] for n in range(5)]
    assert padded["labels"]["patient"]["values"] == [0] * 5 + [1] * 5
    with pytest.raises(RuntimeError, match="every slice is empty"):
        mapped(one=air)


def test_a_map_shows_slices_evenly_from_the_first_to_the_last_that_is_not_empty():
    image = np.random.default_rng(0).normal(size=(1, 100, 4, 4))
    image[:, :20] = image[:, 90:] = 0
    shown = slices_on_map(image)
    assert len(shown) == MOST_SLICES and shown[0] == 20 and shown[-1] == 89
    assert set(np.diff(shown)) == {2, 3}
    assert slices_on_map(image[:, :30]).tolist() == list(range(20, 30))
    assert not len(slices_on_map(np.zeros((1, 4, 4, 4))))


def test_a_gcl_run_maps_its_slices_and_the_report_shows_them(tmp_path):
    project = tiny_project(tmp_path, 3)
    config = tiny_config("pretrain", method="gcl", name="map", dim="2d", training__batch=4)
    folder = run_pretrain(project, config, Events())
    content = json.loads((folder / MAP_FILE).read_text())
    slices = [case for case, _ in content["slices"]]
    assert sorted(set(slices)) == [case.name for case in project.pool] and len(
        content["points"]
    ) == len(slices)
    patients = content["labels"]["patient"]
    by_case = {
        case: {
            value for other, value in zip(slices, patients["values"], strict=True) if other == case
        }
        for case in set(slices)
    }
    assert (
        sorted(len(values) for values in by_case.values()) == [1, 1, 1]
        and len(set.union(*by_case.values())) == 3
    )
    positions = [
        value
        for (case, _), value in zip(
            content["slices"], content["labels"]["position"]["values"], strict=True
        )
        if case == slices[0]
    ]
    assert positions == sorted(positions) and set(positions) == {0, 1, 2, 3}
    assert to_png(embedding_map(content), dpi=40)[:4] == b"\x89PNG"
    page = write_run_report(project, "map", tmp_path / "map.html").read_text("utf-8")
    assert (
        "principal components" in page
        and "with a positive" in page
        and "options.temperature" in page
    )
