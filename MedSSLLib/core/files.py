"""Files written whole or not at all, JSON with a format version, locks between processes, content
hashes.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.locks import FileLock as FileLock

TEMPORARY = ".tmp-"  #: how every half-written file or folder is named
VOXELS_OF_HDR = (".img", ".img.gz", ".IMG", ".IMG.GZ")
"""Extensions of the file beside a .hdr that holds its voxels."""
_JSON_LIMIT = 256 * 2**20
_CHUNK = 4 * 2**20
_DETACHED = {
    ".mhd": re.compile(rb"^\s*ElementDataFile\s*=\s*(\S.*?)\s*$", re.M),
    ".nhdr": re.compile(rb"^data ?file:\s*(\S.*?)\s*$", re.M | re.I),
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary sibling of `path` with the same extensions; on success it replaces `path`.

    The data reach the disk before the name changes, so that after a crash or a full disk `path`
    holds either the old content or the new one. On any failure the temporary file is removed.
    Parent folders are made. Raises MedSSLError when the disk is full or may not be written.
    """
    target = Path(path)
    with explained_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # the random part comes first, so that every extension (".nii.gz") stays last
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name[-120:]}")
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; on success it becomes `path`, which must not
    exist or be empty.

    As for :func:`atomic_path`, all files in it reach the disk first, and nothing is left after a
    failure.
    """
    target = Path(path)
    with explained_os_errors(target):
        temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{target.name[-120:]}")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                (_sync_folder if file.is_dir() else _sync)(file)
            if target.is_dir():
                target.rmdir()
            temporary.rename(target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def clear_temporary(folder: Path) -> None:
    """Remove what a process that was killed while it wrote left in `folder` and below: the
    half-written files and half-filled folders of :func:`atomic_path`, :func:`atomic_folder` and
    of whatever else names its temporary ones alike.
    """
    for left in list(folder.rglob(f"{TEMPORARY}*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def require_room(folder: Path, size: int) -> None:
    """Make the folder. Raises MedSSLError when its disk has less than `size` bytes left."""
    with explained_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MedSSLError(
            f"{folder}: the disk has {free / 1e6:,.0f} MB left, and a checkpoint needs about "
            f"{size / 1e6:,.0f} MB. Free some space and run the command again."
        )


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and missing permission into a MedSSLError that says what
    to do.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MedSSLError(
                f"{place}: the disk is full. Free some space and run the command again."
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise MedSSLError(
                f"{place}: may not be written. Choose a folder with write permission."
            ) from error
        raise


def refuse_overwriting(targets: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raise InputError when a file to be written is one of those that are read: scans and drawings
    are never replaced.

    The same file by another spelling of its path, through a link or on a file system that ignores
    case counts too.
    """
    kept = {key for path in sources for key in _identity(path)}
    for path in targets:
        if not kept.isdisjoint(_identity(path)):
            raise InputError(
                "is a scan or a label in use, which would be overwritten",
                file=path,
                remedy="Choose another --out.",
            )


def require_folder(path: Path) -> None:
    """Raise InputError when `path` is, or lies below, something that is no folder; it need not
    exist yet.
    """
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if there.exists() and not there.is_dir():
        raise InputError(
            "is not a folder, so no results can be written into it",
            file=there,
            remedy="Choose another --out.",
        )


def require_file(path: Path) -> None:
    """Raise InputError when no file can be written at `path`: it is a folder, or lies below a
    file.
    """
    if path.is_dir():
        raise InputError(
            "is a folder, expected a file to write", file=path, remedy="Choose another --out."
        )
    require_folder(path.parent)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as UTF-8 JSON, atomically. NaN and infinities become null; paths and numpy
    scalars are converted.
    """
    write_text(path, json.dumps(_plain(obj), ensure_ascii=False, indent=1, allow_nan=False))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` and a line end as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def read_json(
    path: str | os.PathLike[str], *, format_name: str = "", newest_version: int = 0
) -> dict[str, Any]:
    """Read a JSON object; with `format_name`, check its "format" and "format_version" (1 ..
    newest_version).

    Without a name only a version above `newest_version` is refused, if one is given here and there.
    Raises InputError for a missing, unreadable or foreign file and for one written by a newer
    version.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", file=path, remedy="Give a file written by MedSSL.")
    found, version = (
        content.get("format"),
        content.get("format_version", 1 if not format_name else None),
    )
    if not (format_name or newest_version):
        return content
    if format_name and found != format_name:
        raise InputError(
            f'has the format {found!r}, expected "{format_name}"',
            file=path,
            remedy="Give a file written by MedSSL.",
        )
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(
            f"has the format version {version!r}, expected a whole number",
            file=path,
            remedy="Restore the file from a backup or make it again.",
        )
    if version > newest_version:
        raise InputError(
            f"was written by a newer version of MedSSL (format {version}; this version reads up "
            f"to {newest_version})",
            file=path,
            remedy="Update MedSSL.",
        )
    return content


