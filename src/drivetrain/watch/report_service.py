"""How a revision has answered, from what the gateway captured: the time its answers took, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivetrain.backends.serving.gateway import captured, segments
from drivetrain.backends.serving.gateway.events import RESPONSE
from drivetrain.watch.answers import ANSWERED, FAILED, REFUSED, outcome_of

MOST_BYTES = 256 * 1024**2
"""So much of the log is read, the newest: some seconds' work."""
_PARTS = 40
_LEAST = 30
"""Answers that a part of the time has to have on average."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Answers of one revision between `start` and `end` (seconds since 1970), `took` in seconds; and the same over up to 40 equal parts of
    that time, those without answers left out: `at` are their middles, `failed` and `refused` shares."""

    answers: int
    start: float
    end: float
    took_p50: float
    took_p99: float
    failures: int
    refusals: int
    at: tuple[float, ...]
    p50: tuple[float, ...]
    p99: tuple[float, ...]
    failed: tuple[float, ...]
    refused: tuple[float, ...]


def latency(directory: Path, revision: str) -> Latency | None:
    """How the revision has answered, as far as the newest part of the log in `directory` tells; None if it tells nothing of it."""
    rows = list(_answers(directory, revision))
    if not rows:
        return None
    at, took, outcome = (np.array(column) for column in zip(*rows, strict=True))
    start, end = float(at.min()), float(at.max())
    parts = int(np.clip(len(at) // _LEAST, 1, _PARTS))
    place = np.minimum(((at - start) / max(end - start, 1e-9) * parts).astype(int), parts - 1)
    held = [np.flatnonzero(place == part) for part in range(parts)]
    held = [part for part in held if len(part)]

    def each(p: float) -> tuple[float, ...]:
        return tuple(_quantile(took[part][outcome[part] == ANSWERED], p) for part in held)

    def shares(kind: str) -> tuple[float, ...]:
        return tuple(float((outcome[part] == kind).mean()) for part in held)

    good = took[outcome == ANSWERED]
    return Latency(
        len(at), start, end, _quantile(good, 0.5), _quantile(good, 0.99), int((outcome == FAILED).sum()),
        int((outcome == REFUSED).sum()), tuple(float((at[part].min() + at[part].max()) / 2) for part in held),
        each(0.5), each(0.99), shares(FAILED), shares(REFUSED),
    )  # fmt: skip


def _quantile(took: np.ndarray, p: float) -> float:
    return float(np.quantile(took, p)) if len(took) else float("nan")


def _answers(directory: Path, revision: str) -> Iterator[tuple[float, float, str]]:
    for _, event in captured.read(directory, _since(directory)):
        if event.type == RESPONSE and event.revision == revision:
            yield event.at, event.took, outcome_of(event)


def _since(directory: Path) -> captured.Position | None:
    """The start of the oldest segment that is read."""
    size, first = 0, None
    for number in reversed(segments.numbers(directory)):
        try:
            size += segments.path_of(directory, number).stat().st_size
        except FileNotFoundError:  # removed to make room
            break
        if first is not None and size > MOST_BYTES:
            break
        first = f"{number:012d}:{segments.START:012d}"
    return first
