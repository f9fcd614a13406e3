"""Image files and DICOM series of folders, and the names of their cases. Part of `io`."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.dicom import dicom_files

EXTENSIONS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""File name extensions of images; a folder may hold a DICOM series, a .dcm file a multi-frame
image.
"""
_FOLDER_DEPTH = 10


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
    """Images of a folder, sorted by name: image files, and the folder itself and those below it
    with a DICOM series.

    Hidden files are left out; image files in folders below are left to :func:`images_below`, but
    for one that lies alone in a folder called like an image (scan.nii/scan.nii).
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
        files = [p for p in map(_unwrapped, entries) if _is_image_file(p)]
        series = _series_below(root, _FOLDER_DEPTH, set())
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            file=error.filename or root,
            remedy="Check its permissions.",
        ) from error
    if files and root in series:
        raise InputError(
            f"holds image files ({files[0].name}) and DICOM slices",
            file=root,
            remedy="Put them into separate folders.",
        )
    if not files and not series:
        raise InputError(
            _nothing_found(entries),
            file=root,
            remedy=f"Give a folder with {', '.join(EXTENSIONS)} files or DICOM series.",
        )
    return sorted(files + series)


def images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files in folders below one, sorted: those that :func:`find_images` leaves out."""
    root = Path(folder)
    taken = {_unwrapped(p) for p in root.iterdir()}
    found: list[Path] = []
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if len(Path(where).relative_to(root).parts) >= _FOLDER_DEPTH:
            folders.clear()
        files = [Path(where) / name for name in names if not name.startswith(".")]
        found += [p for p in files if p.parent != root and _is_image_file(p) and p not in taken]
    return sorted(found)


def _is_image_file(path: Path) -> bool:
    return path.name.lower().endswith(EXTENSIONS) and not path.is_dir()


def _unwrapped(path: Path) -> Path:
    """Of a folder called like an image, the only image file in it; else the path."""
    if not (path.is_dir() and path.name.lower().endswith(EXTENSIONS)):
        return path
    files = [p for p in path.iterdir() if _is_image_file(p) and not p.name.startswith(".")]
    return files[0] if len(files) == 1 else path


def _series_below(folder: Path, depth: int, seen: set[Path]) -> list[Path]:
    """The folder, if it holds DICOM slices, and those below it, down to a depth; none twice, as
    links may lead back.
    """
    if folder.resolve() in seen:
        return []
    seen.add(folder.resolve())
    here = [folder] if dicom_files(folder) else []
    if depth == 0:
        return here
    return here + [
        found
        for p in sorted(folder.iterdir())
        if p.is_dir() and not p.name.startswith(".")
        for found in _series_below(p, depth - 1, seen)
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
