"""The project as the panels see it: the library's Project, with colours, signals and what is known of its cases.

Needs neither PyTorch nor pydantic: a Slicer without them opens projects, lists runs and shows every panel.
"""

import os
from dataclasses import replace
from pathlib import Path

from slicer.i18n import tr as _

from ..jobs import processes
from ..signals import Signal

COLOURS = (
    (0.90, 0.36, 0.30),
    (0.35, 0.72, 0.42),
    (0.27, 0.53, 0.86),
    (0.95, 0.76, 0.25),
    (0.62, 0.42, 0.80),
    (0.25, 0.75, 0.75),
    (0.92, 0.55, 0.25),
    (0.85, 0.45, 0.65),
)
_SHOWN = "slicer_classes"  # key of the manifest: colours and terminology


class ProjectStore:
    """One open project, or none.

    Signals: `changed()` when cases, classes or runs are others than before, `factsChanged(case)`.
    """

    def __init__(self):
        self.changed, self.factsChanged = Signal(), Signal()
        self.project = None
        self.facts = {}
        self._stamp = None
        self._runs = (None, [])

    # -- opening ------------------------------------------------------------------------------------------------

    def open(self, folder):
        """Open the project in `folder`. Raises MedSSLError with what is wrong."""
        processes.makeLibraryImportable()
        from MedSSLLib.project.project import Project

        self._take(Project.open(folder))

    def openOrCreate(self, folder):
        """Open the project in `folder`, or make an empty one there. Returns True when it was made."""
        processes.makeLibraryImportable()
        from MedSSLLib.core.errors import InputError
        from MedSSLLib.project.manifest import FILE_NAME, Manifest
        from MedSSLLib.project.project import Project

        if not str(folder).strip():
            raise InputError(
                _("no project folder is chosen"),
                remedy=_("Choose one at the top of the Data panel."),
            )
        path = Path(os.path.abspath(str(folder)))
        if (path / FILE_NAME).exists():
            self.open(path)
            return False
        try:
            path.mkdir(parents=True, exist_ok=True)
            Project(path, Manifest(name=path.name)).save()
        except OSError as error:
            raise InputError(
                _("cannot be made here ({why})").format(why=error.strerror),
                file=path,
                remedy=_("Choose a folder you may write to."),
            ) from error
        self.open(path)
        return True

    def close(self):
        """Forget the project; nothing on disk changes."""
        self.project, self._stamp, self.facts = None, None, {}
        self.changed.emit()

    def isOpen(self):
        return self.project is not None

    @property
    def folder(self):
        """The project's folder, None without a project."""
        return self.project.folder if self.project else None

    def refresh(self):
        """Read the manifest again if someone else (a job, a second Slicer) wrote it. True when it was read."""
        if not self.isOpen() or self._stampNow() == self._stamp:
            return False
        self.open(self.folder)
        return True

    def _take(self, project):
        if project.folder != self.folder:
            self.facts = {}
        self.project = project
        self._stamp = self._stampNow()
        self.changed.emit()

    def _stampNow(self):
        return _stamp(self.folder / "medssl.json")

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def cases(self):
        """Cases by name, sorted."""
        return list(self.project.cases) if self.isOpen() else []

    def case(self, name):
        """The case of that name, or None."""
        return next((case for case in self.cases if case.name == name), None)

    def labelledCases(self):
        """Cases training may learn from: labelled, with at least one counted slice."""
        from MedSSLLib.project.advice import teaches

        return [case for case in self.cases if teaches(case)]

    def casesOf(self, role):
        """Cases of a role: labelled, unlabelled, test."""
        return [case for case in self.cases if case.role == role]

    def metadataColumns(self):
        """Names of all metadata columns, in order of first use."""
        columns = {}
        for case in self.cases:
            columns.update(dict.fromkeys(case.metadata))
        return list(columns)

    def classes(self):
        """Foreground classes: (value, name, (r, g, b), terminology), by value."""
        if not self.isOpen():
            return []
        shown = self.project.extra.get(_SHOWN, {})
        result = []
        for value, name in sorted(self.project.labels.items()):
            if value == 0 or name.lower() == "ignore":
                continue
            entry = shown.get(str(value), {})
            colour = tuple(entry.get("color") or COLOURS[(value - 1) % len(COLOURS)])
            result.append((value, name, colour, entry.get("terminology", "")))
        return result

    def runs(self):
        """Summaries of the runs, oldest first (MedSSLLib.project.runs.summary), read when a run folder changed."""
        if not self.isOpen():
            return []
        from MedSSLLib.project.runs import summaries

        folder = self.folder / "runs"
        state = [str(folder)]
        for run in sorted(folder.iterdir()) if folder.is_dir() else []:
            for name in ("", "config.json", "metrics.json", "weights.safetensors", "checkpoint"):
                state.append((run.name, name, _stamp(run / name)))
        if state != self._runs[0]:
            self._runs = (state, summaries(folder))
        return list(self._runs[1])

    def models(self):
        """Names of the finished runs that segment, oldest first."""
        from MedSSLLib.project import advice

        return advice.models(self.runs())

    def encoders(self):
        """Names of the finished pre-trainings, oldest first."""
        from MedSSLLib.project import advice

        return advice.encoders(self.runs())

    def unfinished(self, *commands):
        """The latest run of these commands that can be resumed, None without one."""
        from MedSSLLib.project import advice

        return advice.unfinished(self.runs(), commands)

    def resultsFolder(self, run):
        """Where predictions of a run are kept."""
        return self.folder / "predictions" / run

    def ignoreValue(self):
        """The label value of voxels that do not count; the project gets one where it has none."""
        from MedSSLLib.project.manifest import with_ignore_value

        if self.project.ignore_value is None:
            self.change(lambda project: project.change(with_ignore_value))
        return self.project.ignore_value

    # -- changing -----------------------------------------------------------------------------------------------

    def change(self, edit):
        """Apply `edit(project)` to what is on disk now, under the project's lock."""
        from MedSSLLib.core.errors import InputError
        from MedSSLLib.project.project import Project

        try:
            project = Project.open(self.folder)
            edit(project)
            project.save()
        except OSError as error:
            raise InputError(
                _("cannot be written ({why})").format(why=error.strerror),
                file=self.folder,
                remedy=_("Check that the project folder may be written to."),
            ) from error
        self._take(project)

    def updateCase(self, name, **fields):
        """Change fields of one case."""
        self.change(
            lambda project: project.change(
                lambda manifest: manifest.with_cases(replace(manifest.cases[name], **fields))
            )
        )

    def setMetadata(self, name, key, value):
        """Set or, with an empty value, drop one metadata cell."""

        def edit(project):
            metadata = {**project.case(name).metadata, key: value}
            kept = {column: text for column, text in metadata.items() if text}
            project.set_metadata(name, kept)

        self.change(edit)

    def mergeMetadata(self, table):
        """Add a table {case: {column: value}}; returns the names in it that are no cases."""
        known = {case.name for case in self.cases}

        def edit(project):
            for case in project.cases:
                if case.name in table:
                    project.set_metadata(case.name, {**case.metadata, **table[case.name]})

        self.change(edit)
        return sorted(set(table) - known)

    def removeCases(self, names):
        """Take cases out of the manifest; no file is deleted."""

        def without(manifest):
            kept = {name: case for name, case in manifest.cases.items() if name not in names}
            return replace(manifest, cases=kept)

        self.change(lambda project: project.change(without))

    def setLabel(self, name, path, annotated):
        """Record a case's label and which slices of it count (None: all)."""

        def edit(project):
            project.set_label(name, path)
            project.set_annotated(name, annotated)

        self.change(edit)

    def setClasses(self, classes):
        """Replace the project's foreground classes; entries as `classes` gives them."""
        shown = {}
        for value, _name, colour, terminology in classes:
            rounded = [round(part, 4) for part in colour]
            shown[str(value)] = {"color": rounded, "terminology": terminology}

        def edit(manifest):
            labels = {0: manifest.labels.get(0, "background")}
            labels.update({v: n for v, n in manifest.labels.items() if n.lower() == "ignore"})
            labels.update({value: name for value, name, _colour, _term in classes})
            extra = {**manifest.extra, _SHOWN: shown}
            ordered = dict(sorted(labels.items()))
            return replace(manifest, labels=ordered, labels_from=None, extra=extra)

        self.change(lambda project: project.change(edit))

    def setFact(self, fact):
        """Take what the facts process found about a case: size, spacing, axes, thumbnail, problem."""
        self.facts[fact["case"]] = fact
        self.factsChanged.emit(fact["case"])


def _stamp(path):
    """What changes when a file or folder is written, None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
