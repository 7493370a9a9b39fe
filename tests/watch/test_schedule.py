"""Schedules: what was due when, on the clocks of a zone."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from drivetrain.definition.loop import Maintenance
from drivetrain.watch.schedule import last_due, open_window

NEW_YORK = "America/New_York"


def _at(text: str, zone: str = NEW_YORK) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_something_is_due_from_its_very_second_on() -> None:
    due = _at("2013-08-01 04:00")
    assert last_due("0 4 1 * *", NEW_YORK, due) == due
    assert last_due("0 4 1 * *", NEW_YORK, due + 0.5) == due
    assert last_due("0 4 1 * *", NEW_YORK, due - 0.5) == _at("2013-07-01 04:00")


def test_a_schedule_keeps_to_the_clocks_of_its_zone_when_they_are_changed() -> None:
    assert last_due("0 4 * * *", NEW_YORK, _at("2013-03-11 12:00")) == _at("2013-03-11 08:00", "UTC")
    assert last_due("0 4 * * *", NEW_YORK, _at("2013-03-09 12:00")) == _at("2013-03-09 09:00", "UTC")


def test_on_a_day_without_that_time_it_is_due_when_the_clocks_go_on() -> None:
    assert last_due("30 2 * * *", NEW_YORK, _at("2013-03-10 12:00")) == _at("2013-03-10 03:00")


def test_a_date_that_never_comes_is_never_due() -> None:
    assert last_due("0 0 30 2 *", "UTC", _at("2013-03-10 12:00")) is None


@given(st.floats(1e9, 2e9), st.sampled_from(["0 4 * * *", "*/15 * * * *", "30 6 * * 1", "0 0 1 * *"]))
def test_what_was_due_last_is_not_ahead_and_stays_so_until_something_else_is_due(now: float, cron: str) -> None:
    due = last_due(cron, "Europe/Berlin", now)
    assert due is not None
    assert due <= now
    assert last_due(cron, "Europe/Berlin", due) == due


def test_a_maintenance_window_is_open_from_its_beginning_to_its_end() -> None:
    nightly = Maintenance.model_validate({"cron": "0 22 * * *", "timezone": NEW_YORK, "length": "4h"})
    noon = Maintenance.model_validate({"cron": "0 12 * * *", "timezone": NEW_YORK, "length": "1h"})
    begin = _at("2013-08-01 22:00")
    assert open_window([nightly, noon], begin) == begin + 4 * 3600
    assert open_window([nightly, noon], begin + 4 * 3600 - 1) == begin + 4 * 3600
    assert open_window([nightly, noon], begin + 4 * 3600) is None
    assert open_window([nightly, noon], begin - 1) is None
    assert open_window([], begin) is None
