"""What a benchmark runs on: a project, a folder with splits, or images and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError
from MedSSLLib.core.files import load_json
from MedSSLLib.data.plan import make_plan
from MedSSLLib.data.random import Stream, random_stream
from MedSSLLib.methods import load_method
from MedSSLLib.project.layouts import Source, discover
from MedSSLLib.project.manifest import FILE_NAME, Case
from MedSSLLib.project.project import Project
from MedSSLLib.training.planning import readable_headers

TEST_FRACTION = 0.3  # of the patients with a label, where no test case is named; not from the paper
MOST_TEST = 40  # test patients at most then; not from the paper
Choices = dict[str, list[list[str]]]


def open_data(
    data: Path, folder: Path, counts: Sequence[str], choices: int, seed: int
) -> tuple[Project, Choices]:
    """The benchmark's own project in ``folder``, and the labelled volumes of every choice.

    The first call makes the project.

    The user's project, if ``data`` is one, is not changed. Without ``splits.json`` and test cases,
    test cases are drawn from the patients with a label; so they are where those that a
    ``dataset.json`` names have no label, as in the Decathlon: these are scans without a label then.
    Choices are drawn from the cases with a label that are left. Of a count that ``splits.json``
    lacks, choices are the first volumes of its choices of the next larger count (see choices_of).

    Args:
        data: a project, a folder with images/, labels/ and perhaps splits.json, or a Decathlon or
            nnU-Net folder, perhaps with splits.json too.
        folder: where the project is kept.
        counts: numbers of labelled volumes, or 'all'.
        choices: how many choices of each.
        seed: of what is drawn.

    Raises:
        InputError: nothing usable, splits that do not fit, or fewer labelled cases than a count.
    """
    path = data / "splits.json"
    splits = load_json(path) if path.is_file() and not (data / FILE_NAME).is_file() else None
    if (folder / FILE_NAME).exists():
        project = Project.open(folder)
    else:
        theirs = (data / FILE_NAME).is_file()
        project = _copied(data, folder) if theirs else _created(data, folder, splits)
        scored = [case for case in project.test if case.label]
        if not (project.test if theirs else scored):
            _draw_test(project, seed)
        project.set_roles(labelled="")
        project.save()
    return project, {count: _choices(project, splits, count, choices, seed) for count in counts}


def _copied(data: Path, folder: Path) -> Project:
    """A project of the same cases without the labels that the user's project does not read."""
    theirs = Project.open(data)
    project = theirs.at(folder)
    readable = {case.name for case in theirs.labelled}
    for case in project.pool:
        if case.label and case.name not in readable:
            project.set_label(case.name, None)
    return project


def _created(data: Path, folder: Path, splits: Any) -> Project:
    if not data.is_dir():
        raise InputError(
            "is not a folder",
            file=data,
            remedy="Give a project, or a folder with images/ and labels/",
        )
    images = data / "images" if (data / "images").is_dir() else data
    labels: Path | None = data / "labels" if (data / "labels").is_dir() else None
    metadata = data / "metadata.csv"
    if (data / "dataset.json").is_file():  # it names the labels itself
        images, labels = data, None
    test = [] if splits is None else _tested(splits, data, discover([images], labels))
    project = Project.create(
        folder,
        images,
        labels=labels,
        metadata=metadata if metadata.is_file() else None,
        test=",".join(test),
    )
    if test:  # none but these, whatever a dataset.json says
        project.set_roles(labelled="", test=",".join(test))
    return project


def _tested(splits: Any, data: Path, source: Source) -> list[str]:
    """Names of the test cases in the splits, among the cases that there are.

    The splits may name patients: the part of a case name before the first '_'.
    """
    path = data / "splits.json"
    try:
        wanted, by_patient = set(map(str, splits["test"])), splits.get("unit") == "patient"
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            "does not hold 'test'",
            file=path,
            remedy='Write {"test": [...], "labelled": {"2": [[...], ...]}}, or remove the file',
        ) from None
    found = []
    for case in source.cases:
        if case.name in wanted or (by_patient and case.name.split("_")[0] in wanted):
            found.append(case.name)
    if wanted and not found:
        raise InputError(
            f"names no test case that there is: {', '.join(sorted(wanted)[:3])}",
            file=path,
            remedy="Name cases as their files are called, without the extension",
        )
    return found


