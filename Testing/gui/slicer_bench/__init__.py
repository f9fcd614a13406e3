"""A bench for Slicer modules: real MRML (slicer-core), real Qt (PySide6), and PythonQt's refusals.

`start()` fills the modules `slicer`, `qt` and `ctk`; `load_module(path)` then loads an unmodified scripted module and
shows its panel. See README.md beside this file for what is real and what is a stand-in.
"""

import importlib
import os
import shutil
import stat
import sys
import types

os.environ.setdefault("ITK_GLOBAL_DEFAULT_THREADER", "Platform")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QT_LOGGING_RULES", "*.debug=false")


def _hold_singletons():
    """PySide6 6.12 gives back True (or None) once too often with every signal; before Python 3.12 that ends the process."""
    if sys.version_info < (3, 12):
        import ctypes

        for value in (True, False, None):
            ctypes.c_ssize_t.from_address(id(value)).value += 1 << 40


def start(folder):
    """Start the application once per process; `folder` receives the PythonSlicer stand-in."""
    import slicer

    if hasattr(slicer, "app"):
        return slicer.app
    _hold_singletons()
    from PySide6 import QtWidgets

    QtWidgets.QApplication.instance() or QtWidgets.QApplication(
        ["Slicer", "-platform", "offscreen"]
    )
    from . import application, pythonqt

    pythonqt.install_faces()
    sys.modules["qt"] = pythonqt.QtModule("qt")
    sys.modules["ctk"] = types.ModuleType("ctk")
    from . import widgets

    widgets.install(sys.modules["qt"], sys.modules["ctk"])
    slicer.qMRMLSegmentEditorWidget.__setattr__ = pythonqt._set
    app = application.boot()
    _fill_packages()
    _python_slicer(folder)
    return app


def _fill_packages():
    import slicer

    from . import loadable

    parts = {
        "ScriptedLoadableModule": (
            "ScriptedLoadableModule",
            "ScriptedLoadableModuleWidget",
            "ScriptedLoadableModuleLogic",
            "ScriptedLoadableModuleTest",
        ),
        "parameterNodeWrapper": ("WithinRange", "parameterNodeWrapper"),
        "i18n": ("tr", "translate"),
    }
    for name, members in parts.items():
        module = types.ModuleType(f"slicer.{name}")
        for member in members:
            setattr(module, member, getattr(loadable, member))
        module.__all__ = list(members)
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)


def _python_slicer(folder):
    """A `PythonSlicer` on PATH, as in Slicer."""
    from . import forks

    path = os.path.join(folder, "PythonSlicer")
    with open(path, "w") as script:
        script.write(forks.script(folder))
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
    assert shutil.which("PythonSlicer") == path


class LoadedModule:
    """A scripted module as the application holds it: `widget` is its Python class, `panel` the Qt widget."""

    def __init__(self, path):
        import slicer

        from . import application

        self.name = os.path.basename(path)[:-3]
        self._path = path
        folder = os.path.dirname(path)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        setattr(slicer.modules, self.name.lower(), application._Module(path=path))
        self.python = importlib.import_module(self.name)
        parent = types.SimpleNamespace(
            path=path,
            title="",
            categories=[],
            dependencies=[],
            contributors=[],
            helpText="",
            acknowledgementText="",
            icon=None,
        )
        self.description = parent
        self.module = getattr(self.python, self.name)(parent)
        self.widget = self.panel = None

    def open(self):
        """What selecting the module does: make the panel, setup(), enter()."""
        import slicer
        from PySide6 import QtWidgets

        self.panel = slicer.qMRMLWidget()
        QtWidgets.QVBoxLayout(self.panel)
        self.panel.setMRMLScene(slicer.mrmlScene)
        self.widget = getattr(self.python, f"{self.name}Widget")(self.panel)
        setattr(slicer.modules, f"{self.name}Widget", self.widget)
        self.widget.setup()
        self.panel.resize(520, 1000)
        self.panel.show()
        self.widget.enter()
        return self.widget

    def close(self):
        """What leaving and unloading the module does."""
        if self.widget:
            self.widget.exit()
            self.widget.cleanup()
            self.panel.close()
            self.panel.deleteLater()
            self.widget = self.panel = None

    def reload(self):
        """What the developer's Reload button does."""
        self.close()
        self.python = importlib.reload(self.python)
        return self.open()

    def find(self, name):
        """The widget with that object name."""
        from PySide6 import QtWidgets

        found = self.panel.findChild(QtWidgets.QWidget, name)
        if found is None:
            raise LookupError(f"no widget named {name}")
        return found


def load_module(path):
    """Load the scripted module at `path`, unmodified."""
    return LoadedModule(str(path))
