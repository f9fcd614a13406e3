"""Sample data: phantoms made on the fly in a separate process; nothing is downloaded."""

import os
import time
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from .jobs import Job, Runner

COUNT = 6
SOURCES = (("MedSSLHeart", "heart"), ("MedSSLHippocampus", "hippocampus"))


def cohortJob(folder, done, kind="heart", count=COUNT):
    """A helper job that makes `folder`/images and `folder`/labels."""
    script = str(Path(__file__).with_name("cohort.py"))
    return Job(_("Making sample volumes"), [script, str(folder), kind, str(count)], {"done": done})


def register():
    """Offer the phantoms in the Sample Data module, once the application is up."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    for name, kind in SOURCES:
        SampleDataLogic.registerCustomSampleDataSource(
            category="MedSSL",
            sampleName=name,
            uris=[],
            fileNames=[],
            nodeNames=[],
            customDownloader=lambda source, kind=kind: loadCohort(kind),
        )


def loadCohort(kind, seconds=60):
    """Make the phantoms in the temporary folder and load their images; returns the nodes."""
    folder = os.path.join(slicer.app.temporaryPath, f"MedSSL-{kind}")
    runner = Runner()
    runner.start(cohortJob(folder, None, kind))
    end = time.monotonic() + seconds
    while runner.isRunning() and time.monotonic() < end:
        slicer.app.processEvents()
        time.sleep(0.01)
    images = os.path.join(folder, "images")
    names = sorted(os.listdir(images)) if os.path.isdir(images) else []
    return [slicer.util.loadVolume(os.path.join(images, name)) for name in names]
