"""MedSSL from Python: what the commands do, as functions that return runs.

::

    import MedSSLLib as medssl

    project = medssl.Project.create("heart", "scans/", labels="masks/")
    learned = medssl.pretrain(project, method="gcl", minutes=30)
    model = medssl.finetune(project, init=learned, minutes=10)
    labels, affine = model.segment("new/case42.nii.gz")

Arguments have the names of the options of the command line and set the same settings; messages
name the option, ``--labelled`` for the argument ``labelled``. Ctrl-C, or *Interrupt* in a notebook,
stops a training at the next step, keeps a checkpoint and raises CancelledError; ``resume=True``
goes on.

The first use sets ``OMP_WAIT_POLICY=PASSIVE``, unless it is set, as the command line does: threads
of PyTorch that wait actively slow each other down where other programs use the processor too.
"""

import os

from MedSSLLib.api.around import evaluate, suggest
from MedSSLLib.api.run import Run, Segmentation, predict
from MedSSLLib.api.training import complete, finetune, pretrain, selftrain
from MedSSLLib.project.project import Project

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is loaded

__all__ = [
    "Project",
    "Run",
    "Segmentation",
    "complete",
    "evaluate",
    "finetune",
    "predict",
    "pretrain",
    "selftrain",
    "suggest",
]