def _draw_test(project: Project, seed: int) -> None:
    usable = [case for case in project.cases if case.label]
    patients = sorted({case.patient for case in usable})
    if len(patients) < 3:
        raise InputError(
            f"{len(patients)} patients have a label, a benchmark needs 3",
            file=project.folder,
            remedy="Give more cases with labels",
        )
    count = min(MOST_TEST, max(1, round(TEST_FRACTION * len(patients))))
    tested = set(random_stream(seed, Stream.BENCHMARK_TEST_PATIENTS).permutation(patients)[:count])
    chosen = {case.patient for case in project.cases if case.patient in tested}
    project.set_roles(
        labelled="", test=",".join(case.name for case in project.cases if case.patient in chosen)
    )


def _choices(project: Project, splits: Any, count: str, choices: int, seed: int) -> list[list[str]]:
    pool = [case for case in project.pool if case.label]
    if count == "all":
        return [[case.name for case in pool]]
    if splits is not None:
        known = splits.get("labelled", {}) if isinstance(splits, dict) else {}
        found = choices_of(known, count)
        if not found:
            raise InputError(
                f"has no choice of {count} labelled volumes",
                file="splits.json",
                remedy=f"Use {', '.join(known) or 'all'}, or a smaller number",
            )
        return found[:choices]
    return _drawn(project, pool, int(count), choices, seed)


def choices_of(known: Mapping[str, Any], count: str) -> list[list[str]]:
    """The choices that splits have for a count.

    Without any, the first volumes of those of the next larger count.

    Choices that begin with the same volumes are one choice then. None where no count is as large.
    """
    if count in known:
        return [[str(name) for name in names] for names in known[count]]
    larger = []
    for other in known:
        if other.isdigit() and count.isdigit() and int(other) > int(count) > 0:
            larger.append(int(other))
    if not larger:
        return []
    found: list[list[str]] = []
    for names in known[str(min(larger))]:
        first = [str(name) for name in names[: int(count)]]
        if not any(set(first) == set(before) for before in found):
            found.append(first)
    return found


def _drawn(
    project: Project, pool: Sequence[Case], count: int, choices: int, seed: int
) -> list[list[str]]:
    """Different sets of cases, drawn at random; fewer where there are no more."""
    if count > len(pool):
        raise InputError(
            f"{count} labelled volumes are asked for, {len(pool)} are left beside the test cases",
            file=project.folder,
            remedy="Use smaller --counts",
        )
    generator = random_stream(seed, Stream.BENCHMARK_LABELLED_CASES, count)
    found: list[list[str]] = []
    names = [case.name for case in pool]
    for _ in range(20 * choices):
        chosen = sorted(generator.permutation(names)[:count].tolist())
        if chosen not in found and len(found) < choices:
            found.append(chosen)
    return found


def require_one_dimension(project: Project, dim: str, methods: Sequence[str]) -> None:
    """Refuse to compare networks for slices with networks for volumes.

    A method that learns from slices would be compared so where `dim` is auto.

    Raises:
        InputError: some of the methods take slices by themselves, though these data call for
            volumes.
    """
    of_slices = [
        method for method in methods if dim == "auto" and load_method(method).auto_dim == "2d"
    ]
    if of_slices:
        headers = readable_headers(project.pool)
        if make_plan(headers, modality=project.modalities, channels=project.channels).dim == 3:
            raise InputError(
                f"{', '.join(of_slices)} learns from slices, the other rows would train on volumes",
                remedy="Give --set dim=2d and --pretrain-set dim=2d",
            )


@dataclass(frozen=True)
class Choice:
    """One choice of labelled volumes.

    The number as in the file of splits, which choice it is, and the cases.
    """

    count: str
    number: int
    labelled: tuple[str, ...]

    def run(self, row: str, tag: str) -> str:
        """Name of the run of a row."""
        return f"{row}-{self.count}-{self.number}-{tag}".replace("+", "-")


def planned(
    choices: Mapping[str, Sequence[Sequence[str]]], rows: Sequence[str]
) -> list[tuple[Choice, str]]:
    """What is to be trained and scored, in order: every row on every choice of labelled volumes."""
    todo = []
    for count, some in choices.items():
        for number, labelled in enumerate(some):
            choice = Choice(count, number, tuple(labelled))
            todo += [(choice, row) for row in rows]
    return todo
