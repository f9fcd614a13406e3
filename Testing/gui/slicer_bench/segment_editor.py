"""The segment editor widget: two effects' worth of buttons over Slicer's own segment editor logic.

Painting is done by tests through `paint`, which hands a labelmap to vtkSlicerSegmentEditorLogic, as the real
effects do: undo, overlap rules and the segmentation's history are Slicer's.
"""

import numpy as np
import vtk
from PySide6 import QtCore, QtWidgets

import slicer


class qMRMLSegmentEditorWidget(QtWidgets.QWidget):
    """Effect buttons, the segment list and undo; the members the module uses, no more."""

    activeEffectChanged = QtCore.Signal(object)
    currentSegmentIDChanged = QtCore.Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.shortcuts_installed = False
        self._flags = {}
        self._observer = None
        self._list = QtWidgets.QTableWidget(0, 2, self)
        self._list.setHorizontalHeaderLabels(["", "Segment"])
        self._list.verticalHeader().hide()
        self._list.setColumnWidth(0, 28)
        self._list.horizontalHeader().setStretchLastSection(True)
        self._list.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self._list.setMaximumHeight(120)
        self._list.itemSelectionChanged.connect(self._select_row)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._list)
        layout.addLayout(self._effects())

    def _effects(self):
        grid = QtWidgets.QGridLayout()  # the real one has its effects in rows of a few as well
        group = QtWidgets.QButtonGroup(self)
        for number, name in enumerate(("None", "Paint", "Draw", "Erase", "Threshold", "Scissors")):
            button = QtWidgets.QToolButton(self)
            button.setText(name)
            button.setCheckable(True)
            button.setChecked(name == "None")
            group.addButton(button)
            grid.addWidget(button, number // 4, number % 4)
        for number, (name, action) in enumerate((("Undo", self.undo), ("Redo", self.redo)), 6):
            button = QtWidgets.QToolButton(self)
            button.setText(name)
            button.clicked.connect(lambda _=False, call=action: call())
            grid.addWidget(button, number // 4, number % 4)
        return grid

    # -- what the module calls ----------------------------------------------------------------------------------

    def setMRMLScene(self, scene):
        self.logic.SetMRMLScene(scene)
        application = getattr(slicer, "app", None)
        if application:
            self.logic.SetMRMLApplicationLogic(application.applicationLogic())

    def setMRMLSegmentEditorNode(self, node):
        self.logic.SetSegmentEditorNode(node)

    def mrmlSegmentEditorNode(self):
        return self.logic.GetSegmentEditorNode()

    def setSegmentationNode(self, node):
        self.logic.SetSegmentationNode(node)
        if self._observer:
            self._observer[0].RemoveObserver(self._observer[1])
            self._observer = None
        if node:
            segmentation = node.GetSegmentation()
            tag = segmentation.AddObserver(
                slicer.vtkSegmentation.SegmentAdded, lambda *_: self._fill()
            )
            self._observer = (segmentation, tag)
        self._fill()

    def segmentationNode(self):
        return self.logic.GetSegmentationNode()

    def setSourceVolumeNode(self, node):
        self.logic.SetSourceVolumeNode(node)

    def setMaximumNumberOfUndoStates(self, count):
        self.logic.SetMaximumNumberOfUndoStates(count)

    def setCurrentSegmentID(self, identifier):
        self.logic.SetCurrentSegmentID(identifier)
        self.currentSegmentIDChanged.emit(identifier)

    def currentSegmentID(self):
        return self.logic.GetCurrentSegmentID()

    def activeEffectName(self):
        """What the mouse does: "" for nothing. For tests; the application has activeEffect()."""
        for button in self.findChildren(QtWidgets.QToolButton):
            if button.isCheckable() and button.isChecked():
                return "" if button.text() == "None" else button.text()
        return ""

    def setActiveEffectByName(self, name):
        for button in self.findChildren(QtWidgets.QToolButton):
            if button.isCheckable():
                button.setChecked(button.text() == (name or "None"))

    def installKeyboardShortcuts(self, parent=None):
        self.shortcuts_installed = True

    def uninstallKeyboardShortcuts(self):
        self.shortcuts_installed = False

    def setupViewObservations(self):
        pass

    def removeViewObservations(self):
        pass

    def saveStateForUndo(self):
        self.logic.SaveStateForUndo()

    def undo(self):
        self.logic.Undo()

    def redo(self):
        self.logic.Redo()

    def _flag(name):
        return QtCore.Property(
            bool,
            lambda self: self._flags.get(name, True),
            lambda self, value: self._flags.__setitem__(name, value),
        )

    def _old(name):
        """A deprecated name: whatever touches it warns, as in the application."""

        def get(self):
            slicer.bench_deprecations.append(name)
            return True

        return QtCore.Property(
            bool, get, lambda self, value: slicer.bench_deprecations.append(name)
        )

    masterVolumeNodeSelectorVisible = _old("masterVolumeNodeSelectorVisible")

    def setMasterVolumeNode(self, node):
        slicer.bench_deprecations.append("setMasterVolumeNode")
        self.setSourceVolumeNode(node)

    segmentationNodeSelectorVisible = _flag("segmentation")
    sourceVolumeNodeSelectorVisible = _flag("source")
    switchToSegmentationsButtonVisible = _flag("switch")
    addRemoveSegmentButtonsVisible = _flag("add")
    maskingSectionVisible = _flag("masking")
    undoEnabled = _flag("undo")

    # -- what tests do in place of the mouse ----------------------------------------------------------------------

    def paint(self, segment_id, mask, *, erase=False):
        """Add (or remove) `mask` [k, j, i], on the source volume's grid, to a segment, with an undo state."""
        self.setCurrentSegmentID(segment_id)
        self.logic.ResetModifierLabelmapToDefault()
        modifier = self.logic.GetModifierLabelmap()
        from vtkmodules.util import numpy_support

        array = numpy_support.vtk_to_numpy(modifier.GetPointData().GetScalars())
        array[:] = np.ascontiguousarray(mask).astype(array.dtype).ravel()
        modifier.Modified()
        self.logic.SaveStateForUndo()
        kind = self.logic.ModificationModeRemove if erase else self.logic.ModificationModeAdd
        self.logic.ModifySegmentByLabelmap(
            self.segmentationNode(), segment_id, modifier, kind, False, False
        )

    # -- the list -------------------------------------------------------------------------------------------------

    def _fill(self):
        node = self.segmentationNode()
        identifiers = vtk.vtkStringArray()
        if node:
            node.GetSegmentation().GetSegmentIDs(identifiers)
        self._list.setRowCount(identifiers.GetNumberOfValues())
        for row in range(identifiers.GetNumberOfValues()):
            segment = node.GetSegmentation().GetSegment(identifiers.GetValue(row))
            colour = QtWidgets.QTableWidgetItem("")
            from PySide6 import QtGui

            colour.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            self._list.setItem(row, 0, colour)
            self._list.setItem(row, 1, QtWidgets.QTableWidgetItem(segment.GetName()))
            self._list.item(row, 1).setData(
                QtCore.Qt.ItemDataRole.UserRole, identifiers.GetValue(row)
            )
        if identifiers.GetNumberOfValues():
            self._list.selectRow(0)

    def _select_row(self):
        rows = {index.row() for index in self._list.selectedIndexes()}
        if rows and self._list.item(min(rows), 1):
            self.setCurrentSegmentID(
                self._list.item(min(rows), 1).data(QtCore.Qt.ItemDataRole.UserRole)
            )
