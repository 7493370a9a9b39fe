from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.errors import DataError
from drivetrain.tables.times import INSTANT, Faults, check_zone, to_utc

NEW_YORK = "America/New_York"


def read(values: pa.Array, zone: str = "UTC") -> list[datetime | None]:
    faults = Faults("rows")
    found = to_utc(values, "t", zone, faults)
    faults.check()
    assert found.type == INSTANT
    return found.to_pylist()  # type: ignore[no-any-return]


def refused(values: pa.Array, zone: str = "UTC") -> DataError:
    with pytest.raises(DataError) as caught:
        read(values, zone)
    return caught.value


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2013-04-01", at(2013, 4, 1, 4)),
        ("2013-04-01T06:00", at(2013, 4, 1, 10)),
        (" 2013-04-01 06:00:07 ", at(2013, 4, 1, 10, 0, 7)),
        ("2013-04-01T06:00:00Z", at(2013, 4, 1, 6)),
        ("2013-04-01 06:00:00.5+02:00", at(2013, 4, 1, 4, 0, 0, 500_000)),
        ("2013-04-01T06:00:00.123456789-0330", at(2013, 4, 1, 9, 30, 0, 123_456)),
        ("", None),
    ],
)
def test_text_is_read_with_its_own_zone_or_else_with_that_of_the_data(text: str, expected: datetime | None) -> None:
    assert read(pa.array([text, None]), NEW_YORK) == [expected, None]


def test_dates_are_midnight_in_the_zone_of_the_data() -> None:
    assert read(pa.array([date(2013, 1, 1), None]), NEW_YORK) == [at(2013, 1, 1, 5), None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_every_unit_are_read_with_and_without_a_zone(unit: str) -> None:
    moment = datetime(2013, 7, 1, 12)
    assert read(pa.array([moment], pa.timestamp(unit)), NEW_YORK) == [at(2013, 7, 1, 16)]
    assert read(pa.array([moment], pa.timestamp(unit, tz="Asia/Tokyo")), NEW_YORK) == [at(2013, 7, 1, 12)]


@given(st.lists(st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)), min_size=1))
def test_an_instant_written_as_text_is_read_back(moments: list[datetime]) -> None:
    assert read(pa.array([moment.isoformat() for moment in moments])) == moments


@pytest.mark.parametrize("text", ["soon", "2013-13-01", "20130401", "2013", "1312010100", "2013-04-01T25:00"])
def test_text_that_is_no_time_is_refused_with_its_value_and_count(text: str) -> None:
    error = refused(pa.array(["2013-01-01", text, text]))
    assert str(error) == f"rows: column 't': 2 values are no times, such as {text!r}"


def test_times_without_a_zone_are_refused_if_the_definition_says_so() -> None:
    error = refused(pa.array(["2013-01-01T00:00:00Z", "2013-01-01T05:00:00"]), "reject")
    assert str(error) == "rows: column 't': 1 times name no zone, such as '2013-01-01T05:00:00'"
    assert "data.timezone" in error.hint
    assert "name no zone" in str(refused(pa.array([date(2013, 1, 1)]), "reject"))
    assert read(pa.array(["2013-01-01T00:00:00Z"]), "reject") == [at(2013, 1, 1)]


def test_times_that_happen_twice_or_never_are_refused_with_an_example_of_each() -> None:
    texts = ["2013-03-10T02:30:00", "2013-11-03T01:30:00", "2013-11-03T01:45:00", "2013-05-05T01:00:00"]
    error = refused(pa.array(texts), NEW_YORK)
    assert "2 times happen twice in America/New_York, when clocks go back, such as '2013-11-03T01:30:00'" in str(error)
    assert "1 times do not exist in America/New_York, when clocks go forward, such as '2013-03-10T02:30:00'" in str(
        error
    )
    assert error.hint == "write the UTC offset into the data"


def test_numbers_are_no_times() -> None:
    error = refused(pa.array([1_356_998_400]))
    assert "column 't' has type int64, which is no time" in str(error)
    assert "unit='s'" in error.hint


def test_a_zone_that_does_not_exist_is_refused() -> None:
    check_zone("reject", "rows")
    check_zone(NEW_YORK, "rows")
    with pytest.raises(DataError, match="no time zone 'Mars/Olympus'"):
        check_zone("Mars/Olympus", "rows")
