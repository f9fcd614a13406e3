"""Segment every volume of a scene with a trained run, and save the scene with the segmentations:

Slicer --no-splash --no-main-window --python-script MedSSL/Scripts/segment_scene.py SCENE.mrb PROJECT RUN OUT.mrb
"""

import sys
import tempfile
from pathlib import Path


def main(arguments):
    """Load, write volumes to files, predict, import the results, save; returns an exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import medssl_batch

    sys.path.insert(0, str(medssl_batch._moduleFolder()))
    from MedSSLGui import processes, scene

    processes.makeLibraryImportable()
    import slicer

    source, project, run, target = arguments
    slicer.util.loadScene(source)
    with tempfile.TemporaryDirectory() as folder:
        written = {}
        for node in scene.addableVolumes():
            name = scene.caseName(node.GetName(), {known.casefold() for known in written})
            written[name] = node
            array, matrix = slicer.util.arrayFromVolume(node), scene.ijkToRas(node)
            for _step in scene.nrrdSteps(Path(folder) / f"{name}.nrrd", array, matrix, False):
                continue
        images = [str(Path(folder) / f"{name}.nrrd") for name in written]
        code = medssl_batch.main(
            ["predict", project, "--run", run, "--images", *images, "--out", f"{folder}/out"]
        )
        if code:
            return code
        for name, node in written.items():
            result = slicer.util.loadSegmentation(f"{folder}/out/{name}.nii.gz")
            result.SetName(f"{node.GetName()} segmentation")
            result.SetReferenceImageGeometryParameterFromVolumeNode(node)
        return 0 if slicer.util.saveScene(target) else 1


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 2
    import slicer

    slicer.util.exit(code)
