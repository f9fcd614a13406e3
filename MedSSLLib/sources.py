"""What a folder of images offers: plain folders, nnU-Net raw folders, Decathlon folders. Nothing is opened here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MedSSLLib.errors import InputError
from MedSSLLib.files import is_inside, load_json
from MedSSLLib.io import case_name, find_images
from MedSSLLib.manifest import check_name, parse_labels, parse_modality

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


@dataclass(frozen=True)
class Found:
    """A case as found: name, one image per channel, label if there is one, whether the source calls it a test case."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    test: bool = False


@dataclass(frozen=True)
class Source:
    """Cases in order of name, declared classes and modality (None when not declared), refusals and warnings."""

    cases: tuple[Found, ...]
    labels: dict[int, str] | None = None
    modality: tuple[str, ...] | None = None
    refused: tuple[InputError, ...] = ()
    warnings: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def discover(images: str | Path, labels: str | Path | None = None) -> Source:
    """The cases of a folder of images, of a data set folder or of a dataset.json; `labels` adds a folder of labels.

    Raises InputError when there is no image, no label fits, or a dataset.json is malformed or points outside its folder.
    """
    root = Path(images)
    if root.suffix.lower() == ".json":
        source = _from_dataset(root)
    elif (root / "dataset.json").is_file():
        source = _from_dataset(root / "dataset.json")
    else:
        source = _from_folder(root, labels)
    if labels is not None:
        source = _with_labels(source, Path(labels))
    return _without_duplicates(source)


def _from_folder(root: Path, labels: str | Path | None) -> Source:
    files = find_images(root)
    declared = root.parent / "dataset.json"
    channels = root.name in ("imagesTr", "imagesTs") or _labels_name_stems(files, labels)
    cases, refused = _group(files, channels=channels)
    source = Source(tuple(cases), refused=tuple(refused))
    if root.name in ("imagesTr", "imagesTs") and declared.is_file():
        names, modality = _declared(load_json(declared), declared)
        source = replace(source, labels=names, modality=modality)
    return source


def _labels_name_stems(files: list[Path], labels: str | Path | None) -> bool:
    """Whether the label files are named like nnU-Net's: case.nii.gz for the images case_0000.nii.gz ..."""
    if labels is None or not Path(labels).is_dir():
        return False
    matches = [_CHANNEL.match(case_name(file)) for file in files]
    names = {case_name(file) for file in find_images(labels)}
    return all(matches) and not any(m.group(0) in names for m in matches if m) and any(
        m.group(1) in names for m in matches if m)


def _group(files: Iterable[Path], *, channels: bool) -> tuple[list[Found], list[InputError]]:
    if not channels:
        return [Found(case_name(file), (file,)) for file in files], []
    grouped: dict[str, dict[int, Path]] = {}
    for file in files:
        match = _CHANNEL.match(case_name(file))
        name, channel = (match.group(1), int(match.group(2))) if match else (case_name(file), 0)
        grouped.setdefault(name, {})[channel] = file
    cases, refused = [], []
    for name, parts in grouped.items():
        if sorted(parts) == list(range(len(parts))):
            cases.append(Found(name, tuple(parts[n] for n in sorted(parts))))
        else:
            refused.append(InputError(f"has the channels {sorted(parts)}, expected 0 to {max(parts)}", case=name,
                                      file=next(iter(parts.values())), remedy="Add the missing channel files."))
    return cases, refused


def _from_dataset(path: Path) -> Source:
    content = load_json(path)
    labels, modality = _declared(content, path)
    root = path.parent
    if isinstance(content.get("training"), list):
        return _listed(content, path, labels, modality)
    cases: list[Found] = []
    refused: list[InputError] = []
    for folder, test in (("imagesTr", False), ("imagesTs", True)):
        if (root / folder).is_dir() and any((root / folder).iterdir()):
            found, bad = _group(find_images(root / folder), channels=True)
            cases += [replace(case, test=test) for case in found]
            refused += bad
    source = Source(tuple(cases), labels, modality, tuple(refused))
    for folder in ("labelsTr", "labelsTs"):
        if (root / folder).is_dir() and any((root / folder).iterdir()):
            source = _with_labels(source, root / folder)
    if not cases and not refused:
        raise InputError("lists no cases and has no imagesTr beside it", file=path, remedy="Give the data set's folder.")
    return source


