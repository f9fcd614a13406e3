"""Pictures of panels and slice views, for looking at and for the README. They are rendered by the bench, not by Slicer."""

import numpy as np
from PySide6 import QtCore, QtGui, QtWidgets

import slicer

_INK = {"Red": "#f34a33", "Yellow": "#edd54c", "Green": "#6eb04b"}


def set_theme(dark):
    """Fusion style in light or dark colours, as Slicer's own two themes."""
    application = QtWidgets.QApplication.instance()
    application.setStyle("Fusion")
    palette = QtGui.QPalette()
    if dark:
        role = QtGui.QPalette.ColorRole
        colours = {
            role.Window: "#353535",
            role.WindowText: "#ffffff",
            role.Base: "#2a2a2a",
            role.AlternateBase: "#323232",
            role.Text: "#ffffff",
            role.Button: "#424242",
            role.ButtonText: "#ffffff",
            role.ToolTipBase: "#353535",
            role.ToolTipText: "#ffffff",
            role.Highlight: "#2a82da",
            role.HighlightedText: "#ffffff",
            role.PlaceholderText: "#9a9a9a",
        }
        for key, value in colours.items():
            palette.setColor(key, QtGui.QColor(value))
        for key in (role.Text, role.WindowText, role.ButtonText):
            palette.setColor(QtGui.QPalette.ColorGroup.Disabled, key, QtGui.QColor("#808080"))
    application.setPalette(palette)


def panel(loaded, width=560):
    """The module's panel at its natural height, as a QImage."""
    area = loaded.find("sectionsArea")
    loaded.panel.resize(width, 600)
    for _ in range(5):
        QtWidgets.QApplication.processEvents()
        lacking = area.widget().sizeHint().height() - area.viewport().height()
        loaded.panel.resize(width, loaded.panel.height() + lacking + 4)
    return loaded.panel.grab().toImage()


def slice_view(name, size=420):
    """One slice view with its coloured edge and name, as a QImage."""
    array = np.ascontiguousarray(slicer.bench_views[name].render(size, size))
    image = QtGui.QImage(array.data, size, size, 3 * size, QtGui.QImage.Format.Format_RGB888).copy()
    painter = QtGui.QPainter(image)
    painter.fillRect(0, 0, size, 4, QtGui.QColor(_INK[name]))
    painter.setPen(QtGui.QColor("white"))
    painter.drawText(8, 22, slicer.bench_views[name].node.GetOrientation())
    painter.end()
    return image


def beside(left, rights, caption):
    """A panel and slice views side by side, with a line below that says where the picture comes from."""
    width = left.width() + max((image.width() + 8 for image in rights), default=0)
    height = max(left.height(), sum(image.height() + 4 for image in rights)) + 22
    result = QtGui.QImage(width, height, QtGui.QImage.Format.Format_RGB32)
    result.fill(QtGui.QColor("#1c1c1c"))
    painter = QtGui.QPainter(result)
    painter.drawImage(0, 0, left)
    top = 0
    for image in rights:
        painter.drawImage(left.width() + 8, top, image)
        top += image.height() + 4
    painter.setPen(QtGui.QColor("#c0c0c0"))
    painter.drawText(
        QtCore.QRect(6, height - 20, width - 12, 18), QtCore.Qt.AlignmentFlag.AlignLeft, caption
    )
    painter.end()
    return result


def cut_texts(root):
    """(widget's name, text) of what is wider than its widget below `root`: words that one cannot read to the end."""
    found = []
    kinds = (QtWidgets.QLabel, QtWidgets.QAbstractButton, QtWidgets.QComboBox)
    for widget in root.findChildren(QtWidgets.QWidget):
        if not widget.isVisibleTo(root) or not widget.width():
            continue
        name = widget.objectName()
        if isinstance(widget, QtWidgets.QLabel) and widget.wordWrap():
            metrics = widget.fontMetrics()
            words = widget.text().replace("\u200b", " ").replace("<br>", " ").split()
            if (
                any(metrics.horizontalAdvance(word) > widget.width() for word in words)
                or widget.heightForWidth(widget.width()) > widget.height() + 1
            ):
                found.append((name, widget.text()))
        elif isinstance(widget, kinds) and not isinstance(widget, QtWidgets.QComboBox):
            if widget.sizeHint().width() > widget.width() + 1:
                found.append((name, widget.text()))
        elif isinstance(widget, QtWidgets.QComboBox) and not widget.isEditable():
            room = widget.width() - 30  # frame and arrow
            for row in range(widget.count()):
                if widget.fontMetrics().horizontalAdvance(widget.itemText(row)) > room:
                    found.append((name, widget.itemText(row)))
        elif isinstance(widget, QtWidgets.QTableWidget):
            found += _cut_headers(widget)
    return found


def _cut_headers(table):
    header, found = table.horizontalHeader(), []
    for column in range(table.columnCount()):
        item = table.horizontalHeaderItem(column)
        if item and header.sectionSizeHint(column) > header.sectionSize(column) + 1:
            found.append((table.objectName(), item.text()))
    return found
