"""How long the window stands still, and because of what.

A 5 ms timer in the main thread is the pulse. A gap between two beats is a block; what the main thread did meanwhile is
sampled by a second thread from its Python stack. Two lengths are kept for each block: the time on the wall, in which
other programs of a busy machine take part, and the processor time of the main thread, which is the module's own.

Only time inside the event loop counts (between `resume` and `pause`), so that the tests' own work is left out.
"""

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass

from PySide6 import QtCore

PULSE_SECONDS = 0.005
LISTED_SECONDS = 0.02


@dataclass
class Block:
    """One gap in the pulse."""

    action: str
    wall: float
    processor: float
    where: str


class Watch:
    """Records gaps in the event loop's pulse while it runs, by action."""

    def __init__(self, part="MedSSL"):
        self._part = part
        self.action, self.blocks, self.beats = "", [], 0
        self._main = threading.get_ident()
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._beat)
        self._samples, self._running, self._last = [], False, None
        self._sampler = None

    def start(self):
        """Begin to watch."""
        self._running = True
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def stop(self):
        """End; `blocks` stays."""
        self._running = False
        self._timer.stop()
        if self._sampler:
            self._sampler.join()

    def resume(self):
        """The event loop runs from now on."""
        if self._running:
            self._last = (time.perf_counter(), time.thread_time())
            self._samples.clear()
            self._timer.start(int(1000 * PULSE_SECONDS))

    def pause(self):
        """The event loop is left."""
        if self._last:
            self._beat()
        self._timer.stop()
        self._last = None

    def _beat(self):
        if self._last is None:
            return
        now = (time.perf_counter(), time.thread_time())
        wall, processor = now[0] - self._last[0], now[1] - self._last[1]
        self.beats += 1
        if max(wall - PULSE_SECONDS, processor) > LISTED_SECONDS:
            self.blocks.append(Block(self.action, wall, processor, self._where()))
        self._samples.clear()
        self._last = (time.perf_counter(), time.thread_time())

    def _where(self):
        """The lines that were seen most often, outermost first."""
        seen = Counter(self._samples)
        return seen.most_common(1)[0][0] if seen else "Qt"

    def _sample(self):
        while self._running:
            if self._last is not None:
                frame = sys._current_frames().get(self._main)
                lines = []
                while frame is not None:
                    if f"/{self._part}" in frame.f_code.co_filename:
                        lines.append(
                            f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_code.co_name}"
                        )
                    frame = frame.f_back
                if lines:
                    self._samples.append(" < ".join(lines[:4]))
            time.sleep(0.002)

    def longest(self):
        """{action: its longest block by processor time}, longest first."""
        result = {}
        for block in self.blocks:
            if block.action not in result or block.processor > result[block.action].processor:
                result[block.action] = block
        return dict(sorted(result.items(), key=lambda item: -item[1].processor))

    def table(self):
        """The longest block of each action, as text."""
        rows = [f"{'action':34} {'blocks':>6} {'processor':>10} {'wall':>9}  where"]
        for action, block in self.longest().items():
            count = sum(1 for each in self.blocks if each.action == action)
            rows.append(
                f"{action:34} {count:6d} {1000 * block.processor:7.0f} ms {1000 * block.wall:6.0f} ms  {block.where}"
            )
        return "\n".join(rows)