def _declared(content: Any, path: Path) -> tuple[dict[int, str] | None, tuple[str, ...] | None]:
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", file=path, remedy="Give a Decathlon or nnU-Net dataset.json.")
    modality = content.get("channel_names", content.get("modality"))
    try:
        return (parse_labels(content["labels"]) if "labels" in content else None,
                parse_modality(modality) if modality else None)
    except InputError as error:
        raise InputError(error.finding, file=path, remedy=error.remedy) from None


def _listed(content: dict[str, Any], path: Path, labels: dict[int, str] | None,
            modality: tuple[str, ...] | None) -> Source:
    cases: list[Found] = []
    refused: list[InputError] = []
    tests = content.get("test", [])
    for entry, test in [(e, False) for e in content["training"]] + [(e, True) for e in tests]:
        try:
            cases.append(_entry(entry, path, len(modality or ()), test))
        except InputError as error:
            refused.append(error)
    if not cases:
        raise refused[0] if refused else InputError("lists no cases", file=path, remedy="List them under training.")
    return Source(tuple(cases), labels, modality, tuple(refused))


def _entry(entry: Any, path: Path, channels: int, test: bool) -> Found:
    entry = {"image": entry} if isinstance(entry, str) else entry
    images = entry.get("image") if isinstance(entry, dict) else None
    images = images if isinstance(images, list) else [images]
    label = entry.get("label") if isinstance(entry, dict) else None
    for text in (*images, *([label] if label is not None else [])):
        if not isinstance(text, str) or not text:
            raise InputError(f"lists the case {entry!r}", file=path, remedy='Write {"image": "...", "label": "..."}.')
        if not is_inside(text):
            raise InputError(f"points outside its folder: {text!r}", file=path,
                             remedy="Use paths under the folder of dataset.json.")
    first = path.parent / images[0]
    name = entry.get("name") or case_name(first)
    if len(images) == 1 and not first.exists():  # nnU-Net v1 lists case.nii.gz for case_0000.nii.gz ...
        parts = [first.with_name(first.name.replace(name, f"{name}_{n:04d}", 1)) for n in range(max(1, channels))]
        if parts[0].exists():
            return Found(name, tuple(parts), path.parent / label if label else None, test)
    return Found(name, tuple(path.parent / text for text in images), path.parent / label if label else None, test)


def _with_labels(source: Source, folder: Path) -> Source:
    found: dict[str, Path] = {}
    for file in find_images(folder):
        if case_name(file) in found:
            raise InputError(f"has two labels for {case_name(file)}: {found[case_name(file)].name} and {file.name}",
                             file=folder, remedy="Keep one of them.")
        found[case_name(file)] = file
    cases = tuple(replace(case, label=found.get(case.name, case.label)) for case in source.cases)
    unused = sorted(set(found) - {case.name for case in cases})
    if found and not any(case.name in found for case in cases):
        raise InputError(f"has no label named like an image (labels: {', '.join(unused[:3])} ...; "
                         f"images: {', '.join(case.name for case in cases[:3])} ...)", file=folder,
                         remedy="Give label files the names of their images.")
    warnings = source.warnings + ((f"{len(unused)} labels belong to no image: {', '.join(unused[:10])}",) if unused else ())
    return replace(source, cases=cases, warnings=warnings)


def _without_duplicates(source: Source) -> Source:
    groups: dict[str, list[Found]] = {}
    refused = list(source.refused)
    for case in source.cases:
        try:
            groups.setdefault(check_name(case.name).casefold(), []).append(replace(case, name=check_name(case.name)))
        except InputError as error:
            refused.append(InputError(error.finding, file=case.images[0], remedy="Rename the file. " + error.remedy))
    for same in groups.values():
        if len(same) > 1:
            refused.append(InputError("is the name of " + " and ".join(str(case.images[0]) for case in same),
                                      case=same[0].name, file=same[0].images[0], remedy="Rename or remove one of them."))
    kept = sorted((same[0] for same in groups.values() if len(same) == 1), key=lambda case: case.name)
    return replace(source, cases=tuple(kept), refused=tuple(refused))
