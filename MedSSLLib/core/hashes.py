"""Content hashes of source files, remembered until a file's size or time changes."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any, Self

from MedSSLLib.core.errors import InputError, MedSSLError
from MedSSLLib.core.files import FileLock, content_hash, detached_files, load_json, write_json

# seconds: a file changed so lately may change again within one tick of the file system's clock
_RACY = 2.0


class Hashes:
    """Hashes kept in a JSON file. A context manager: what was learnt is merged into the file at the
    end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[str]] = {}
        self._learnt: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self._known = self._load()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._learnt:
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=60):
                write_json(self.path, {**self._load(), **self._learnt})

    def of(self, path: Path) -> str:
        """The content hash of a file or DICOM folder. Raises InputError when it cannot be read."""
        place = os.path.realpath(path)
        try:
            stamp, newest = _stamp(Path(place))
        except OSError as error:
            raise InputError(
                f"cannot be read ({error.strerror})",
                file=path,
                remedy="Check that the file still exists and may be read.",
            ) from error
        found = self._learnt.get(place) or self._known.get(place)
        if found and found[0] == stamp:
            return found[1]
        value = content_hash(path)
        if time.time() - newest > _RACY:
            self._learnt[place] = [stamp, value]
        return value

    def _load(self) -> dict[str, Any]:
        try:
            content = load_json(self.path)
        except MedSSLError:
            return {}
        pairs = content.items() if isinstance(content, dict) else ()
        return {
            place: pair
            for place, pair in pairs
            if isinstance(pair, list) and list(map(type, pair)) == [str, str]
        }


def _stamp(path: Path) -> tuple[str, float]:
    """A text that changes with the names, sizes or times of a source's files; the newest time in
    seconds.
    """
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    files = inside if path.is_dir() else [path, *detached_files(path)]
    stats = [(os.path.relpath(file, path), file.stat()) for file in files]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    text = hashlib.blake2b(
        repr(facts).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
    return text, max((stat.st_mtime for _, stat in stats), default=0.0)
