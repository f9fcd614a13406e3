"""Stand-ins for the ctk and qMRML widgets the module uses, drawn with plain Qt and bound to the real scene.

Each has the members the module may use and no others, so that a misspelt or invented name fails here too.
"""

import weakref

import shiboken6
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

import slicer

from . import pythonqt
from .segment_editor import qMRMLSegmentEditorWidget

Signal, Property = QtCore.Signal, QtCore.Property


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A titled section that folds. Children of the .ui file go below the title."""

    contentsCollapsed = Signal(bool)
    _HEADER = 30

    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self._title = QtWidgets.QToolButton(self)
        self._title.setAutoRaise(True)
        self._title.setToolButtonStyle(QtCore.Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._title.clicked.connect(lambda: self._set_collapsed(not self._collapsed))
        font = self._title.font()
        font.setBold(True)
        self._title.setFont(font)
        self.setContentsMargins(0, self._HEADER, 0, 0)
        self._arrow()

    def _get_text(self):
        return self._text

    def _set_text(self, text):
        self._text = text
        self._title.setText("  " + text)

    def _get_collapsed(self):
        return self._collapsed

    def _set_collapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget) and child is not self._title:
                child.setVisible(not collapsed)
        self._arrow()
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def _arrow(self):
        kind = QtCore.Qt.ArrowType.RightArrow if self._collapsed else QtCore.Qt.ArrowType.DownArrow
        self._title.setArrowType(kind)

    def childEvent(self, event):
        super().childEvent(event)
        child = event.child()
        if (
            event.added()
            and self._collapsed
            and isinstance(child, QtWidgets.QWidget)
            and child is not self._title
        ):
            child.setVisible(False)

    def resizeEvent(self, event):
        super().resizeEvent(event)
        self._title.setGeometry(0, 0, self.width(), self._HEADER - 4)

    def paintEvent(self, event):
        painter = QtGui.QPainter(self)
        painter.setPen(QtCore.Qt.PenStyle.NoPen)
        painter.setBrush(self.palette().button())
        painter.drawRoundedRect(0, 0, self.width(), self._HEADER - 4, 3, 3)

    def sizeHint(self):
        if self._collapsed:
            return QtCore.QSize(100, self._HEADER)
        return super().sizeHint()

    def minimumSizeHint(self):
        return QtCore.QSize(50, self._HEADER) if self._collapsed else super().minimumSizeHint()

    text = Property(str, _get_text, _set_text)
    collapsed = Property(bool, _get_collapsed, _set_collapsed)


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path with a browse button. Any text is a current path; filters only decide whether it is valid."""

    Dirs, Files, Readable, Writable, NoDotAndDotDot = 0x1, 0x2, 0x10, 0x20, 0x6000

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._edit = QtWidgets.QComboBox(self)
        self._edit.setEditable(True)
        self._edit.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed
        )
        self._browse = QtWidgets.QToolButton(self)
        self._browse.setText("…")
        layout.addWidget(self._edit)
        layout.addWidget(self._browse)
        self._edit.editTextChanged.connect(self.currentPathChanged)
        self._edit.setMinimumContentsLength(4)
        policy = QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        self._edit.setSizeAdjustPolicy(policy)
        self._filters, self._setting = self.Files, ""

    def _path(self):
        return self._edit.currentText()

    def setCurrentPath(self, path):
        self._edit.setEditText(path)

    def addCurrentPathToHistory(self):
        if self._edit.findText(self._path()) < 0:
            self._edit.addItem(self._path())
        if self._setting:
            paths = [self._edit.itemText(row) for row in range(self._edit.count())]
            latest = [self._path(), *(path for path in paths if path != self._path())]
            slicer.app.settings().setValue(self._setting, latest)

    def _get_filters(self):
        return self._filters

    def _set_filters(self, filters):
        self._filters = filters

    def _get_setting(self):
        return self._setting

    def _set_setting(self, key):
        """The history of the setting fills the line: its latest path is the current one."""
        self._setting = key
        application = getattr(slicer, "app", None)
        paths = (application.settings().value(key) if application and key else None) or []
        paths = [paths] if isinstance(paths, str) else list(paths)
        for path in paths:
            self._edit.addItem(path)
        if paths:
            self.setCurrentPath(paths[0])

    currentPath = Property(str, _path, setCurrentPath, notify=currentPathChanged)
    filters = Property(int, _get_filters, _set_filters)
    settingKey = Property(str, _get_setting, _set_setting)


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with its number beside it."""

    valueChanged = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._spin = QtWidgets.QDoubleSpinBox(self)
        layout.addWidget(self._slider)
        layout.addWidget(self._spin)
        self._slider.valueChanged.connect(self._from_slider)
        self._spin.valueChanged.connect(self._from_spin)

    def _span(self):
        return self._spin.minimum(), self._spin.maximum()

    def _from_slider(self, position):
        low, high = self._span()
        self._spin.setValue(low + (high - low) * position / 1000)

    def _from_spin(self, value):
        low, high = self._span()
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - low) / max(high - low, 1e-9)))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    value = Property(float, lambda self: self._spin.value(), lambda self, v: self._spin.setValue(v))
    minimum = Property(
        float, lambda self: self._spin.minimum(), lambda self, v: self._spin.setMinimum(v)
    )
    maximum = Property(
        float, lambda self: self._spin.maximum(), lambda self, v: self._spin.setMaximum(v)
    )
    singleStep = Property(
        float, lambda self: self._spin.singleStep(), lambda self, v: self._spin.setSingleStep(v)
    )
    decimals = Property(
        int, lambda self: self._spin.decimals(), lambda self, v: self._spin.setDecimals(v)
    )


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that tells of its scene; only connections of its .ui file hand it on to widgets inside."""

    mrmlSceneChanged = Signal(object)

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return getattr(self, "_scene", None)


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """A list of the scene's nodes of some classes, following the scene."""

    currentNodeChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._tags, self._types, self._none = None, [], [], False
        self._add = self._remove = self._rename = False
        self.currentIndexChanged.connect(lambda: self.currentNodeChanged.emit(self.currentNode()))

    def setMRMLScene(self, scene):
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        events = (
            slicer.vtkMRMLScene.NodeAddedEvent,
            slicer.vtkMRMLScene.NodeRemovedEvent,
            slicer.vtkMRMLScene.EndCloseEvent,
        )
        own = weakref.ref(self)

        def follow(caller, event):
            combo = own()
            if combo is not None and shiboken6.isValid(combo):
                combo._refresh()

        self._tags = [scene.AddObserver(event, follow) for event in events]
        self._refresh()

    def _refresh(self, *_):
        current = self.currentData()
        self.blockSignals(True)
        self.clear()
        if self._none:
            self.addItem("None", "")
        for kind in self._types:
            nodes = self._scene.GetNodesByClass(kind)
            nodes.UnRegister(None)
            for index in range(nodes.GetNumberOfItems()):
                node = nodes.GetItemAsObject(index)
                if not node.GetHideFromEditors():
                    self.addItem(node.GetName(), node.GetID())
        index = self.findData(current)
        self.setCurrentIndex(index if index >= 0 else min(0, self.count() - 1))
        self.blockSignals(False)
        if self.currentData() != current:
            self.currentNodeChanged.emit(self.currentNode())

    def currentNode(self):
        return (
            self._scene.GetNodeByID(self.currentData())
            if self._scene and self.currentData()
            else None
        )

    def setCurrentNode(self, node):
        self.setCurrentIndex(self.findData(node.GetID() if node else ""))

    def _set_types(self, types):
        self._types = list(types)
        if self._scene:
            self._refresh()

    def _set_none(self, enabled):
        self._none = enabled

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = Property(bool, lambda self: self._none, _set_none)
    addEnabled = Property(bool, lambda self: self._add, lambda self, v: setattr(self, "_add", v))
    removeEnabled = Property(
        bool, lambda self: self._remove, lambda self, v: setattr(self, "_remove", v)
    )
    renameEnabled = Property(
        bool, lambda self: self._rename, lambda self, v: setattr(self, "_rename", v)
    )


