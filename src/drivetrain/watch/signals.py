"""What the rules read, as series: what the monitor measures, what the gateway tells, and which schedules are due."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from drivetrain.backends.metrics.scrape import scrape
from drivetrain.definition.definition import Definition
from drivetrain.engines.rules import Rule, spans
from drivetrain.engines.series import SeriesStore
from drivetrain.errors import SystemFault, Unavailable
from drivetrain.watch.budgets import Budgets
from drivetrain.watch.conditions import objectives
from drivetrain.watch.samples import Sample
from drivetrain.watch.schedule import last_due

_WITHIN = 5.0
DUE = "drivetrain_monitor_schedule_due"


class Signals:
    """The series of one service, for its rules, and its error budgets. They are kept in the files `series` and `budgets` of the directory
    `kept` from one process to the next, since a rate over days needs days."""

    def __init__(self, definition: Definition, rules: Sequence[Rule], root: Path, kept: Path) -> None:
        self._definition = definition
        self.budgets = Budgets(objectives(definition.serving.slo, definition.name))
        self._spans = dict.fromkeys(self.budgets.reads(), 0.0) | spans(rules)
        self._certificate = str(root / definition.serving.tls.certificate) if definition.serving.tls else None
        self._series_kept, self._budgets_kept = kept / "series", kept / "budgets"
        self.series = SeriesStore(self._spans)

    def recall(self) -> str | None:
        """Takes up what another process has kept. What of it cannot be read begins anew: what that was, in words."""
        lost = []
        try:
            self.series = SeriesStore.from_bytes(self._series_kept.read_bytes(), self._spans)
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            lost.append(f"the series in {self._series_kept}")
        try:
            self.budgets.restore(self._budgets_kept.read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            lost.append(f"the error budgets in {self._budgets_kept}")
        return " and ".join(lost) or None

    def keep(self) -> None:
        """Keeps everything for another process, which may find all of it or what was kept before, each file as a whole. Raises
        `SystemFault` if it cannot be written."""
        # In this order: the budgets are counted on from the series' samples since they were kept.
        _replace(self._series_kept, self.series.to_bytes())
        _replace(self._budgets_kept, self.budgets.to_json().encode())

    def look(self, url: str | None, measured: Sequence[Sample], now: float) -> None:
        """Takes the monitor's samples and what the gateway at `url` tells; None where there is none, which ends its series."""
        self.series.scraped("loop", [(one.name, one.labels, one.value) for one in measured], now)
        try:
            told = [] if url is None else scrape(
                f"{url}/metrics", _WITHIN, labels={"service": self._definition.name}, certificate=self._certificate
            )  # fmt: skip
        except Unavailable:
            told = []
        self.series.scraped("gateway", told, now)
        if told:
            self.budgets.look(self.series, now)


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise SystemFault(f"{path} cannot be written: {error.strerror}", hint="free some space") from error


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
