"""What is left of the error budgets of `serving.slo`, counted from the gateway's counters at each look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from drivetrain.engines.expressions import Select, rise
from drivetrain.engines.series import SeriesStore
from drivetrain.engines.slo import Budget
from drivetrain.watch.conditions import Objective


class Budgets:
    """The budget of each objective over `engines.slo.PERIOD`. Counts from the first look on; a counter that is new counts from its second
    value on, as in Prometheus."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self._of = {objective.name: Budget(objective.allowed) for objective in objectives}
        self._looked: int | None = None

    def look(self, series: SeriesStore, now: float) -> None:
        """Counts what was asked since the last look, however long ago; the gateway has just told its counters."""
        at = round(now * 1000)
        if self._looked is not None and self._looked < at:
            span = (at - self._looked) / 1000
            for objective in self._objectives:
                total, some = (_risen(series, select, now, span) for select in (objective.every, objective.some))
                bad = some if objective.some_are_bad else total - some
                # Two metrics of one scrape may be a request apart.
                self._of[objective.name].count(now, total, min(max(bad, 0.0), total))
        self._looked = at

    def left(self, now: float) -> dict[str, float]:
        """By objective the share of its budget that is left: 1 untouched, negative overdrawn. Without those of which nothing is known."""
        found = {name: budget.left(now) for name, budget in self._of.items()}
        return {name: left for name, left in found.items() if left is not None}

    def reads(self) -> Iterable[str]:
        """The metrics that are counted."""
        return (select.metric for objective in self._objectives for select in (objective.every, objective.some))

    def to_json(self) -> str:
        """All of it, for `restore`."""
        return json.dumps({"looked": self._looked, "hours": {name: b.to_json() for name, b in self._of.items()}})

    def restore(self, text: str) -> None:
        """Takes up what another process has counted. Raises `ValueError` if that cannot be read."""
        try:
            found = json.loads(text)
            for name, hours in found["hours"].items():
                if name in self._of:
                    self._of[name].restore(hours)
            self._looked = None if found["looked"] is None else int(found["looked"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no budgets can be read from this") from error


def _risen(series: SeriesStore, select: Select, now: float, span: float) -> float:
    found = series.within(select.metric, select.matchers, now, span)
    return sum(rise(values) for _, _, values in found if len(values) > 1)
