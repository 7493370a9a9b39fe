"""The monitor: what was asked, answered and found to be true, in windows of event time; how it differs from what was trained on.

monitor = open_monitor(project)
source = open_source(project)
monitor.catch_up(source, now)                                # reads what is new; killed at any instant, nothing is lost or doubled
samples = monitor.samples(now, champion="flights-1-0af3b7e2")
windows = monitor.history(since=now - 7 * 86400)
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from drivetrain import service
from drivetrain.backends.serving.gateway.events import Event
from drivetrain.engines.drift import Shares, corrected_alpha
from drivetrain.engines.event_windows import Seen, Windows
from drivetrain.engines.two_samples import Distance
from drivetrain.errors import SystemFault
from drivetrain.project import Project
from drivetrain.watch import arrivals, gauges
from drivetrain.watch.arrivals import Halves
from drivetrain.watch.counting import Counted, count
from drivetrain.watch.labels import Joining, Labels, Outcomes
from drivetrain.watch.monitor_store import MonitorStore
from drivetrain.watch.samples import Sample
from drivetrain.watch.sources import Log, Merged, Position, Source
from drivetrain.watch.subject import ProjectSubjects, Subjects
from drivetrain.watch.window_state import Measured, Moved, Settings, WindowReport, WindowState

__all__ = [
    "CaughtUp", "Measured", "Monitor", "Moved", "WindowReport", "open_monitor", "open_source", "posted_directory",
]  # fmt: skip

_log = logging.getLogger(__name__)

BATCH = 8192
"""Events that are looked at together, and kept by one transaction."""
BATCH_BYTES = 32 * 1024**2
_SEEN = 4_000_000
"""Events that are remembered, to know them when they come again."""
_DAY = 86_400.0


def open_monitor(project: Project) -> Monitor:
    """The project's monitor, with the state in `.drivetrain/monitor/NAME.db` as it was left. One process at a time reads events
    with it; others may look at samples and history. Raises `SystemFault` if the state cannot be opened."""
    definition = project.definition
    part = definition.monitoring
    windows = Windows(part.window.total_seconds(), part.late.total_seconds())
    subjects = ProjectSubjects(project)
    labels_within = 2.0 * definition.data.label_delay.total_seconds() + max(_DAY, windows.length)
    rules = Rules(definition.name, windows, part.drift, part.false_alarms, part.least_labels, labels_within)
    return Monitor(MonitorStore(_home(project) / f"{definition.name}.db"), subjects, rules)


def open_source(project: Project) -> Source:
    """What the project's gateway captured, and what was posted to the loop's door, as one."""
    captured = service.capture_directory(project.state, project.definition.name)
    return Merged([Log(captured, "captured"), Log(posted_directory(project), "posted")])


def posted_directory(project: Project) -> Path:
    """The capture log to which the loop's door appends the events that are posted to it (`gateway.segments.Segments`)."""
    return _home(project) / f"{project.definition.name}.posted"


def _home(project: Project) -> Path:
    return project.state.absolute() / "monitor"


