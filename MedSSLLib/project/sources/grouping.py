"""From files of a folder to cases: which belong together as channels, and which are segmentations
of others. Part of `layouts`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.images.io import case_name

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")
_SEGMENTATION = re.compile(
    r"^(.+?)[-_. ](?:seg|segmentation|segmentations|label|labels|labelmap|mask|masks|gt)$",
    re.IGNORECASE,
)
_BESIDE = (
    re.compile(
        r"^(?:seg|segmentation|labels?|labelmap|masks?|gt)[-_. ](?P<scan>.+)$", re.IGNORECASE
    ),
    re.compile(
        r"^(?P<scan>.+?)[-_. ](?:rois?|lesions?|tumou?rs?|annotations?|contours?|manual|"
        r"(?:ground[-_. ]?)?truth)$",
        re.IGNORECASE,
    ),
)
"""Names of segmentations where the scan of the rest of the name lies beside them."""
_MOST_CHANNELS = 16


@dataclass(frozen=True)
class Found:
    """A case as found: name, one image per channel, label if there is one, whether the source calls
    it a test case.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    test: bool = False


@dataclass(frozen=True)
class Group:
    """Cases of a folder, refusals and warnings."""

    cases: list[Found]
    refused: list[InputError]
    warnings: list[str]


def grouped(files: Iterable[Path], root: Path, *, channels: bool, labelled: bool = True) -> Group:
    """Cases of image files: each file its own, or (channels) case_0000, case_0001 ... together.

    A segmentation beside its scan is the scan's label: case.seg.nrrd, case_seg.nii.gz and the like.
    Where cases are not to be `labelled`, it is left out.
    """
    scans, segmentations = _apart(list(files))
    if channels:
        cases, refused = _with_channels(scans, root)
    else:
        cases, refused = [Found(name_below(file, root), (file,)) for file in scans], []
    if not labelled:
        words = f"{_files(segmentations)} left out: no scan, by the name" if segmentations else ""
        return Group(cases, refused, [words] if words else [])
    cases, warnings = _with_own_labels(cases, segmentations)
    return Group(cases, refused, warnings)


def numbers_are_channels(
    files: Sequence[Path], label_names: set[str] | None, declared: int | None
) -> tuple[bool, str]:
    """Whether the four digits at the end of file names (case_0000) count channels, as nnU-Net's do,
    or cases, as in AMOS and WORD; and a warning where only a guess is possible ("" elsewhere).

    Args:
        files: the images of a folder.
        label_names: names of its labels; None without any.
        declared: the number of channels that a dataset.json declares; None without one.
    """
    numbers: dict[str, set[int]] = {}
    whole_names = set()
    for file in files:
        match = _CHANNEL.match(case_name(file))
        if match:
            numbers.setdefault(match.group(1), set()).add(int(match.group(2)))
            whole_names.add(match.group(0))
    if not numbers:
        return False, ""
    if label_names is not None and (label_names & (whole_names | set(numbers))):
        return not label_names & whole_names, ""
    highest = max(map(max, numbers.values()))
    if declared is not None:
        return highest < declared, ""
    if highest == 0:
        return True, ""
    from_zero = sum(0 in found for found in numbers.values())
    likely = len(numbers) > 1 and 2 * from_zero >= len(numbers) and highest < _MOST_CHANNELS
    if likely:
        return True, ""
    first = sorted(whole_names)
    return False, (
        f"{len(whole_names)} files with four-digit endings ({', '.join(first[:3])}"
        f"{', ...' if len(first) > 3 else ''}) are taken as {len(whole_names)} cases, not as "
        "channels. If they are channels, put a dataset.json with channel_names beside the folder, "
        "or give the labels too"
    )


def label_names_count_channels(files: Sequence[Path], label_names: set[str]) -> bool:
    """Whether label files are named like nnU-Net's: case.nii.gz for the images case_0000.nii.gz,
    case_0001.nii.gz.
    """
    if not all(_CHANNEL.match(case_name(file)) for file in files):
        return False
    names = {case_name(file) for file in files}
    stems = {name.rpartition("_")[0] for name in names}
    return bool(stems & label_names) and not names & label_names


def named_after_cases(
    labels: Mapping[str, Path], cases: Iterable[str]
) -> tuple[dict[str, Path], list[InputError]]:
    """Label files by name, where case_seg.nii.gz and the like are those of the case, if no file
    bears its plain name; and refusals of those of a case that has several: which of a mask and a
    segmentation is meant, only the user knows.
    """
    known = set(cases)
    found = dict(labels)
    several: dict[str, list[Path]] = {}
    for name in labels:
        scan = case_segmented(name, known)
        if not scan or name in known or scan in labels:
            continue
        several.setdefault(scan, []).append(found.pop(name))
    refused = []
    for scan, files in several.items():
        if len(files) == 1:
            found[scan] = files[0]
            continue
        refused.append(
            InputError(
                f"has {len(files)} labels ({', '.join(file.name for file in files)}), and none is "
                "taken",
                case=scan,
                file=files[0].parent,
                remedy="Move those that are not meant to another folder.",
            )
        )
    return found, refused


