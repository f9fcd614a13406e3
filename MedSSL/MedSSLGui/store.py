"""The project as the panels see it: a copy of the manifest, changed only under its lock, and the facts of cases.

Reading and changing go through MedSSLLib.project.manifest, which needs nothing but the standard library and numpy.
"""

import os
from dataclasses import replace
from pathlib import Path

import qt
from slicer.i18n import tr as _

from . import processes

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


class ProjectStore(qt.QObject):
    """One open project, or none. `changed` tells that cases, classes or runs are others than before."""

    changed = qt.Signal()
    factsChanged = qt.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.folder = None
        self._manifest = None
        self._stamp = None
        self.facts = {}

    # -- opening ------------------------------------------------------------------------------------------------

    def open(self, folder):
        """Open the project in `folder`. Raises MedSSLError with what is wrong."""
        processes.makeLibraryImportable()
        from MedSSLLib.project.manifest import read_manifest

        path = Path(os.path.abspath(str(folder)))
        self._take(path, read_manifest(path))

    def openOrCreate(self, folder):
        """Open the project in `folder`, or make an empty one there. Returns True when it was made."""
        processes.makeLibraryImportable()
        from MedSSLLib.core.errors import InputError
        from MedSSLLib.project.manifest import FILE_NAME, Manifest, write_manifest

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
            write_manifest(path, Manifest(name=path.name))
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
        self.folder, self._manifest, self._stamp, self.facts = None, None, None, {}
        self.changed.emit()

    def isOpen(self):
        return self._manifest is not None

    def refresh(self):
        """Read the manifest again if someone else (a job, a second Slicer) wrote it. True when it was read."""
        if not self.isOpen() or self._stampNow() == self._stamp:
            return False
        self.open(self.folder)
        return True

    def _take(self, path, manifest):
        if path != self.folder:
            self.facts = {}
        self.folder, self._manifest = path, manifest
        self._stamp = self._stampNow()
        self.changed.emit()

    def _stampNow(self):
        try:
            found = os.stat(self.folder / "medssl.json")
            return found.st_mtime_ns, found.st_size
        except OSError:
            return None

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def cases(self):
        """Cases by name, sorted."""
        return (
            [self._manifest.cases[name] for name in sorted(self._manifest.cases)]
            if self.isOpen()
            else []
        )

    def case(self, name):
        """The case of that name, or None."""
        return self._manifest.cases.get(name) if self.isOpen() else None

    def labelledCases(self):
        """Cases training may learn from: labelled, with at least one counted slice."""
        return [
            case
            for case in self.cases
            if case.role == "labelled"
            and case.label
            and (case.annotated is None or case.annotated.count)
        ]

    def metadataColumns(self):
        """Names of all metadata columns, in order of first use."""
        columns = []
        for case in self.cases:
            columns += [key for key in case.metadata if key not in columns]
        return columns

    def classes(self):
        """Foreground classes: (value, name, (r, g, b), terminology), by value."""
        if not self.isOpen():
            return []
        shown = self._manifest.extra.get("slicer_classes", {})
        result = []
        for value, name in sorted(self._manifest.labels.items()):
            if value == 0 or name.lower() == "ignore":
                continue
            entry = shown.get(str(value), {})
            colour = tuple(entry.get("color") or COLOURS[(value - 1) % len(COLOURS)])
            result.append((value, name, colour, entry.get("terminology", "")))
        return result

    def runs(self):
        """Summaries of the runs, oldest first (MedSSLLib.project.runs.summary)."""
        if not self.isOpen():
            return []
        from MedSSLLib.project.runs import summaries

        return summaries(self.folder / "runs")

    def resultsFolder(self, run):
        """Where predictions of a run are kept."""
        return self.folder / "predictions" / run

    # -- changing -----------------------------------------------------------------------------------------------

    def change(self, edit):
        """Apply `edit(manifest) -> manifest` to what is on disk now, under the project's lock."""
        from MedSSLLib.core.errors import InputError
        from MedSSLLib.core.files import FileLock
        from MedSSLLib.project.manifest import FILE_NAME, read_manifest, write_manifest

        try:
            with FileLock(self.folder / f".{FILE_NAME}.lock"):
                manifest = edit(read_manifest(self.folder))
                write_manifest(self.folder, manifest)
        except OSError as error:
            raise InputError(
                _("cannot be written ({why})").format(why=error.strerror),
                file=self.folder,
                remedy=_("Check that the project folder may be written to."),
            ) from error
        self._take(self.folder, manifest)

    def updateCase(self, name, **fields):
        """Change fields of one case."""
        self.change(lambda manifest: manifest.with_cases(replace(manifest.cases[name], **fields)))

    def setMetadata(self, name, key, value):
        """Set or, with an empty value, drop one metadata cell."""

        def edit(manifest):
            case = manifest.cases[name]
            metadata = {**case.metadata, key: value}
            return manifest.with_cases(
                replace(case, metadata={k: v for k, v in metadata.items() if v})
            )

        self.change(edit)

    def mergeMetadata(self, table):
        """Add a table {case: {column: value}}; returns the names in it that are no cases."""

        def edit(manifest):
            known = [case for name, case in manifest.cases.items() if name in table]
            return manifest.with_cases(
                *(replace(c, metadata={**c.metadata, **table[c.name]}) for c in known)
            )

        self.change(edit)
        return sorted(set(table) - {case.name for case in self.cases})

    def removeCases(self, names):
        """Take cases out of the manifest; no file is deleted."""
        self.change(
            lambda m: replace(m, cases={k: c for k, c in m.cases.items() if k not in set(names)})
        )

    def setLabel(self, name, path, annotated):
        """Record a case's label and which slices of it count (None: all)."""
        case = self.case(name)
        role = case.role if case.role == "test" else "labelled"
        self.updateCase(name, label=Path(path), annotated=annotated, role=role)

    def setClasses(self, classes):
        """Replace the project's foreground classes; entries as `classes` gives them."""

        def edit(manifest):
            labels = {0: manifest.labels.get(0, "background")}
            labels.update({v: n for v, n in manifest.labels.items() if n.lower() == "ignore"})
            labels.update({value: name for value, name, _colour, _term in classes})
            shown = {
                str(value): {"color": [round(c, 4) for c in colour], "terminology": term}
                for value, _name, colour, term in classes
            }
            return replace(
                manifest,
                labels=dict(sorted(labels.items())),
                labels_from=None,
                extra={**manifest.extra, "slicer_classes": shown},
            )

        self.change(edit)

    def setFact(self, fact):
        """Take what the facts process found about a case: size, spacing, thumbnail, problem."""
        self.facts[fact["case"]] = fact
        self.factsChanged.emit(fact["case"])
