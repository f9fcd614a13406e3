"""From a folder of scans to segmentations, in one go:

    Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/pipeline_folder.py PROJECT IMAGES LABELS OUT [MINUTES]

IMAGES holds scans, LABELS the labels of some of them (same file names). Every scan is segmented into OUT. MINUTES (10)
is the time limit of each of the two trainings.
"""

import sys
from pathlib import Path


def batch():
    """The script beside this one, whose functions all scripts use."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import medssl_batch

    return medssl_batch


def main(arguments):
    """Run the steps one after the other; stops at the first that fails and returns its exit code."""
    medssl_batch = batch()
    if len(arguments) not in (4, 5):
        return medssl_batch.usage(__doc__)
    project, images, labels, out = arguments[:4]
    minutes = arguments[4] if len(arguments) > 4 else "10"
    steps = [
        ["init", project, "--images", images, "--labels", labels],
        ["pretrain", project, "--method", "gcl", "--minutes", minutes, "--name", "pretrained"],
        ["finetune", project, "--init", "pretrained", "--minutes", minutes, "--name", "finetuned"],
        ["predict", project, "--run", "finetuned", "--out", out, "--uncertainty"],
    ]
    for step in steps:
        medssl_batch.say("medssl " + " ".join(step))
        code = medssl_batch.medssl(step)
        if code and not (code == 1 and step[0] == "init"):  # 1: some scans were left out and listed
            return code
    return 0


if __name__ == "__main__":
    batch().run(main)
