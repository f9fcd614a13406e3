"""Values of a few DICOM elements, read without pixels: little-endian files, sequences included.

Only what SimpleITK does not give: the positions and orientations of the frames of an enhanced
multi-frame image.
Source: DICOM PS3.5 sections 7.1 (data elements), 7.5 (sequences) and PS3.10 section 7 (file
format).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tag = tuple[int, int]
Item = dict[Tag, Any]
"""Elements of a data set by tag: bytes, or a list of items for a sequence."""

PIXELS: Tag = (0x7FE0, 0x0010)
SHARED_GROUPS: Tag = (0x5200, 0x9229)
FRAME_GROUPS: Tag = (0x5200, 0x9230)
_LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_OTHERS = {"1.2.840.10008.1.2": False, "1.2.840.10008.1.2.1.99": None, "1.2.840.10008.1.2.2": None}
_FIRST, _LIMIT, _DEPTH = 2**20, 256 * 2**20, 12


class UnreadableError(ValueError):
    """The file is not DICOM of a kind this reader knows, or is damaged."""


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the DICOM preamble."""
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_elements(path: Path) -> Item:
    """The elements before the pixel data. Raises UnreadableError (big-endian and deflated files
    too).
    """
    size = os.path.getsize(path)
    for limit in (_FIRST, _LIMIT):
        with open(path, "rb") as stream:
            data = stream.read(limit)
        try:
            found, position = _parsed(data)
        except (struct.error, IndexError, UnreadableError) as error:
            if size > limit == _FIRST:
                continue
            raise UnreadableError(str(error)) from error
        if size <= limit or data[position : position + 4] == struct.pack("<HH", *PIXELS):
            return found
    raise UnreadableError("the header is too long")


def _parsed(data: bytes) -> tuple[Item, int]:
    if data[128:132] != b"DICM":
        raise UnreadableError("no DICOM preamble")
    meta, position = _elements(data, 132, len(data), _Syntax(True, only_group=2))
    syntax = text(meta, (0x0002, 0x0010))
    explicit = _OTHERS.get(syntax, True)
    if explicit is None:
        raise UnreadableError(f"the transfer syntax {syntax} is not supported")
    return _elements(data, position, len(data), _Syntax(explicit))


def text(item: Item, tag: Tag) -> str:
    """An element as text without padding; empty when it is missing."""
    value = item.get(tag, b"")
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""


def numbers(item: Item, tag: Tag) -> tuple[float, ...]:
    """A decimal string element as numbers; empty when it is missing or malformed."""
    try:
        return tuple(float(part) for part in text(item, tag).split("\\")) if text(item, tag) else ()
    except ValueError:
        return ()


def whole(item: Item, tag: Tag) -> int:
    """An unsigned short or integer string element; 0 when it is missing or malformed."""
    value = item.get(tag, b"")
    if isinstance(value, bytes) and len(value) == 2 and not value.strip().isdigit():
        return int(struct.unpack("<H", value)[0])
    digits = text(item, tag)
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0


@dataclass(frozen=True)
class Frame:
    """Where a frame of a multi-frame image lies: position in mm (LPS), orientation (row and column
    cosines).
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


def frames(item: Item) -> list[Frame]:
    """Position, orientation and pixel spacing of each frame from the functional groups; empty
    without any.
    """
    shared = _first(item, SHARED_GROUPS)
    result = []
    for group in item.get(FRAME_GROUPS, []) or []:

        def macro(sequence: Tag, tag: Tag, group: Item = group) -> tuple[float, ...]:
            return numbers(_first(group, sequence), tag) or numbers(_first(shared, sequence), tag)

        result.append(
            Frame(
                macro((0x0020, 0x9113), (0x0020, 0x0032)),
                macro((0x0020, 0x9116), (0x0020, 0x0037)),
                macro((0x0028, 0x9110), (0x0028, 0x0030)),
            )
        )
    return result


def _first(item: Item, tag: Tag) -> Item:
    value = item.get(tag)
    return value[0] if isinstance(value, list) and value else {}


@dataclass(frozen=True)
class _Syntax:
    explicit: bool
    only_group: int = 0
    depth: int = 0

    def deeper(self) -> _Syntax:
        if self.depth >= _DEPTH:
            raise UnreadableError("sequences nested too deeply")
        return _Syntax(self.explicit, 0, self.depth + 1)


def _elements(data: bytes, position: int, end: int, syntax: _Syntax) -> tuple[Item, int]:
    """Elements from `position` on, until `end`, an item's end or the pixels; and where they
    stop.
    """
    found: Item = {}
    while position + 8 <= end:
        tag = struct.unpack_from("<HH", data, position)
        if tag == _ITEM_END:
            return found, position + 8
        if tag == PIXELS or (syntax.only_group and tag[0] != syntax.only_group):
            break
        kind, length, position = _header(data, position, syntax)
        if (
            kind == b"SQ"
            or length == _UNDEFINED
            or tag in (SHARED_GROUPS, FRAME_GROUPS)
            or (not syntax.explicit and _looks_like_sequence(data, position, length))
        ):
            found[tag], position = _items(
                data, position, end if length == _UNDEFINED else position + length, syntax
            )
        else:
            if length > end - position:
                raise UnreadableError("an element is longer than the file")
            found[tag] = data[position : position + length]
            position += length
    return found, position


def _header(data: bytes, position: int, syntax: _Syntax) -> tuple[bytes, int, int]:
    if not syntax.explicit:
        return b"", struct.unpack_from("<I", data, position + 4)[0], position + 8
    kind = data[position + 4 : position + 6]
    if kind in _LONG:
        return kind, struct.unpack_from("<I", data, position + 8)[0], position + 12
    if not kind.isalpha() or not kind.isupper():
        raise UnreadableError("an element has no value representation")
    return kind, struct.unpack_from("<H", data, position + 6)[0], position + 8


def _looks_like_sequence(data: bytes, position: int, length: int) -> bool:
    return length >= 8 and struct.unpack_from("<HH", data, position) == _ITEM


def _items(data: bytes, position: int, end: int, syntax: _Syntax) -> tuple[list[Item], int]:
    items: list[Item] = []
    while position + 8 <= min(end, len(data)):
        tag = struct.unpack_from("<HH", data, position)
        length = struct.unpack_from("<I", data, position + 4)[0]
        position += 8
        if tag == _SEQUENCE_END:
            return items, position
        if tag != _ITEM:
            raise UnreadableError("a sequence holds something else than items")
        stop = end if length == _UNDEFINED else min(position + length, end)
        item, after = _elements(data, position, stop, syntax.deeper())
        items.append(item)
        position = after if length == _UNDEFINED else stop
    return items, position
