"""Capture logs as sources of events, one or several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.events import REQUEST, Event
from drivetrain.watch.sources import Log, Merged
from tests.watch.monitored import Events


def at(*times: float) -> list[Event]:
    return [Event(REQUEST, f"{time}", "r", "/predictions", "", b"", time) for time in times]


def times(found: Iterator[tuple[str, Event]]) -> list[float]:
    return [event.at for _, event in found]


def test_a_log_that_is_not_there_yet_has_no_events(tmp_path):
    assert list(Log(tmp_path / "none", "none").after(None)) == []
    with pytest.raises(ValueError, match="no position"):
        list(Log(tmp_path, "none").after("elsewhere"))


def test_several_are_read_by_the_times_of_their_events():
    merged = Merged([Events(at(1, 4, 5), "a"), Events(at(2, 3, 9), "b"), Events([], "c")])
    assert merged.name == "a+b+c"
    assert times(merged.after(None)) == [1, 2, 3, 4, 5, 9]


@given(st.lists(st.lists(st.floats(0, 9), max_size=5), min_size=1, max_size=3), st.integers(0, 15))
def test_reading_goes_on_after_any_position(logs, stop):
    merged = Merged([Events(at(*log), str(place)) for place, log in enumerate(logs)])
    everything = list(merged.after(None))
    assert sorted(event.at for _, event in everything) == sorted(time for log in logs for time in log)
    for position, _ in everything[min(stop, len(everything)) - 1 : stop]:
        left = [event.id for _, event in merged.after(position)]
        assert left == [event.id for _, event in everything[stop:]]


def test_what_is_added_later_is_found_in_each():
    a, b = Events(at(1), "a"), Events(at(2), "b")
    merged = Merged([a, b])
    position = [position for position, _ in merged.after(None)][-1]
    a.events, b.events = at(1, 3), at(2, 4)
    assert times(merged.after(position)) == [3, 4]


def test_a_position_in_other_sources_is_none_here():
    with pytest.raises(ValueError, match="no position"):
        list(Merged([Events([], "a")]).after("1|2"))
