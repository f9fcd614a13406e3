"""Taking cases into a project: headers are checked, roles given, classes found; bad cases are left out and listed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from MedSSLLib.errors import InputError
from MedSSLLib.io import check_label, modality_of, read_header, read_label, segment_names
from MedSSLLib.labels import label_values
from MedSSLLib.manifest import Case, Manifest
from MedSSLLib.selection import names_in, with_roles
from MedSSLLib.sources import Found, Source


@dataclass
class Admission:
    """What `admit` decided: the new cases, classes and modality, the refusals and the warnings."""

    cases: dict[str, Case] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    labels_from: tuple[str, ...] | None = ()
    modality: tuple[str, ...] = ("MR",)
    refused: list[InputError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def merged_into(self, manifest: Manifest) -> Manifest:
        """`manifest` with the new cases, classes and modality."""
        return replace(manifest, cases=manifest.cases | self.cases, labels=manifest.labels | self.labels,
                       labels_from=self.labels_from, modality=self.modality)


def admit(manifest: Manifest, source: Source, metadata: dict[str, dict[str, str]] | None,
          labelled: str | None, test: str) -> Admission:
    """Check the cases of `source` and give them roles.

    Labels are opened only for cases that become labelled. Raises InputError when a selection names an unknown case
    or no case is left.
    """
    result = Admission(refused=list(source.refused), warnings=list(source.warnings), labels_from=manifest.labels_from)
    result.modality = _modality(manifest, source)
    for found in source.cases:
        try:
            if found.name.casefold() in {name.casefold() for name in manifest.cases}:
                raise InputError("is in the project already", file=found.images[0], remedy="Rename the file.")
            result.cases[found.name] = _checked(found, len(result.modality))
        except InputError as error:
            result.refused.append(error.for_case(found.name))
    _describe(result, metadata)
    _give_roles(result, source, labelled, test)
    _find_classes(result, manifest, source)
    if not result.cases:
        raise _nothing_left(result.refused)
    return result


def with_scanned_labels(manifest: Manifest, cases: Iterable[Case]) -> Manifest:
    """A manifest whose classes cover the labels of `cases`; nothing is read where they were declared or scanned.

    Raises InputError for a label that cannot be read.
    """
    if manifest.labels_from is None:
        return manifest
    labels, scanned = dict(manifest.labels), list(manifest.labels_from)
    for case in cases:
        if case.name not in scanned:
            _merge(labels, _scan(case), case)
            scanned.append(case.name)
    return replace(manifest, labels=labels, labels_from=tuple(scanned))


def _modality(manifest: Manifest, source: Source) -> tuple[str, ...]:
    if manifest.cases:
        return manifest.modality
    if source.modality:
        return source.modality
    channels = len(source.cases[0].images) if source.cases else 1
    for found in source.cases[:3]:
        try:
            return tuple(modality_of(image) for image in found.images)
        except InputError:
            continue
    return ("MR",) * channels


def _checked(found: Found, channels: int) -> Case:
    images = tuple(Path(os.path.abspath(image)) for image in found.images)
    if len(images) != channels:
        raise InputError(f"has {len(images)} channels, expected {channels}", file=images[0],
                         remedy="Give every case the same channels.")
    first = read_header(images[0])
    for image in images[1:]:
        difference = read_header(image).difference(first)
        if difference:
            raise InputError(f"lies on another grid than channel 0: {difference}", file=image,
                             remedy="Resample the channels of a case onto one grid.")
    label = Path(os.path.abspath(found.label)) if found.label else None
    if label is not None and not label.exists():
        raise InputError("the label does not exist", file=label, remedy="Restore the file or remove it from the list.")
    return Case(found.name, images, label, role="test" if found.test else "unlabelled")


def _describe(result: Admission, metadata: dict[str, dict[str, str]] | None) -> None:
    if metadata is None:
        return
    for name, case in result.cases.items():
        result.cases[name] = replace(case, metadata=metadata.get(name, {}))
    known = set(result.cases) | {error.case for error in result.refused}
    for text, names in (("the metadata name unknown cases", sorted(set(metadata) - known)),
                        ("cases without metadata", sorted(set(result.cases) - set(metadata)))):
        if names:
            result.warnings.append(f"{text} ({len(names)}): {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}")


def _give_roles(result: Admission, source: Source, labelled: str | None, test: str) -> None:
    refused = {error.case for error in result.refused}

    def usable(selection: str) -> str:
        return ",".join(name for name in names_in(selection) if name not in refused)

    tests = [name for name, case in result.cases.items() if case.role == "test"]
    manifest = with_roles(Manifest("", cases=result.cases), None, ",".join([*tests, usable(test)]))
    if labelled is None:
        chosen = ",".join(name for name, case in manifest.cases.items() if case.label and case.role != "test")
    else:
        chosen = usable(labelled)
        if names_in(labelled) and not names_in(chosen):
            raise next(error for error in result.refused if error.case in names_in(labelled))
    result.cases = with_roles(manifest, chosen, None).cases


def _find_classes(result: Admission, manifest: Manifest, source: Source) -> None:
    if source.labels is not None and manifest.labels_from == () and not manifest.cases:
        result.labels, result.labels_from = dict(source.labels), None
    labels, scanned = dict(manifest.labels) | result.labels, list(result.labels_from or ())
    for name, case in list(result.cases.items()):
        if case.role != "labelled" or case.label is None:
            continue
        try:
            check_label(case.label, read_header(case.images[0]), case=name)
            if result.labels_from is not None:
                _merge(labels, _scan(case), case)
                scanned.append(name)
        except InputError as error:
            result.refused.append(error.for_case(name))
            del result.cases[name]
    result.labels = labels
    result.labels_from = None if result.labels_from is None else tuple(scanned)


def _scan(case: Case) -> dict[int, str]:
    assert case.label is not None
    names = segment_names(case.label)
    volume = read_label(case.label, read_header(case.images[0]), case=case.name)
    return {value: names.get(value, "") for value in label_values(volume.array) if value != 0} | names


def _merge(labels: dict[int, str], found: dict[int, str], case: Case) -> None:
    """Add the found values to `labels`; a named segment that contradicts a known name is refused."""
    for value, name in found.items():
        if value < 0:
            raise InputError(f"the label has the negative value {value}", case=case.name, file=case.label or "",
                             remedy="Use values from 0.")
        other = next((v for v, known in labels.items() if name and known == name), value)
        if other != value or (name and labels.get(value, name) not in (name, f"class_{value}")):
            raise InputError(f"calls the value {value} {name!r}, other cases use {labels.get(value, other)!r}",
                             case=case.name, file=case.label or "", remedy="Use the same segments in every case.")
    labels |= {value: name or labels.get(value, f"class_{value}") for value, name in found.items()}


def _nothing_left(refused: list[InputError]) -> InputError:
    first = refused[0]
    if len(refused) == 1:
        return first
    rest = "; ".join(str(error) for error in refused[1:4])
    return InputError(f"{first.finding} (and {len(refused) - 1} more cases cannot be used: {rest})", case=first.case,
                      file=first.file, remedy=first.remedy)
