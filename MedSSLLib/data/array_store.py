"""Entries of the cache on disk: compressed arrays, written whole, checked before use, read by crop.

An entry is a folder with data files and ``info.json``, which is written last and names every file
with its size and checksum: a folder without it, or that does not agree with it, is not an entry.
"""

from __future__ import annotations

import io
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import atomic_path, explained_os_errors, read_json, write_json

_FORMAT, _FORMAT_VERSION = "medssl-cache-entry", 1
MOST_HANDLES = 64
MOST_MAPPED = 128 * 2**20  # bytes of open files; they count as resident memory once read
_INFO, _ARRAY = "info.json", "data.b2nd"
_CHUNK = {2: (1, 512, 512), 3: (64, 64, 64)}  # voxels d, h, w
_BLOCK = {2: (1, 64, 64), 3: (16, 32, 32)}  # unit of decompression
_WHOLE = 2**17  # arrays up to this many voxels per channel are one block


def write_entry(
    folder: Path, array: np.ndarray, dim: int, info: Mapping[str, Any], **tables: np.ndarray
) -> None:
    """Write an entry: an array ``[..., d, h, w]`` compressed for crops of ``dim``, and tables.

    Raises:
        MedSSLError: the disk is full or the folder may not be written.
    """
    with explained_os_errors(folder):
        if folder.exists():  # damaged, or left by a process that was killed
            shutil.rmtree(folder)
    files = {_ARRAY: _compressed(array, dim)}
    with atomic_path(folder / _ARRAY) as path:
        path.write_bytes(files[_ARRAY])
    for name, table in tables.items():
        buffer = io.BytesIO()  # numpy's own writing to a full disk fails without an error number
        np.save(buffer, table, allow_pickle=False)
        files[f"{name}.npy"] = buffer.getvalue()
        with atomic_path(folder / f"{name}.npy") as path:
            path.write_bytes(files[f"{name}.npy"])
    write_json(
        folder / _INFO,
        {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "files": {name: _record(folder / name, data) for name, data in files.items()},
            **info,
        },
    )


def read_info(folder: Path) -> dict[str, Any] | None:
    """What ``info.json`` holds, or None where there is no sound entry.

    Files that carry the time they were written at are checked by size, others by checksum.
    """
    try:
        info = read_json(folder / _INFO, format_name=_FORMAT, newest_version=_FORMAT_VERSION)
        sound = all(_sound(folder / name, record) for name, record in info["files"].items())
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return None
    return info if sound and _ARRAY in info["files"] else None


class Handles:
    """Open arrays, the most recently used ones.

    At most 64, and at most 128 MiB of files beyond the newest. Threads may share it; a pickled copy
    starts empty.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._open)

    def read(self, folder: Path, region: tuple[slice, ...]) -> np.ndarray:
        """A region of an entry's array. Raises MedSSLError when the file is missing or damaged."""
        try:
            return self._get(folder / _ARRAY, _Array).read(region)
        except (OSError, RuntimeError, ValueError) as error:
            raise _damaged(folder) from error

    def table(self, folder: Path, name: str) -> np.ndarray:
        """A table of an entry, memory-mapped.

        Raises MedSSLError when the file is missing or damaged.
        """
        try:
            return self._get(folder / f"{name}.npy", _Table).table
        except (OSError, ValueError) as error:
            raise _damaged(folder) from error

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._open.clear()

    def _get(self, path: Path, kind: type[_Handle]) -> Any:
        with self._lock:
            handle = self._open.get(path)
            if handle is None:
                handle = self._open[path] = kind(path)
            self._open.move_to_end(path)
            while self._is_full():
                self._open.popitem(last=False)
            return handle

    def _is_full(self) -> bool:
        if len(self._open) > MOST_HANDLES:
            return True
        mapped = sum(handle.size for handle in self._open.values())
        return mapped > MOST_MAPPED and len(self._open) > 1


class _Handle:
    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size


class _Array(_Handle):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        if not isinstance(self._array, blosc2.NDArray) or self._array.dtype.kind not in "fu":
            raise ValueError(f"{path} is not a numeric array")
        self._lock = threading.Lock()  # a handle decompresses for one thread at a time

    def read(self, region: tuple[slice, ...]) -> np.ndarray:
        with self._lock:
            return self._array[region]


class _Table(_Handle):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.table = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _compressed(array: np.ndarray, dim: int) -> bytes:
    lead, shape = array.shape[:-3], array.shape[-3:]
    if np.prod(shape) <= _WHOLE and dim == 3:
        chunk = block = shape
    else:
        chunk = tuple(map(min, shape, _CHUNK[dim]))
        block = tuple(map(min, chunk, _BLOCK[dim]))
    packed = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1,) * len(lead) + chunk,
        blocks=(1,) * len(lead) + block,
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE]},
    )
    return bytes(packed.to_cframe())


def _record(path: Path, data: bytes) -> dict[str, int]:
    return {"size": len(data), "crc32": zlib.crc32(data), "mtime_ns": path.stat().st_mtime_ns}


def _sound(path: Path, record: Mapping[str, int]) -> bool:
    stat = path.stat()
    if stat.st_size != record["size"]:
        return False
    if stat.st_mtime_ns == record["mtime_ns"]:
        return True
    return zlib.crc32(path.read_bytes()) == record["crc32"]


def _damaged(folder: Path) -> MedSSLError:
    with suppress(OSError):  # so that the next preparation makes the entry again
        (folder / _INFO).unlink(missing_ok=True)
    return MedSSLError(
        f"{folder}: this part of the cache is damaged. Run the command again to rebuild it."
    )
