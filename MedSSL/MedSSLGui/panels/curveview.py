"""Curves in a panel: in Slicer's own plot widget where there is one, else painted here."""

from dataclasses import dataclass

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from .base import isDark

COLOURS = ("#4e8cd8", "#d8922a", "#4aa060", "#cf6a60", "#9a6fc0")


@dataclass
class CurveWords:
    """What a view of curves says: the name of its widget, its tool tip, the x axis, and before there is any curve.

    height: of the widget, in pixels.
    """

    name: str
    tip: str
    across: str
    empty: str
    height: int = 170


def runWords():
    """The words for the curves of a run."""
    return CurveWords(
        "curvesWidget",
        _("Loss and Dice of the running or selected run"),
        _("step"),
        _("Curves appear here while a run trains."),
    )


def makeCurveView(parent, words):
    """A view of curves; `show(curves, name)` brings them up."""
    if getattr(slicer, "qMRMLPlotWidget", None) is not None:
        return PlotView(parent, words)
    return PaintedView(parent, words)


class _Canvas(qt.QWidget):
    """A widget that has its content painted at every size it gets."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.content = None

    def paintEvent(self, event):
        painter = qt.QPainter(self)
        if self.content is not None:
            self.content(painter, self.width, self.height)
        painter.end()


class PaintedView:
    """Losses on the left axis, Dice from 0 to 1 on the right, as wide as the panel is."""

    def __init__(self, parent, words):
        self._words = words
        self.widget = _Canvas(parent)
        self.widget.setMinimumHeight(words.height)
        self.widget.setObjectName(words.name)
        self.widget.setToolTip(words.tip)
        self._curves = None
        self.widget.content = self._paint

    def show(self, curves, name):
        self._curves = curves
        self.widget.update()

    def cleanup(self):
        self.widget.content = None

    def _paint(self, painter, width, height):
        dark = isDark(self.widget)
        painter.fillRect(0, 0, width, height, qt.QColor("#26282b" if dark else "#ffffff"))
        painter.setRenderHint(qt.QPainter.Antialiasing)
        painter.setPen(qt.QColor("#d0d0d0" if dark else "#404040"))
        if self._curves is None or not self._curves.series:
            painter.drawText(8, height // 2, self._words.empty)
            return
        left, top = 44, 8 + 16 * self._legend(painter, width)
        frame = (left, top, width - left - 44, height - top - 24)
        self._axes(painter, frame)
        for number, name in enumerate(self._curves.series):
            self._series(painter, frame, number, name)

    def _legend(self, painter, width):
        """Names and last values, in as many lines as they need; returns the number of lines."""
        ink = painter.pen()
        metrics = painter.fontMetrics()
        x, line = 8, 1
        for number, (name, points) in enumerate(self._curves.series.items()):
            text = f"{name} {points[-1][1]:.3f}"
            wide = metrics.horizontalAdvance(text) + 12
            if x > 8 and x + wide > width:
                x, line = 8, line + 1
            painter.setPen(qt.QPen(qt.QColor(COLOURS[number % len(COLOURS)])))
            painter.drawText(x, 16 * line - 2, text)
            x += wide
        painter.setPen(ink)
        return line

    def _axes(self, painter, frame):
        left, top, width, height = frame
        low, high = self._curves.range()
        metrics = painter.fontMetrics()
        painter.drawRect(left, top, width, height)
        losses = any("dice" not in name for name in self._curves.series)
        for y, text in ((top + 10, f"{high:.2g}"), (top + height, f"{low:.2g}")) if losses else ():
            painter.drawText(left - 5 - metrics.horizontalAdvance(text), y, text)
        last = f"{self._curves.last():g}"
        painter.drawText(left, top + height + 16, "0")
        painter.drawText(left + width - metrics.horizontalAdvance(last), top + height + 16, last)
        across = self._words.across
        middle = left + (width - metrics.horizontalAdvance(across)) // 2
        painter.drawText(middle, top + height + 16, across)
        if any("dice" in name for name in self._curves.series):
            painter.drawText(left + width + 5, top + 10, _("Dice 1"))
            painter.drawText(left + width + 5, top + height, "0")

    def _series(self, painter, frame, number, name):
        left, top, width, height = frame
        bottom, top_ = (0.0, 1.0) if "dice" in name else self._curves.range()
        pen = qt.QPen(qt.QColor(COLOURS[number % len(COLOURS)]))
        pen.setWidth(2)
        painter.setPen(pen)
        last, places = self._curves.last(), []
        for step, value in self._curves.series[name]:
            part = min(max((value - bottom) / (top_ - bottom), 0.0), 1.0)
            places.append((int(left + width * step / last), int(top + height * (1 - part))))
        for (x0, y0), (x1, y1) in zip(places, places[1:]):
            painter.drawLine(x0, y0, x1, y1)
        if len(places) == 1 or "dice" in name:
            for x, y in places:
                painter.drawEllipse(x - 2, y - 2, 4, 4)


class PlotView:
    """Slicer's own plot widget, with a view node that no layout manages."""

    def __init__(self, parent, words):
        self._words = words
        self.widget = getattr(slicer, "qMRMLPlotWidget")(parent)  # noqa: B009 - not in the bench
        self.widget.setMRMLScene(slicer.mrmlScene)
        # its selector lists no hidden charts, and takes any other one that comes into the scene instead
        controller = self.widget.plotController()
        controller.setMRMLScene(None)
        controller.setVisible(False)
        self.widget.setMinimumHeight(words.height)
        self.widget.setObjectName(words.name)
        self.widget.setToolTip(words.tip)
        self._nodes, self._tables, self._titles = [], {}, ()
        self._view = None

    def show(self, curves, name):
        if self._view is None or self._view.GetScene() is None:
            self._makeView()
        titles = (name, *curves.series)
        alive = all(table.GetScene() is not None for table in self._tables.values())
        if titles != self._titles or not alive:
            self._clear()
            self._titles = titles
            if curves.series:
                self._makeChart(curves, name)
        for title, table in self._tables.items():
            fillTable(table, title, curves.series[title])

    def _makeChart(self, curves, name):
        chart, self._tables, series = makeChart(curves, name, self._words.across)
        self._nodes = [chart, *self._tables.values(), *series]
        for node in self._nodes:
            node.SetHideFromEditors(True)
            node.SetSaveWithScene(False)
        self._view.SetPlotChartNodeID(chart.GetID())

    def _makeView(self):
        scene = slicer.mrmlScene
        owner = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "MedSSL curves")
        view = scene.CreateNodeByClass("vtkMRMLPlotViewNode")
        view.UnRegister(None)
        view.SetName("MedSSL curves")
        view.SetLayoutName(f"MedSSL{self._words.name}")
        # a view whose parent is no layout node is left alone by the layout manager, which looks when it is added
        view.SetAndObserveParentLayoutNodeID(owner.GetID())
        for node in (owner, view):
            node.SetHideFromEditors(True)
            node.SetSaveWithScene(False)
        self._view = scene.AddNode(view)
        self.widget.setMRMLPlotViewNode(self._view)

    def _clear(self):
        for node in self._nodes:
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)
        self._nodes, self._tables, self._titles = [], {}, ()

    def cleanup(self):
        self._clear()


def makeChart(curves, name, across):
    """(chart node, {title: table node}, series nodes) of the curves."""
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", f"MedSSL {name}")
    chart.SetTitle(name)
    chart.SetXAxisTitle(across)
    tables, plots = {}, []
    for number, (title, points) in enumerate(curves.series.items()):
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} {title}")
        fillTable(table, title, points)
        series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", title)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("step")
        series.SetYColumnName(title)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        colour = qt.QColor(COLOURS[number % len(COLOURS)])
        series.SetColor(colour.redF(), colour.greenF(), colour.blueF())
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
        tables[title] = table
        plots.append(series)
    return chart, tables, plots


def fillTable(table, title, points):
    """The points of a series as the columns of a table."""
    slicer.util.updateTableFromArray(table, np.array(points, float), ["step", title])
