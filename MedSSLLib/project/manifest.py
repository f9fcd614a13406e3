"""The manifest `medssl.json`: cases, classes and modality of a project, a superset of the
Decathlon's dataset.json.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import read_json, write_json
from MedSSLLib.images.labels import Annotated

FILE_NAME = "medssl.json"
_FORMAT = "medssl-project"
LARGEST_VALUE = 2**32 - 1
"""The largest value of a class in label files."""
_VERSION = 1
ROLES = ("labelled", "unlabelled", "test")
NO_VALUE = {"", "na", "n/a", "nan", "none", "null", "unknown", "?"}
"""Metadata that says that nothing is known, in lower case."""
PLANES = ("axial", "coronal", "sagittal")
_KEYS = {
    "format",
    "format_version",
    "name",
    "modality",
    "labels",
    "labels_from",
    "drawn_plane",
    "tensorImageSize",
    "numTraining",
    "numTest",
    "training",
    "test",
}
_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)),
}


@dataclass(frozen=True)
class Case:
    """One 3D volume of a project. `images` holds one path per channel; `annotated` None means every
    slice counts.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: Annotated | None = None
    role: str = "unlabelled"
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def patient(self) -> str:
        """The metadata column `patient` or `patient_id` (any case), else the case's own name.

        Cases whose patient is "unknown", "NA" or the like are no patient together.
        """
        known = {
            key: value
            for key, value in self.metadata.items()
            if value.strip().lower() not in NO_VALUE
        }
        columns = {key.lower(): value for key, value in known.items()}
        return columns.get("patient") or columns.get("patient_id") or self.name


@dataclass(frozen=True)
class Manifest:
    """Everything `medssl.json` holds. `labels` maps a label file's values to names, 0 first.

    Attributes:
        labels_from: None when the classes were declared, else the names of the cases whose labels
            were scanned.
        drawn_plane: where it is not empty, labels without a record of their own are drawn on some
            "axial", "coronal" or "sagittal" slices alone: those that show anything.
        extra: keys of other programs, kept.
    """

    name: str
    modality: tuple[str, ...] = ("MR",)
    labels: dict[int, str] = field(default_factory=lambda: {0: "background"})
    labels_from: tuple[str, ...] | None = ()
    cases: dict[str, Case] = field(default_factory=dict)
    drawn_plane: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def with_cases(self, *cases: Case) -> Manifest:
        """A copy in which `cases` are added, or replace those of the same names."""
        return replace(self, cases=self.cases | {case.name: case for case in cases})


def ignore_value(labels: Mapping[int, str]) -> int | None:
    """The label value that means "does not count" (named "ignore", as nnU-Net does), None without
    one.
    """
    return next((value for value, name in labels.items() if name.lower() == "ignore"), None)


def with_ignore_value(manifest: Manifest) -> Manifest:
    """The manifest with a label value for voxels that do not count: its own, else 255 or, where
    that is a class, the largest free one below.

    Raises InputError when every value up to 255 is a class.
    """
    if ignore_value(manifest.labels) is not None:
        return manifest
    free = [value for value in range(255, 0, -1) if value not in manifest.labels]
    if not free:
        raise InputError(
            "has a class for every label value up to 255, so none is left for voxels that do not "
            "count",
            remedy="Merge classes.",
        )
    return replace(manifest, labels={**manifest.labels, free[0]: "ignore"})


