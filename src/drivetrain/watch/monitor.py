"""The monitor: what was asked, answered and found to be true, in windows of event time; how it differs from what was trained on.

monitor = open_monitor(project)
source = open_source(project)
monitor.catch_up(source, now)                                # reads what is new; killed at any instant, nothing is lost or doubled
samples = monitor.samples(now, champion="flights-1-0af3b7e2")
windows = monitor.history(since=now - 7 * 86400)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from drivetrain.project import Project
from drivetrain.watch.samples import Sample
from drivetrain.watch.sources import Source

__all__ = ["CaughtUp", "Measured", "Monitor", "Moved", "WindowReport", "open_monitor", "open_source"]


def open_monitor(project: Project) -> Monitor:
    """The project's monitor, with the state in `.drivetrain/monitor/NAME.db` as it was left. One process at a time reads events
    with it; others may look at samples and history. Raises `SystemFault` if the state cannot be opened."""
    raise NotImplementedError


def open_source(project: Project) -> Source:
    """What the project's gateway captured, and what was posted to the loop's door, as one."""
    raise NotImplementedError


def posted_directory(project: Project) -> str:
    """The capture log to which the loop's door appends the events that are posted to it (`gateway.segments.Segments`)."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What one look has read. `closed` are the windows that it has closed."""

    events: int
    closed: Sequence[WindowReport]


@dataclass(frozen=True, slots=True)
class Measured:
    """A value with its 95 % interval, over so many rows."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a feature, or `prediction`, is from its reference: `value` is the effect size, in the distance's unit; `significant`
    is whether it is beyond chance. `distance` is `psi`, `js` or `ks`; `missing` or `unseen` for the shares of such values."""

    feature: str
    distance: str
    value: float
    critical: float
    p_value: float
    significant: bool


@dataclass(frozen=True, slots=True)
class WindowReport:
    """One closed window of one revision. Times are seconds since 1970; `rows` were asked and answered, `refused` were not valid, `failed`
    have no answer. What could not be told (too few rows or labels) is None or absent."""

    revision: str
    start: float
    end: float
    rows: int
    refused: int = 0
    failed: int = 0
    drift: Sequence[Moved] = ()
    passing: float | None = None
    """Share of rows, refused ones included, that meet every live check."""
    broken: Mapping[str, int] = field(default_factory=dict)
    """How many rows break each live check, by its words."""
    metric: str = ""
    quality: Measured | None = None
    """Of the labels that became known within the window."""
    slices: Mapping[str, Measured] = field(default_factory=dict)
    """The same by slice, `column=value`."""
    estimate: Measured | None = None
    """What the metric probably is, from the probabilities alone."""
    labels: int = 0


class Monitor:
    """Reads events, keeps windows. See `open_monitor`."""

    def catch_up(self, source: Source, now: float) -> CaughtUp:
        """Reads what the source has that is new. When all is read, windows that ended `monitoring.late` before `now` are closed.

        An event counts at its own time; one whose time is after `now` by more than `monitoring.late` is left out. Raises
        `SystemFault` if the state cannot be written.
        """
        raise NotImplementedError

    def samples(self, now: float, champion: str | None, candidate: str | None = None) -> list[Sample]:
        """Every gauge and counter, each with the labels `service` and, where it is about a revision, `revision` and `role` (`champion`,
        `candidate`, `former`)."""
        raise NotImplementedError

    def history(self, since: float = 0.0, revision: str | None = None) -> list[WindowReport]:
        """The closed windows that end after `since`, oldest first, of one revision or of all."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets the state go."""

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
