"""Methods from outside this package: from a file that its user names, or from another package.

Reading a file of Python runs it. That is what somebody who names it wants, so files come in by
:func:`named` and :func:`add_class` alone, with the words of the person at the command line or in
Python. The name in a project, a run folder or a checkpoint is only looked up among the methods that
this process knows already: opening one runs no code from it.

Other packages offer methods by the entry point ``medssl.methods``; whoever installed them trusts
them.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from MedSSLLib.core.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from MedSSLLib.methods.base import Method

ENTRY_POINTS = "medssl.methods"
"""The group of entry points by which other packages offer methods."""

FILE_AND_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
"""What names a method in a file: ``FILE.py:CLASS``."""


@dataclass(frozen=True)
class _Added:
    """A method that this process was given, and where it comes from."""

    kind: type[Method]
    origin: Mapping[str, str]


_added: dict[str, _Added] = {}


def named(word: str) -> str:
    """The name of the method that a person means by `word`: a name, or ``FILE.py:CLASS``.

    The file is run, and its class is known by its name in small letters from then on.

    Raises:
        InputError: the file does not exist or cannot be run, or has no such method.
    """
    found = FILE_AND_CLASS.fullmatch(word)
    if found is None:
        return word
    path = Path(found["file"]).expanduser().absolute()
    if not path.is_file():
        raise InputError("does not exist", file=path, remedy="Give --method FILE.py:CLASS")
    source = path.read_bytes()
    module = _run(path, source)
    kind = getattr(module, found["name"], None)
    if kind is None:
        raise InputError(f"has no class {found['name']!r}", file=path, remedy=_classes(module))
    return _add(kind, {"file": str(path), "sha256": hashlib.sha256(source).hexdigest()}, str(path))


def add_class(kind: type[Method]) -> str:
    """Make a class known under its name in small letters, for use from Python; returns that name.

    Raises:
        InputError: it is no method, or has the name of one of this package.
    """
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:  # typed into a notebook
        return _add(kind, {"module": kind.__module__}, kind.__module__)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return _add(kind, {"file": str(file), "sha256": digest}, str(file))


def added(name: str) -> type[Method] | None:
    """The class that was added under a name; None without one."""
    return _added[name].kind if name in _added else None


def names() -> list[str]:
    """Names of the methods that were added and of those that other packages offer."""
    return sorted({*_added, *_offered()})


def load_offered(name: str) -> type[Method] | None:
    """The method of that name of another package; None where no package offers it.

    Raises:
        InputError: two packages offer it, it cannot be imported, or it is no method.
    """
    points = _offered().get(name, [])
    if not points:
        return None
    if len(points) > 1:
        packages = " and ".join(sorted(_package(point)["package"] for point in points))
        raise InputError(
            f"{packages} both have a method {name!r}", remedy="Uninstall one of the packages"
        )
    place = f"package {_package(points[0])['package']}"
    try:
        kind = points[0].load()
    except Exception as error:
        raise InputError(
            f"method {name!r} of {place} cannot be imported ({type(error).__name__}: {error})",
            remedy="Update or uninstall that package",
        ) from error
    _require_method(kind, place)
    return kind


def origin(name: str) -> dict[str, str]:
    """Where a method comes from: its name and class with file and SHA-256, or package and version.

    Empty for the methods of this package.
    """
    if name in _added:
        return dict(_added[name].origin)
    points = _offered().get(name, [])
    if not points:
        return {}
    return {"name": name, "class": points[0].value, **_package(points[0])}


def compare_origins(run: str, began: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between the method that a run began with and that of the same name now.

    Returns:
        A sentence for a warning; empty where nothing differs.

    Raises:
        InputError: the method is not there any more, or is another one of the same name.
    """
    if not began and not now:
        return ""
    name = began.get("name") or now["name"]
    if not now:
        raise InputError(
            f"run {run!r} learns by the method {name!r} of {_place(began)}, which is not there",
            remedy=_how_to_bring(began),
        )
    if _source(began) != _source(now):
        raise InputError(
            f"run {run!r} learns by the method {name!r} of {_place(began)}, not of {_place(now)}",
            remedy=_how_to_bring(began),
        )
    if (began.get("sha256"), began.get("version")) != (now.get("sha256"), now.get("version")):
        return (
            f"The method {name!r} has changed since run {run} began: it was that of "
            f"{_place(began)}, and is that of {_place(now)}."
        )
    return ""