CTK = (ctkCollapsibleButton, ctkPathLineEdit, ctkSliderWidget)
QMRML = (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentEditorWidget)


class UiLoader(QtUiTools.QUiLoader):
    """Reads .ui files into guarded classes, so that the module meets PythonQt behaviour on every widget."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._custom = {}
        for kind in CTK + QMRML:
            self.registerCustomWidget(kind)
            self._custom[kind.__name__] = kind

    def createWidget(self, class_name, parent=None, name=""):
        import ctk
        import qt

        if class_name in self._custom:
            kind = getattr(ctk, class_name, None) or getattr(slicer, class_name)
        elif class_name == "Line":
            return super().createWidget(class_name, parent, name)
        else:
            kind = getattr(qt, class_name)
        widget = kind(parent)
        widget.setObjectName(name)
        return widget

    def load(self, device, parent=None):
        device.close()
        result = super().load(device.fileName(), parent)
        if result is None:
            raise RuntimeError(f"{device.fileName()} was refused: {self.errorString()}")
        return result


def install(qt_module, ctk_module):
    """Put the stand-ins where the module looks for them."""
    for kind in CTK:
        setattr(ctk_module, kind.__name__, pythonqt.guarded(kind, "ctk"))
        kind.__setattr__ = pythonqt._set
    for kind in QMRML:
        setattr(slicer, kind.__name__, pythonqt.guarded(kind, "qt"))
        kind.__setattr__ = pythonqt._set
    qt_module.QUiLoader = UiLoader
    vtk.vtkObject.GlobalWarningDisplayOn()