def check_name(name: Any, what: str = "case") -> str:
    """`name` in Unicode NFC if it can be a file or folder name everywhere and be listed in a
    selection.

    Raises InputError for an empty name, separators, "..", control or bidirectional characters,
    commas, a leading ".", "-" or "@", names reserved by Windows and more than 150 bytes.
    """
    text = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""
    problem = "is empty" if not text else ""
    if any(char in '/\\:*?"<>|,' or not char.isprintable() for char in text):
        problem = "has a separator, a comma or a control character"
    elif text.startswith((".", "-", "@", " ", "~")) or text.endswith((".", " ")):
        problem = "starts with one of . - @ ~ or begins or ends with a space or dot"
    elif len(text.encode("utf-8", "surrogateescape")) > 150:
        problem = "is longer than 150 bytes"
    elif text.split(".")[0].lower() in _RESERVED:
        problem = "is reserved by Windows"
    if problem:
        raise InputError(
            f"the {what} name {name!r} {problem}",
            remedy="Use letters, digits, spaces, dots, dashes and underscores.",
        )
    return text


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a project folder. Raises InputError naming what is wrong."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(
            "is not a project (it has no medssl.json)",
            file=folder,
            remedy="Make one: medssl init PROJECT --images DIR.",
        )
    content = read_json(path, format_name=_FORMAT, newest_version=_VERSION)
    try:
        return _parse(content, folder)
    except InputError as error:
        raise InputError(
            error.finding, case=error.case, file=error.file or path, remedy=error.remedy
        ) from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"is malformed ({type(error).__name__}: {error})",
            file=path,
            remedy="Restore it from a backup or make the project again.",
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    cases = [(case.role, case_to_json(case, folder)) for case in manifest.cases.values()]
    training = [entry for role, entry in cases if role != "test"]
    test = [entry for role, entry in cases if role == "test"]
    write_json(
        folder / FILE_NAME,
        {
            "format": _FORMAT,
            "format_version": _VERSION,
            "name": manifest.name,
            "tensorImageSize": "3D",
            "modality": {str(n): name for n, name in enumerate(manifest.modality)},
            "labels": {str(value): manifest.labels[value] for value in sorted(manifest.labels)},
            "labels_from": manifest.labels_from,
            **({"drawn_plane": manifest.drawn_plane} if manifest.drawn_plane else {}),
            "numTraining": len(training),
            "numTest": len(test),
            "training": training,
            "test": test,
            **manifest.extra,
        },
    )


def case_to_json(case: Case, folder: Path) -> dict[str, Any]:
    """The manifest entry of a case; paths beside or under the project folder are written relative
    to it.
    """
    images = [stored_path(path, folder) for path in case.images]
    return {
        "name": case.name,
        "image": images[0] if len(images) == 1 else images,
        "label": stored_path(case.label, folder) if case.label else None,
        "annotated": case.annotated.to_json() if case.annotated else None,
        "role": case.role,
        "metadata": case.metadata,
    }


def case_from_json(entry: Any, folder: Path) -> Case:
    """Read a manifest entry. Raises InputError naming the case when it is malformed."""
    if not isinstance(entry, dict):
        raise InputError(
            f"has the case {entry!r}, expected an object", remedy="Restore the file from a backup."
        )
    name = check_name(entry.get("name"))
    images = entry.get("image")
    images = images if isinstance(images, list) else [images]
    label, role, metadata = (
        entry.get("label"),
        entry.get("role", "unlabelled"),
        entry.get("metadata") or {},
    )
    if role not in ROLES:
        raise InputError(
            f"has the role {role!r}", case=name, remedy=f"Use one of {', '.join(ROLES)}."
        )
    if not images or not isinstance(metadata, dict):
        raise InputError(
            "has no image or malformed metadata",
            case=name,
            remedy="Restore the file from a backup.",
        )
    annotated = entry.get("annotated")
    return Case(
        name=name,
        images=tuple(loaded_path(image, folder, name) for image in images),
        label=None if label is None else loaded_path(label, folder, name),
        annotated=None if annotated is None else Annotated.from_json(annotated),
        role=role,
        metadata={str(key): str(value) for key, value in metadata.items()},
    )


def stored_path(path: Path, folder: Path) -> str:
    """`path` relative to the project if it lies under it or under its parent folder, else absolute;
    "/" separated.
    """
    absolute, base = os.path.abspath(path), os.path.abspath(folder)
    for root, prefix in ((base, ""), (os.path.dirname(base), "../")):
        if Path(absolute).is_relative_to(root) and root != os.path.dirname(root):
            return prefix + Path(absolute).relative_to(root).as_posix()
    return Path(absolute).as_posix()