def case_segmented(name: str, cases: Collection[str]) -> str:
    """The case, of these, that a file called like case_seg or label-case is a segmentation of; ""
    for none.
    """
    match = _SEGMENTATION.match(name)
    scan = match.group(1) if match else _beside(name, cases)
    return scan if scan in cases else ""


def name_below(file: Path, root: Path) -> str:
    """The case's name; a DICOM folder further down is named by its way there
    (patient_study_series).
    """
    if file.is_dir() and file != root:
        return "_".join(file.relative_to(root).parts)
    return case_name(os.path.abspath(file))  # of the folder "." too


def same_name(same: Sequence[Found]) -> InputError:
    """The refusal of several images of one name."""
    return InputError(
        f"is the name of {len(same)} images: {', '.join(str(case.images[0]) for case in same)}",
        case=same[0].name,
        remedy="Rename or remove all but one of them.",
    )


def _with_channels(files: Sequence[Path], root: Path) -> tuple[list[Found], list[InputError]]:
    groups: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        match = _CHANNEL.match(case_name(file))
        if match:
            groups.setdefault(match.group(1), []).append((int(match.group(2)), file))
        else:
            groups.setdefault(name_below(file, root), []).append((0, file))
    cases: list[Found] = []
    refused: list[InputError] = []
    for name, parts in groups.items():
        try:
            cases.append(_one_case(name, sorted(parts)))
        except InputError as error:
            refused.append(error)
    return cases, refused


def _one_case(name: str, parts: Sequence[tuple[int, Path]]) -> Found:
    numbers = [number for number, _ in parts]
    files = tuple(file for _, file in parts)
    if numbers == list(range(len(parts))):
        return Found(name, files)
    if len(set(numbers)) < len(numbers):
        raise InputError(
            f"has a channel twice: {', '.join(file.name for file in files)}",
            case=name,
            file=files[0],
            remedy="Rename or remove one of them.",
        )
    raise InputError(
        f"has the channels {numbers}, expected 0 to {numbers[-1]}",
        case=name,
        file=files[0],
        remedy="Add the missing channel files.",
    )


def _apart(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """Scans, and segmentations with the name of the scan they seem to belong to."""
    names = {
        case_name(file)
        for file in files
        if not _is_slicers(file) and not _SEGMENTATION.match(case_name(file))
    }
    scans: list[Path] = []
    segmentations: dict[Path, str] = {}
    for file in files:
        match = _SEGMENTATION.match(case_name(file))
        scan = _beside(case_name(file), names)
        base = match.group(1) if match else scan or case_name(file)
        beside = base in names or any(name.startswith((f"{base}_", f"{base}-")) for name in names)
        if not file.is_dir() and (_is_slicers(file) or (match and beside) or scan):
            segmentations[file] = base
        else:
            scans.append(file)
    return scans, segmentations


def _beside(name: str, names: Collection[str]) -> str:
    """The scan, of those with these `names`, that a file called `name` is a segmentation of; "" for
    none.
    """
    found = [match["scan"] for match in (form.match(name) for form in _BESIDE) if match]
    return next((scan for scan in found if scan in names), "")


def _is_slicers(file: Path) -> bool:
    return file.name.lower().endswith(".seg.nrrd")


def _with_own_labels(
    cases: Sequence[Found], segmentations: Mapping[Path, str]
) -> tuple[list[Found], list[str]]:
    by_name = {case.name: case for case in cases}
    own: dict[str, list[Path]] = {}
    left_out: list[Path] = []
    for file, base in segmentations.items():
        name = case_name(file) if case_name(file) in by_name else base
        if name in by_name:
            own.setdefault(name, []).append(file)
        else:
            left_out.append(file)
    warnings, taken = [], []
    for name, files in own.items():
        if len(files) == 1:
            by_name[name] = replace(by_name[name], label=files[0])
            taken += files
        else:
            warnings.append(
                f"{_files(files)} beside {name}: which is its label is not known, and none is taken"
                ". Keep one of them there, or give the folder of the labels"
            )
    if taken:
        warnings.append(f"{_files(taken)} beside scans of the same name: taken as their labels")
    if left_out:
        warnings.append(f"{_files(left_out)} left out: no scan, by the name, and of none")
    return list(by_name.values()) if len(by_name) == len(cases) else list(cases), warnings


def _files(files: Iterable[Path]) -> str:
    names = [file.name for file in files]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} segmentation{'s' * (len(names) > 1)} ({shown})"
