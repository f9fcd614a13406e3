"""What the application gives a module: slicer.app, slicer.modules, the layout, and slicer.util's file functions."""

import os
import sys
import tempfile
import types

import vtk
from PySide6 import QtCore, QtWidgets

import slicer

from .views import SliceView

_VIEWS = (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal"))
_LOGICS = {
    "volumes": "vtkSlicerVolumesLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "plots": "vtkSlicerPlotsLogic",
    "data": "vtkSlicerDataModuleLogic",
}


class _SliceWidget:
    def __init__(self, view):
        self._view = view

    def sliceLogic(self):
        return self._view.logic

    def mrmlSliceNode(self):
        return self._view.node


SIDE_BY_SIDE = 29


class _LayoutManager(QtCore.QObject):
    layoutChanged = QtCore.Signal(int)

    def __init__(self, views):
        super().__init__()
        self._views = views
        self.layout = 3

    def sliceViewNames(self):
        return tuple(self._views)

    def sliceWidget(self, name):
        return _SliceWidget(self._views[name]) if name in self._views else None

    def mrmlSliceLogics(self):
        return slicer.app.applicationLogic().GetSliceLogics()

    def setLayout(self, layout):
        self.layout = layout
        for name, view in self._views.items():
            view.node.SetMappedInLayout(layout != SIDE_BY_SIDE or name != "Green")
        self.layoutChanged.emit(layout)

    def resetSliceViews(self):
        pass


class _ModuleManager(QtCore.QObject):
    moduleAboutToBeUnloaded = QtCore.Signal(str)


class Application(QtCore.QObject):
    """slicer.app."""

    aboutToQuit = QtCore.Signal()
    startupCompleted = QtCore.Signal()

    def __init__(self, logic, views):
        super().__init__()
        self._logic, self._layout, self._modules = logic, _LayoutManager(views), _ModuleManager()
        self.paused = 0
        self.slicerHome = tempfile.gettempdir()
        self.temporaryPath = tempfile.mkdtemp(prefix="bench-")
        self._settings = QtCore.QSettings(
            os.path.join(self.temporaryPath, "Slicer.ini"), QtCore.QSettings.Format.IniFormat
        )

    def applicationLogic(self):
        return self._logic

    def layoutManager(self):
        return self._layout

    def moduleManager(self):
        return self._modules

    def settings(self):
        return self._settings

    userSettings = settings

    def pauseRender(self):
        self.paused += 1

    def resumeRender(self):
        assert self.paused > 0, "resumeRender without pauseRender"
        self.paused -= 1

    def processEvents(self):
        QtWidgets.QApplication.processEvents()

    def testingEnabled(self):
        return True

    def palette(self):
        return QtWidgets.QApplication.palette()


class _Module:
    """An entry of slicer.modules."""

    def __init__(self, logic=None, path=""):
        self._logic, self.path = logic, path

    def logic(self):
        return self._logic


def boot():
    """Make the scene, the logics and the views; fill the `slicer` package as the application does."""
    _quiet_vtk()
    slicer.mrmlScene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    logic.GetColorLogic().SetMRMLScene(slicer.mrmlScene)
    logic.GetColorLogic().AddDefaultColorNodes()
    logic.SetModuleLogic("Colors", logic.GetColorLogic())
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSelectionNode")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLInteractionNode")
    slicer.modules = types.SimpleNamespace(
        **{name: _Module(_module_logic(kind, logic, name)) for name, kind in _LOGICS.items()}
    )
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(slicer.mrmlScene, True)
    views = {
        name: SliceView(slicer.mrmlScene, logic, name, orientation) for name, orientation in _VIEWS
    }
    slicer.app = Application(logic, views)
    slicer.bench_views, slicer.bench_clear_scene = views, clear_scene
    _fill_util()
    return slicer.app


def _quiet_vtk():
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToAlwaysStdErr()
    vtk.vtkOutputWindow.SetInstance(window)


def _module_logic(kind, application_logic, name):
    logic = getattr(slicer, kind)()
    logic.SetMRMLApplicationLogic(application_logic)
    logic.SetMRMLScene(slicer.mrmlScene)
    application_logic.SetModuleLogic(name.capitalize(), logic)
    return logic


def _load(kind, storage_kind, path, properties=None):
    node = slicer.mrmlScene.AddNewNodeByClass(kind, os.path.basename(path).split(".")[0])
    storage = slicer.mrmlScene.AddNewNodeByClass(storage_kind)
    storage.SetFileName(path)
    if not storage.ReadData(node):
        slicer.mrmlScene.RemoveNode(node)
        slicer.mrmlScene.RemoveNode(storage)
        raise RuntimeError(f"Failed to load {path}")
    node.SetAndObserveStorageNodeID(storage.GetID())
    node.CreateDefaultDisplayNodes()
    if (properties or {}).get("name"):
        node.SetName(properties["name"])
    return node


def loadVolume(filename, properties=None):
    return _load(
        "vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode", filename, properties
    )


def loadLabelVolume(filename, properties=None):
    return _load(
        "vtkMRMLLabelMapVolumeNode", "vtkMRMLVolumeArchetypeStorageNode", filename, properties
    )


def loadSegmentation(filename, properties=None):
    return _load("vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode", filename, properties)


def saveNode(node, filename, properties=None):
    storage = node.GetStorageNode()
    if storage is None:
        storage = node.CreateDefaultStorageNode()
        slicer.mrmlScene.AddNode(storage)
        node.SetAndObserveStorageNodeID(storage.GetID())
    storage.SetFileName(filename)
    storage.SetUseCompression(int((properties or {}).get("useCompression", 1)))
    return bool(storage.WriteData(node))


def modulePath(name):
    return getattr(slicer.modules, name.lower()).path


def confirmOkCancelDisplay(text, windowTitle="", **_keywords):
    slicer.bench_questions.append(text)
    return slicer.bench_answer


def selectModule(name):
    slicer.bench_selected_module = name


def _fill_util():
    slicer.bench_questions, slicer.bench_answer, slicer.bench_deprecations = [], True, []
    for function in (
        loadVolume,
        loadLabelVolume,
        loadSegmentation,
        saveNode,
        modulePath,
        confirmOkCancelDisplay,
        selectModule,
    ):
        setattr(slicer.util, function.__name__, function)
    slicer.util.mainWindow = lambda: None
    slicer.bench_status_bar = []
    slicer.util.showStatusMessage = lambda message, duration=0: slicer.bench_status_bar.append(
        message
    )
    sys.modules["slicer.util"] = slicer.util


def clear_scene():
    """Close the scene as the application does: the views stay."""
    kept = [view.node for view in slicer.bench_views.values()]
    slicer.mrmlScene.Clear(0)
    for view, node in zip(slicer.bench_views.values(), kept):
        if node.GetScene() is None:
            slicer.mrmlScene.AddNode(node)
        view.logic.SetSliceNode(node)
