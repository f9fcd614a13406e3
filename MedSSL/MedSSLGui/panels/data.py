"""Panel 1: the project folder and its cases."""

from pathlib import Path

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from ..jobs import commands
from ..jobs.runner import Job
from ..project import words
from ..project.annotations import sayShared
from ..scene import annotation, brush, grids, nodes, segments, voxels
from .base import Panel
from .casetable import CaseTable


class DropArea(qt.QWidget):
    """Takes files and folders dropped on the table; `take(paths)` is called with them."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.take = None
        self.setAcceptDrops(True)

    def dragEnterEvent(self, event):
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event):
        paths = [url.toLocalFile() for url in event.mimeData().urls()]
        event.acceptProposedAction()
        if self.take is not None:
            self.take(paths)


class DataPanel(Panel):
    """Create or open a project, add volumes, edit metadata."""

    NAME = "Data"

    def __init__(self, session):
        super().__init__(session)
        self.area = DropArea()
        layout = qt.QVBoxLayout(self.area)
        layout.setContentsMargins(0, 0, 0, 0)
        self.table = CaseTable(session)
        layout.addWidget(self.table.widget)
        self.ui.projectPathEdit.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Writable
        holder = self.ui.tableHolder.layout()
        holder.setContentsMargins(0, 0, 0, 0)
        holder.addWidget(self.area)
        self.area.take = self.addPaths
        self._connect()
        self.refresh()

    def _connect(self):
        ui = self.ui
        ui.openProjectButton.clicked.connect(lambda: self.openProject())
        ui.projectPathEdit.currentPathChanged.connect(lambda path: self._onPath(path))
        ui.addVolumesButton.clicked.connect(lambda: self.addVolumes())
        ui.addFilesButton.clicked.connect(lambda: self._browseFiles())
        ui.addFolderButton.clicked.connect(lambda: self._browseFolder())
        ui.addDicomButton.clicked.connect(lambda: self.openDicom())
        ui.importMetadataButton.clicked.connect(lambda: self._browseMetadata())
        ui.addColumnButton.clicked.connect(lambda: self._askColumn())
        ui.testRoleButton.clicked.connect(lambda: self.toggleTest())
        ui.removeCaseButton.clicked.connect(lambda: self.removeCases())
        ui.sampleDataButton.clicked.connect(lambda: self.makeSampleData())

    # -- project ------------------------------------------------------------------------------------------------

    def _onPath(self, path):
        """A path that is a project already opens by itself."""
        same = self.store.isOpen() and Path(path) == self.store.folder
        if path and not same and (Path(path) / "medssl.json").is_file():
            self.openProject()

    def openProject(self):
        """Open or create the project of the path line; True on success."""
        path = self.ui.projectPathEdit.currentPath
        if self.store.isOpen() and path and Path(path) == self.store.folder:
            return True
        if not self.session.openProject(path):
            return False
        self.ui.projectPathEdit.addCurrentPathToHistory()
        return True

    # -- adding -------------------------------------------------------------------------------------------------

    def addVolumes(self):
        """Add every loaded volume that is no case yet, with its segmentation if wanted."""
        if not self.openProject():
            return
        found = [node for node in nodes.addableVolumes() if node.GetImageData() is not None]
        if not found:
            text = _("No loaded volume is left to add. Load one, or use Add files.")
            self.session.say(text, "warning")
            return
        self.session.say(_("Adding {n} volumes …").format(n=len(found)), "busy")
        self.session.stepper.start(self._addSteps(found), self._addFiles, self.session.sayError)

    def _addSteps(self, volumes):
        """(node, name, file, label) of the nodes; a node that cannot be used is told and left out."""
        added, taken = [], {case.name.casefold() for case in self.store.cases}
        for node in volumes:
            if node.GetScene() is None:
                continue
            try:
                name, path = yield from self._fileSteps(node, taken)
                label = yield from self._labelSteps(node, name)
            except nodes.SceneError as error:
                self.session.say(error, "warning")
                continue
            taken.add(name.casefold())
            added.append((node, name, path, label))
        return added

    def _fileSteps(self, node, taken):
        """(case name, file) of a volume: its own file if its name is free, else a copy in the project."""
        from MedSSLLib.images.io import case_name

        folder = self.store.folder / "images"
        path = grids.storedFile(node)
        if path and case_name(path).casefold() not in taken:
            grids.ijkToRas(node)  # refuses what cannot be used
            return case_name(path), path
        name = nodes.caseName(case_name(path) if path else node.GetName(), taken)
        array = slicer.util.arrayFromVolume(node)
        matrix = grids.ijkToRas(node)
        path = yield from voxels.writeSteps(str(folder / f"{name}.nrrd"), array, matrix)
        return name, path

    def _labelSteps(self, node, name):
        """(path, annotated) of the label drawn on a volume, None without one."""
        drawn = None
        for each in (
            nodes.segmentationsOf(node) if self.ui.withSegmentationsCheckBox.checked else ()
        ):
            if each.GetSegmentation().GetNumberOfSegments():
                drawn = each
                break
        if drawn is None:
            return None
        classes = segments.classesWith(drawn, self.store.classes())
        array, shared = yield from segments.labelSteps(drawn, node, classes)
        sayShared(self.session, name, shared)
        if not array.any():
            return None
        matrix = grids.ijkToRas(node)
        names = annotation.axisNames(matrix[:3, :3])
        tags, partly = segments.readTags(drawn, names), segments.readPartly(drawn, names)
        if partly:
            painted = brush.paintedBackground(drawn, node)
            array = brush.leaveUnknown(array, painted, partly, self.store.ignoreValue())
        path = self.store.folder / "labels" / f"{name}.nrrd"
        yield from voxels.writeSteps(path, array, matrix)
        if classes != self.store.classes():
            self.store.setClasses(classes)
        segments.syncClasses(drawn, classes)
        nodes.mark(drawn, name, "annotation")
        return path, annotation.toManifest(tags, partly) if tags else None

    def _addFiles(self, added):
        """Have the library take the files into the project, then record the labels."""
        if added:
            paths = [path for _node, _name, path, _label in added]
            self._runAdd(paths, lambda: self._recordNodes(added))

    def _recordNodes(self, added):
        for node, name, _path, label in added:
            if self.store.case(name) is None:
                continue
            if node.GetScene() is not None:
                nodes.mark(node, name, "image")
            if label:
                self.store.setLabel(name, label[0], label[1])

    def openDicom(self):
        """Show the DICOM database; what is loaded there is then a loaded volume like any other."""
        self.session.say(
            _("Load series in the DICOM module, come back here and press Add loaded volumes.")
        )
        slicer.util.selectModule("DICOM")

    def addPaths(self, paths):
        """Add files and folders from disk."""
        if paths and self.openProject():
            self.session.say(_("Adding {n} files or folders …").format(n=len(paths)), "busy")
            self._runAdd(paths, None)

    def _runAdd(self, paths, then):
        before = len(self.store.cases)

        def done(outcome):
            if outcome.state == "done":
                if then:
                    self.session.guarded(then)
                self._sayAdded(outcome, len(self.store.cases) - before)
            self.session.readFacts()

        arguments = commands.add(self.store.folder, paths)
        self.session.runHelper(Job(_("Adding volumes"), arguments, {"done": done}))

    def _sayAdded(self, outcome, count):
        # with exit code 1 some were left out
        refused = "; ".join(outcome.log[:3]) if outcome.exitCode else ""
        rest = refused or words.nextStep(self.store)
        text = _("{n} volumes added. {rest}").format(n=count, rest=rest)
        self.session.say(text, "warning" if refused else "done")

    def makeSampleData(self):
        """Make the sample cohort in the project folder and add it."""
        from ..project.sampledata import cohortJob

        if not self.openProject():
            return
        folder = self.store.folder / "sample"
        self.session.say(_("Making sample volumes …"), "busy")

        def done(outcome):
            if outcome.state == "done":
                self.addPaths([str(folder / "images")])

        self.session.runHelper(cohortJob(folder, done))

    # -- table --------------------------------------------------------------------------------------------------

    def toggleTest(self):
        """Make the selected cases test cases, or back."""
        for name in self.table.selectedCases():
            case = self.store.case(name)
            trained = "labelled" if case.label else "unlabelled"
            role = trained if case.role == "test" else "test"
            if not self.session.guarded(
                lambda name=name, role=role: self.store.updateCase(name, role=role)
            ):
                return

    def removeCases(self):
        """Take the selected cases out of the project."""
        names = self.table.selectedCases()
        if names:
            self.session.guarded(lambda: self.store.removeCases(names))
            self.session.say(_("{n} cases taken out; their files stay.").format(n=len(names)))

    def importMetadata(self, path):
        """Read a CSV table with a column `case`."""
        from MedSSLLib.project.metadata import read_metadata

        unknown = []
        if self.session.guarded(
            lambda: unknown.extend(self.store.mergeMetadata(read_metadata(path)))
        ):
            if unknown:
                text = _("Metadata read. Not in the project: {names}")
                self.session.say(text.format(names=", ".join(unknown[:5])), "warning")
            else:
                self.session.say(_("Metadata read."), "done")

    def refresh(self):
        if self.store.isOpen() and self.ui.projectPathEdit.currentPath != str(self.store.folder):
            self.ui.projectPathEdit.setCurrentPath(str(self.store.folder))
        self.table.refresh()
        empty = ""
        if not self.store.isOpen():
            empty = _("Choose a folder and press Open or create.")
        elif not self.store.cases:
            empty = _("Add volumes: from the scene, from files, or drop them on the table.")
        self.setHint(self.ui.dataHint, empty)
        for name in (
            "importMetadataButton",
            "addColumnButton",
            "testRoleButton",
            "removeCaseButton",
        ):
            getattr(self.ui, name).setEnabled(bool(self.store.cases))

    def cleanup(self):
        self.table.close()

    # -- dialogs, only on the user's click -----------------------------------------------------------------------

    def _browseFiles(self):
        kinds = _("Images (*.nii *.nii.gz *.nrrd *.mha *.mhd)")
        chosen = qt.QFileDialog.getOpenFileNames(self.widget, _("Add images"), "", kinds)
        self.addPaths(list(chosen or []))

    def _browseFolder(self):
        path = qt.QFileDialog.getExistingDirectory(self.widget, _("Add a folder of images"))
        self.addPaths([path] if path else [])

    def _browseMetadata(self):
        path = qt.QFileDialog.getOpenFileName(
            self.widget, _("Import metadata"), "", _("Tables (*.csv *.tsv *.txt)")
        )
        if path:
            self.importMetadata(path)

    def _askColumn(self):
        name = qt.QInputDialog.getText(
            self.widget, _("Add column"), _("Name, such as patient, phase, scanner:")
        )
        if name:
            self.table.addColumn(str(name).strip())
