"""Loss and Dice of a run: collected from events, drawn into a label, or handed to a Slicer plot view."""

import json

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

_COLOURS = ("#4e8cd8", "#e0a030", "#58a868", "#c05a50", "#9a6fc0")
_LIMIT = 2000


class Curves:
    """Named series of (step, value). Long series are thinned, so a run of any length stays light."""

    def __init__(self):
        self.series = {}

    def add(self, event):
        """Take a progress or metric event."""
        step = event.get("step")
        values = event.get("losses") if event.get("event") == "progress" else event
        if not isinstance(step, (int, float)) or not isinstance(values, dict):
            return
        for name, value in values.items():
            wanted = event.get("event") == "progress" or "dice" in name
            if wanted and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._append(name, step, value)

    def _append(self, name, step, value):
        points = self.series.setdefault(name, [])
        points.append((step, value))
        if len(points) > _LIMIT:
            del points[1:-1:2]

    @classmethod
    def ofRun(cls, folder):
        """Curves of a run folder's events.jsonl."""
        curves = cls()
        try:
            with open(f"{folder}/events.jsonl", encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    if '"progress"' in line or '"metric"' in line:
                        curves._addLine(line)
        except OSError:
            return curves
        return curves

    def _addLine(self, line):
        try:
            self.add(json.loads(line))
        except ValueError:
            return  # a line torn by a kill


def paint(curves, width, height, dark):
    """A picture of the curves: losses on the left axis, Dice from 0 to 1 on the right."""
    pixmap = qt.QPixmap(max(width, 200), max(height, 120))
    pixmap.fill(qt.QColor("#26282b" if dark else "#ffffff"))
    painter = qt.QPainter()
    painter.begin(pixmap)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    frame = (46, 26, max(width, 200) - 46 - 54, max(height, 120) - 26 - 24)
    ink = qt.QColor("#c8c8c8" if dark else "#404040")
    painter.setPen(ink)
    if not curves.series:
        painter.drawText(
            frame[0], frame[1] + frame[3] // 2, _("Curves appear here while a run trains.")
        )
    else:
        _plot(painter, curves, frame, ink)
    painter.end()
    return pixmap


def _plot(painter, curves, frame, ink):
    left, top, width, height = frame
    steps = [point[0] for points in curves.series.values() for point in points]
    losses = [p[1] for name, points in curves.series.items() if "dice" not in name for p in points]
    last = max(max(steps), 1)
    low, high = _range(losses)
    painter.drawRect(left, top, width, height)
    painter.drawText(left - 42, top + 10, f"{high:.2g}")
    painter.drawText(left - 42, top + height, f"{low:.2g}")
    painter.drawText(left - 42, top + height // 2 + 4, _("loss"))
    painter.drawText(left + width // 2 - 12, top + height + 18, _("step"))
    painter.drawText(left, top + height + 18, "0")
    painter.drawText(left + width - 30, top + height + 18, f"{last:g}")
    place = left
    for number, (name, points) in enumerate(curves.series.items()):
        colour = qt.QColor(_COLOURS[number % len(_COLOURS)])
        pen = qt.QPen(colour)
        pen.setWidth(2)
        painter.setPen(pen)
        bottom, span = (0.0, 1.0) if "dice" in name else (low, high - low)
        xy = [
            (
                left + width * step / last,
                top + height * (1 - min(max((value - bottom) / span, 0), 1)),
            )
            for step, value in points
        ]
        for (x0, y0), (x1, y1) in zip(xy, xy[1:]):
            painter.drawLine(int(x0), int(y0), int(x1), int(y1))
        if len(xy) == 1 or "dice" in name:
            for x, y in xy:
                painter.drawEllipse(int(x) - 2, int(y) - 2, 4, 4)
        text = f"{name} {points[-1][1]:.3f}"
        painter.drawText(place, top - 8, text)
        place += 12 + 7 * len(text)
    if any("dice" in name for name in curves.series):
        painter.setPen(ink)
        painter.drawText(left + width + 6, top + 10, _("Dice 1"))
        painter.drawText(left + width + 6, top + height, "0")


def _range(values):
    if not values:
        return 0.0, 1.0
    low, high = min(values), float(np.percentile(values, 99)) if len(values) > 20 else max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def toPlotView(curves, name):
    """A Slicer plot chart of the curves (one table and one series each); returns the chart node."""
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", f"MedSSL {name}")
    chart.SetTitle(name)
    chart.SetXAxisTitle(_("step"))
    for number, (title, points) in enumerate(curves.series.items()):
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} {title}")
        slicer.util.updateTableFromArray(table, np.array(points, float), ["step", title])
        series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", title)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("step")
        series.SetYColumnName(title)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        colour = qt.QColor(_COLOURS[number % len(_COLOURS)])
        series.SetColor(colour.redF(), colour.greenF(), colour.blueF())
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart
