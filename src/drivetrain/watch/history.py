"""What the loop asks of windows long past, without reading each of them at every look."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from itertools import islice

from drivetrain.engines import quality
from drivetrain.engines.triggers import Served
from drivetrain.watch import gauges
from drivetrain.watch.monitor import Monitor
from drivetrain.watch.samples import Sample
from drivetrain.watch.window_state import WindowReport

MOST = 1000
"""Windows that are gone through for what was told last: six weeks of hours. What is older says nothing of now."""

_TELLS: Mapping[str, Callable[[WindowReport], bool]] = {
    "drift": lambda window: bool(window.drift),
    "quality": lambda window: window.quality is not None,
    "data_quality": lambda window: window.passing is not None,
}
"""Signal -> whether a window tells it."""


class History:
    """The closed windows of one revision at a time. A window is decoded again only once another has closed."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._asked: tuple[str, frozenset[str], float] | None = None
        self._told: list[Sample] = []
        self._since: tuple[str, float] | None = None
        self._served: list[Served] = []
        self._read = 0.0

    def forget(self) -> None:
        """Reads everything anew: the clock was set back, and windows may close out of order."""
        self._asked = self._since = None

    def told_last(self, revision: str, signals: Collection[str]) -> list[Sample]:
        """The champion's samples as its windows told them last: windows are gone through, the newest first, until each of the signals has
        been told, `MOST` windows at most."""
        wanted = {signal for signal in signals if signal in _TELLS}
        gone: list[WindowReport] = []
        with closing(self._monitor.newest(revision)) as windows:
            for window in islice(windows, MOST):
                if not gone and (revision, frozenset(signals), window.start) == self._asked:
                    return self._told
                gone.append(window)
                wanted -= {signal for signal in wanted if _TELLS[signal](window)}
                if not wanted:
                    break
        self._asked = (revision, frozenset(signals), gone[0].start) if gone else None
        self._told = list(gauges.of_reports(gone[::-1], revision, None))
        return self._told

    def served(self, revision: str, since: float, metric: str) -> list[Served]:
        """What the revision served in each window that ended after `since`, as far as its quality is known or can be estimated."""
        if self._since != (revision, since):
            self._since, self._served, self._read = (revision, since), [], since
        for window in self._monitor.history(self._read, revision):
            self._read = max(self._read, window.end)
            known = window.quality or window.estimate
            if known is not None:
                self._served.append(Served(window.rows, quality.loss(metric, known.value)))
        return self._served