@dataclass(frozen=True, slots=True)
class Rules:
    """How it is watched. `labels_within` is how many seconds a prediction waits for its label; `false_alarms` are for each day."""

    service: str
    windows: Windows
    distance: Distance
    false_alarms: float
    least_labels: int
    labels_within: float

    def settings(self, features: int) -> Settings:
        """For a revision with so many features, `prediction` among them."""
        alpha = corrected_alpha(self.false_alarms, features, self.windows.length)
        return Settings(self.distance, alpha, self.least_labels)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What one look has read. `closed` are the windows that it has closed."""

    events: int
    closed: Sequence[WindowReport]


class Monitor:
    """Reads events, keeps windows. See `open_monitor`."""

    def __init__(self, store: MonitorStore, subjects: Subjects, rules: Rules) -> None:
        self._store, self._subjects, self._rules = store, subjects, rules
        self._memory: _Memory | None = None

    def catch_up(self, source: Source, now: float) -> CaughtUp:
        """Reads what the source has that is new. When all is read, windows that ended `monitoring.late` before `now` are closed.

        An event counts at its own time; one whose time is after `now` by more than `monitoring.late` is left out. Raises
        `SystemFault` if the state cannot be written, or another process reads at the same time.
        """
        self._subjects.look_again()
        memory = self._loaded()
        events, closed = 0, []
        try:
            if memory.latest > now + self._rules.windows.late:
                _log.warning("the clock was set back by %.0f s; windows go on from there", memory.latest - now)
                memory.latest = now
            last = self._store.position(source.name)
            for position, batch in _batches(source.after(last)):
                with self._store.transaction():
                    if self._store.position(source.name) != last:
                        raise SystemFault("another process reads these events", hint="one `drivetrain watch` at a time")
                    closed += self._take(memory, batch, now)
                    self._store.keep_position(source.name, position)
                last, events = position, events + len(batch)
            with self._store.transaction():
                closed += self._settle(memory, max(memory.latest, now), {})
        except BaseException:
            self._memory = None  # what is in memory may be ahead of what is on disk
            raise
        memory.version = self._store.version()
        return CaughtUp(events, closed)

    def _loaded(self) -> _Memory:
        if self._memory is None or self._memory.version != self._store.version():
            self._memory = _Memory(self._store, self._subjects, self._rules)
        return self._memory

    def _take(self, memory: _Memory, batch: Sequence[Event], now: float) -> list[WindowReport]:
        """Counts a batch, within a transaction."""
        arrived = arrivals.arrive(
            batch, self._rules.windows, memory.seen, memory.halves, memory.closed, memory.latest, now
        )
        memory.keep_seen(arrived.new)
        memory.latest = arrived.latest
        memory.outcomes.update(arrived.outcomes)
        counted = count(arrived.pairs, self._subjects)
        memory.outcomes.update(counted.outcomes)
        touched = memory.add(counted)
        touched |= memory.join(memory.labels.predicted(counted.kept, memory.closed))
        touched |= memory.join(memory.labels.told(arrived.labels, memory.closed))
        return self._settle(memory, memory.latest, touched)

    def _settle(
        self, memory: _Memory, latest: float, touched: dict[tuple[str, float], WindowState]
    ) -> list[WindowReport]:
        """Closes the windows that take no more after the time `latest`, and writes what has changed."""
        windows, closed = self._rules.windows, []
        for key in [key for key in memory.windows if windows.is_closed(key[1], latest)]:
            state = memory.windows.pop(key)
            touched.pop(key, None)
            settings = self._rules.settings(len(state.subject.watched.reference.features))
            report = state.report(key[1], key[1] + windows.length, settings)
            self._store.close_window(report, state.to_bytes())
            memory.closed.add(key[1])
            closed.append(report)
        self._store.keep_windows((name, start, state.to_bytes()) for (name, start), state in touched.items())
        memory.outcomes.update(
            arrivals.expire(
                memory.halves,
                lambda at: windows.is_closed(windows.start(at), latest) or windows.start(at) in memory.closed,
            )
        )
        memory.outcomes.update(memory.labels.clear(memory.latest))
        memory.write()
        return closed

    def samples(self, now: float, champion: str | None, candidate: str | None = None) -> list[Sample]:
        """Every gauge and counter, each with the labels `service` and, where it is about a revision, `revision` and `role` (`champion`,
        `candidate`, `former`). What a window has told is told until the next one tells, four windows or a day long, whichever is more."""
        windows = self._rules.windows
        reports = self._store.reports(now - windows.late - max(_DAY, 4 * windows.length))
        latest = self._store.facts().get("latest", -math.inf)
        found = [
            *gauges.of_counters(self._store.counters()),
            *gauges.of_reports(reports, champion, candidate),
        ]
        if latest > -math.inf:
            found.append(Sample("drivetrain_monitor_watermark_seconds", {}, latest - windows.late))
        for revision in filter(None, (champion, candidate)):
            subject = self._subjects.find(revision)
            if subject is not None:
                about = {"revision": revision, "role": gauges.role(revision, champion, candidate)}
                new = self._store.labelled_since(subject.until)
                found.append(Sample("drivetrain_monitor_staleness_seconds", about, max(0.0, now - subject.until)))
                found.append(Sample("drivetrain_monitor_new_rows", about, new))
        return [Sample(one.name, {"service": self._rules.service, **one.labels}, one.value) for one in found]

    def history(self, since: float = 0.0, revision: str | None = None) -> list[WindowReport]:
        """The closed windows that end after `since`, oldest first, of one revision or of all."""
        return self._store.reports(since, revision)

    def newest(self, revision: str) -> Generator[WindowReport, None, None]:
        """The closed windows of a revision, newest first, each read when it is asked for."""
        return self._store.newest_reports(revision)

    def shares(self, report: WindowReport, feature: str) -> Shares | None:
        """A feature's bins in a closed window beside the reference's, for a picture; None if they are not kept any more, or there is no
        such feature."""
        subject = self._subjects.find(report.revision)
        state = self._store.closed_state(report.revision, report.start)
        if subject is None or state is None or feature not in subject.watched.reference.features:
            return None
        return WindowState.from_bytes(subject, state).shares(feature)

    def close(self) -> None:
        """Lets the state go."""
        self._store.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Memory:
    """What is on disk, in memory; changed within a transaction, and thrown away when that fails."""

    def __init__(self, store: MonitorStore, subjects: Subjects, rules: Rules) -> None:
        facts = store.facts()
        self._store, self._subjects = store, subjects
        self.version = store.version()
        self.latest = facts.get("latest", -math.inf)
        self.closed = store.closed_starts()
        self.halves = Halves(store.halves())
        self.labels = Labels(store, subjects, rules.windows, rules.labels_within)
        self.outcomes: Outcomes = Counter(store.counters())
        self.windows: dict[tuple[str, float], WindowState] = {}
        for revision, start, state in store.windows():
            subject = subjects.find(revision)
            if subject is not None:
                self.windows[revision, start] = WindowState.from_bytes(subject, state)
        self.seen = Seen(_SEEN)
        self._portion = self._current = self._former = self._turns = 0
        for number, identities in store.seen():
            self.seen.first(identities)
            self._remember(number)

    def _remember(self, number: int) -> None:
        """Portions are needed for as long as the generation that they fell into, or the one after it, is the current one."""
        self._portion = number
        if self.seen.forgotten > self._turns:
            self._turns = self.seen.forgotten
            self._former, self._current = self._current, number

    def keep_seen(self, new: np.ndarray) -> None:
        """Writes identities that `seen` has taken up."""
        if len(new):
            self._remember(self._portion + 1)
            self._store.keep_seen(self._portion, new, self._former)

    def _state(self, revision: str, start: float) -> WindowState | None:
        state = self.windows.get((revision, start))
        if state is None:
            subject = self._subjects.find(revision)
            if subject is None:
                return None
            state = self.windows[revision, start] = WindowState(subject)
        return state

    def add(self, counted: Counted) -> dict[tuple[str, float], WindowState]:
        """Adds rows and outcomes to their windows; gives the windows that have changed."""
        touched = {}
        for key, outcomes in counted.of_windows.items():
            state = self._state(*key)
            if state is not None:
                state.add_outcomes(outcomes)
                touched[key] = state
        for key, columns, predictions in counted.rows:
            state = self._state(*key)
            if state is not None:
                state.add_rows(columns, predictions)
                touched[key] = state
        return touched

    def join(self, joining: Joining) -> dict[tuple[str, float], WindowState]:
        """Adds labelled predictions to their windows; gives the windows that have changed."""
        touched = {}
        for key, joined in joining.found.items():
            state = self._state(*key)
            if state is not None:
                state.add_labels(np.concatenate(joined.predictions), np.array(joined.labels), joined.slices)
                touched[key] = state
        self._store.add_labelled(joining.rows.items())
        self.outcomes.update(joining.outcomes)
        return touched

    def write(self) -> None:
        """Writes what is left to be written."""
        self._store.change_halves(self.halves.gone, self.halves.added.items())
        self.halves.written()
        self._store.keep_counters((kind, outcome, n) for (kind, outcome), n in self.outcomes.items())
        if self.latest > -math.inf:
            self._store.keep_fact("latest", self.latest)


def _batches(events: Iterator[tuple[Position, Event]]) -> Iterator[tuple[Position, Sequence[Event]]]:
    """Batches of bounded number and size, each with the position after it."""
    batch: list[Event] = []
    size, position = 0, ""
    for position, event in events:
        batch.append(event)
        size += len(event.body)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield position, batch
            batch, size = [], 0
    if batch:
        yield position, batch
