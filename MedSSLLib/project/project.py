"""The project folder: `medssl.json`, the cache and the runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from MedSSLLib.core.errors import InputError, did_you_mean
from MedSSLLib.core.files import FileLock
from MedSSLLib.images.labels import Annotated
from MedSSLLib.project import ingest
from MedSSLLib.project.facts import ProjectFacts
from MedSSLLib.project.layouts import Source, discover
from MedSSLLib.project.manifest import (
    FILE_NAME,
    Manifest,
    check_name,
    parse_labels,
    parse_modality,
    read_manifest,
    with_ignore_value,
    write_manifest,
)
from MedSSLLib.project.manifest import Case as Case
from MedSSLLib.project.metadata import read_metadata
from MedSSLLib.project.relocation import copied, relocated
from MedSSLLib.project.roles import selected, with_roles

LOCK_SECONDS = 30.0


class Project(ProjectFacts):
    """A project folder opened for reading and changing. Changes take effect on disk with `save`.

    refused: InputErrors of cases that `create` or `add` left out.  warnings: what they noticed
        besides.  already: cases that `add` was given and that were there before.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Manifest) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.refused: list[InputError] = []
        self.warnings: list[str] = []
        self.already: tuple[str, ...] = ()
        self._manifest = manifest
        self._pending: list[Callable[[Manifest], Manifest]] = []

    # -- opening

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Project:
        """Open an existing project. Raises InputError when there is none or its manifest cannot be
        used.
        """
        return cls(folder, read_manifest(Path(os.path.abspath(folder))))

    @classmethod
    def create(  # noqa: PLR0913 - the contract of `medssl init`
        cls,
        folder: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | None = None,
        metadata: str | os.PathLike[str] | None = None,
        labelled: str | None = None,
        test: str = "",
        drawn_plane: str = "",
        modality: Sequence[str] | None = None,
    ) -> Project:
        """Make and save a project from a folder of images, a data set folder or a dataset.json.

        Only headers are read, except that the labels of labelled cases are scanned for their values
        where no dataset.json declares them. Bad cases are left out and kept in `refused`.

        Args:
            folder: of the project, to be made.
            images: folder of images, data set folder or dataset.json.
            labels: folder of label files named like the images.
            metadata: CSV table with a column ``case``.
            labelled: selection of the cases whose labels may be read; None: every case with a label
                that is not a test case.
            test: selection of test cases.
            drawn_plane: see `Manifest`.
            modality: "MR", "CT" ..., one per channel; None: as a dataset.json declares, as DICOM
                says, else CT where values reach below -500 and MR elsewhere.

        Raises InputError when the project exists, a selection names an unknown case, or no case is
        usable.
        """
        project = cls(
            folder, Manifest(name=Path(os.path.abspath(folder)).name, drawn_plane=drawn_plane)
        )
        if (project.folder / FILE_NAME).exists():
            raise InputError(
                "is a project already",
                file=project.folder,
                remedy="Use medssl add, or choose another folder.",
            )
        source = discover([images], labels, [folder])
        if modality is not None:
            source = replace(source, modality=parse_modality(list(modality)))
        project._admit(source, metadata, labelled, test)
        project.save()
        return project

    def at(self, folder: str | os.PathLike[str]) -> Project:
        """A project of the same cases in another folder; nothing is written before `save`."""
        return Project(folder, self._manifest)

    # -- folders

    @property
    def cache_folder(self) -> Path:
        """Where preprocessed cases are kept."""
        return self._inside("cache")

    @property
    def runs_folder(self) -> Path:
        """Where runs are kept."""
        return self._inside("runs")

    def run_folder(self, name: str) -> Path:
        """The folder of a run. Raises InputError for a name that could leave the project."""
        return self._inside("runs", check_name(name, "run"))

    def _inside(self, *parts: str) -> Path:
        path = self.folder.joinpath(*parts)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(
                f"is a link to {path.resolve()}, outside the project",
                file=path,
                remedy="Replace the link by a folder.",
            )
        return path

    def require_run(self, name: str) -> Path:
        """The folder of a run that exists. Raises InputError, with a similar name, for another."""
        folder = self.run_folder(name)
        if not folder.is_dir():
            known = [run["name"] for run in self.runs()]
            hint = did_you_mean(name, known) or f"Runs: {', '.join(known) or 'none yet'}"
            raise InputError(f"there is no run {name!r}", file=self.folder, remedy=hint)
        return folder

    def runs(self) -> list[dict[str, Any]]:
        """Summaries of the runs, oldest first (see `runs.summary`)."""
        from MedSSLLib.project.runs import summaries

        return summaries(self.runs_folder)

    # -- selecting

    def case(self, name: str) -> Case:
        """The case of that name. Raises InputError, with similar names, when there is none."""
        found = (self._manifest.cases[name],) if name in self._manifest.cases else self.select(name)
        if len(found) != 1:
            raise InputError(
                f"{name!r} names {len(found)} cases, expected one", remedy="Give one case name."
            )
        return found[0]

    def select(self, selection: str) -> tuple[Case, ...]:
        """Cases of a selection: names separated by commas, "@FILE" (commas or lines), or "" for
        none.

        Raises InputError for an unknown case, naming similar ones.
        """
        return tuple(
            self._manifest.cases[name] for name in selected(selection, self._manifest.cases)
        )

    def with_labelled(self, selection: str) -> Project:
        """A copy in which only the selected cases are labelled. Nothing is saved.

        Where classes were not declared, the selected labels that were not scanned before are
        scanned. Raises InputError for a test case or a case without a label.
        """
        project = Project(self.folder, with_roles(self._manifest, selection, None))
        project._manifest = ingest.with_scanned_labels(project._manifest, project.labelled)
        return project

    # -- changing

    def add(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        labels: str | os.PathLike[str] | None = None,
        metadata: str | os.PathLike[str] | None = None,
    ) -> tuple[Case, ...]:
        """Add images, DICOM folders or folders of images; returns the new cases. Call `save`
        afterwards.
        """
        before = set(self._manifest.cases)
        self._admit(discover(list(paths), labels, [self.folder]), metadata, None, "")
        return tuple(case for case in self.cases if case.name not in before)

    def add_labels(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Take the label files of a folder for the cases they are named after; returns their names.
        Then call `save`.

        Training cases become labelled. Bad labels are kept in `refused`. Raises InputError when
        none can be used.
        """
        admission = ingest.attach(self._manifest, Path(folder))
        self._take(admission)
        return tuple(admission.cases)

    def set_annotated(self, case: str, annotated: Annotated | None) -> None:
        """Record which slices of a case's label count (None: all).

        With the first partly drawn one the project gets a label value that means "does not count",
        where it has none.
        """
        self._replace(case, annotated=annotated)
        if annotated is not None and annotated.partly:
            self._change(with_ignore_value)

    def set_label(self, case: str, label: str | os.PathLike[str] | None) -> None:
        """Record a case's label file; with one, a training case becomes labelled."""
        found = self.case(case)
        role = found.role if found.role == "test" else ("labelled" if label else "unlabelled")
        self._replace(
            case, label=None if label is None else Path(os.path.abspath(label)), role=role
        )

    def set_metadata(self, case: str, metadata: Mapping[str, str]) -> None:
        """Replace a case's metadata."""
        self._replace(case, metadata={str(key): str(value) for key, value in metadata.items()})

    def set_roles(self, *, labelled: str | None = None, test: str | None = None) -> None:
        """Choose the labelled and the test cases by selections; None leaves them as they are."""
        self._change(lambda manifest: with_roles(manifest, labelled, test))

    def set_modality(self, *modality: str) -> None:
        """Record the modality ("MR", "CT", ...), one per channel. Raises InputError for another
        number of channels.
        """
        if len(modality) != self.channels:
            raise InputError(
                f"{len(modality)} modalities were given for {self.channels} channels",
                remedy="Give one per channel.",
            )
        self._change(lambda manifest: replace(manifest, modality=parse_modality(list(modality))))

    def set_labels(self, labels: Mapping[int, str]) -> None:
        """Declare the classes: label values and names. Raises InputError for repeated or impossible
        ones.
        """
        declared = parse_labels({str(value): name for value, name in labels.items()})
        self._change(lambda manifest: replace(manifest, labels=declared, labels_from=None))

    def relocate(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> tuple[str, ...]:
        """Let files that lay below a folder be read below another; returns the cases' names.

        Call `save` afterwards. Raises InputError as `relocation.relocated` does.
        """
        cases = relocated(self.cases, Path(os.path.abspath(old)), Path(os.path.abspath(new)))
        for case in cases:
            self._replace(case.name, images=case.images, label=case.label)
        return tuple(case.name for case in cases)

    def set_drawn_plane(self, plane: str) -> None:
        """Say that labels to come are drawn on some slices of a plane only; "" for whole ones."""
        self._change(lambda manifest: replace(manifest, drawn_plane=plane))

    def change(self, edit: Callable[[Manifest], Manifest]) -> None:
        """Apply an edit of the manifest; `save` applies it to what is on disk by then."""
        self._change(edit)

    def copy_images(self) -> None:
        """Copy every case's images and label into the project folder. Call `save` afterwards."""
        for case in self.cases:
            found = copied(case, self.folder)
            self._replace(case.name, images=found.images, label=found.label)

    def save(self) -> None:
        """Write the manifest, atomically and under a lock; changes made by others meanwhile are
        kept.
        """
        with FileLock(self.folder / f".{FILE_NAME}.lock", timeout=LOCK_SECONDS):
            if (self.folder / FILE_NAME).exists():
                manifest = read_manifest(self.folder)
                for change in self._pending:
                    manifest = change(manifest)
                self._manifest = manifest
            write_manifest(self.folder, self._manifest)
        self._pending.clear()

    def _change(self, change: Callable[[Manifest], Manifest]) -> None:
        self._manifest = change(self._manifest)
        self._pending.append(change)

    def _replace(self, case: str, **fields: Any) -> None:
        name = self.case(case).name

        def change(manifest: Manifest) -> Manifest:
            if name not in manifest.cases:
                raise InputError(
                    "was removed from the project meanwhile",
                    case=name,
                    remedy="Open the project again.",
                )
            return manifest.with_cases(replace(manifest.cases[name], **fields))

        self._change(change)

    def _admit(
        self,
        source: Source,
        metadata: str | os.PathLike[str] | None,
        labelled: str | None,
        test: str,
    ) -> None:
        self._take(
            ingest.admit(
                self._manifest,
                source,
                read_metadata(metadata) if metadata else None,
                labelled,
                test,
            )
        )

    def _take(self, admission: ingest.Admission) -> None:
        self.refused += admission.refused
        self.already = tuple(admission.already)
        self.warnings += admission.warnings
        self._change(lambda manifest: admission.merged_into(manifest))
