"""Every panel and the slice overlays, rendered and checked for what can be checked; look at them in $MEDSSL_PICTURES."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until

CAPTION = "Rendered by the test bench, not by 3D Slicer. Runs, predictions and figures are made up."
CLASSES = [
    (1, "right ventricle", (0.27, 0.53, 0.86), ""),
    (2, "myocardium", (0.35, 0.72, 0.42), ""),
    (3, "left ventricle", (0.90, 0.36, 0.30), ""),
]


def folder(tmp_path):
    path = Path(os.environ.get("MEDSSL_PICTURES") or tmp_path / "pictures")
    path.mkdir(parents=True, exist_ok=True)
    return path


def add_run(project, name, command, method, dice=None):
    """A finished run as the library leaves it, for pictures only."""
    run = project / "runs" / name
    run.mkdir(parents=True)
    config = {
        "command": command,
        "method": method,
        "init": "none" if command == "pretrain" else "gcl-1",
        "preset": "standard",
    }
    (run / "config.json").write_text(json.dumps({"config": config}))
    (run / "metrics.json").write_text(json.dumps({"dice": dice, "seconds": 1260}))
    (run / "weights.safetensors").write_bytes(b"")
    with open(run / "events.jsonl", "w") as stream:
        for step in range(20, 2001, 20):
            loss = 0.15 + 1.2 * np.exp(-step / 400) + 0.02 * np.sin(step)
            stream.write(
                json.dumps(
                    {
                        "event": "progress",
                        "stage": "train",
                        "step": step,
                        "steps": 2000,
                        "losses": {"loss": loss},
                    }
                )
                + "\n"
            )
            if step % 200 == 0:
                stream.write(
                    json.dumps(
                        {"event": "metric", "step": step, "dice": 0.86 * (1 - np.exp(-step / 350))}
                    )
                    + "\n"
                )


@pytest.fixture()
def scene(user, cohort, tmp_path):
    """A project as it looks after some work."""
    project = tmp_path / "heart study"
    user.open_project(project)
    user.shell.panels["data"].addPaths([str(cohort / "images")])
    user.settle()
    for number, case in enumerate(user.store.cases):
        user.store.setMetadata(case.name, "patient", f"P{number // 2 + 1:03d}")
        user.store.setMetadata(case.name, "phase", ("diastole", "systole")[number % 2])
    user.store.setClasses(CLASSES)
    user.store.updateCase("heart_06", role="test")
    for name in ("heart_02", "heart_03"):
        mark(user, cohort, name, (2, 6, 9))
    add_run(project, "gcl-1", "pretrain", "gcl")
    add_run(project, "finetune-1", "finetune", "supervised", 0.842)
    out = project / "predictions" / "finetune-1"
    (out / "uncertainty").mkdir(parents=True)
    for number in range(1, 7):
        name = f"heart_{number:02d}.nii.gz"
        shutil.copy(cohort / "labels" / name, out / name)
    user.store.changed.emit()
    wait_until(lambda: False, 0.2)
    return user


def mark(user, cohort, name, indices):
    """A case with some annotated slices, as the Annotate panel leaves it."""
    from MedSSLLib.images.geometry import Volume
    from MedSSLLib.images.io import read_image, write_image
    from MedSSLLib.images.labels import Annotated

    truth = read_image(cohort / "labels" / f"{name}.nii.gz")
    drawn = np.zeros_like(truth.array)
    drawn[list(indices)] = truth.array[list(indices)]
    path = user.store.folder / "labels" / f"{name}.nrrd"
    write_image(path, Volume(drawn, truth.geometry))
    user.store.setLabel(name, path, Annotated.of([(2, list(indices))]))


def add_uncertainty(cohort, project):
    from MedSSLLib.images.geometry import Volume
    from MedSSLLib.images.io import read_image, write_image

    for number in range(1, 7):
        name = f"heart_{number:02d}.nii.gz"
        label = read_image(cohort / "labels" / name)
        edge = np.zeros(label.array.shape, np.float32)
        for axis in (1, 2):
            for shift in (-1, 1):
                edge += np.roll(label.array, shift, axis) != label.array
        noise = np.random.default_rng(number).uniform(0.5, 1, edge.shape)
        write_image(
            project / "predictions" / "finetune-1" / "uncertainty" / name,
            Volume(np.clip(edge / 3 * noise, 0, 1).astype(np.float32), label.geometry),
        )


def draw(user, cohort, indices):
    from MedSSLLib.images.io import read_image

    truth = read_image(cohort / "labels" / "heart_01.nii.gz").array
    user.click("loadCaseButton")
    user.settle()
    for index in indices:
        for value in (1, 2, 3):
            mask = np.zeros(truth.shape, bool)
            mask[index] = truth[index] == value
            user.find("segmentEditor").paint(f"class_{value}", mask)
        wait_until(lambda: False, 0.45)
    user.shell.panels["annotate"].view.jumpTo(2, indices[-1])


@contextmanager
def shown_as(edit, path):
    """The path that a picture shows instead of that of the test."""
    true = edit.currentPath
    edit.blockSignals(True)
    edit.setCurrentPath(path)
    yield
    edit.setCurrentPath(true)
    edit.blockSignals(False)


def check(image, minimum=8):
    """The picture shows something: many colours, no single one everywhere."""
    small = image.scaled(160, 160)
    colours = {small.pixel(x, y) for x in range(0, 160, 2) for y in range(0, 160, 2)}
    assert len(colours) > minimum


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_of_every_panel(scene, cohort, tmp_path, dark):
    from MedSSLGui.project import words
    from slicer_bench import pictures

    user, target = scene, folder(tmp_path)
    pictures.set_theme(dark)
    suffix = "-dark" if dark else ""
    add_uncertainty(cohort, user.store.folder)
    user.shell.session.say(words.nextStep(user.store))
    user.find("deviceComboBox")
    for name in ("data", "pretrain"):
        user.shell.open(name)
        with shown_as(user.find("projectPathEdit"), str(Path("/home/me") / user.store.folder.name)):
            image = pictures.beside(pictures.panel(user.loaded), [], CAPTION)
        check(image)
        image.save(str(target / f"{name}{suffix}.png"))
    user.shell.open("annotate")
    draw(user, cohort, [3, 6])
    image = pictures.beside(
        pictures.panel(user.loaded),
        [pictures.slice_view("Red"), pictures.slice_view("Green")],
        CAPTION,
    )
    check(image)
    image.save(str(target / f"annotate{suffix}.png"))
    user.shell.open("train")
    user.find("runsTable").selectRow(1)
    user.shell.session.saveAll()
    user.settle()
    user.shell.session.say(words.nextStep(user.store))
    wait_until(lambda: False, 0.3)
    image = pictures.beside(pictures.panel(user.loaded), [], CAPTION)
    check(image)
    image.save(str(target / f"train{suffix}.png"))
    user.shell.open("review")
    user.shell.panels["review"].readResults()
    user.settle()
    user.find("resultTable").selectRow(0)
    user.settle()
    user.find("uncertaintySlider").setProperty("value", 0.6)
    wait_until(lambda: False, 0.1)
    image = pictures.beside(
        pictures.panel(user.loaded),
        [pictures.slice_view("Red"), pictures.slice_view("Green")],
        CAPTION,
    )
    check(image)
    image.save(str(target / f"review{suffix}.png"))
    pictures.set_theme(False)


def pseudo_labels(user, cohort):
    """A self-training with a round of pseudo-labels, as the library leaves it."""
    add_run(user.store.folder, "selftrain-1", "selftrain", "local-contrast", 0.861)
    folder = user.store.folder / "runs" / "selftrain-1" / "pseudo" / "round-1"
    folder.mkdir(parents=True)
    cases = {f"heart_{n:02d}": {"confidence": 0.99 - 0.031 * n, "voxels": {}} for n in (1, 4, 5)}
    summary = {"format_version": 1, "cases": cases, "kept": list(cases), "seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in cases:
        shutil.copy(cohort / "labels" / f"{name}.nii.gz", folder / f"{name}.nii.gz")


def qualities(project):
    """Estimated Dice, as `medssl predict --quality` writes it."""
    cases = {}
    for number in range(1, 7):
        dice = 0.62 + 0.045 * number
        cases[f"heart_{number:02d}"] = {
            "dice": dice,
            "low": dice - 0.07,
            "high": min(dice + 0.06, 1.0),
            "review": dice < 0.7,
            "why": "Dice may be as low as 0.60" if dice < 0.7 else "",
        }
    (project / "predictions" / "finetune-1" / "quality.json").write_text(
        json.dumps(
            {"format": "medssl-quality", "format_version": 1, "run": "finetune-1", "cases": cases}
        )
    )


LONG = "a" * 80


@pytest.mark.timeout(900)
def test_panels_fit_narrow_docks(scene, cohort, tmp_path):
    """350, 420 and 500 pixels, light and dark: nothing is cut, nothing asks for more width."""
    from slicer_bench import pictures

    user, target = scene, folder(tmp_path)
    qualities(user.store.folder)
    pseudo_labels(user, cohort)
    user.store.changed.emit()
    wait_until(lambda: False, 0.2)
    model = user.find("modelComboBox")
    model.setCurrentIndex(model.findText("finetune-1"))
    user.settle()
    user.shell.open("annotate")
    draw(user, cohort, [3])
    user.shell.open("train")
    user.find("runsTable").selectRow(1)
    user.shell.open("review")
    user.find("resultTable").selectRow(0)
    user.settle()
    problems = []
    for dark in (False, True):
        pictures.set_theme(dark)
        for width in (350, 420, 500):
            for name in ("data", "pretrain", "annotate", "train", "review"):
                user.shell.open(name)
                user.shell.session.say(f"{LONG} is said")
                image = pictures.panel(user.loaded, width)
                image.save(str(target / f"{name}-{width}{'-dark' if dark else ''}.png"))
                inner = user.find("sectionsContents")
                if user.loaded.panel.width() != width:
                    problems.append((width, name, "the panel grew", user.loaded.panel.width()))
                if inner.minimumSizeHint().width() > user.find("sectionsArea").viewport().width():
                    problems.append((width, name, "wider than the dock", inner.minimumSizeHint()))
                for where, text in pictures.cut_texts(user.loaded.panel):
                    problems.append((width, name, where, text))
    pictures.set_theme(False)
    assert sorted(set(map(str, problems))) == []


def test_the_overlay_shows_the_segmentation(scene, cohort, tmp_path):
    """The rendered slice has the class colours where the label is, and loses them when a class is hidden."""
    from slicer_bench import pictures

    user = scene
    user.shell.open("review")
    user.shell.panels["review"].readResults()
    user.settle()
    user.find("resultTable").selectRow(0)
    user.settle()
    user.find("opacitySlider").setProperty("value", 1.0)
    review = user.shell.panels["review"]

    def red():
        image = pictures.slice_view("Red", 200)
        pixels = [image.pixelColor(x, y) for x in range(0, 200, 2) for y in range(8, 200, 2)]
        return sum(1 for c in pixels if c.red() > 150 and c.green() < 140 and c.blue() < 130)

    assert red() > 20
    item = user.find("classVisibilityList").item(2)
    from PySide6 import QtCore

    item.setCheckState(QtCore.Qt.CheckState.Unchecked)
    wait_until(lambda: False, 0.1)
    assert red() == 0
    assert review.result.isAlive()


def live_events(user, cohort, path):
    """What a live process would have said after some slices; the numbers are made up, the preview is a shifted label."""
    from MedSSLLib.images.io import read_image

    np.save(path, np.roll(read_image(cohort / "labels" / "heart_01.nii.gz").array, 2, 2))
    yield {"event": "progress", "state": "training", "slices": 8, "cases": 3}
    for index, (dice, changed) in enumerate(
        ((0.31, 0.72), (0.55, 0.38), (0.62, 0.3), (0.81, 0.09), (0.86, 0.05), (0.9, 0.02))
    ):
        facts = {"case": "heart_02", "axis": 2, "index": index}
        yield {"event": "score", **facts, "dice": dice, "changed": changed}
    yield {"event": "preview", "case": "heart_01", "path": str(path), "slices": None}


@pytest.mark.timeout(900)
def test_the_annotate_panel_with_live_on(scene, cohort, tmp_path):
    """350, 420 and 500 pixels, light and dark, and the outlines over the slices."""
    from slicer_bench import pictures

    user, target, problems = scene, folder(tmp_path), []
    user.shell.open("annotate")
    draw(user, cohort, [3, 6])
    live = user.shell.panels["annotate"].live
    user.click("liveCheckBox")
    assert wait_until(live.isOn, 30)
    for event in live_events(user, cohort, tmp_path / "preview.npy"):
        live._onEvent(event)
    user.settle()
    user.shell.panels["annotate"].markShown(partly=True)
    user.settle()
    for dark in (False, True):
        pictures.set_theme(dark)
        suffix = "-dark" if dark else ""
        for width in (350, 420, 500):
            user.shell.session.say("Slice 4 is accepted.", "done")
            image = pictures.panel(user.loaded, width)
            check(image)
            image.save(str(target / f"annotate-live-{width}{suffix}.png"))
            inner = user.find("sectionsContents")
            if user.loaded.panel.width() != width:
                problems.append((width, "the panel grew", user.loaded.panel.width()))
            if inner.minimumSizeHint().width() > user.find("sectionsArea").viewport().width():
                problems.append((width, "wider than the dock", inner.minimumSizeHint()))
            for where, text in pictures.cut_texts(user.loaded.panel):
                problems.append((width, where, text))
    pictures.set_theme(False)
    user.shell.session.say("Slice 4 is accepted.", "done")  # in the colour of this theme
    user.shell.panels["annotate"].view.jumpTo(2, 6)
    views = [pictures.slice_view(name) for name in ("Red", "Green")]
    pictures.beside(pictures.panel(user.loaded), views, CAPTION).save(
        str(target / "annotate-live.png")
    )
    live.process._runner.kill()
    assert wait_until(lambda: not live.isOn(), 30)
    assert sorted(set(map(str, problems))) == []
