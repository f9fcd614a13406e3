"""What NRRD and MetaImage headers leave unsaid, or say and ITK passes over. Part of `io`.

Sources: the NRRD format (teem.sourceforge.net/nrrd/format.html), the MetaIO documentation
(itk.org).
"""

from __future__ import annotations

import re
from pathlib import Path

_HEAD = 2**16  # bytes that are looked at
_PATIENT = re.compile(r"(right|left)-(anterior|posterior)-superior|ras|las|lps", re.IGNORECASE)
_NO_PLACE = (
    "the header does not say how the image lies in the patient",
    "its axes are taken as left, back, head; other programs may mirror them",
)
_NO_SIZE = ("the header does not say how large voxels are", "they are taken as 1 x 1 x 1 mm")
_ONE, _ZERO = {"", "1", "1.0"}, {"", "0", "0.0"}


def header_remarks(path: Path) -> list[tuple[str, str]]:
    """What a user should know about the header of a NRRD or MetaImage file that can be used, as
    (general words, the words for this file) each; nothing for other files.
    """
    name = path.name.lower()
    if name.endswith((".nrrd", ".nhdr")):
        return _of_nrrd(_fields(path, b":"))
    return _of_meta(_fields(path, b"=")) if name.endswith((".mha", ".mhd")) else []


def _of_nrrd(fields: dict[str, str]) -> list[tuple[str, str]]:
    found = _unsaid(
        placed=bool(_PATIENT.match(fields.get("space", ""))) and "space directions" in fields,
        sized=bool(fields.keys() & {"spacings", "space directions"}),
    )
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if units - {"", "mm"}:
        found.append((f"the header gives lengths in {min(units)}", "they are taken as millimetres"))
    return found


def _of_meta(fields: dict[str, str]) -> list[tuple[str, str]]:
    found = _unsaid(
        placed=bool(fields.keys() & {"transformmatrix", "rotation", "orientation"}),
        sized=bool(fields.keys() & {"elementspacing", "elementsize"}),
    )
    slope = fields.get("elementtointensityfunctionslope", "")
    offset = fields.get("elementtointensityfunctionoffset", "")
    if slope not in _ONE or offset not in _ZERO:
        found.append(
            (
                "the header gives a slope and an offset for grey values",
                f"{slope or 1} and {offset or 0}; the stored values are taken, as by 3D Slicer",
            )
        )
    return found


def _unsaid(*, placed: bool, sized: bool) -> list[tuple[str, str]]:
    return [words for words, said in ((_NO_PLACE, placed), (_NO_SIZE, sized)) if not said]


def _fields(path: Path, separator: bytes) -> dict[str, str]:
    """The fields of a header, keys in small letters: up to an empty line or the pixels."""
    with open(path, "rb") as stream:
        lines = stream.read(_HEAD).split(b"\n")
    found = {}
    for line in lines:
        key, separated, value = line.partition(separator)
        name = key.decode("latin-1").strip().lower()
        if line.strip() == b"" or name == "elementdatafile":
            break
        if separated and not value.startswith(b"="):  # := of NRRD is a key-value pair
            found[name] = value.decode("latin-1").strip()
    return found
