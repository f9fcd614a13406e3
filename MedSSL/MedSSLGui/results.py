"""Run by PythonSlicer, not by Slicer: figures of predictions, as JSON lines.

    PythonSlicer results.py FOLDER [CASE ...]

FOLDER holds CASE.nii.gz and, where it was asked for, uncertainty/CASE.nii.gz.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(arguments):
    """One line {"event": "result", "case", "uncertainty", "volumes_ml", "problem"} a prediction."""
    folder, wanted = Path(arguments[0]), set(arguments[1:])
    for path in sorted(folder.glob("*.nii.gz")):
        name = path.name[: -len(".nii.gz")]
        if not wanted or name in wanted:
            print(
                json.dumps(
                    {
                        "event": "result",
                        "case": name,
                        **figures(path, folder / "uncertainty" / path.name),
                    }
                ),
                flush=True,
            )
    return 0


def figures(path, uncertainty):
    """Volume of each label value in millilitres, and the mean uncertainty in and around the structures."""
    from MedSSLLib.core.errors import MedSSLError
    from MedSSLLib.images.io import read_image

    try:
        label = read_image(path)
        millilitres = float(np.prod(label.geometry.spacing)) / 1000
        values, counts = np.unique(label.array[label.array > 0], return_counts=True)
        result = {
            "volumes_ml": {
                str(int(v)): round(int(n) * millilitres, 3) for v, n in zip(values, counts)
            },
            "uncertainty": None,
            "problem": "",
        }
        if uncertainty.is_file():
            doubt = read_image(uncertainty).array
            unsure = (doubt > 0.1) | (label.array > 0)
            result["uncertainty"] = round(float(doubt[unsure].mean()) if unsure.any() else 0.0, 4)
        return result
    except (MedSSLError, OSError) as error:
        return {"volumes_ml": {}, "uncertainty": None, "problem": str(error)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
