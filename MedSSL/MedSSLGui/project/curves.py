"""Losses and Dice of a run: collected from events as they come, or read from the run's folder."""

import json

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

    def last(self):
        """The largest step, at least 1."""
        return max([points[-1][0] for points in self.series.values()], default=1) or 1

    def range(self):
        """(low, high) of the losses, outliers left out."""
        losses = []
        for name, points in self.series.items():
            if "dice" not in name:
                losses += [value for _step, value in points]
        if not losses:
            return 0.0, 1.0
        ordered = sorted(losses)
        high = ordered[int(0.99 * (len(ordered) - 1))] if len(ordered) > 20 else ordered[-1]
        low = ordered[0]
        return (low, high) if high > low else (low - 0.5, low + 0.5)
