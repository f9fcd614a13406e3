"""Small pictures of volumes for tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from MedSSLLib.core.errors import MedSSLError
from MedSSLLib.core.files import atomic_path
from MedSSLLib.images.formats.segments import planes
from MedSSLLib.images.geometry import Volume, orient
from MedSSLLib.images.io import read_header, read_image

SIDE = 48
"""Pixels of a thumbnail's side."""


def thumbnail(image: Path, case: str, folder: Path) -> str:
    """Path of the PNG of an image's middle slice, made when there is none for this state of the
    file; "" when it cannot be written.

    Raises InputError as `read_image` does.
    """
    target = folder / f"{case}-{os.stat(image).st_mtime_ns:x}.png"
    if target.is_file():
        return str(target)
    picture = sitk.GetImageFromArray(middle_slice(read_image(image, case=case)))
    try:
        with atomic_path(target) as temporary:
            sitk.WriteImage(picture, str(temporary))
    except (OSError, RuntimeError):
        return ""
    return str(target)


def middle_slice(volume: Volume, side: int = SIDE) -> np.ndarray:
    """Grey picture uint8 [side, side] of the middle slice along the thickest axis (axial when none
    is), seen as radiologists do.
    """
    volume = orient(volume, "LPS")
    spacing = np.array(volume.geometry.spacing)[::-1]
    axis = int(np.argmax(spacing)) if spacing.max() > 1.001 * np.median(spacing) else 0
    plane = np.take(volume.array, volume.array.shape[axis] // 2, axis=axis).astype(np.float32)
    low, high = np.percentile(plane, (1, 99.5))
    grey = np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    rows, columns = np.delete(spacing, axis)
    if axis:
        grey = grey[::-1]
    return _square(grey, rows / columns, side)


def _square(grey: np.ndarray, aspect: float, side: int) -> np.ndarray:
    """`grey` scaled into a square by nearest neighbour; `aspect` is row over column spacing."""
    height, width = grey.shape[0] * aspect, grey.shape[1]
    scale = side / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    row = np.minimum(np.arange(rows) * grey.shape[0] // rows, grey.shape[0] - 1)
    column = np.minimum(np.arange(columns) * grey.shape[1] // columns, grey.shape[1] - 1)
    result = np.zeros((side, side), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    result[top : top + rows, left : left + columns] = grey[np.ix_(row, column)]
    return result


def case_facts(image: Path, case: str, folder: Path) -> dict[str, Any]:
    """``{"size", "spacing", "axes", "thumbnail", "problem"}`` of an image for a table of cases.

    size and spacing (mm) are along i, j, k, axes their anatomical names; None where the image
    cannot be read, and `problem` then says why. `folder` keeps the thumbnails.
    """
    result: dict[str, Any] = {
        "size": None,
        "spacing": None,
        "axes": None,
        "thumbnail": "",
        "problem": "",
    }
    try:
        geometry = read_header(image, case=case)
        result["size"] = list(geometry.size)
        result["spacing"] = [round(float(step), 3) for step in geometry.spacing]
        result["axes"] = planes(geometry)
        result["thumbnail"] = thumbnail(image, case, folder)
    except (MedSSLError, OSError) as error:
        result["problem"] = str(error)
    return result
