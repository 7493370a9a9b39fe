"""Where events come from: capture logs, read from a position on. The gateway writes one, and the loop's door another in the same form
for what KServe's logger posts to it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.events import Event

Position = str
"""Where a reader stands: after an event. Opaque; of one source it means nothing to another."""


class Source(Protocol):
    """Events in the order in which they were kept. `name` stays the same for as long as its positions are to hold."""

    @property
    def name(self) -> str: ...

    def after(self, position: Position | None) -> Iterator[tuple[Position, Event]]:
        """The events after a position (all of them without one), each with the position after it, up to the newest."""
        ...

    def newest(self) -> Position | None:
        """A position shortly before the newest event, for who is interested in what comes; None where there is none yet."""
        ...


class Log:
    """A capture log in a directory, which need not exist yet."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def after(self, position: Position | None) -> Iterator[tuple[Position, Event]]:
        """See `Source`. Raises `ValueError` for what is no position."""
        return captured.read(self._directory, position)

    def newest(self) -> Position | None:
        """See `Source`."""
        return captured.newest(self._directory)


class Merged:
    """Several sources as one, by the events' own times where each source is in order: so that none has to wait for another, and what
    one brings is not late because another was read first."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)

    @property
    def name(self) -> str:
        return "+".join(source.name for source in self._sources)

    def after(self, position: Position | None) -> Iterator[tuple[Position, Event]]:
        """See `Source`. Raises `ValueError` for what is no position."""
        parts: list[str | None] = [None] * len(self._sources)
        if position:
            parts = [part or None for part in position.split("|")]
        if len(parts) != len(self._sources):
            raise ValueError(f"{position!r} is no position in {self.name}")
        streams = [_numbered(place, source.after(parts[place])) for place, source in enumerate(self._sources)]
        for _, place, after, event in heapq.merge(*streams, key=lambda found: found[0]):
            parts[place] = after
            yield "|".join(part or "" for part in parts), event

    def newest(self) -> Position | None:
        """See `Source`."""
        return "|".join(source.newest() or "" for source in self._sources)


def _numbered(place: int, events: Iterator[tuple[Position, Event]]) -> Iterator[tuple[float, int, Position, Event]]:
    for position, event in events:
        yield event.at, place, position, event