def _source(origin: Mapping[str, str]) -> str:
    """The kind of place that a method is from, with the package's name. A file may have moved."""
    return "file" if "file" in origin else origin.get("package", "")


def _place(origin: Mapping[str, str]) -> str:
    if origin.get("file"):
        return f"{origin['file']} (SHA-256 {origin.get('sha256', '')[:12]})"
    if origin.get("package"):
        return f"package {origin['package']} {origin.get('version', '')}".rstrip()
    return f"module {origin['module']}" if origin.get("module") else "MedSSL itself"


def _how_to_bring(began: Mapping[str, str]) -> str:
    file, kind = began.get("file"), began.get("class", "")
    if file and Path(file).is_file():
        return f"Give it again: --method {file}:{kind}"
    if file:
        return f"That file is gone: restore it, and give --method FILE.py:{kind} with its place"
    if began.get("package"):
        return f"Install it: pip install {began['package']}=={began.get('version', '')}"
    return "Give the class again, as pretrain(..., method=CLASS)"


def _add(kind: Any, origin: Mapping[str, str], place: str) -> str:
    from MedSSLLib.methods import METHODS

    _require_method(kind, place)
    name = kind.__name__.lower()
    if name in METHODS:
        raise InputError(
            f"class {kind.__name__} has the name of a method of MedSSL",
            file=place,
            remedy="Give the class another name",
        )
    _added[name] = _Added(kind, {"name": name, "class": kind.__name__, **origin})
    return name


def _require_method(kind: Any, place: str) -> None:
    from MedSSLLib.methods.base import Method, MethodConfig

    if not (isinstance(kind, type) and issubclass(kind, Method) and kind is not Method):
        raise InputError(
            f"{getattr(kind, '__name__', kind)!r} is no method: it must be a class derived from "
            "MedSSLLib.methods.base.Method",
            file=place,
            remedy="`medssl new-method NAME` writes one to begin with",
        )
    config = getattr(kind, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise InputError(
            f"{kind.__name__}.Config must be derived from MedSSLLib.methods.base.MethodConfig",
            file=place,
            remedy="`medssl new-method NAME` shows how",
        )


class _ReadBefore(SourceFileLoader):
    """Runs exactly the bytes whose hash is recorded, and leaves no compiled copy beside the file.

    A compiled copy is taken for current when size and second of the last change agree.
    """

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        return self._source

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("no compiled copy")


def _run(path: Path, source: bytes) -> ModuleType:
    """The file as a module.

    Raises:
        InputError: it fails, at whatever it does.
    """
    name = f"medssl_method_{path.stem}"
    loader = _ReadBefore(name, str(path), source)
    module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # pydantic looks names of annotations up there
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise InputError(
            f"cannot be run ({type(error).__name__}: {error})",
            file=path,
            remedy="Run it with Python to see where, or use --debug",
        ) from error
    return module


def _classes(module: ModuleType) -> str:
    from MedSSLLib.methods.base import Method

    found = []
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "") == module.__name__
        if own and isinstance(value, type) and issubclass(value, Method):
            found.append(name)
    return f"It has {', '.join(found)}" if found else "It has no class derived from Method"


def _offered() -> dict[str, list[EntryPoint]]:
    """Entry points of other packages by name; those with the name of our own methods are left."""
    from importlib.metadata import entry_points

    from MedSSLLib.methods import METHODS

    found: dict[str, list[EntryPoint]] = {}
    for point in _without_copies(entry_points(group=ENTRY_POINTS)):
        if point.name not in METHODS:
            found.setdefault(point.name, []).append(point)
    return found


def _without_copies(points: Any) -> Iterator[EntryPoint]:
    """A package that lies in two folders of ``sys.path`` is found twice; the first one counts."""
    seen = set()
    for point in points:
        key = (point.name, point.value, _package(point)["package"])
        if key not in seen:
            seen.add(key)
            yield point


def _package(point: EntryPoint) -> dict[str, str]:
    if point.dist is None:
        return {"package": "?", "version": ""}
    return {"package": point.dist.name, "version": point.dist.version}
