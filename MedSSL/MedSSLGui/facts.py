"""Run by PythonSlicer, not by Slicer: sizes, spacings and thumbnails of a project's cases, as JSON lines.

    PythonSlicer facts.py PROJECT [CASE ...]

Opening images takes time and memory; here it costs the application neither. Thumbnails are kept in the cache.
"""

import json
import os
import sys
from pathlib import Path

THUMBNAIL = 48


def main(arguments):
    """One line {"event": "fact", "case", "size", "spacing", "axes", "thumbnail", "problem"} a case; returns an exit code."""
    from MedSSLLib.project.manifest import read_manifest

    project = Path(arguments[0])
    wanted = set(arguments[1:])
    folder = project / "cache" / "thumbnails"
    for name, case in read_manifest(project).cases.items():
        if not wanted or name in wanted:
            print(json.dumps({"event": "fact", "case": name, **describe(case, folder)}), flush=True)
    return 0


def describe(case, folder):
    """Facts of one case; `problem` says why its image cannot be read."""
    from MedSSLLib.core.errors import MedSSLError
    from MedSSLLib.images.io import read_header

    result = {"size": None, "spacing": None, "thumbnail": "", "problem": ""}
    try:
        geometry = read_header(case.images[0])
        result["axes"] = _axes(geometry)
        result.update(
            size=[int(n) for n in geometry.size],
            spacing=[round(float(s), 3) for s in geometry.spacing],
        )
        result["thumbnail"] = thumbnail(case, folder)
    except (MedSSLError, OSError) as error:
        result["problem"] = str(error)
    return result


def _axes(geometry):
    """Anatomical names of the axes i, j, k."""
    import numpy as np
    from annotation import axisNames

    return list(axisNames(np.reshape(geometry.direction, (3, 3))))


def thumbnail(case, folder):
    """Path of the PNG of the middle slice, made when there is none for this state of the image; "" if that fails."""
    image = case.images[0]
    target = folder / f"{case.name}-{os.stat(image).st_mtime_ns:x}.png"
    if target.is_file():
        return str(target)
    import numpy as np
    import SimpleITK as sitk

    from MedSSLLib.core.files import atomic_path
    from MedSSLLib.images.geometry import orient
    from MedSSLLib.images.io import read_image

    volume = orient(read_image(image, case=case.name), "LPS")
    spacing = np.array(volume.geometry.spacing)[::-1]
    axis = int(np.argmax(spacing)) if spacing.max() > 1.001 * np.median(spacing) else 0
    plane = np.take(volume.array, volume.array.shape[axis] // 2, axis=axis).astype(np.float32)
    low, high = np.percentile(plane, (1, 99.5))
    grey = np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    rows, columns = np.delete(spacing, axis)
    if axis:
        grey = grey[::-1]
    picture = sitk.GetImageFromArray(_square(grey, rows / columns))
    try:
        with atomic_path(target) as temporary:
            sitk.WriteImage(picture, str(temporary))
    except (OSError, RuntimeError):
        return ""
    return str(target)


def _square(grey, aspect):
    """`grey` scaled into a THUMBNAIL square by nearest neighbour; `aspect` is row over column spacing."""
    import numpy as np

    height, width = grey.shape[0] * aspect, grey.shape[1]
    scale = THUMBNAIL / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    row = np.minimum(np.arange(rows) * grey.shape[0] // rows, grey.shape[0] - 1)
    column = np.minimum(np.arange(columns) * grey.shape[1] // columns, grey.shape[1] - 1)
    result = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    top, left = (THUMBNAIL - rows) // 2, (THUMBNAIL - columns) // 2
    result[top : top + rows, left : left + columns] = grey[np.ix_(row, column)]
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
