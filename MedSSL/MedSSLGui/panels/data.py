"""Panel 1: the project folder and its cases."""

from pathlib import Path

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from .. import advice, annotation, commands, scene
from ..jobs import Job
from .base import Panel
from .casetable import CaseTable


class DropArea(qt.QWidget):
    """Takes files and folders dropped on the table."""

    dropped = qt.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setAcceptDrops(True)

    def dragEnterEvent(self, event):
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event):
        self.dropped.emit([url.toLocalFile() for url in event.mimeData().urls()])
        event.acceptProposedAction()


class DataPanel(Panel):
    """Create or open a project, add volumes, edit metadata."""

    NAME = "Data"

    def __init__(self, session, parent=None):
        super().__init__(session, parent)
        self.area = DropArea()
        layout = qt.QVBoxLayout(self.area)
        layout.setContentsMargins(0, 0, 0, 0)
        self.table = CaseTable(session)
        layout.addWidget(self.table.widget)
        self.ui.projectPathEdit.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Writable
        holder = self.ui.tableHolder.layout()
        holder.setContentsMargins(0, 0, 0, 0)
        holder.addWidget(self.area)
        self.area.dropped.connect(self.addPaths)
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
        nodes = [node for node in scene.addableVolumes() if node.GetImageData() is not None]
        if not nodes:
            self.session.say(
                _("No loaded volume is left to add. Load one, or use Add files."), "warning"
            )
            return
        self.session.say(_("Adding {n} volumes …").format(n=len(nodes)), "busy")
        self.session.stepper.start(
            self._addSteps(nodes), lambda added: self._addFiles(added), self.session.sayError
        )

    def _addSteps(self, nodes):
        """Files and labels of the nodes; a node that cannot be used is told and left out."""
        added, taken = [], {case.name.casefold() for case in self.store.cases}
        for node in nodes:
            if node.GetScene() is None:
                continue
            try:
                path = yield from scene.volumeSteps(
                    node, self.store.folder / "images", scene.caseName(node.GetName(), taken)
                )
                name = Path(path).name
                for extension in (".gz", Path(name[:-3] if name.endswith(".gz") else name).suffix):
                    name = (
                        name[: -len(extension)] if extension and name.endswith(extension) else name
                    )
                if name.casefold() in taken:
                    name = scene.caseName(name, taken)
                    target = str(self.store.folder / "images" / f"{name}.nrrd")
                    path = yield from scene.nrrdSteps(
                        target, slicer.util.arrayFromVolume(node), scene.ijkToRas(node), False
                    )
                label = yield from self._labelSteps(node, name)
            except scene.SceneError as error:
                self.session.say(error, "warning")
                continue
            taken.add(name.casefold())
            added.append((node, name, path, label))
        return added

    def _labelSteps(self, node, name):
        """(path, annotated) of the label drawn on a volume, None without one."""
        found = scene.segmentationsOf(node) if self.session.parameters.withSegmentations else []
        found = [each for each in found if each.GetSegmentation().GetNumberOfSegments()]
        if not found:
            return None
        classes = scene.classesWith(found[0], self.store.classes())
        array, shared = yield from scene.labelSteps(found[0], node, classes)
        if shared:
            self.session.say(
                _("{name}: segments overlap in {n} voxels; there the later segment counts.").format(
                    name=name, n=shared
                ),
                "warning",
            )
        if not array.any():
            return None
        matrix = scene.ijkToRas(node)
        path = yield from scene.nrrdSteps(
            self.store.folder / "labels" / f"{name}.nrrd", array, matrix, True
        )
        if classes != self.store.classes():
            self.store.setClasses(classes)
        scene.syncClasses(found[0], classes)
        scene.mark(found[0], name, "annotation")
        tags = scene.readTags(found[0], annotation.axisNames(matrix[:3, :3]))
        return path, annotation.toManifest(tags) if tags else None

    def _addFiles(self, added):
        """Have the library take the files into the project, then record the labels."""
        if added:
            self._runAdd(
                [path for _node, _name, path, _label in added], lambda: self._recordNodes(added)
            )

    def _recordNodes(self, added):
        for node, name, _path, label in added:
            if self.store.case(name) is None:
                continue
            if node.GetScene() is not None:
                scene.mark(node, name, "image")
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
                added = len(self.store.cases) - before
                self.session.guarded(then) if then else None
                refused = (
                    "; ".join(outcome.log[:3]) if outcome.exitCode else ""
                )  # 1: some were left out
                self.session.say(
                    _("{n} volumes added. {rest}").format(
                        n=added, rest=refused or advice.nextStep(self.store)
                    ),
                    "warning" if refused else "done",
                )
            self.session.readFacts()

        self.session.runHelper(
            Job(_("Adding volumes"), commands.add(self.store.folder, paths), {"done": done})
        )

    def makeSampleData(self):
        """Make the sample cohort in the project folder and add it."""
        from ..sampledata import cohortJob

        if self.openProject():
            folder = self.store.folder / "sample"
            self.session.say(_("Making sample volumes …"), "busy")
            self.session.runHelper(
                cohortJob(
                    folder,
                    lambda outcome: (
                        self.addPaths([str(folder / "images")]) if outcome.state == "done" else None
                    ),
                )
            )

    # -- table --------------------------------------------------------------------------------------------------

    def toggleTest(self):
        """Make the selected cases test cases, or back."""
        for name in self.table.selectedCases():
            case = self.store.case(name)
            role = "test" if case.role != "test" else ("labelled" if case.label else "unlabelled")
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
            text = _("Metadata read. ") + (
                _("Not in the project: {names}").format(names=", ".join(unknown[:5]))
                if unknown
                else ""
            )
            self.session.say(text, "warning" if unknown else "done")

    def refresh(self):
        if self.store.isOpen() and self.ui.projectPathEdit.currentPath != str(self.store.folder):
            self.ui.projectPathEdit.setCurrentPath(str(self.store.folder))
        self.table.refresh()
        empty = (
            _("Choose a folder above and press Open or create.") if not self.store.isOpen() else ""
        )
        if self.store.isOpen() and not self.store.cases:
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
        self.addPaths(
            list(
                qt.QFileDialog.getOpenFileNames(
                    self.widget,
                    _("Add images"),
                    "",
                    _("Images (*.nii *.nii.gz *.nrrd *.mha *.mhd)"),
                )
                or []
            )
        )

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
