"""Stand-ins for slicer.ScriptedLoadableModule, slicer.parameterNodeWrapper and slicer.i18n."""

import typing
import unittest

import slicer


class ScriptedLoadableModule:
    """Describes the module; `parent` takes the description."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, name):
        import os

        return os.path.join(os.path.dirname(self.parent.path), "Resources", name)


class ScriptedLoadableModuleWidget:
    """The panel's holder: `parent` is the widget the application gives, `layout` its layout."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__[: -len("Widget")]
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, name):
        import os

        return os.path.join(
            os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", name
        )

    def setup(self):
        pass

    def cleanup(self):
        pass

    def enter(self):
        pass

    def exit(self):
        pass


class ScriptedLoadableModuleLogic:
    """A logic with one parameter node in the scene."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__[: -len("Logic")]
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node:
            return node
        node = slicer.vtkMRMLScriptedModuleNode()
        node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Self tests."""

    def delayDisplay(self, message, msec=0):
        pass


def tr(text):
    """No translation here; test_static.py checks that messages are constants."""
    return text


def translate(context, text):
    return text


class WithinRange:
    """A number's range, for typing.Annotated; connected widgets take it over."""

    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def check(self, name, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(
                f"parameter {name}: {value} is not within {self.minimum} and {self.maximum}"
            )


_TYPES = {str: str, int: int, float: float, bool: lambda text: text == "True"}


def _parameter(name, kind, span):
    def get(self):
        node = self.parameterNode
        if kind not in _TYPES:
            return node.GetNodeReference(name)
        text = node.GetParameter(name)
        default = getattr(type(self), f"_default_{name}")
        return (
            default
            if text == "" and node.GetParameterCount() >= 0 and not node.GetParameter(name)
            else _TYPES[kind](text)
        )

    def set_(self, value):
        if self.parameterNode.GetScene() is None:
            raise RuntimeError(f"{name} is written to a node that is in no scene any more")
        if kind not in _TYPES:
            self.parameterNode.SetNodeReferenceID(name, value.GetID() if value else None)
            return
        if not isinstance(value, kind):
            raise TypeError(f"parameter {name} is {kind.__name__}, not {value!r}")
        if span:
            span.check(name, value)
        self.parameterNode.SetParameter(name, str(value))

    return property(get, set_)


def parameterNodeWrapper(kind):
    """Typed attributes kept in a parameter node: str, int, float, bool and MRML nodes."""
    spans = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        extras = getattr(annotation, "__metadata__", ())
        annotation = annotation.__origin__ if extras else annotation
        spans[name] = next((extra for extra in extras if isinstance(extra, WithinRange)), None)
        setattr(
            kind,
            f"_default_{name}",
            kind.__dict__.get(
                name, _TYPES.get(annotation, lambda _: None)("") if annotation is str else None
            ),
        )
        setattr(kind, name, _parameter(name, annotation, spans[name]))

    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._connections = {}

    def connectGui(self, gui):
        found = {
            w.property("SlicerParameterName"): w
            for w in vars(gui).values()
            if w.property("SlicerParameterName")
        }
        tag = len(self._connections) + 1
        self._connections[tag] = []
        for name, widget in found.items():
            if not hasattr(type(self), name):
                raise ValueError(f"{name} is no parameter")
            _limit(name, widget, spans[name])
            self._connections[tag].append(_connect(self, name, widget))
        return tag

    def disconnectGui(self, tag):
        for signal, slot in self._connections.pop(tag, ()):
            signal.disconnect(slot)

    kind.__init__, kind.connectGui, kind.disconnectGui = __init__, connectGui, disconnectGui
    return kind


def _limit(name, widget, span):
    """The widget takes the parameter's range; without one it loses its own, as in Slicer, and a slider is refused."""
    kind = widget.metaObject().className()
    if kind not in ("QSpinBox", "QDoubleSpinBox", "ctkSliderWidget"):
        return
    if span is None and kind == "ctkSliderWidget":
        raise RuntimeError(
            f"{name}: Slicer cannot connect a ctkSliderWidget to a number without a range"
        )
    low, high = (span.minimum, span.maximum) if span else (-(2**31), 2**31 - 1)
    widget.setProperty("minimum", low)
    widget.setProperty("maximum", high)


def _connect(parameters, name, widget):
    """Two-way, for the pairs of widget and type that Slicer's own connectors know."""
    kind = widget.metaObject().className()
    pairs = {
        "QCheckBox": ("checked", "toggled"),
        "QSpinBox": ("value", "valueChanged"),
        "QDoubleSpinBox": ("value", "valueChanged"),
        "QLineEdit": ("text", "textChanged"),
        "ctkSliderWidget": ("value", "valueChanged"),
        "QComboBox": ("currentText", "currentTextChanged"),
    }
    if kind not in pairs:
        raise RuntimeError(f"no connector from {kind} to a parameter")
    prop, signal = pairs[kind]
    widget.setProperty(prop, getattr(parameters, name))
    plain = type(getattr(parameters, name))

    def slot(value):
        setattr(parameters, name, plain(value))

    getattr(widget, signal).connect(slot)
    return getattr(widget, signal), slot
