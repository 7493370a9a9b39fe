"""Events as they arrive: which of them count, and which request an answer belongs to.

Every event ends in one outcome, and is counted under it once:

    taken               it counts
    repeated            it came before
    late                its window was closed
    future              its time is ahead of the clock
    unanswered, unasked its other half has not come before the window closed
    unknown_revision    of a revision that is not this project's, or cannot be watched
    dropped             there was no room for it to wait for its other half
    unknown             of no kind that is known; a label that no prediction has come to
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event
from drivetrain.engines.event_windows import FUTURE, LATE, Seen, Windows, identities, identity

KINDS: Mapping[str, str] = {REQUEST: "request", RESPONSE: "response", FEEDBACK: "label"}
MOST_HALVES = 20_000
"""Requests and answers that may wait for their other halves."""
MOST_HALVES_BYTES = 64 * 1024**2

# What sets the events of one prediction apart: any numbers that differ in many bits.
_SALT = {REQUEST: 0, RESPONSE: 0x9E3779B97F4A7C15, FEEDBACK: 0xC2B2AE3D27D4EB4F}


@lru_cache(1024)
def _revision_identity(revision: str) -> int:
    return identity("revision", revision)  # so that no id of a prediction is one


@dataclass(frozen=True, slots=True)
class Pair:
    """A request with its answer; `before` is the latest time that was seen before both were there."""

    request: Event
    response: Event
    prediction: int
    """Identity of the prediction: the same for every revision that was asked."""
    start: float
    """Of its window."""
    before: float


@dataclass(frozen=True, slots=True)
class Label:
    """A label that has come."""

    event: Event
    prediction: int
    before: float


@dataclass(slots=True)
class Halves:
    """What waits for its other half, by prediction and revision; what was added and has gone since it was last written."""

    waiting: dict[int, Event] = field(default_factory=dict)
    added: dict[int, Event] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    bytes: int = 0

    def __post_init__(self) -> None:
        self.bytes = sum(len(event.body) for event in self.waiting.values())

    def pop(self, key: int, kind: str) -> Event | None:
        """The event of the other kind that waits under the key."""
        found = self.waiting.get(key)
        if found is None or found.type == kind:
            return None
        self.discard(key)
        return found

    def put(self, key: int, event: Event) -> bool:
        """Whether there was room for it."""
        if len(self.waiting) >= MOST_HALVES or self.bytes + len(event.body) > MOST_HALVES_BYTES or key in self.waiting:
            return False
        self.waiting[key] = self.added[key] = event
        self.bytes += len(event.body)
        return True

    def discard(self, key: int) -> None:
        """It waits no longer."""
        self.bytes -= len(self.waiting.pop(key).body)
        if self.added.pop(key, None) is None:
            self.gone.append(key)

    def written(self) -> None:
        """What was added and has gone is on disk."""
        self.added.clear()
        self.gone.clear()


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a batch of events comes to. `new` are the identities that were not seen before, `latest` is the latest time now."""

    pairs: Sequence[Pair]
    labels: Sequence[Label]
    outcomes: Counter[tuple[str, str]]
    new: np.ndarray
    latest: float


def arrive(
    events: Sequence[Event], windows: Windows, seen: Seen, halves: Halves, closed: set[float], latest: float, now: float
) -> Arrived:
    """Places the events, in the order in which they came, after others up to the time `latest`."""
    outcomes: Counter[tuple[str, str]] = Counter()
    predictions, marks = _identified(events)
    placed = windows.placed(np.array([event.at for event in events], dtype=np.float64), latest, now)
    first = seen.first(marks)
    pairs: list[Pair] = []
    labels: list[Label] = []
    verdicts, before = placed.verdict.tolist(), placed.before.tolist()
    for place, (event, is_first) in enumerate(zip(events, first.tolist(), strict=True)):
        kind = KINDS.get(event.type)
        if kind is None:
            outcomes["other", "unknown"] += 1
        elif not is_first:
            outcomes[kind, "repeated"] += 1
        elif verdicts[place] == FUTURE:
            outcomes[kind, "future"] += 1
        elif kind == "label":
            labels.append(Label(event, predictions[place], before[place]))
        elif verdicts[place] == LATE or windows.start(event.at) in closed:
            outcomes[kind, "late"] += 1
        else:
            _pair(event, kind, predictions[place], before[place], windows, halves, closed, pairs, outcomes)
    return Arrived(pairs, labels, outcomes, marks[first], placed.latest)


def _identified(events: Sequence[Event]) -> tuple[list[int], np.ndarray]:
    """Of each event the identity of its prediction, and its own."""
    predictions: list[int] = []
    marks: list[int] = []
    known: dict[str, int] = {}
    for event in events:
        found = known.get(event.id)
        if found is None:
            found = known[event.id] = identity(event.id)
        predictions.append(found)
        of_revision = 0 if event.type == FEEDBACK else _revision_identity(event.revision)
        marks.append(found ^ of_revision ^ _SALT.get(event.type, 1))
    return predictions, identities(marks)


def _pair(
    event: Event, kind: str, prediction: int, before: float, windows: Windows, halves: Halves, closed: set[float],
    pairs: list[Pair], outcomes: Counter[tuple[str, str]],
) -> None:  # fmt: skip
    key = prediction ^ _revision_identity(event.revision)
    other = halves.pop(key, event.type)
    if other is None:
        if not halves.put(key, event):
            outcomes[kind, "dropped"] += 1
        return
    request, response = (event, other) if kind == "request" else (other, event)
    start = windows.start(request.at)
    if windows.is_closed(start, before) or start in closed:
        outcomes["request", "late"] += 1
        outcomes["response", "late"] += 1
        return
    pairs.append(Pair(request, response, prediction, start, before))


def expire(halves: Halves, is_closed: Callable[[float], bool]) -> Counter[tuple[str, str]]:
    """Lets those go whose window is closed; `is_closed` is asked with the time of each."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for key, event in list(halves.waiting.items()):
        if is_closed(event.at):
            halves.discard(key)
            outcomes[KINDS[event.type], "unanswered" if event.type == REQUEST else "unasked"] += 1
    return outcomes
