"""Segment every volume of a scene with a trained run, and save the scene with the segmentations:

Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/segment_scene.py SCENE.mrb PROJECT RUN OUT.mrb
"""

import sys
from pathlib import Path


def batch():
    """The script beside this one, whose functions all scripts use."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import medssl_batch

    return medssl_batch


def main(arguments):
    """Load, segment each volume, save; returns an exit code: 1 when a volume was left out."""
    medssl_batch = batch()
    if len(arguments) != 4:
        return medssl_batch.usage(__doc__)
    sys.path.insert(0, str(medssl_batch.moduleFolder()))
    import slicer
    from MedSSLGui.scene import nodes
    from MedSSLGui.segmentvolume import process
    from slicer.i18n import tr as _

    source, project, run, target = arguments
    slicer.util.loadScene(source)
    failed = 0
    # also volumes that were cases of a project; results of MedSSL are none
    for volume in nodes.scalarVolumes():
        medssl_batch.say(_("Segmenting {name} ...").format(name=volume.GetName()))
        try:
            process(volume, None, Path(project) / "runs" / run)
        except RuntimeError as error:
            medssl_batch.say(f"{volume.GetName()}: {error}")
            failed += 1
    saved = slicer.util.saveScene(target)
    return 0 if saved and not failed else 1


if __name__ == "__main__":
    batch().run(main)
