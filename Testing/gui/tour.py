"""The short animation of the tutorial: `python Testing/gui/tour.py OUT.gif [MINUTES]`.

The real panels are clicked on the bench, from Sample data to a corrected slice, with the real library: MINUTES (1) of
fine-tuning on three drawn slices in each of two phantoms. Every picture says that the bench rendered it.
"""

import sys
import tempfile
from pathlib import Path

import conftest
import numpy as np
from conftest import Driver, wait_until
from PIL import Image

CAPTION = "Rendered by the test bench, not by 3D Slicer. Phantoms; real training of {minutes} min."
WIDTH, VIEW, HEIGHT = 360, 380, 790
CLASSES = [
    (1, "right ventricle", (0.27, 0.53, 0.86), ""),
    (2, "myocardium", (0.35, 0.72, 0.42), ""),
    (3, "left ventricle", (0.90, 0.36, 0.30), ""),
]


class Camera:
    """Takes pictures of the panel and the slice views, with a title above."""

    def __init__(self, user, minutes):
        self.user, self.frames, self.caption = user, [], CAPTION.format(minutes=minutes)

    def shoot(self, title, seconds=2.0, views=("Red", "Green")):
        from PySide6 import QtCore, QtGui
        from slicer_bench import pictures

        panel = self.user.loaded.panel
        panel.resize(WIDTH, HEIGHT)
        wait_until(lambda: False, 0.15)
        picture = QtGui.QImage(WIDTH + VIEW + 10, HEIGHT + 50, QtGui.QImage.Format.Format_RGB888)
        picture.fill(QtGui.QColor("#1c1c1c"))
        painter = QtGui.QPainter(picture)
        painter.setPen(QtGui.QColor("white"))
        font = painter.font()
        font.setPointSize(12)
        font.setBold(True)
        painter.setFont(font)
        painter.drawText(10, 20, title)
        painter.drawImage(0, 30, panel.grab().toImage())
        for number, name in enumerate(views):
            image = pictures.slice_view(name, VIEW)
            painter.drawImage(WIDTH + 8, 30 + number * (VIEW + 6), image)
        font.setPointSize(9)
        font.setBold(False)
        painter.setFont(font)
        area = QtCore.QRect(10, HEIGHT + 32, picture.width() - 20, 16)
        painter.drawText(area, QtCore.Qt.AlignmentFlag.AlignLeft, self.caption)
        painter.end()
        array = np.frombuffer(picture.constBits(), np.uint8).reshape(
            picture.height(), picture.bytesPerLine()
        )[:, : picture.width() * 3]
        frame = array.reshape(picture.height(), picture.width(), 3).copy()
        self.frames.append((Image.fromarray(frame), int(1000 * seconds)))

    def save(self, path):
        """An animation that goes on for ever, with one palette of 96 colours a picture."""
        images = [frame.quantize(96, dither=Image.Dither.NONE) for frame, _time in self.frames]
        times = [time for _frame, time in self.frames]
        images[0].save(
            path, save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True
        )


def draw(user, truth, name, indices, camera=None):
    """Draw the structures on some slices of a case, as the editor's effects do."""
    combo = user.find("annotateCaseComboBox")
    combo.setCurrentIndex(combo.findText(name))
    user.click("loadCaseButton")
    user.settle()
    view = user.shell.panels["annotate"].view
    for index in indices:
        view.jumpTo(2, index)
        for value, title, _colour, _term in CLASSES:
            mask = np.zeros(truth.shape, bool)
            mask[index] = truth[index] == value
            user.find("segmentEditor").paint(f"class_{value}", mask)
            wait_until(lambda: False, 0.45)
            if camera and index == indices[0]:
                camera.shoot(f"3  Annotate: draw the {title}", 1.0)
        if camera:
            camera.shoot(f"3  Annotate: slice {index + 1} is marked", 1.2)


def main(arguments):
    out, minutes = arguments[0], float(arguments[1]) if len(arguments) > 1 else 1.0
    import slicer_bench

    with tempfile.TemporaryDirectory() as name:
        slicer_bench.start(name)
        from slicer_bench import pictures

        from MedSSLLib.images.io import read_image

        pictures.set_theme(True)
        loaded = slicer_bench.load_module(conftest.ROOT / "MedSSL" / "MedSSL.py")
        loaded.open()
        user = Driver(loaded)
        camera = Camera(user, f"{minutes:g}")
        project = Path(name) / "heart"
        user.open_project(project)
        camera.shoot("1  Data: choose a project folder", 2.0, ())
        user.click("sampleDataButton")
        user.settle(200)
        wait_until(lambda: user.find("caseTable").item(5, 4) is not None, 20)
        camera.shoot("1  Data: sample data", 2.5, ())
        user.store.setClasses(CLASSES)
        user.shell.open("annotate")
        truths = {}
        for number in (1, 2):
            case = f"heart_{number:02d}"
            truths[case] = read_image(project / "sample" / "labels" / f"{case}.nii.gz").array
        draw(user, truths["heart_01"], "heart_01", [3, 6, 9], camera)
        draw(user, truths["heart_02"], "heart_02", [3, 6, 9])
        user.click("saveAnnotationButton")
        user.settle()
        user.shell.open("train")
        user.find("trainPresetComboBox").setCurrentIndex(0)
        user.find("trainMinutesSpinBox").setValue(minutes)
        user.click("fineTuneButton")
        wait_until(lambda: len(user.shell.panels["train"].curves.series) > 0, 300)
        wait_until(lambda: False, 20 * minutes)
        camera.shoot("4  Train: fine-tuning", 2.0, ())
        user.finish_jobs(900)
        camera.shoot("4  Train: done", 2.0, ())
        user.shell.open("review")
        user.click("predictButton")
        user.finish_jobs()
        camera.shoot("5  Review: four cases are segmented, the least sure first", 2.0, ())
        user.find("resultTable").selectRow(0)
        user.settle()
        camera.shoot("5  Review: look at the first one", 2.5)
        case = user.shell.panels["review"].result.case.name
        truth = read_image(project / "sample" / "labels" / f"{case}.nii.gz").array
        user.click("correctButton")
        user.settle()
        camera.shoot("3  Annotate: correct this slice", 2.0)
        view = user.shell.panels["annotate"].view
        index = view.shownSlice(2)
        for value, _title, _colour, _term in CLASSES:
            mask = np.zeros(truth.shape, bool)
            mask[index] = True
            editor = user.find("segmentEditor")
            editor.paint(f"class_{value}", mask, erase=True)
            mask[index] = truth[index] == value
            editor.paint(f"class_{value}", mask)
        wait_until(lambda: False, 0.5)
        camera.shoot("3  Annotate: corrected; fine-tune again", 3.0)
        camera.save(out)
        print(out, Path(out).stat().st_size, len(camera.frames))
        sys.stdout.flush()
        import os

        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
