"""Taking cases into a project: headers are checked, roles given, classes found; bad cases are left
out and listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import same_contents
from MedSSLLib.images.geometry import Geometry
from MedSSLLib.images.io import (
    case_name,
    check_label,
    notices,
    read_header,
    read_label,
    recorded_slices,
    segment_names,
    slices_with_structures,
)
from MedSSLLib.images.labels import label_values
from MedSSLLib.project.drawn_slices import about_lone_slices, carry_over, lone_slices
from MedSSLLib.project.layouts import Source, label_files
from MedSSLLib.project.manifest import LARGEST_VALUE, Case, Manifest, with_ignore_value
from MedSSLLib.project.roles import names_in, with_roles
from MedSSLLib.project.sources.grouping import Found, named_after_cases
from MedSSLLib.project.sources.modality import choose_modality
from MedSSLLib.project.sources.sizes import some_grids, unlike_sizes

_MOST_VALUES = 120  # of label maps that number their classes without gaps; not from a paper


@dataclass
class Admission:
    """What `admit` decided: the new cases, classes and modality, the refusals and the warnings.

    already: names of cases that the project had before.
    """

    cases: dict[str, Case] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    labels_from: tuple[str, ...] | None = ()
    modality: tuple[str, ...] = ("MR",)
    refused: list[InputError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)

    def merged_into(self, manifest: Manifest) -> Manifest:
        """`manifest` with the new cases, classes and modality."""
        return replace(
            manifest,
            cases=manifest.cases | self.cases,
            labels=manifest.labels | self.labels,
            labels_from=self.labels_from,
            modality=self.modality,
        )


def admit(
    manifest: Manifest,
    source: Source,
    metadata: dict[str, dict[str, str]] | None,
    labelled: str | None,
    test: str,
) -> Admission:
    """Check the cases of `source` and give them roles.

    Only headers are read, and labels (headers and, where classes were not declared, values) only of
    cases that become labelled. Raises InputError when a selection names an unknown case or no case
    is left.
    """
    result = Admission(
        labels_from=manifest.labels_from,
        refused=list(source.refused),
        warnings=list(source.warnings),
    )
    result.modality, warning = choose_modality(
        manifest.modality if manifest.cases else source.modality, source.cases
    )
    result.warnings += [warning] if warning else []
    present = {name.casefold(): case for name, case in manifest.cases.items()}
    grids: dict[str, Geometry] = {}
    for found in source.cases:
        known = present.get(found.name.casefold())
        try:
            if known is not None and same_contents(known.images, found.images):
                result.already.append(known.name)
                continue
            if known is not None:
                raise InputError(
                    f"another scan of the project has this name ({known.images[0]})",
                    file=found.images[0],
                    remedy="Rename the new file.",
                )
            result.cases[found.name], grids[found.name] = _checked(found, len(result.modality))
        except InputError as error:
            result.refused.append(error.for_case(found.name))
    if not result.cases and result.already:
        return result
    if not result.cases:
        raise _nothing_left(result.refused)
    result.warnings += _remarks(result.cases.values())
    result.warnings += unlike_sizes(grids, some_grids(manifest.cases.values()))
    _describe(result, metadata, manifest)
    _give_roles(result, labelled, test)
    _find_classes(result, manifest, source)
    if not result.cases:
        raise _nothing_left(result.refused)
    _warn_of_shared_patients(result, manifest)
    return result


def attach(manifest: Manifest, folder: Path) -> Admission:
    """Give cases of the project the label files of a folder that bear their names; training cases
    become labelled.

    A label replaces the one before, and the annotated slices with it, but for what is said in
    ``carry_over``. Unusable labels are listed.
    Raises InputError when no file bears a case's name or none can be used.
    """
    labels, refused = label_files(folder)
    files, twice = named_after_cases(labels, manifest.cases)
    refused += twice
    ours = {name: manifest.cases[name] for name in files if name in manifest.cases}
    if not ours:
        raise InputError(
            "has no label named like a case of the project (labels: "
            f"{', '.join([*sorted(files), *(error.file for error in refused)][:3])})",
            file=folder,
            remedy="Give label files the names of their scans, or add the scans as well.",
        )
    result = Admission(
        modality=manifest.modality, labels_from=manifest.labels_from, refused=refused
    )
    if any(case.annotated and case.annotated.partly for case in ours.values()):
        manifest = with_ignore_value(manifest)
    for name, case in ours.items():
        role = "test" if case.role == "test" else "labelled"
        result.cases[name] = replace(
            case, label=Path(os.path.abspath(files[name])), annotated=None, role=role
        )
    if others := sorted(files.keys() - ours.keys()):
        result.warnings.append(f"{len(others)} labels belong to no case: {', '.join(others[:10])}")
    _find_classes(result, manifest, Source())
    result.warnings += carry_over(ours, result.cases)
    if not result.cases:
        raise _nothing_left(result.refused)
    return result


def with_scanned_labels(manifest: Manifest, cases: Iterable[Case]) -> Manifest:
    """A manifest whose classes cover the labels of `cases`, with the annotated slices that
    segmentations record.

    Voxels are not read where classes were declared, nor twice. Raises InputError for a label that
    cannot be read.
    """
    cases = [_with_annotated_slices(case, manifest.drawn_plane) for case in cases]
    manifest = manifest.with_cases(*cases)
    if manifest.labels_from is None:
        return manifest
    labels, scanned = dict(manifest.labels), list(manifest.labels_from)
    for case in cases:
        if case.name not in scanned:
            _merge(labels, _scan(case, labels)[1], case)
            scanned.append(case.name)
    return replace(manifest, labels=labels, labels_from=tuple(scanned))


def _checked(found: Found, channels: int) -> tuple[Case, Geometry]:
    images = tuple(Path(os.path.abspath(image)) for image in found.images)
    first = read_header(images[0])
    if len(images) != channels:
        raise InputError(
            f"has {len(images)} channel{'s' * (len(images) > 1)}, expected {channels}",
            file=images[0],
            remedy="Give every case the same channels, as case_0000, case_0001 ...",
        )
    for image in images[1:]:
        difference = read_header(image).difference(first)
        if difference:
            raise InputError(
                f"lies on another grid than channel 0: {difference}",
                file=image,
                remedy="Resample the channels of a case onto one grid.",
            )
    label = Path(os.path.abspath(found.label)) if found.label else None
    if label is not None and not label.exists():
        raise InputError(
            "is listed as the label, but does not exist",
            file=label,
            remedy="Restore the file, or take the label out of the list.",
        )
    return Case(found.name, images, label, role="test" if found.test else "unlabelled"), first


def _remarks(cases: Iterable[Case]) -> list[str]:
    """What is worth knowing about the headers of images and labels, one warning of each sort."""
    found: dict[str, list[str]] = {}
    for case in cases:
        for image in case.images:
            for general, particular in notices(image):
                found.setdefault(general, []).append(f"{case.name}: {particular}")
    return [
        f"{general}, in {len(lines)} image{'s' * (len(lines) > 1)} ({lines[0]})"
        for general, lines in found.items()
    ]


def _describe(
    result: Admission, metadata: dict[str, dict[str, str]] | None, manifest: Manifest
) -> None:
    if metadata is None:
        return
    known = {*result.cases, *manifest.cases, *(error.case for error in result.refused)}
    table = {name if name in known else case_name(name): entry for name, entry in metadata.items()}
    result.cases = {
        name: replace(case, metadata=table.get(name, {})) for name, case in result.cases.items()
    }
    for text, names in (
        ("the metadata name unknown cases", set(table) - known),
        ("cases without metadata", set(result.cases) - set(table)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:20]) + (" ..." if len(names) > 20 else "")
            result.warnings.append(f"{text} ({len(names)}): {shown}")


def _give_roles(result: Admission, labelled: str | None, test: str) -> None:
    refused = {error.case for error in result.refused}

    def usable(selection: str) -> str:
        return ",".join(
            name
            for name in names_in(selection)
            if name not in refused and case_name(name) not in refused
        )

    tests = [name for name, case in result.cases.items() if case.role == "test"]
    manifest = with_roles(Manifest("", cases=result.cases), None, ",".join([*tests, usable(test)]))
    if labelled is None:
        chosen = ",".join(
            name for name, case in manifest.cases.items() if case.label and case.role != "test"
        )
    else:
        chosen = usable(labelled)
        if names_in(labelled) and not chosen:
            raise _nothing_left([error for error in result.refused if error.case in labelled])
    result.cases = with_roles(manifest, chosen, None).cases


def _find_classes(result: Admission, manifest: Manifest, source: Source) -> None:
    """Check the labels of labelled cases, and find their values unless the classes are declared."""
    labels, scanned = dict(manifest.labels), list(manifest.labels_from or ())
    if source.labels is not None and not manifest.cases:
        labels, result.labels_from = dict(source.labels), None
    apart: list[str] = []
    for name, case in list(result.cases.items()):
        if case.role != "labelled" or case.label is None:
            continue
        try:
            _check_grid(case)
            result.cases[name] = _with_annotated_slices(case, manifest.drawn_plane)
            if result.labels_from is not None:
                shown, found, lone = _scan(result.cases[name], labels)
                result.warnings += _like_an_image(name, shown)
                apart += [f"{name}: {lone}"] if lone else []
                _merge(labels, found, case)
                scanned.append(name)
                if not shown:
                    result.warnings.append(f"{name}: the label is empty")
        except InputError as error:
            result.refused.append(error.for_case(name))
            del result.cases[name]
    result.warnings += about_lone_slices(apart)
    result.labels = labels
    result.labels_from = None if result.labels_from is None else tuple(dict.fromkeys(scanned))


def _check_grid(case: Case) -> None:
    """Check that the label lies on its image's grid; a refusal also says what is odd about the
    image's header.
    """
    assert case.label is not None
    grid = read_header(case.images[0])
    try:
        check_label(case.label, grid, case=case.name)
    except InputError as error:
        odd = "; ".join(f"{general}: {words}" for general, words in notices(case.images[0]))
        if not odd:
            raise
        finding = f"{error.finding} (of its image, {odd})"
        raise InputError(finding, case=case.name, file=case.label, remedy=error.remedy) from None


def _with_annotated_slices(case: Case, drawn_plane: str) -> Case:
    """The case with the slices that its segmentation records, or those of a plane that its label
    shows anything on.

    A case with a record of its own keeps it; without a plane, a label without record counts as a
    whole.
    """
    may_record = case.label is not None and case.label.name.lower().endswith(".nrrd")
    if case.annotated is not None or case.label is None or not (may_record or drawn_plane):
        return case
    grid = read_header(case.images[0])
    found = recorded_slices(case.label, grid) if may_record else None
    if found is None and drawn_plane:
        found = slices_with_structures(case.label, grid, drawn_plane, case=case.name)
    return replace(case, annotated=found)


def _scan(case: Case, known: dict[int, str]) -> tuple[list[int], dict[int, str], str]:
    """The values other than 0 that a case's label shows; those with all its segments, with the
    names that the file gives them (else ""); and the slices that it shows structures on, in words,
    where the whole label counts and they look drawn one by one ("" elsewhere).

    Segments whose name is known have its value, others get one that is free.
    """
    assert case.label is not None
    named = segment_names(case.label, known)
    names = known | named if named else None
    grid = read_header(case.images[0])
    volume = read_label(case.label, grid, case=case.name, names=names)
    lone = lone_slices(volume.array, grid) if case.annotated is None else ""
    shown = [value for value in label_values(volume.array) if value != 0]
    return shown, dict.fromkeys(shown, "") | named, lone


def _like_an_image(name: str, shown: list[int]) -> list[str]:
    """A warning of a label that shows nearly every value of a wide range, as an image does."""
    many = len(shown) > _MOST_VALUES and shown[-1] - shown[0] < 1.5 * len(shown)
    if not many:
        return []
    values = f"{len(shown)} values from {shown[0]} to {shown[-1]}"
    return [f"{name}: the label shows {values}. Is it an image?"]


def _merge(labels: dict[int, str], found: dict[int, str], case: Case) -> None:
    """Add found values to `labels`. Raises InputError for negative or too many values and
    contradicting names.
    """
    label = case.label or ""
    if (
        not 0 <= min(found, default=0) <= max(found, default=0) <= LARGEST_VALUE
        or len(labels.keys() | found.keys()) > 255
    ):
        raise InputError(
            f"has impossible label values ({len(found)} from {min(found)} to {max(found)})",
            case=case.name,
            file=label,
            remedy=f"Use whole numbers from 0 to {LARGEST_VALUE:,}, at most 254 classes. Is this "
            "an image?",
        )
    for value, name in found.items():
        other = next((v for v, known in labels.items() if name and known == name), value)
        if other != value or (name and labels.get(value, name) not in (name, f"class_{value}")):
            known = labels.get(value, f"{other} for {name!r}")
            raise InputError(
                f"calls the value {value} {name!r}, other cases use {known!r}",
                case=case.name,
                file=label,
                remedy="Use the same segments, in the same order, in every case.",
            )
    labels |= {value: name or labels.get(value, f"class_{value}") for value, name in found.items()}


def _warn_of_shared_patients(result: Admission, manifest: Manifest) -> None:
    cases = [*manifest.cases.values(), *result.cases.values()]
    tests = {case.patient for case in cases if case.role == "test"}
    shared = sorted(tests & {case.patient for case in cases if case.role != "test"})
    if shared:
        result.warnings.append(
            f"patients with both test and training cases ({len(shared)}): {', '.join(shared[:20])}"
        )


def _nothing_left(refused: list[InputError]) -> InputError:
    """One error for several refused cases: the first, and the others' words."""
    if not refused:
        return InputError(
            "no scan is left, all files are segmentations by their names",
            remedy="Give the folder of the scans.",
        )
    first = refused[0]
    if len(refused) == 1:
        return first
    others = "; ".join(f"{error.case}: {error.finding}" for error in refused[1:4])
    return InputError(
        f"{first.finding} (no case can be used; {len(refused) - 1} more: {others})",
        case=first.case,
        file=first.file,
        remedy=first.remedy,
    )
