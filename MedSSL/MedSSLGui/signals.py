"""Signals in plain Python.

Python subclasses of QObject with Qt signals must not live when Slicer ends: PythonQt then crashes after the
interpreter is gone. These signals belong to Python alone.
"""

import sys


class Signal:
    """Calls its slots in the order in which they were connected."""

    def __init__(self):
        self._slots = []

    def connect(self, slot):
        """Call `slot` at every emit, until it is disconnected."""
        self._slots.append(slot)

    def disconnect(self, slot):
        """Call `slot` no more; nothing happens when it is not connected."""
        if slot in self._slots:
            self._slots.remove(slot)

    def clear(self):
        """Call nobody any more."""
        self._slots = []

    def emit(self, *arguments):
        """Call every slot. One that raises is reported, and the others are called all the same."""
        for slot in list(self._slots):
            try:
                slot(*arguments)
            except Exception:
                sys.excepthook(*sys.exc_info())
