from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.tables.partitions import Size, after, begin, from_micros, name, pieces, to_micros

SIZES = st.sampled_from(["day", "week", "month", "year"])
INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@given(INSTANTS, SIZES)
def test_a_partition_holds_its_instant_and_ends_where_the_next_begins(instant: datetime, size: Size) -> None:
    first, stop = begin(instant, size), after(instant, size)
    assert first <= instant < stop
    assert begin(stop, size) == stop
    assert name(first, size) == name(instant, size) == name(stop - timedelta(microseconds=1), size)
    assert name(stop, size) > name(first, size)


@given(INSTANTS, st.timedeltas(timedelta(0), timedelta(days=900)), SIZES)
def test_pieces_cover_the_window_without_gap_or_overlap(start: datetime, length: timedelta, size: Size) -> None:
    cut = pieces(start, start + length, size)
    assert [piece.start for piece in cut[1:]] == [piece.end for piece in cut[:-1]]
    assert len({piece.name for piece in cut}) == len(cut)
    if length:
        assert (cut[0].start, cut[-1].end) == (start, start + length)
    else:
        assert cut == []


@pytest.mark.parametrize(
    ("size", "expected"), [("day", "2013-02-01"), ("week", "2013-W05"), ("month", "2013-02"), ("year", "2013")]
)
def test_partitions_are_named_for_their_time_in_utc(size: Size, expected: str) -> None:
    tokyo = timezone(timedelta(hours=9))
    assert name(datetime(2013, 2, 2, 3, tzinfo=tokyo), size) == expected


def test_a_week_around_the_new_year_belongs_to_its_iso_year() -> None:
    assert name(datetime(2012, 12, 31, tzinfo=UTC), "week") == "2013-W01"


@given(INSTANTS)
def test_microseconds_lead_back_to_the_instant(instant: datetime) -> None:
    assert from_micros(to_micros(instant)) == instant
