"""Sample data: phantoms made on the fly in a separate process; nothing is downloaded."""

import os
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..jobs import commands
from ..jobs.calls import CallError, answerSteps
from ..jobs.runner import Job
from ..jobs.stepper import runToEnd

COUNT = 6
CATEGORY = "Segmentation"
SOURCES = (("MedSSLHeart", "heart"), ("MedSSLHippocampus", "hippocampus"))


def cohortJob(folder, done, kind="heart", count=COUNT):
    """A helper job that makes `folder`/images and `folder`/labels."""
    arguments = commands.phantoms(folder, kind, count)
    return Job(_("Making sample volumes"), arguments, {"done": done})


def register():
    """Offer the phantoms in the Sample Data module, once the application is up."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    icons = Path(__file__).resolve().parents[2] / "Resources" / "Icons"
    for name, kind in SOURCES:
        SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=name,
            thumbnailFileName=str(icons / f"{name}.png"),
            uris=[],
            fileNames=[],
            nodeNames=[],
            customDownloader=lambda source, kind=kind: loadCohort(kind),
        )


def loadCohort(kind):
    """Make the phantoms in the temporary folder and load their images; returns the nodes."""
    folder = os.path.join(slicer.app.temporaryPath, f"MedSSL-{kind}")
    try:
        runToEnd(answerSteps(_("Making sample volumes"), commands.phantoms(folder, kind, COUNT)))
    except CallError as error:
        raise RuntimeError(str(error)) from error  # the Sample Data module shows it
    images = os.path.join(folder, "images")
    return [
        slicer.util.loadVolume(os.path.join(images, name)) for name in sorted(os.listdir(images))
    ]
