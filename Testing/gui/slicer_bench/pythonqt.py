"""Qt as PythonQt shows it: PySide6 classes that refuse what PythonQt refuses.

Only code of the module under test (and Slicer's own ``slicer.util``) sees this face of Qt; the bench itself and
the tests use plain PySide6. What is emulated, each seen in the real application:

* Qt properties are attributes (``button.text = "x"``); calling one raises ``'str' object is not callable``.
* Keyword arguments in constructors crash the application: here they raise.
* Scoped enums (``qt.Qt.ItemFlag.ItemIsEnabled``) do not exist, unscoped ones do.
* ``isinstance`` knows a widget's exact class only, never its C++ base classes.
* ``QThread`` does not exist. ``timer.singleShot = True`` fails.
* A ``qt.Signal`` of a Python class, connected and alive at exit, crashes the application: it is refused.
* Assigning a name that is no property of a Qt object fails (a misspelt property is not silently kept).
"""

import enum
import sys
import types

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

PYTHONQT_CODE = ("MedSSL", "slicer.util", "slicer_bench.loadable")
"""Modules (by prefix) that see Qt as PythonQt shows it. MedSSLLib never sees Qt at all."""

_MISSING_CLASSES = {"QThread", "QThreadPool", "QRunnable", "QtConcurrent"}
_MODULES = (QtCore, QtGui, QtWidgets)


class PythonQtRefusal(AttributeError, TypeError):
    """The module did something that fails, or crashes, in the real application."""


def _is_module_code():
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name.startswith(PYTHONQT_CODE)


_property_names = {}


def _properties(instance):
    kind = type(instance)
    if kind not in _property_names:
        meta = QtCore.QObject.metaObject(instance)
        names = {meta.property(index).name() for index in range(meta.propertyCount())}
        _property_names[kind] = frozenset(names - {"singleShot"})
    return _property_names[kind]


_plain_get = QtCore.QObject.__getattribute__


def _get(self, name):
    if name[0] != "_" and _is_module_code():
        if name == "name":
            return QtCore.QObject.objectName(self)
        if name in _properties(self):
            return QtCore.QObject.property(self, name)
    return _plain_get(self, name)


def _set(self, name, value):
    if _is_module_code():
        if name in _properties(self):
            if not QtCore.QObject.setProperty(self, name, value):
                raise PythonQtRefusal(f"property {name} does not take {value!r}")
            return
        if type(self).__module__.startswith(("PySide6", "qt", "ctk")):
            raise PythonQtRefusal(f"{type(self).__name__} has no property {name!r}")
    descriptor = getattr(type(self), name, None)
    if hasattr(descriptor, "__set__"):
        descriptor.__set__(self, value)
    else:
        _plain_get(self, "__dict__")[name] = value


class _Guard(type(QtCore.QObject)):
    """Metaclass of the classes the module sees."""

    def __call__(cls, *arguments, **keywords):
        if keywords and cls.__dict__.get("_stands_for"):
            raise PythonQtRefusal(f"{cls.__name__}({', '.join(keywords)}=...) crashes PythonQt")
        return super().__call__(*arguments, **keywords)

    def __getattribute__(cls, name):
        value = super().__getattribute__(name)
        if isinstance(value, enum.EnumMeta) and _is_module_code():
            raise PythonQtRefusal(
                f"{cls.__name__}.{name} is a scoped enum; PythonQt has the plain names only"
            )
        return value

    def __instancecheck__(cls, instance):
        if cls in type(instance).__mro__:
            return True
        if "_stands_for" not in cls.__dict__ or not hasattr(instance, "metaObject"):
            return False
        return instance.metaObject().className() == cls.__name__


def guarded(real, module="qt"):
    """The class `real` as PythonQt shows it."""
    members = {"_stands_for": real, "__module__": module}
    return _Guard(real.__name__, (real,), members)


class _Namespace:
    """``qt.Qt``: unscoped names only."""

    def __getattr__(self, name):
        value = getattr(QtCore.Qt, name)
        if isinstance(value, enum.EnumMeta) and _is_module_code():
            raise PythonQtRefusal(
                f"qt.Qt.{name} is a scoped enum; PythonQt has the plain names only"
            )
        return value


class QtModule(types.ModuleType):
    """The module ``qt``: one flat namespace, classes guarded when first used."""

    def __getattr__(self, name):
        if name.startswith("__") or name in _MISSING_CLASSES:
            raise AttributeError(f"PythonQt has no qt.{name}")
        if name == "Qt":
            value = _Namespace()
        elif name == "Signal":
            raise PythonQtRefusal(
                "objects with a qt.Signal that live at exit crash Slicer after Py_Finalize"
            )
        else:
            value = self._find(name)
        setattr(self, name, value)
        return value

    @staticmethod
    def _find(name):
        real = getattr(QtUiTools, "QUiLoader", None) if name == "QUiLoader" else None
        for module in _MODULES:
            real = real or getattr(module, name, None)
        if real is None:
            raise AttributeError(f"PythonQt has no qt.{name}")
        if isinstance(real, type):
            return guarded(real)
        return real


def install_faces():
    """Give every Qt class its PythonQt face, for module code only."""
    for module in _MODULES:
        for kind in [getattr(module, name) for name in dir(module)]:
            if isinstance(kind, type) and issubclass(kind, QtCore.QObject):
                kind.__setattr__ = _set
    QtCore.QObject.__getattribute__ = _get
