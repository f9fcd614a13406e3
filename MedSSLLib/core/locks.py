"""A lock between processes, held by the operating system and labelled with its owner."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from MedSSLLib.core.errors import MedSSLError

_WAIT = 0.05
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_LOCKED_BYTE = 2**30  # Windows forbids reading locked bytes: lock one beyond the owner record

if os.name == "nt":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """An exclusive lock on `path`, a small file that names its owner (pid, host, since).

    The operating system holds the lock, so that it ends with its owner, however that dies: a record
    left by a dead process is stale and never blocks. Not reentrant. Use as a context manager, or
    `acquire` and `release`. `timeout` is in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self.path = Path(path)
        self.timeout = timeout
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, waiting up to `timeout`. Raises MedSSLError naming the owner when it stays
        taken.
        """
        deadline = time.monotonic() + self.timeout
        while not self._try():
            if time.monotonic() >= deadline:
                raise MedSSLError(
                    f"{self.path.parent}: in use by {self._owner_text()}. "
                    "Wait for it to end, or stop it, and run the command again."
                )
            time.sleep(_WAIT)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        _HELD.discard(self)
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        if os.name != "nt":  # while still locked: a waiting process notices that its file has gone
            with suppress(OSError):
                self.path.unlink()
        os.close(descriptor)

    def owner(self) -> dict[str, Any] | None:
        """The owner's record ``{"pid", "host", "since"}`` (since: ISO time), None when there is
        none.
        """
        try:
            record = json.loads(self.path.read_bytes().strip(b"\0"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _try(self) -> bool:
        if self._descriptor is not None:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666
            )
        except OSError as error:
            raise MedSSLError(
                f"{self.path}: cannot be locked ({error.strerror}). "
                "Choose a folder with write permission."
            ) from error
        try:
            _lock(descriptor)
            current = os.path.exists(self.path) and os.path.samestat(
                os.fstat(descriptor), os.stat(self.path)
            )
        except OSError as error:
            os.close(descriptor)
            if error.errno in _BUSY:
                return False
            raise MedSSLError(
                f"{self.path}: the file system cannot lock files ({error.strerror}). "
                "Put the project on a local disk."
            ) from error
        if not current:
            os.close(descriptor)
            return False
        self._sign(descriptor)
        return True

    def _sign(self, descriptor: int) -> None:
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        with suppress(OSError):  # a full disk must not make the lock fail
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(record).encode())
        self._descriptor = descriptor
        _HELD.add(self)

    def _owner_text(self) -> str:
        owner = self.owner() or {}
        if not owner:
            return "another process"
        return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # a forked worker shares the open file; without this it would keep its dead parent's lock
    for lock in list(_HELD):
        lock._forget()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
