"""The demo: choice of cases and slices, events, and the whole pipeline on tiny volumes."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from MedSSLLib.cli.main import main
from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.events import Events, relayed
from MedSSLLib.demo import demo
from MedSSLLib.demo.data import Cohort, gather
from MedSSLLib.demo.demo import annotate, run_demo
from MedSSLLib.demo.report import gain
from MedSSLLib.evaluation.scoring import Scored
from MedSSLLib.images import io
from MedSSLLib.images.geometry import Geometry, Volume


class Kept:
    """A sink that keeps events."""

    def __init__(self):
        self.events = []

    def write(self, event):
        self.events.append(event)

    def close(self):
        self.events.append({"event": "closed"})


def write_cases(folder, names, *, labels=True):
    """Bright boxes in noise, each with a small bright core, on a slightly anisotropic grid."""
    generator = np.random.default_rng(1)
    geometry = Geometry((24, 22, 14), (1.0, 1.0, 1.6))
    for name in names:
        label = np.zeros(geometry.shape, np.uint8)
        low = generator.integers(2, 5, 3)
        label[low[0] : low[0] + 8, low[1] : low[1] + 12, low[2] : low[2] + 12] = 1
        label[low[0] + 3 : low[0] + 6, low[1] + 4 : low[1] + 8, low[2] + 4 : low[2] + 8] = 2
        image = generator.normal(label * 50.0 + 100, 8).astype(np.float32)
        io.write_image(folder / "images" / f"{name}.nii.gz", Volume(image, geometry))
        if labels:
            io.write_image(folder / "labels" / f"{name}.nii.gz", Volume(label, geometry))
    return folder


NAMES = [f"case{n}" for n in range(8)]


def test_random_roles_keep_patients_apart_and_are_reproducible(tmp_path):
    folder = write_cases(tmp_path / "data", NAMES)
    rows = "\n".join(f"{name},p{n // 2 if n < 2 else n}" for n, name in enumerate(NAMES))
    (folder / "metadata.csv").write_text(f"case,patient\n{rows}\n")
    cohort = Cohort("x", folder, "")
    first, again = (cohort.project(tmp_path / name, seed=3) for name in ("a", "b"))
    assert [case.role for case in first.cases] == [case.role for case in again.cases]
    assert {case.patient for case in first.test}.isdisjoint({case.patient for case in first.pool})
    assert len({case.patient for case in first.labelled}) == 2
    assert len(first.classes) == 3


def test_splits_are_honoured(tmp_path):
    folder = write_cases(tmp_path / "data", NAMES)
    splits = {
        "test": NAMES[:2],
        "labelled": {"1": [[NAMES[4]]], "2": [[NAMES[5], NAMES[7]], [NAMES[6], NAMES[7]]]},
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    project = gather(str(folder), tmp_path, 0, Events()).project(tmp_path / "p", seed=0)
    assert [case.name for case in project.test] == NAMES[:2]
    assert [case.name for case in project.labelled] == [NAMES[5], NAMES[7]]
    (folder / "splits.json").write_text(json.dumps({"test": [], "labelled": {}}))
    with pytest.raises(InputError, match=r"splits\.json"):
        gather(str(folder), tmp_path, 0, Events()).project(tmp_path / "q", seed=0)


def test_too_few_subjects_and_unknown_folder(tmp_path):
    folder = write_cases(tmp_path / "data", NAMES[:4])
    with pytest.raises(InputError, match="needs 6"):
        Cohort("x", folder, "").project(tmp_path / "p", seed=0)
    with pytest.raises(InputError, match="simulated, hippocampus"):
        gather("nowhere", tmp_path, 0, Events())


def test_slices_lie_where_the_small_classes_are(tmp_path):
    geometry = Geometry((12, 12, 30), (1.0, 1.0, 2.0))
    label = np.zeros(geometry.shape, np.uint8)
    label[:] = 3
    label[10:19, 2:6, 2:6] = 1
    label[13:16, 7:9, 7:9] = 2
    for name in NAMES:
        io.write_image(
            tmp_path / "images" / f"{name}.nii.gz",
            Volume(np.random.rand(*geometry.shape), geometry),
        )
        io.write_image(tmp_path / "labels" / f"{name}.nii.gz", Volume(label, geometry))
    project = Cohort("x", tmp_path, "").project(tmp_path / "p", seed=0)
    annotate(project, 3)
    for case in type(project).open(project.folder).labelled:
        assert case.annotated is not None
        assert case.annotated.slices == ((2, (11, 14, 17)),)


def test_stages_relay_events_under_their_name_and_close_their_own_sinks():
    outer, inner = Kept(), Kept()
    events = Events([outer])
    with relayed(events, "pre-trained") as stage:
        stage.add(inner)
        stage.emit("start", command="finetune")
        stage.emit("metric", stage="finetune", step=3, score=0.5)
        stage.emit("done")
    events.emit("warning", message="after")
    assert [event["event"] for event in outer.events] == ["metric", "warning"]
    assert outer.events[0]["stage"] == "pre-trained: finetune"
    assert [event["event"] for event in inner.events] == ["start", "metric", "done", "closed"]


def test_gain_is_paired():
    def scored(**values):
        return Scored("x", {}, {"summary": {"dice": {"per_case": values}}})

    mean, low, high = gain((scored(a=0.1, b=0.9, c=None), scored(a=0.2, b=1.0, c=0.5)))
    assert mean == pytest.approx(0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    from monai.apps import DecathlonDataset

    missing = (tmp_path / "nothing.tar").as_uri()
    monkeypatch.setattr(DecathlonDataset, "resource", {"Task04_Hippocampus": missing})
    with pytest.raises(MedSSLError, match="--data simulated"):
        gather("hippocampus", tmp_path / "out", 0, Events())


def test_used_folder_and_unknown_budget_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="in use"):
        run_demo("simulated", "quick", tmp_path, Events())
    with pytest.raises(InputError, match="budget"):
        run_demo("simulated", "huge", tmp_path / "new", Events())
    assert not (tmp_path / "new").exists()


def tiny_rows(rows):
    """The rows of a budget in seconds; self-training needs a model that finds something."""
    return tuple(
        replace(
            row,
            first=0.04 if row.selftrain else 0.01,
            pretrain=0.01 * bool(row.pretrain),
            selftrain=0.01 * bool(row.selftrain),
        )
        for row in rows
    )


@pytest.mark.slow
def test_whole_demo_on_tiny_volumes(tmp_path, monkeypatch):
    budget = "quick"  # the standard one has more rows of the same kinds
    folder = write_cases(tmp_path / "data", NAMES)
    monkeypatch.setitem(demo.BUDGETS, budget, tiny_rows(demo.BUDGETS[budget]))
    kept = Kept()
    result = run_demo(str(folder), budget, tmp_path / "out", Events([kept]), device="cpu")
    assert result.report == tmp_path / "out" / "report.html"
    text = result.report.read_text(encoding="utf-8")
    assert "test cases that no model has seen" in text
    # with the colon: pictures are base64, in which four letters occur by chance
    assert "http:" not in text and "https:" not in text
    names = [f"metrics-{row.run}.json" for row in demo.BUDGETS[budget]]
    for name in (*names, "figures/overlays.png", "figures/cases.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    shown = [Path(event["file"]).name for event in kept.events if event["event"] == "image"]
    assert shown == ["cases.png", "overlays.png"] and result.picture.name == "overlays.png"
    head, rows = result.table()
    assert [len(row) for row in rows] == [len(head)] * len(names)
    assert [row[0] for row in rows] == [row.words for row in demo.BUDGETS[budget]]
    assert "on 2 scans that no model has seen" in result.verdict()
    assert (kept.events[0]["event"], kept.events[-1]["event"]) == ("start", "done")
    assert sum(event["event"] in ("start", "done") for event in kept.events) == 2
    commands = unescape(re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1]).splitlines()
    monkeypatch.chdir(tmp_path / "out")
    for line in commands:
        program, *argv = shlex.split(line)
        assert program == "medssl" and main(argv) == 0, line
    assert json.loads(Path("again.json").read_text())["summary"]["dice"]["n"] > 0


def test_all_models_of_a_budget_train_for_the_same_time():
    for rows in demo.BUDGETS.values():
        assert len({round(row.minutes, 6) for row in rows}) == 1
    quick = sum(row.minutes for row in demo.BUDGETS["quick"])
    assert quick < 4, "with simulating, predicting and the report five minutes"