def loaded_path(text: Any, folder: Path, case: str) -> Path:
    """The absolute path of a stored one. Raises InputError when it is no path."""
    if not isinstance(text, str) or not text or any(ord(char) < 32 for char in text):
        raise InputError(
            f"has the path {text!r}", case=case, remedy="Restore the file from a backup."
        )
    return Path(os.path.normpath(os.path.join(os.path.abspath(folder), text)))


def parse_labels(entries: Any) -> dict[int, str]:
    """Label values and names, 0 first, from ``{"1": "liver"}`` (Decathlon) or ``{"liver": 1}``
    (nnU-Net v2).

    Raises InputError for regions (lists of values), negative or repeated values and repeated or
    empty names.
    """
    if not isinstance(entries, dict):
        raise InputError(
            f'has the labels {entries!r}, expected an object like {{"1": "liver"}}',
            remedy="Correct the labels.",
        )
    labels: dict[int, str] = {}
    for key, other in entries.items():
        value, name = (
            (other, key)
            if isinstance(other, (int, list)) and not isinstance(other, bool)
            else (key, other)
        )
        if isinstance(value, list):
            raise InputError(
                f"declares {name!r} as a region of several values, which is not supported",
                remedy="Declare one value per class.",
            )
        if (
            not re.fullmatch("[0-9]{1,10}", str(value))
            or int(value) > LARGEST_VALUE
            or not isinstance(name, str)
            or not name.strip()
        ):
            raise InputError(
                f"declares the label {key!r}: {other!r}, which is not a value and a name",
                remedy='Write labels as {"0": "background", "1": "liver"}.',
            )
        if int(value) in labels or name.strip() in labels.values():
            raise InputError(
                f"declares the label {name!r} ({value}) twice",
                remedy="Use every value and name once.",
            )
        labels[int(value)] = name.strip()
    labels.setdefault(0, "background")
    return dict(sorted(labels.items()))


def parse_modality(entries: Any) -> tuple[str, ...]:
    """One modality per channel from ``{"0": "MRI"}`` or a list; every kind of MR is "MR"."""
    values = list(entries.values()) if isinstance(entries, dict) else entries
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(value, str) for value in values)
    ):
        raise InputError(f"has the modality {entries!r}", remedy='Write it as {"0": "MR"}.')
    return tuple(_modality(value) for value in values)


def _modality(text: str) -> str:
    upper = text.strip().upper()
    return {"MRI": "MR", "CT ": "CT", "": "MR"}.get(upper, upper)


def _parse(content: dict[str, Any], folder: Path) -> Manifest:
    entries = [*content.get("training", []), *content.get("test", [])]
    cases: dict[str, Case] = {}
    for entry in entries:
        case = case_from_json(entry, folder)
        if case.name in cases:
            raise InputError("appears twice", case=case.name, remedy="Remove one of them.")
        cases[case.name] = case
    scanned = content.get("labels_from")
    manifest = Manifest(
        name=str(content.get("name", folder.name)),
        modality=parse_modality(content.get("modality", {"0": "MR"})),
        labels=parse_labels(content.get("labels", {})),
        labels_from=None if scanned is None else tuple(str(name) for name in scanned),
        cases=cases,
        drawn_plane=_plane(content.get("drawn_plane", "")),
        extra={key: value for key, value in content.items() if key not in _KEYS},
    )
    strokes = any(case.annotated and case.annotated.partly for case in cases.values())
    return with_ignore_value(manifest) if strokes else manifest


def _plane(text: Any) -> str:
    if text not in ("", *PLANES):
        raise InputError(f"has the plane {text!r}", remedy=f"Use one of {', '.join(PLANES)}.")
    return str(text)
