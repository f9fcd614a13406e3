"""What folders of images offer: plain folders, nnU-Net raw folders, Decathlon folders. Pixels are
not read here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import is_inside, load_json
from MedSSLLib.images.io import case_name, extension, find_images, images_below, stem
from MedSSLLib.project.manifest import check_name, parse_labels, parse_modality
from MedSSLLib.project.sources.grouping import (
    Found,
    grouped,
    label_names_count_channels,
    named_after_cases,
    numbers_are_channels,
    same_name,
)

_TRAINING, _TEST = "imagesTr", "imagesTs"


@dataclass(frozen=True)
class Source:
    """Cases sorted by name, declared classes and modality (None when not declared), refusals and
    warnings.
    """

    cases: tuple[Found, ...] = ()
    labels: dict[int, str] | None = None
    modality: tuple[str, ...] | None = None
    refused: tuple[InputError, ...] = ()
    warnings: tuple[str, ...] = ()


def discover(
    paths: Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str] | None = None,
    apart: Sequence[str | os.PathLike[str]] = (),
) -> Source:
    """The cases of image files, folders of images, data set folders or dataset.json files, with a
    folder of labels.

    Segmentations beside their scans (case.seg.nrrd, case_seg.nii.gz) are labels, not scans. Image
    files in folders below are named as left out, but for folders that are given too or are `apart`.
    Raises InputError when a path is missing or holds no image, no label is named like an image, or
    a dataset.json is malformed. Cases with the same name, missing channels or paths outside their
    dataset.json's folder are refused.
    """
    if labels is not None and any(
        os.path.realpath(path) == os.path.realpath(labels) for path in paths
    ):
        raise InputError(
            "is given both as images and as labels",
            file=labels,
            remedy="Keep them in separate folders, or leave the labels out where they are called "
            "like their scans: case.seg.nrrd, case_seg.nii.gz.",
        )
    others = [Path(other) for other in (*paths, *apart, *([] if labels is None else [labels]))]
    parts = [_one(Path(path), labels, others) for path in paths]
    source = Source(
        cases=tuple(case for part in parts for case in part.cases),
        labels=next((part.labels for part in parts if part.labels is not None), None),
        modality=next((part.modality for part in parts if part.modality is not None), None),
        refused=tuple(error for part in parts for error in part.refused),
        warnings=tuple(text for part in parts for text in part.warnings),
    )
    if labels is not None:
        source = _with_labels(source, Path(labels))
    return _without_duplicates(source)


def images_at(
    paths: Sequence[str | os.PathLike[str]], channels: int, apart: Sequence[Path] = ()
) -> Source:
    """The cases of image files, DICOM folders and folders of images that are to be segmented.

    With several `channels`, the files case_0000, case_0001 ... are one case. Cases with the same
    name and missing channels are refused. Of image files in folders below it is said that they are
    left out, but for folders that are given too or are `apart` (results).
    Raises InputError for a folder without images.
    """
    folders = [path for path in map(Path, paths) if path.is_dir()]
    loose = [path for path in map(Path, paths) if not path.is_dir()]
    several = channels > 1
    parts = [grouped(find_images(f), f, channels=several, labelled=False) for f in folders]
    parts.append(grouped(loose, Path(), channels=several, labelled=False))
    others = [*folders, *apart]
    overlooked = [words for folder in folders for words in _overlooked(folder, others)]
    groups: dict[str, list[Found]] = {}
    for part in parts:
        for case in part.cases:
            groups.setdefault(case.name.casefold(), []).append(case)
    refused = [error for part in parts for error in part.refused]
    refused += [same_name(same) for same in groups.values() if len(same) > 1]
    if not groups and not refused:
        raise InputError(
            "no scan is left, all files are segmentations by their names",
            remedy="Give the scans.",
        )
    return Source(
        tuple(same[0] for same in groups.values() if len(same) == 1),
        refused=tuple(refused),
        warnings=(*(text for part in parts for text in part.warnings), *overlooked),
    )


def _overlooked(root: Path, others: Sequence[Path]) -> list[str]:
    """What to say of image files in folders below, which are not looked for: in some of them lie
    segmentations, or what other programs have made of the scans. Nothing of those in `others`.
    """
    apart = {other.resolve() for other in others} - {root.resolve()}
    found = [file for file in images_below(root) if not apart & set(file.resolve().parents)]
    if not found:
        return []
    shown = ", ".join(str(file.relative_to(root)) for file in found[:3])
    return [
        f"{root}: {len(found)} image file{'s' * (len(found) > 1)} in folders below "
        f"{'are' if len(found) > 1 else 'is'} left out ({shown}{', ...' if len(found) > 3 else ''})"
        ". If they are scans, give their folders too"
    ]


def _one(path: Path, labels: str | os.PathLike[str] | None, others: Sequence[Path]) -> Source:
    if path.suffix.lower() == ".json":
        return _from_dataset(path)
    if (path / "dataset.json").is_file():
        return _from_dataset(path / "dataset.json")
    if path.is_file():
        return Source((Found(case_name(path), (path,)),))
    if not path.exists():
        raise InputError("does not exist", file=path, remedy="Check the path of the images.")
    return _from_folder(path, labels, others)


def _from_folder(
    root: Path, labels: str | os.PathLike[str] | None, others: Sequence[Path]
) -> Source:
    files = find_images(root)
    declared = root.parent / "dataset.json"
    raw = root.name in (_TRAINING, _TEST)
    names, modality = (
        _declared(load_json(declared), declared) if raw and declared.is_file() else (None, None)
    )
    label_names = None if labels is None else {case_name(file) for file in find_images(labels)}
    channels, warning = False, ""
    if raw:
        count = len(modality) if modality else None
        channels, warning = numbers_are_channels(files, label_names, count)
    elif label_names is not None:
        channels = label_names_count_channels(files, label_names)
    found = grouped(files, root, channels=channels)
    overlooked = _overlooked(root, others)
    warnings = (*([warning] if warning else []), *found.warnings, *overlooked)
    return Source(tuple(found.cases), names, modality, tuple(found.refused), warnings)


def _from_dataset(path: Path) -> Source:
    content = load_json(path)
    labels, modality = _declared(content, path)
    source = Source(labels=labels, modality=modality)
    if isinstance(content.get("training"), list):
        return _listed(source, content, path)
    for images, label, test in ((_TRAINING, "labelsTr", False), (_TEST, "labelsTs", True)):
        if not _filled(path.parent / images):
            continue
        labelled = _filled(path.parent / label)
        folder, label_folder = path.parent / images, path.parent / label
        files = find_images(folder)
        label_names = {case_name(f) for f in find_images(label_folder)} if labelled else None
        count = len(modality) if modality else None
        channels, warning = numbers_are_channels(files, label_names, count)
        found = grouped(files, folder, channels=channels)
        part = Source(
            tuple(replace(case, test=test) for case in found.cases),
            warnings=(*([warning] if warning else []), *found.warnings),
        )
        part = _with_labels(part, label_folder) if labelled else part
        source = replace(
            source,
            cases=source.cases + part.cases,
            refused=(*source.refused, *found.refused, *part.refused),
            warnings=source.warnings + part.warnings,
        )
    if not source.cases and not source.refused:
        raise InputError(
            f"lists no cases and has no {_TRAINING} beside it",
            file=path,
            remedy="Give the data set's folder.",
        )
    return source


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())


def _declared(content: Any, path: Path) -> tuple[dict[int, str] | None, tuple[str, ...] | None]:
    if not isinstance(content, dict):
        raise InputError(
            "is not a JSON object", file=path, remedy="Give a Decathlon or nnU-Net dataset.json."
        )
    modality = content.get("channel_names", content.get("modality"))
    try:
        return (
            parse_labels(content["labels"]) if "labels" in content else None,
            parse_modality(modality) if modality else None,
        )
    except InputError as error:
        raise InputError(error.finding, file=path, remedy=error.remedy) from None


def _listed(source: Source, content: dict[str, Any], path: Path) -> Source:
    """The cases that a Decathlon (or nnU-Net v1) dataset.json lists."""
    cases: list[Found] = []
    refused: list[InputError] = []
    tests = content.get("test", [])
    entries = [(entry, False) for entry in content["training"]]
    entries += [(entry, True) for entry in (tests if isinstance(tests, list) else [])]
    for entry, test in entries:
        try:
            cases.append(_entry(entry, path, len(source.modality or ()), test))
        except InputError as error:
            refused.append(error)
    if not entries:
        raise InputError("lists no cases", file=path, remedy='List them under "training".')
    return replace(source, cases=tuple(cases), refused=tuple(refused))


def _entry(entry: Any, path: Path, channels: int, test: bool) -> Found:
    fields = entry if isinstance(entry, dict) else {"image": entry}
    images, label = fields.get("image"), fields.get("label")
    images = images if isinstance(images, list) and images else [images]
    for text in (*images, *([label] if label else [])):
        if not isinstance(text, str) or not text:
            raise InputError(
                f"lists the case {entry!r}",
                file=path,
                remedy='Write {"image": "...", "label": "..."}.',
            )
        if not is_inside(text):
            raise InputError(
                f"points outside its own folder: {text!r}",
                file=path,
                remedy="Use paths under the folder of dataset.json.",
            )
    files = tuple(path.parent / text for text in images)
    name = fields.get("name") or case_name(files[0])
    if (
        len(files) == 1 and not files[0].exists()
    ):  # nnU-Net v1 lists case.nii.gz for case_0000.nii.gz ...
        first, ending = stem(files[0]), extension(files[0])
        parts = [files[0].with_name(f"{first}_{n:04d}{ending}") for n in range(max(1, channels))]
        files = tuple(parts) if parts[0].exists() else files
    return Found(name, files, path.parent / label if label else None, test)


def label_files(folder: Path) -> tuple[dict[str, Path], list[InputError]]:
    """The label files of a folder by the case's name, and refusals of those whose name no case can
    have.

    Raises InputError for two of one name, or for none.
    """
    if not folder.is_dir():
        raise InputError(
            "is not a folder", file=folder, remedy="Give the folder that holds the label files."
        )
    found: dict[str, Path] = {}
    refused: list[InputError] = []
    for file in find_images(folder):
        try:
            name = check_name(case_name(file), "label")
        except InputError as error:
            refused.append(_to_rename(file, error))
            continue
        if name in found:
            raise InputError(
                f"has two labels for {name}: {found[name].name} and {file.name}",
                file=folder,
                remedy="Keep one of them.",
            )
        found[name] = file
    return found, refused


def _to_rename(file: Path, error: InputError) -> InputError:
    """The refusal of a file whose name no case can have."""
    return InputError(error.finding, file=file, remedy=f"Rename it. {error.remedy}")


def _with_labels(source: Source, folder: Path) -> Source:
    files, refused = label_files(folder)
    if not files and refused:
        raise refused[0]
    found, twice = named_after_cases(files, [case.name for case in source.cases])
    refused += twice
    cases = tuple(
        replace(case, label=found.pop(_nfc(case.name), case.label)) for case in source.cases
    )
    if found and not twice and all(case.label is None for case in cases):
        images = ", ".join(case.name for case in cases[:3])
        raise InputError(
            f"has no label named like an image (labels: {', '.join(sorted(found)[:3])}; images: "
            f"{images})",
            file=folder,
            remedy="Give label files the names of their images.",
        )
    unused = (
        f"{len(found)} labels belong to no image: {', '.join(sorted(found)[:10])}" if found else ""
    )
    return replace(
        source,
        cases=cases,
        refused=(*source.refused, *refused),
        warnings=source.warnings + ((unused,) if unused else ()),
    )


def _nfc(name: Any) -> str:
    try:
        return check_name(name)
    except InputError:
        return ""  # refused later, with its file


def _without_duplicates(source: Source) -> Source:
    groups: dict[str, list[Found]] = {}
    refused = list(source.refused)
    for case in source.cases:
        try:
            named = replace(case, name=check_name(case.name))
            groups.setdefault(named.name.casefold(), []).append(named)
        except InputError as error:
            refused.append(_to_rename(case.images[0], error))
    for same in groups.values():
        if len(same) > 1:
            refused.append(same_name(same))
    kept = sorted(
        (same[0] for same in groups.values() if len(same) == 1), key=lambda case: case.name
    )
    return replace(source, cases=tuple(kept), refused=tuple(refused))
