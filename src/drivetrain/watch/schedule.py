"""Cron expressions in time zones: when something was last due, and which maintenance window is open."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from drivetrain.definition.loop import Maintenance


def last_due(cron: str, timezone: str, now: float) -> float | None:
    """The latest instant at or before `now` that the expression names, in seconds since 1970; None if there is none in fifty years.

    It is read on the clocks of the zone: what is due at 02:30 comes at 03:00 on a day that has no 02:30, and twice on a day that has two.
    """
    # The library looks for what is before an instant; all that a cron expression names are whole minutes.
    start = datetime.fromtimestamp(math.floor(now) + 1, ZoneInfo(timezone))
    try:
        found: datetime = croniter(cron, start).get_prev(datetime)
    except CroniterBadDateError:
        return None
    return found.timestamp()


def open_window(spans: Iterable[Maintenance], now: float) -> float | None:
    """When the maintenance window ends that is open now, the latest if several are; None if none is."""
    begun = [(last_due(span.cron, span.timezone, now), span.length.total_seconds()) for span in spans]
    return max((at + length for at, length in begun if at is not None and now < at + length), default=None)
