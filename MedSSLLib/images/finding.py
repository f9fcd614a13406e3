"""Image files and DICOM series of folders, and the names of their cases. Part of `io`."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.dicom import dicom_files
from MedSSLLib.images.formats.dicom_header import is_dicom

EXTENSIONS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""File name extensions of images; a folder may hold a DICOM series, a .dcm file a multi-frame
image.
"""
_FOLDER_DEPTH = 4


def case_name(path: str | os.PathLike[str]) -> str:
    """The case a file belongs to: its name without image extensions (of a DICOM folder, its whole
    name), in Unicode NFC. macOS gives file names in NFD, where "é" is "e" and an accent.
    """
    return unicodedata.normalize("NFC", stem(path))


def stem(path: str | os.PathLike[str]) -> str:
    """The name of an image file without its extensions, as the file system has it."""
    name = Path(path).name
    return name[: len(name) - len(extension(path))]


def extension(path: str | os.PathLike[str]) -> str:
    """The extensions of an image file, as they are written; "" of a DICOM folder."""
    name = Path(path).name
    for known in (*EXTENSIONS, ".dcm"):
        if name.lower().endswith(known) and len(name) > len(known):
            return name[-len(known) :]
    return ""


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Images of a folder, sorted by name: image files, or the folder itself or those below it with
    a DICOM series.

    Hidden files are left out; image files in folders below are not looked for.
    Raises InputError when the folder is missing, holds none, or mixes image files with DICOM
    slices.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            "is not a folder", file=root, remedy="Give the folder that holds the images."
        )
    try:
        entries = [p for p in sorted(root.iterdir()) if not p.name.startswith(".")]
        files = [p for p in entries if p.name.lower().endswith(EXTENSIONS)]
        if any(p.is_file() and is_dicom(p) for p in entries):
            if files:
                raise InputError(
                    f"holds image files ({files[0].name}) and DICOM slices",
                    file=root,
                    remedy="Put them into separate folders.",
                )
            return [root]
        series = [found for p in entries if p.is_dir() for found in _series_below(p, _FOLDER_DEPTH)]
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", file=root, remedy="Check its permissions."
        ) from error
    if not files and not series:
        raise InputError(
            _nothing_found(entries),
            file=root,
            remedy=f"Give a folder with {', '.join(EXTENSIONS)} files or DICOM series.",
        )
    return sorted(files + series)


def _series_below(folder: Path, depth: int) -> list[Path]:
    if depth == 0 or folder.name.startswith("."):
        return []
    here = [folder] if dicom_files(folder) else []
    return here + [
        found
        for p in sorted(folder.iterdir())
        if p.is_dir()
        for found in _series_below(p, depth - 1)
    ]


def _nothing_found(entries: list[Path]) -> str:
    below = [
        p.name
        for p in entries
        if p.is_dir() and any(q.name.lower().endswith(EXTENSIONS) for q in p.iterdir())
    ]
    kinds = sorted({p.suffix for p in entries if p.is_file() and p.suffix})
    hint = (
        f", but its folder {below[0]} does"
        if below
        else f" (only {', '.join(kinds[:5])} files)"
        if kinds
        else ""
    )
    return f"{'is empty' if not entries else 'holds no images'}{hint}"
