"""Slice views: Slicer's slice logic and displayable managers in an offscreen VTK window."""

import vtk
from vtkmodules.util import numpy_support

import slicer

_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
)


class SliceView:
    """One slice view (Red, Yellow or Green) that can be rendered to an array."""

    def __init__(self, scene, application_logic, name, orientation):
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetSingletonTag(name)  # closing a scene leaves it
        self.node.SetOrientation(orientation)
        self.node.SetMappedInLayout(1)
        application_logic.GetSliceLogics().AddItem(self.logic)
        self._application_logic = application_logic
        self._window = None

    def render(self, width=400, height=400):
        """RGB uint8 [height, width, 3] of what the view shows."""
        if self._window is None:
            self._make_window()
        self._window.SetSize(width, height)
        self.logic.ResizeSliceNode(width, height)
        self.logic.FitSliceToBackground()
        self.logic.SnapSliceOffsetToIJK()
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())
        self._actor.SetVisibility(self.logic.GetImageDataConnection() is not None)
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        array = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        return array.reshape(height, width, -1)[::-1, :, :3].copy()

    def _make_window(self):
        renderer = vtk.vtkRenderer()
        renderer.GetActiveCamera().ParallelProjectionOn()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(
            self._actor
        )  # first: what is drawn later is blended over the image, not over black
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.AddRenderer(renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(self._application_logic)
        for manager in _MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.SetRenderer(renderer)
        self._group.Initialize(factory, renderer)
        self._group.SetMRMLDisplayableNode(self.node)

    def close(self):
        if self._window is not None:
            self._group.SetMRMLDisplayableNode(None)
            self._window.Finalize()
            self._window = None