def load_json(path: str | os.PathLike[str]) -> Any:
    """Any JSON value of a UTF-8 file (at most 256 MiB). Raises InputError naming the file."""
    try:
        if os.path.getsize(path) > _JSON_LIMIT:
            raise InputError(
                "is larger than 256 MiB", file=path, remedy="Give a JSON description, not data."
            )
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError("does not exist", file=path, remedy="Check the path.") from None
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", file=path, remedy="Check the path."
        ) from error
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=path, remedy="Save it as UTF-8 JSON.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"is not valid JSON ({error})",
            file=path,
            remedy="Correct it, restore it from a backup or make it again.",
        ) from None


def content_hash(path: str | os.PathLike[str]) -> str:
    """BLAKE2b (hex, 32 characters) of a file's bytes, including a detached data file, or of all
    files of a folder.

    In a folder (a DICOM series) the names relative to it count too; hidden files do not.
    Raises InputError when something cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    root = Path(path)
    try:
        if root.is_dir():
            for file in sorted(
                p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")
            ):
                digest.update(b"\0" + os.fsencode(file.relative_to(root).as_posix()) + b"\0")
                _update(digest, file)
        else:
            for file in (root, *detached_files(root)):
                _update(digest, file)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            file=error.filename or path,
            remedy="Check that the file still exists and may be read.",
        ) from error
    return digest.hexdigest()


def same_contents(ones: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether as many paths are pairwise the same file or folder, or files that hold the same
    bytes, those with the voxels of a header included.

    Raises InputError as `detached_files` does.
    """
    return len(ones) == len(others) and all(map(_same_content, ones, others))


def _same_content(one: Path, other: Path) -> bool:
    if one.exists() and other.exists() and one.samefile(other):
        return True
    if not (one.is_file() and other.is_file()):
        return False
    mine, others = (one, *detached_files(one)), (other, *detached_files(other))
    return len(mine) == len(others) and all(map(_same_bytes, mine, others))


def _same_bytes(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    return filecmp.cmp(one, other, shallow=False)


def detached_files(path: Path) -> tuple[Path, ...]:
    """Data files that the header file `path` (.mhd, .nhdr, .hdr) refers to, as written there.

    Raises InputError when the header points outside its own folder.
    """
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        beside = map(path.with_suffix, VOXELS_OF_HDR)
        first = next((found for found in beside if found.is_file()), None)
        return () if first is None else (first,)  # one file where letters' case does not matter
    if suffix not in _DETACHED:
        return ()
    with open(path, "rb") as stream:
        found = _DETACHED[suffix].search(stream.read(2**16))
    name = os.fsdecode(found.group(1)) if found else "LOCAL"
    if name.upper() == "LOCAL":
        return ()
    if not is_inside(name) or name.split()[0].upper() == "LIST" or "%" in name:
        raise InputError(
            f"refers to its data as {name!r}, which is not one file beside it",
            file=path,
            remedy="Save the image as one .nrrd or .mha file.",
        )
    return (path.parent / name,)


def is_inside(relative: str) -> bool:
    """Whether a relative path, as written, stays inside the folder it starts from (any platform's
    separators).
    """
    parts = relative.replace("\\", "/").split("/")
    absolute = relative.startswith(("/", "\\", "~")) or bool(re.match(r"^[A-Za-z]:", relative))
    return bool(relative) and not absolute and ".." not in parts and relative.isprintable()


def _identity(path: Path) -> Iterator[object]:
    """The full path without links and, where there is such a file, what `os.path.samefile`
    compares.
    """
    yield os.path.normcase(os.path.realpath(path))
    with suppress(OSError):
        found = os.stat(path)
        if found.st_ino:  # 0 where a file system has none
            yield found.st_dev, found.st_ino


def _update(digest: hashlib.blake2b, file: Path) -> None:
    with open(file, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)


def _plain(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple, set, frozenset)):
        return [_plain(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "tolist"):  # numpy arrays and scalars
        return _plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj


def _sync(path: Path) -> None:
    # opened for writing: Windows refuses to flush a read-only descriptor
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot flush a folder
    finally:
        os.close(descriptor)
