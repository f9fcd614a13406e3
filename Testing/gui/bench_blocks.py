"""How long the window stands still with volumes of a real size: `python Testing/gui/bench_blocks.py [K J I] [--out FILE]`.

No training here (it runs in another process, and test_click_path.py measures that way): every action that brings
voxels into the scene or out of it, on a made-up volume and labels. Prints the longest block of each action.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import conftest
import numpy as np
from conftest import Driver, in_loop, wait_until


def write(path, array):
    from MedSSLLib.images.geometry import Geometry, Volume
    from MedSSLLib.images.io import write_image

    geometry = Geometry(
        array.shape[::-1],
        (0.8, 0.8, 2.5),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    write_image(path, Volume(array, geometry))


def make(folder, shape):
    """Two volumes with noise, and class maps of three nested structures that fill a fifth of them."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    radius = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
    label = np.digitize(radius, (0.35, 0.5, 0.72)).astype(np.uint8)
    label = (3 - label).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 12, shape).astype(np.int16)
    for number in (1, 2):
        write(
            folder / "images" / f"case_{number}.nii.gz",
            (label * 60).astype(np.int16) + noise * number,
        )
    for run in ("first", "second"):
        shifted = np.roll(label, 0 if run == "first" else 3, 2)
        write(folder / run / "case_1.nii.gz", shifted)
        write(folder / run / "uncertainty" / "case_1.nii.gz", (label == 2).astype(np.float32) * 0.5)
    return label


def add_run(project, name):
    run = project / "runs" / name
    run.mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps({"config": {"command": "finetune", "init": "none", "preset": "standard"}})
    )
    (run / "metrics.json").write_text(json.dumps({"dice": 0.8, "seconds": 60}))
    (run / "weights.safetensors").write_bytes(b"")


def data(user, folder, project):
    """Add a volume of the scene that no file holds, and one from a file."""
    import slicer

    user.find("projectPathEdit").setCurrentPath(str(project))
    user.click("openProjectButton")
    node = slicer.util.loadVolume(str(folder / "images" / "case_2.nii.gz"))
    slicer.util.arrayFromVolume(node)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(node)
    user.click("addVolumesButton")
    user.settle(300)
    path = str(folder / "images" / "case_1.nii.gz")
    in_loop(lambda: user.shell.panels["data"].addPaths([path]), "Add files")
    user.settle(300)
    assert len(user.store.cases) == 2, user.status()


def annotate(user, label):
    classes = [(n, f"class {n}", (n / 3, 1 - n / 3, 0.4), "") for n in (1, 2, 3)]
    in_loop(lambda: user.store.setClasses(classes), "Change classes")
    combo = user.find("annotateCaseComboBox")
    combo.setCurrentIndex(combo.findText("case_1"))
    user.click("loadCaseButton")
    user.settle(300)
    for index in (label.shape[0] // 2, label.shape[0] // 3):
        mask = np.zeros(label.shape, bool)
        mask[index] = label[index] == 2
        in_loop(
            lambda mask=mask: user.find("segmentEditor").paint("class_2", mask),
            "Draw (the editor's own)",
        )
        for each in conftest.WATCH:
            each.action = "Notice what was drawn"
        wait_until(lambda: False, 1.0)
    user.click("saveAnnotationButton")
    user.settle(300)


def preview(user, label, folder):
    """What Live brings into the scene: a prediction, one that changed on a few slices, a proposal, an accepted slice."""
    from MedSSLGui.scene import slicecopy
    from MedSSLGui.scene.preview import Preview

    panel, classes = user.shell.panels["annotate"], user.store.classes()
    shown, path = Preview(panel.view, classes, [0, 1, 2, 3]), folder / "preview.npy"
    changed = label.copy()
    changed[:4] = np.roll(label[:4], 5, 1)
    for action, array in (("Show a preview", label), ("Show a changed preview", changed)):
        np.save(path, array)
        steps = shown.takeSteps(path)
        in_loop(lambda steps=steps: user.shell.session.stepper.start(steps), action)
        user.settle(300)
    index = label.shape[0] // 4
    plane = shown.plane(2, index)
    in_loop(lambda: panel.proposals.offer(index, plane, classes), "Propose a slice")
    wait_until(lambda: False, 1.0)

    def accept():
        panel.editor.saveState()
        panel.log.fill(lambda: slicecopy.writeSlice(panel.view, 2, index + 1, plane, classes))

    in_loop(accept, "Accept a slice")
    wait_until(lambda: False, 1.0)
    in_loop(panel.proposals.withdraw, "Take a proposal back")
    in_loop(shown.remove, "End of Live")


def review(user, folder, project):
    for run in ("first", "second"):
        add_run(project, run)
        shutil.copytree(folder / run, project / "predictions" / run)
    in_loop(user.store.changed.emit, "Follow the project")
    user.settle(300)
    in_loop(lambda: user.find("modelComboBox").setCurrentIndex(0), "Choose a model")
    in_loop(user.shell.panels["review"].readResults, "Choose a model")
    user.settle(300)
    in_loop(lambda: user.find("resultTable").selectRow(0), "Show a result")
    user.settle(300)
    assert user.shell.panels["review"].result.uncertainty is not None, user.status()
    compare = user.find("compareComboBox")
    for mode in (0, 1):
        user.find("compareModeComboBox").setCurrentIndex(mode)
        compare.setCurrentIndex(compare.count() - 1)
        user.click("compareButton")
        user.settle(300)
        assert "differ in" in user.status(), user.status()
    for row, kind in enumerate((".seg.nrrd", "NIfTI", "labelmap node")):
        user.find("exportFormatComboBox").setCurrentIndex(row)
        for each in conftest.WATCH:
            each.action = f"Export {kind}"
        in_loop(user.find("exportButton").click)
        user.settle(300)
    user.click("correctButton")
    user.settle(300)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="*", type=int, default=[96, 256, 256])
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    import slicer_bench
    from slicer_bench import forks

    os.environ[forks.REAL] = "1"  # as long as in Slicer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slicer_bench.start(name)
        from slicer_bench.watch import Watch

        loaded = slicer_bench.load_module(conftest.ROOT / "MedSSL" / "MedSSL.py")
        loaded.open()
        user, watch = Driver(loaded), Watch()
        label = make(folder, tuple(options.shape))
        watch.start()
        conftest.WATCH.append(watch)
        data(user, folder, folder / "project")
        annotate(user, label)
        preview(user, label, folder)
        review(user, folder, folder / "project")
        watch.stop()
        print(watch.table())
        if options.out:
            rows = {
                action: {
                    "processor_ms": round(1000 * block.processor),
                    "wall_ms": round(1000 * block.wall),
                    "where": block.where,
                }
                for action, block in watch.longest().items()
            }
            record = {
                "shape_kji": options.shape,
                "python": platform.python_version(),
                "actions": rows,
            }
            Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
        sys.stdout.flush()
        conftest.os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
