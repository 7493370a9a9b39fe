"""What the rules read, as series: what the monitor measures, what the gateway tells, and which schedules are due."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from drivetrain.backends.metrics.scrape import Reading, scrape
from drivetrain.definition.definition import Definition
from drivetrain.engines.rules import Rule, spans
from drivetrain.engines.series import LOOKBACK, SeriesStore
from drivetrain.errors import Unavailable
from drivetrain.watch.samples import Sample
from drivetrain.watch.schedule import last_due

_WITHIN = 5.0
_MOST = 500
DUE = "drivetrain_monitor_schedule_due"


class Signals:
    """The series of one service, for its rules. The gateway's latest answers are kept in the file `kept` from one process to the next,
    since a rate needs two of them."""

    def __init__(self, definition: Definition, rules: Sequence[Rule], root: Path, kept: Path) -> None:
        self._definition = definition
        self._spans = spans(rules)
        self._certificate = str(root / definition.serving.tls.certificate) if definition.serving.tls else None
        self._kept = kept
        windows = [trigger.window.total_seconds() for trigger in definition.triggers]
        self._remembered = max([LOOKBACK, *windows])
        self._scrapes: deque[tuple[float, list[Reading]]] = deque(maxlen=_MOST)
        self.series = SeriesStore(self._spans)

    def recall(self, now: float) -> None:
        """Takes up what another process has kept, as far as it still counts."""
        try:
            found = json.loads(self._kept.read_text())
            scrapes = [(float(at), [Reading(*entry) for entry in readings]) for at, readings in found]
        except (OSError, ValueError, TypeError):
            return
        for at, readings in scrapes:
            if now - self._remembered <= at < now:
                self._gateway(readings, at)

    def keep(self) -> None:
        """Keeps the gateway's latest answers for another process."""
        scratch = self._kept.with_name(f".{self._kept.name}.{os.getpid()}")
        scratch.write_text(json.dumps(list(self._scrapes)))
        scratch.replace(self._kept)

    def look(self, url: str | None, measured: Sequence[Sample], now: float) -> None:
        """Takes the monitor's samples and what the gateway at `url` tells; None where there is none, which ends its series."""
        self.series.scraped("loop", [(one.name, one.labels, one.value) for one in measured], now)
        try:
            told = [] if url is None else scrape(
                f"{url}/metrics", _WITHIN, labels={"service": self._definition.name}, certificate=self._certificate
            )  # fmt: skip
        except Unavailable:
            told = []
        self._gateway([reading for reading in told if reading.name in self._spans], now)

    def _gateway(self, readings: list[Reading], at: float) -> None:
        self.series.scraped("gateway", readings, at)
        self._scrapes.append((at, readings))
        while self._scrapes[0][0] < at - self._remembered:
            self._scrapes.popleft()


def due(definition: Definition, handled: Mapping[str, float], now: float) -> list[Sample]:
    """Which schedules are due: 1 if an instant has come since the trigger was `handled` last (seconds since 1970), else 0."""
    found = []
    for trigger in definition.triggers:
        if trigger.cron is not None:
            at = last_due(trigger.cron, trigger.timezone, now)
            is_due = at is not None and at > handled[trigger.name]
            labels = {"service": definition.name, "trigger": trigger.name}
            found.append(Sample(DUE, labels, float(is_due)))
    return found
