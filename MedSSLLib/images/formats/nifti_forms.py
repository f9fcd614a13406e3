"""Do the forms of a NIfTI header contradict each other?

A NIfTI file may say three times where its voxels lie: sform, qform and voxel sizes. Programs differ
in which they believe (nibabel and FSL the sform, ITK and 3D Slicer often the qform, and always the
sizes), so a file whose forms differ is mirrored or rescaled by one of them without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.formats.nifti import NiftiHeader, read_nifti_header
from MedSSLLib.images.geometry import Geometry, triple

_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_AXIS_WORDS = {"LR": "left and right", "PA": "front and back", "SI": "head and feet"}
_MATRIX_TOLERANCE, _SIZE_TOLERANCE = 5e-3, 0.01


def check_forms(path: Path) -> None:
    """Check that the sform, the qform and the voxel sizes of a file agree about axes and lengths.

    Raises InputError naming both when they contradict each other about the direction of an axis or
    about lengths, and for headers that programs read differently. Forms that only shift, turn or
    shear against each other are no error here: see `form_remarks`.
    """
    header = read_nifti_header(path)
    _check_plain(path, header)
    of_q, of_s = header.codes
    if of_s <= 0 or not np.isfinite(header.sform).all():
        return
    sform, sizes = _described(header, header.sform), np.abs(header.sizes[1:4]) * header.scale
    if of_q > 0 and np.isfinite(header.qform).all():
        qform = _described(header, header.qform)
        if sform.code != qform.code:
            raise InputError(
                f"contradicts itself about {_disputed(sform.code, qform.code)}: its sform (code "
                f"{of_s}) says {_in_words(sform)}, its qform (code {of_q}) {_in_words(qform)}",
                file=path,
                remedy=_MAKE_ALIKE,
            )
    if not _sheared(header.sform) and not _alike(np.array(sform.spacing), sizes):
        raise InputError(
            "contradicts itself about the voxel size: its sform (code "
            f"{of_s}) says {_lengths(sform.spacing)} mm, its voxel sizes (pixdim"
            f"{', qform' if of_q > 0 else ''}) {_lengths(sizes)} mm",
            file=path,
            remedy="Find out which is right and save the image with it (nibabel: "
            "image.header.set_zooms, image.set_sform, image.set_qform).",
        )


def _check_plain(path: Path, header: NiftiHeader) -> None:
    """Check for what one program takes for a mistake and another takes at its word (InputError)."""
    if min(header.sizes[1:4]) < 0:
        raise InputError(
            f"has the voxel sizes {_lengths(header.sizes[1:4])} mm (pixdim); NIfTI has no negative "
            "ones, and some programs mirror the image there",
            file=path,
            remedy="Check where left is, and save it with positive sizes (nibabel: load and save).",
        )
    least = 352 if header.version == 1 else 544
    if not header.separate and header.offset < least:
        raise InputError(
            f"says that its voxels begin at byte {header.offset} (vox_offset), within its header",
            file=path,
            remedy=f"Correct vox_offset ({least} without extensions), or convert the image again.",
        )
    unscaled = header.slope == 0 or not np.isfinite(header.slope)
    if unscaled and np.isfinite(header.intercept) and header.intercept != 0:
        raise InputError(
            f"has scl_slope {header.slope:g} and scl_inter {header.intercept:g}, which some "
            "programs add and others do not",
            file=path,
            remedy="Set scl_slope to 1 if it is to be added, else scl_inter to 0.",
        )


_MAKE_ALIKE = (
    "Find out which is right and make both alike (nibabel: image.set_qform(image.get_sform()) or "
    "the other way round; FSL: fslorient -copysform2qform)."
)


def form_remarks(path: Path) -> list[tuple[str, str]]:
    """What a user should know about the forms of a NIfTI file that can be used, as (general words,
    the words for this file) each.
    """
    header = read_nifti_header(path)
    of_q, of_s = header.codes
    notices: list[tuple[str, str]] = []
    if header.scale != 1.0:
        unit = _UNIT_NAMES[header.units & 7]
        lengths = _lengths(np.abs(header.sizes[1:4]) * header.scale)
        notices.append((f"the header gives lengths in {unit}", f"voxels are taken as {lengths} mm"))
    if of_q <= 0 and of_s <= 0:
        notices.append(
            (
                "the header does not say how the image lies in the patient (sform and qform codes "
                "0)",
                "its axes are taken as left, back, head, as 3D Slicer does; other programs mirror "
                "them",
            )
        )
    if of_q > 0 and of_s > 0 and not _same_place(header):
        used = "sform" if of_s == 1 and not _sheared(header.sform) else "qform"
        sform, qform = _described(header, header.sform), _described(header, header.qform)
        notices.append(
            (
                "sform and qform place the image differently",
                f"sform (code {of_s}) {_in_words(sform)}, qform (code {of_q}) {_in_words(qform)}; "
                f"the {used} is used, as in 3D Slicer, and a label must lie there too",
            )
        )
    return notices


def _described(header: NiftiHeader, affine: np.ndarray) -> Geometry:
    """The grid of a form, in LPS; its axes may be sheared."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.array([-1.0, -1.0, 1.0])
    direction = affine[:3, :3] / np.maximum(lengths, 1e-12) * to_lps[:, None]
    size = (*header.dims, 1, 1, 1)[:3]
    return Geometry(
        triple(size),
        triple(float(length) for length in lengths),
        triple(float(x) for x in affine[:3, 3] * to_lps),
        tuple(float(x) for x in direction.ravel()),
    )


def _same_place(header: NiftiHeader) -> bool:
    """Whether no voxel is placed more than a tenth of a voxel differently by the two forms."""
    corners = _described(header, header.sform).corners()
    shift = np.linalg.norm(corners - _described(header, header.qform).corners(), axis=1).max()
    return bool(shift <= 0.1 * np.abs(header.sizes[1:4]).min() * header.scale)


def _sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > _MATRIX_TOLERANCE)


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool((np.abs(found - expected) <= _SIZE_TOLERANCE * expected).all())


def _disputed(first: str, second: str) -> str:
    """Which directions two orientation codes disagree about."""
    pairs = [
        words
        for letters, words in _AXIS_WORDS.items()
        if {c for c in first if c in letters} != {c for c in second if c in letters}
    ]
    return " and ".join(pairs) or "the order of its axes"


def _in_words(grid: Geometry) -> str:
    places = ", ".join(f"{x:.4g}" for x in (-grid.origin[0], -grid.origin[1], grid.origin[2]))
    return f"{grid.code} axes of {_lengths(grid.spacing)} mm from ({places})"


def _lengths(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
