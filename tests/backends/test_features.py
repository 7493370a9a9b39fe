"""Feast's answer to the need `features`, over both online stores, on small histories in parquet."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.features import FeatureStore, FeatureStoreSettings
from drivetrain.backends.features.asof import History, join_as_of
from drivetrain.backends.features.feast import open_store
from drivetrain.errors import DataError, DefinitionError, StageError, SystemFault, Unavailable
from tests.ports import free_port

pytestmark = [
    # Feast's own remarks on what it does itself.
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning"),
]

PASSWORD = "4711e08"  # Feast would read it as a number
START = pd.Timestamp("2013-01-01", tz="UTC")
REPO = """
from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64, String

origin = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)
weather = FeatureView(
    name="weather", entities=[origin], ttl=timedelta(hours=3), tags={"b": "2", "a": "1"},
    schema=[Field(name="temp", dtype=Float64), Field(name="wind_y", dtype=Float32), Field(name="gusts", dtype=Int64),
            Field(name="fog", dtype=Bool), Field(name="sky", dtype=String)],
    source=FileSource(name="weather_table", path="data/weather.parquet", timestamp_field="known"),
)
planes = FeatureView(
    name="planes", entities=[plane], schema=[Field(name="seats", dtype=Int64), Field(name="maker", dtype=String)],
    source=FileSource(path="data/planes.parquet", timestamp_field="seen", created_timestamp_column="written",
                      field_mapping={"number_of_seats": "seats"}),
)
route = FeatureView(
    name="route", entities=[origin, plane], schema=[Field(name="temp", dtype=Float64)],
    source=FileSource(path="data/route.parquet", timestamp_field="known"),
)
request = RequestSource(name="request", schema=[Field(name="distance", dtype=Float64)])

@on_demand_feature_view(sources=[weather, request], schema=[Field(name="push", dtype=Float64)], mode="pandas")
def pushed(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"push": inputs["temp"] * inputs["distance"]})

everything = FeatureService(name="everything", features=[weather, planes, pushed], tags={"z": "1"})
history = FeatureService(name="history", features=[planes[["seats"]], weather])
clashing = FeatureService(name="clashing", features=[weather[["temp"]], route])
both_ends = FeatureService(name="both_ends", features=[
    weather[["temp"]], weather[["temp"]].with_name("there").with_join_key_map({"origin": "dest"})])
partly = FeatureService(name="partly", features=[route.with_join_key_map({"origin": "dest"})])
"""


def histories(seed: int = 0, hours: int = 60) -> dict[str, pd.DataFrame]:
    """Two tables with gaps, and corrections of planes written later than the first value."""
    random = np.random.default_rng(seed)
    keep = random.random(3 * hours) < 0.6
    size = int(keep.sum())
    times = np.tile(pd.date_range(START, periods=hours, freq="h"), 3)[keep]
    weather = pd.DataFrame({"origin": np.repeat(["EWR", "JFK", "LGA"], hours)[keep], "known": times})
    weather["known"] = weather["known"].dt.tz_localize("UTC") if weather["known"].dt.tz is None else weather["known"]
    weather["temp"] = random.normal(size=size)
    weather["wind_y"] = random.normal(size=size).astype("float32")
    weather["gusts"] = pd.array(np.where(random.random(size) < 0.2, None, random.integers(0, 9, size)), dtype="Int64")
    weather["fog"] = random.random(size) < 0.3
    weather["sky"] = random.choice(["clear", "overcast", None], size)
    planes = pd.DataFrame({"tailnum": [f"N{n}" for n in range(12)], "seen": START + pd.Timedelta(hours=5)})
    planes["written"] = START
    planes["number_of_seats"] = random.integers(50, 300, 12)
    planes["maker"] = random.choice(["Boeing", "Airbus"], 12)
    corrected = planes.assign(
        written=START + pd.Timedelta(days=1), number_of_seats=lambda frame: frame["number_of_seats"] + 1
    )
    return {"weather": weather, "planes": pd.concat([corrected, planes], ignore_index=True), "route": route(random)}


def route(random: np.random.Generator) -> pd.DataFrame:
    pairs = [(o, f"N{n}") for o in ("EWR", "JFK", "LGA") for n in range(12)]
    frame = pd.DataFrame(pairs, columns=["origin", "tailnum"])
    return frame.assign(known=START + pd.Timedelta(hours=2), temp=random.normal(size=len(frame)))


def flights(count: int = 400, seed: int = 1) -> pd.DataFrame:
    """Rows in no order, many with the same airport and minute, some before any history, some of unknown entities."""
    random = np.random.default_rng(seed)
    minutes = random.integers(-3, 70, count) * 60 + random.choice([0, 30], count)
    return pd.DataFrame(
        {
            "flight": np.arange(count),
            "asked": START + pd.to_timedelta(minutes, unit="min"),
            "origin": random.choice(["EWR", "JFK", "LGA", "BOS", None], count),
            "dest": random.choice(["EWR", "JFK", "LGA"], count),
            "tailnum": [f"N{n}" for n in random.integers(0, 15, count)],
            "distance": random.normal(size=count),
        },
        index=random.permutation(count) * 3,
    )


def oracle(rows: pd.DataFrame, table: pd.DataFrame, known: str, key: str, ttl: timedelta | None = None) -> pd.DataFrame:
    """pandas' own point-in-time join, in the order of `rows`."""
    left = rows.reset_index(drop=True).reset_index(names="position").sort_values("asked", kind="stable")
    left["asked"] = left["asked"].astype("datetime64[us, UTC]")
    right = table.sort_values(known, kind="stable").assign(**{known: lambda f: f[known].astype("datetime64[us, UTC]")})
    found = pd.merge_asof(
        left, right, left_on="asked", right_on=known, by=key, tolerance=pd.Timedelta(ttl) if ttl else None
    )
    found.loc[found[key].isna(), [c for c in table.columns if c not in (key, known)]] = None
    return found.sort_values("position").set_index(rows.index)


def make_repo(directory: Path, tables: dict[str, pd.DataFrame], source: str = REPO) -> Path:
    (directory / "data").mkdir(parents=True, exist_ok=True)
    (directory / "definitions.py").write_text(source)
    for name, table in tables.items():
        table.to_parquet(directory / "data" / f"{name}.parquet", coerce_timestamps="us", index=False)
    return directory


def store_settings(home: Path, repo: Path, service: str = "everything", **online: Any) -> FeatureStoreSettings:
    kept = online or {"type": "sqlite", "path": str(home / "online.db")}
    return FeatureStoreSettings("late-flights", repo, service, home / "registry.db", kept)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("feature") / "repo", histories())


def applied(home: Path, repo: Path, service: str = "everything") -> FeatureStore:
    store = open_store(store_settings(home, repo, service))
    store.apply()
    return store


@dataclass
class Redis:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def connection(self) -> str:
        return f"127.0.0.1:{self.port},password={PASSWORD}"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    binary = shutil.which("redis-server")
    if binary is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("redis-server is not installed")
    server = start_redis(str(binary), tmp_path_factory.mktemp("redis"))
    yield server
    server.process.kill()
    server.process.wait()


def start_redis(binary: str, home: Path) -> Redis:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    process = subprocess.Popen([binary, *options, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return Redis(process, port)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "redis-server did not come up"
            assert process.poll() is None, "redis-server ended"
            time.sleep(0.02)


@pytest.fixture(params=["sqlite", "redis"])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of an online store that is empty."""
    if request.param == "sqlite":
        return {"type": "sqlite", "path": str(tmp_path / "online.db")}
    server = request.getfixturevalue("redis")
    talk(server, "FLUSHALL")
    return {"type": "redis", "connection_string": server.connection}


def talk(server: Redis, command: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(f"AUTH {PASSWORD}\r\n{command}\r\n".encode())
        answers = b""
        while answers.count(b"\r\n") < 2:
            answers += line.recv(1024)
        assert answers == b"+OK\r\n+OK\r\n"


def causes(error: BaseException | None) -> list[BaseException]:
    """The error with all that a traceback would show below it."""
    return (
        []
        if error is None
        else [error, *causes(error.__cause__ or (None if error.__suppress_context__ else error.__context__))]
    )


def values(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The columns with null in one form, for comparison."""
    return frame[list(columns)].astype(object).where(frame[list(columns)].notna(), None)


# the join


def test_every_input_row_comes_back_with_nulls_where_there_is_no_history(tmp_path: Path, repo: Path) -> None:
    rows = flights()
    joined = applied(tmp_path, repo).join(rows, "asked")
    pd.testing.assert_frame_equal(joined[rows.columns], rows)
    assert rows.duplicated(["asked", "origin", "tailnum"]).sum() >= 3
    unknown = joined["origin"].isna() | (joined["origin"] == "BOS") | (joined["asked"] < START)
    assert unknown.sum() > 50
    assert joined.loc[unknown, ["temp", "wind_y", "gusts", "fog", "sky", "push"]].isna().all(axis=None)
    assert joined["temp"].notna().sum() > 100


@pytest.mark.parametrize("seed", range(4))
def test_the_join_equals_the_as_of_join_of_pandas(tmp_path: Path, seed: int) -> None:
    tables, rows = histories(seed), flights(seed=seed + 10)
    joined = applied(tmp_path, make_repo(tmp_path / "repo", tables)).join(rows, "asked")
    weather = oracle(rows, tables["weather"], "known", "origin", timedelta(hours=3))
    latest = tables["planes"].sort_values("written").drop_duplicates("tailnum", keep="last")
    planes = oracle(rows, latest, "seen", "tailnum").rename(columns={"number_of_seats": "seats"})
    for expected, names in ((weather, ["temp", "wind_y", "gusts", "fog", "sky"]), (planes, ["seats", "maker"])):
        pd.testing.assert_frame_equal(values(joined, names), values(expected, names), check_dtype=False)
    pd.testing.assert_series_equal(joined["push"], joined["temp"] * joined["distance"], check_names=False)


MINUTES = st.integers(0, 12)
ENTITY = st.sampled_from(["a", "b", None])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(ENTITY, MINUTES), min_size=1, max_size=12),
    history=st.dictionaries(st.tuples(ENTITY, MINUTES), st.one_of(st.none(), st.integers(0, 9)), max_size=12),
    ttl=st.one_of(st.none(), st.integers(1, 6)),
)
def test_any_row_gets_the_newest_value_that_was_known_and_is_not_too_old(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str | None, int]],
    history: dict[tuple[str | None, int], int | None],
    ttl: int | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    entities, minutes = ([key[part] for key in history] for part in (0, 1))
    table = {"who": pa.array(entities, pa.string()), "known": pa.array(minutes, pa.timestamp("s")),
             "value": pa.array(list(history.values()), pa.int64())}  # fmt: skip
    pd.DataFrame({name: column.to_pandas() for name, column in table.items()}).astype({"value": "Int64"}).to_parquet(
        path
    )
    asked = pa.table({"who": pa.array([who for who, _ in rows], pa.string()),
                      "at": pa.array([at for _, at in rows], pa.timestamp("s", tz="UTC"))})  # fmt: skip
    limit = None if ttl is None else ttl * 1_000_000
    [found] = join_as_of(
        asked, "at", [History(str(path), {"who": "who"}, {"v": "value"}, "known", None, limit, "view")]
    )
    expected = []
    for who, at in rows:
        known = [when for entity, when in history if entity == who and who is not None and when <= at]
        fresh = known and (ttl is None or at - max(known) <= ttl)
        expected.append(history[who, max(known)] if fresh else None)
    assert found["v"].to_pylist() == expected


def test_a_value_at_the_rows_own_time_is_known_and_one_a_microsecond_later_is_not(tmp_path: Path, repo: Path) -> None:
    weather = histories()["weather"]
    moment = weather[weather["origin"] == "EWR"].iloc[3]
    asked = [moment["known"], moment["known"] - pd.Timedelta(microseconds=1)]
    rows = pd.DataFrame({"asked": asked, "origin": "EWR", "tailnum": "N1", "distance": 1.0})
    joined = applied(tmp_path, repo).join(rows, "asked")
    assert joined["temp"][0] == moment["temp"]
    assert joined["temp"][1] != moment["temp"]


def test_times_without_a_zone_are_utc_wherever_the_machine_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = histories()
    zoned = applied(tmp_path / "zoned", make_repo(tmp_path / "zoned" / "repo", tables)).join(flights(), "asked")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        tables["weather"]["known"] = tables["weather"]["known"].dt.tz_localize(None)
        store = applied(tmp_path / "bare", make_repo(tmp_path / "bare" / "repo", tables))
        rows = flights().assign(asked=lambda frame: frame["asked"].dt.tz_localize(None))
        bare = store.join(rows, "asked")
    finally:
        monkeypatch.undo()
        time.tzset()
    pd.testing.assert_frame_equal(bare.drop(columns="asked"), zoned.drop(columns="asked"))


def test_column_types_do_not_depend_on_whether_values_are_missing(tmp_path: Path, repo: Path) -> None:
    store = applied(tmp_path, repo)
    rows = flights()
    full = rows[(rows["origin"] == "EWR") & (rows["asked"] > START)]
    kinds = {"temp": "float64", "wind_y": "float32", "gusts": "float64", "fog": "float64", "sky": "object",
             "seats": "float64", "maker": "object", "push": "float64"}  # fmt: skip
    for part in (rows, full, rows[rows["origin"] == "BOS"], rows.head(0)):
        joined = store.join(part, "asked")
        assert {name: str(joined[name].dtype) for name in kinds} == kinds
        assert list(joined.index) == list(part.index)


def test_a_column_that_is_not_of_its_declared_type_is_a_data_error(tmp_path: Path) -> None:
    tables = histories()
    tables["weather"]["gusts"] = 0.5
    store = applied(tmp_path, make_repo(tmp_path / "repo", tables))
    with pytest.raises(DataError, match="gusts is declared as Int64"):
        store.join(flights(), "asked")


def test_two_values_at_one_instant_are_refused_rather_than_chosen_by_chance(tmp_path: Path) -> None:
    tables = histories()
    twice = tables["weather"].iloc[[4]]
    tables["weather"] = pd.concat([tables["weather"], twice.assign(temp=99.0)])
    store = applied(tmp_path, make_repo(tmp_path / "repo", tables))
    with pytest.raises(DataError, match=f"two different values for origin={twice['origin'].iloc[0]}") as caught:
        store.join(flights(), "asked")
    assert "data.tables.NAME.key" in caught.value.hint
    tables["weather"] = pd.concat([histories()["weather"], twice])
    make_repo(tmp_path / "repo", tables)
    assert store.join(flights(), "asked")["temp"].notna().any()


def test_an_airport_can_be_joined_at_both_ends_of_a_route(tmp_path: Path, repo: Path) -> None:
    store, rows = applied(tmp_path, repo, "both_ends"), flights()
    assert [column.name for column in store.columns()] == ["weather__temp", "there__temp"]
    assert list(store.entity_keys()) == ["dest", "origin"]
    joined = store.join(rows, "asked")
    table = histories()["weather"]
    for name, key in (("weather__temp", "origin"), ("there__temp", "dest")):
        expected = oracle(rows, table.rename(columns={"origin": key}), "known", key, timedelta(hours=3))["temp"]
        pd.testing.assert_series_equal(joined[name], expected, check_names=False)


def test_a_join_key_map_of_one_key_leaves_the_other_keys_in_force(tmp_path: Path, repo: Path) -> None:
    rows = flights()
    joined = applied(tmp_path, repo, "partly").join(rows, "asked")
    table = histories()["route"].set_index(["origin", "tailnum"])["temp"].to_dict()
    late = rows["asked"] >= START + pd.Timedelta(hours=2)
    expected = [
        table.get(key) if ok else None
        for key, ok in zip(zip(rows["dest"], rows["tailnum"], strict=True), late, strict=True)
    ]
    np.testing.assert_array_equal(joined["temp"], np.array(expected, dtype="float64"))


def test_views_that_share_a_feature_name_give_columns_with_full_names(tmp_path: Path, repo: Path) -> None:
    store = applied(tmp_path, repo, "clashing")
    assert [(c.name, c.view, c.type) for c in store.columns()] == [
        ("weather__temp", "weather", "Float64"), ("route__temp", "route", "Float64"),
    ]  # fmt: skip
    joined = store.join(flights(), "asked")
    assert list(joined.columns[-2:]) == ["weather__temp", "route__temp"]
    assert not joined["weather__temp"].equals(joined["route__temp"])


@pytest.mark.parametrize("lost", ["origin", "tailnum", "distance", "asked"])
def test_a_missing_join_key_or_request_column_is_a_data_error(tmp_path: Path, repo: Path, lost: str) -> None:
    with pytest.raises(DataError, match=f"{lost}: missing from the rows"):
        applied(tmp_path, repo).join(flights().drop(columns=lost), "asked")


def test_join_keys_of_another_type_are_a_data_error(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(DataError, match="join the features"):
        applied(tmp_path, repo).join(flights().assign(origin=START), "asked")


def test_a_long_history_without_ttl_is_joined_in_bounded_memory(tmp_path: Path) -> None:
    """Feast's own join makes a row for every pair of row and earlier value: 100 million here."""
    many = 20_000
    tables = {**histories(), "route": pd.DataFrame(
        {"origin": "EWR", "tailnum": "N1", "known": START + pd.to_timedelta(np.arange(many), unit="s"), "temp": np.arange(many) * 1.0}
    )}  # fmt: skip
    store = applied(tmp_path, make_repo(tmp_path / "repo", tables), "clashing")
    seconds = np.random.default_rng(0).integers(0, many, 10_000)
    rows = pd.DataFrame({"origin": "EWR", "tailnum": "N1", "asked": START + pd.to_timedelta(seconds, unit="s")})
    before = time.process_time()
    joined = store.join(rows, "asked")
    assert time.process_time() - before < 5
    np.testing.assert_array_equal(joined["route__temp"], seconds)


def test_a_view_without_entities_gives_every_row_the_same_value(tmp_path: Path, online: dict[str, Any]) -> None:
    source = REPO.replace("entities=[origin, plane], ", "")
    tables = histories()
    tables["route"] = tables["route"].iloc[[0]]
    store = open_store(store_settings(tmp_path, make_repo(tmp_path / "repo", tables, source), "partly", **online))
    store.apply()
    rows = flights()
    known = rows["asked"] >= START + pd.Timedelta(hours=2)
    value = tables["route"]["temp"].iloc[0]
    assert list(store.entity_keys()) == []
    np.testing.assert_array_equal(store.join(rows, "asked")["temp"], np.where(known, value, np.nan))
    store.materialize(START.to_pydatetime() + timedelta(days=1))
    assert store.online([{}]) == [{"temp": value}]


# the definitions


def test_columns_are_those_of_the_service_in_its_own_order(tmp_path: Path, repo: Path) -> None:
    store = applied(tmp_path, repo, "history")
    assert [column.name for column in store.columns()] == ["seats", "temp", "wind_y", "gusts", "fog", "sky"]
    assert list(store.entity_keys()) == ["origin", "tailnum"]


def test_equal_definitions_give_equal_bytes_on_any_machine(tmp_path: Path, repo: Path) -> None:
    first = open_store(store_settings(tmp_path / "first", repo)).apply()
    elsewhere = make_repo(tmp_path / "elsewhere" / "another", histories())
    second = open_store(store_settings(tmp_path / "second", elsewhere)).apply()
    text = json.dumps(first)
    assert text == json.dumps(second)
    assert str(tmp_path) not in text
    assert str(repo) not in text
    views = {view["name"]: view for view in first["views"]}
    assert views["weather"]["source"]["path"] == "data/weather.parquet"
    assert views["weather"]["ttl_seconds"] == 10800
    assert list(views["weather"]["tags"]) == ["a", "b"]
    assert [view["name"] for view in first["on_demand_views"]] == ["pushed"]
    assert "distance" in first["on_demand_views"][0]["transformation"]
    assert {feature["name"]: feature["type"] for feature in first["service"]["features"]}["fog"] == "Bool"


def test_definitions_without_a_schema_get_it_from_their_table(tmp_path: Path) -> None:
    source = REPO.replace('schema=[Field(name="seats", dtype=Int64), Field(name="maker", dtype=String)],', "")
    store = applied(
        tmp_path, make_repo(tmp_path / "repo", histories(), source.replace('planes[["seats"]]', "planes")), "history"
    )
    assert {c.name: c.type for c in store.columns() if c.view == "planes"} == {"seats": "Int64", "maker": "String"}


def test_a_service_that_does_not_exist_is_answered_with_the_closest_names(tmp_path: Path, repo: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        open_store(store_settings(tmp_path, repo, "histroy")).apply()
    [problem] = caught.value.problems
    assert (problem.file, problem.key) == ("drivetrain.yaml", "features.service")
    assert "histroy" in problem.message
    assert "history" in problem.hint


@pytest.mark.parametrize(
    ("source", "place"), [("x = 1\ny = missing\n", "definitions.py:2"), ("x = 1\n\ndef broken(:\n", "definitions.py:3")]
)
def test_a_repository_that_cannot_be_imported_names_file_and_line(tmp_path: Path, source: str, place: str) -> None:
    with pytest.raises(StageError) as caught:
        open_store(store_settings(tmp_path, make_repo(tmp_path / "repo", {}, source))).apply()
    assert caught.value.where == f"repo/{place}"
    assert "Error" in caught.value.message


def test_definitions_that_feast_refuses_are_a_stage_error(tmp_path: Path) -> None:
    twice = REPO + '\nagain = FeatureView(name="weather", entities=[plane], source=planes.batch_source)\n'
    with pytest.raises(StageError, match="could not register the definitions"):
        open_store(store_settings(tmp_path, make_repo(tmp_path / "repo", histories(), twice))).apply()


def test_a_view_whose_table_is_not_in_the_snapshot_is_a_data_error(tmp_path: Path) -> None:
    tables = histories()
    del tables["weather"]
    with pytest.raises(DataError, match=r"data/weather\.parquet does not exist") as caught:
        open_store(store_settings(tmp_path, make_repo(tmp_path / "repo", tables))).apply()
    assert "data.tables" in caught.value.hint


def test_a_repository_of_several_modules_leaves_nothing_behind(tmp_path: Path) -> None:
    for name, factor in (("one", 2.0), ("two", 3.0)):
        source = REPO.replace('* inputs["distance"]', "* factor()")
        source = source.replace("    return pd", "    from helpers import factor\n    return pd")
        repo = make_repo(tmp_path / name / "repo", histories(), "import helpers\n" + source)
        (repo / "helpers.py").write_text(f"def factor():\n    return {factor}\n")
        here = Path.cwd()
        joined = applied(tmp_path / name, repo).join(flights(), "asked")
        assert Path.cwd() == here
        assert "helpers" not in sys.modules
        assert str(repo) not in sys.path
        pd.testing.assert_series_equal(joined["push"], joined["temp"] * factor, check_names=False)


def test_what_is_no_longer_defined_is_no_longer_registered(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", histories())
    applied(tmp_path, repo, "history")
    (repo / "definitions.py").write_text(REPO.replace('name="everything"', 'name="renamed"'))
    applied(tmp_path, repo, "history")
    with pytest.raises(DefinitionError):
        open_store(store_settings(tmp_path, repo, "everything")).columns()


def test_a_registry_that_was_cut_short_is_replaced(tmp_path: Path, repo: Path) -> None:
    store = applied(tmp_path, repo)
    (tmp_path / "registry.db").write_bytes((tmp_path / "registry.db").read_bytes()[:100])
    store.apply()
    assert len(store.columns()) == 8


# the online store


def entity(origin: str, tailnum: str = "N1", distance: float = 2.0) -> dict[str, Any]:
    return {"origin": origin, "tailnum": tailnum, "distance": distance}


def newest(weather: pd.DataFrame, origin: str, end: pd.Timestamp) -> pd.Series:
    return weather[(weather["origin"] == origin) & (weather["known"] <= end)].sort_values("known").iloc[-1]


def test_materialised_values_are_the_newest_as_of_the_end(tmp_path: Path, repo: Path, online: dict[str, Any]) -> None:
    store = open_store(store_settings(tmp_path, repo, **online))
    store.apply()
    weather = histories()["weather"]
    for hours in (20, 59):
        end = START + pd.Timedelta(hours=hours)
        assert store.materialize(end.to_pydatetime()) == 2
        for origin, found in zip(("EWR", "JFK"), store.online([entity("EWR"), entity("JFK")]), strict=True):
            expected = newest(weather, origin, end)
            assert list(found) == [column.name for column in store.columns()]
            assert found["temp"] == expected["temp"]
            assert found["push"] == expected["temp"] * 2.0
            assert np.float32(found["wind_y"]) == expected["wind_y"]
            assert found["gusts"] == (None if pd.isna(expected["gusts"]) else expected["gusts"])
            assert found["sky"] == expected["sky"]


def test_entities_without_history_have_no_values_online(tmp_path: Path, repo: Path, online: dict[str, Any]) -> None:
    store = open_store(store_settings(tmp_path, repo, "history", **online))
    store.apply()
    store.materialize(START.to_pydatetime() + timedelta(days=3))
    [found] = store.online([{"origin": "BOS", "tailnum": "unheard of"}])
    assert set(found.values()) == {None}
    assert store.online([]) == []
    with pytest.raises(DataError, match="tailnum: missing from an entity"):
        store.online([{"origin": "EWR"}])


def test_materialising_twice_changes_nothing_and_prints_nothing(
    tmp_path: Path, repo: Path, online: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(store_settings(tmp_path, repo, **online))
    store.apply()
    end = START.to_pydatetime() + timedelta(days=2)
    store.materialize(end)
    first = store.online([entity("EWR"), entity("LGA", "N7")])
    assert store.materialize(end) == 2
    assert store.online([entity("EWR"), entity("LGA", "N7")]) == first
    assert capfd.readouterr().out == ""


def test_an_older_window_does_not_take_newer_values_back(tmp_path: Path, repo: Path, online: dict[str, Any]) -> None:
    settings_ = store_settings(tmp_path, repo, **online)
    store = open_store(settings_)
    store.apply()
    late = START.to_pydatetime() + timedelta(days=2)
    store.materialize(late)
    newer = store.online([entity("EWR")])
    again = open_store(settings_)
    again.apply()
    assert again.materialize(late - timedelta(days=1)) == 0
    assert again.online([entity("EWR")]) == newer
    assert again.materialize(late) == 2


def test_a_corrected_value_of_the_same_instant_arrives(tmp_path: Path, online: dict[str, Any]) -> None:
    tables = histories()
    repo = make_repo(tmp_path / "repo", tables)
    store = open_store(store_settings(tmp_path, repo, **online))
    store.apply()
    end = START + pd.Timedelta(days=2)
    store.materialize(end.to_pydatetime())
    tables["weather"]["temp"] += 100.0
    make_repo(repo, tables)
    store.apply()
    store.materialize(end.to_pydatetime())
    assert store.online([entity("JFK")])[0]["temp"] == newest(tables["weather"], "JFK", end)["temp"]


def test_a_feature_added_later_is_written_even_for_an_older_window(tmp_path: Path, online: dict[str, Any]) -> None:
    tables = histories()
    fewer = REPO.replace(', Field(name="sky", dtype=String)', "")
    assert fewer != REPO
    repo = make_repo(tmp_path / "repo", tables, fewer)
    settings_ = store_settings(tmp_path, repo, "history", **online)
    store = open_store(settings_)
    store.apply()
    store.materialize((START + pd.Timedelta(days=2)).to_pydatetime())
    (repo / "definitions.py").write_text(REPO)
    store = open_store(settings_)
    store.apply()
    end = START + pd.Timedelta(days=1)
    assert store.materialize(end.to_pydatetime()) == 1
    for origin in ("EWR", "JFK", "LGA"):
        [found] = store.online([entity(origin)])
        assert found["sky"] == newest(tables["weather"], origin, end)["sky"]


def test_redis_that_does_not_answer_is_unavailable_and_the_password_is_not_told(
    tmp_path: Path, repo: Path, redis: Redis
) -> None:
    server = start_redis(redis.process.args[0], tmp_path)  # type: ignore[index]
    try:
        store = open_store(store_settings(tmp_path, repo, type="redis", connection_string=server.connection))
        store.apply()
        store.materialize((START + pd.Timedelta(days=1)).to_pydatetime())
    finally:
        server.process.kill()
        server.process.wait()
    for attempt in (
        lambda: store.materialize((START + pd.Timedelta(days=2)).to_pydatetime()),
        lambda: store.online([entity("EWR")]),
    ):
        with pytest.raises(Unavailable, match="Redis does not answer") as caught:
            attempt()
        assert PASSWORD not in str(caught.value) + caught.value.hint
        assert PASSWORD not in "".join(map(str, causes(caught.value)))


def test_a_wrong_password_is_a_fault_that_no_retry_mends(tmp_path: Path, repo: Path, redis: Redis) -> None:
    wrong = f"127.0.0.1:{redis.port},password=not-the-one"
    store = open_store(store_settings(tmp_path, repo, type="redis", connection_string=wrong))
    store.apply()
    with pytest.raises(SystemFault, match="Redis refused") as caught:
        store.materialize(START.to_pydatetime())
    assert not isinstance(caught.value, Unavailable)
    assert "not-the-one" not in "".join(map(str, causes(caught.value)))


@pytest.mark.parametrize("connection", ["localhost", f"password={PASSWORD}", f"host:port,password={PASSWORD}"])
def test_a_connection_without_host_and_port_is_refused_without_repeating_it(
    tmp_path: Path, repo: Path, connection: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        open_store(store_settings(tmp_path, repo, type="redis", connection_string=connection))
    assert "host:port" in caught.value.problems[0].message
    assert PASSWORD not in str(caught.value.problems[0])


def test_the_password_is_written_to_no_file(tmp_path: Path, repo: Path, redis: Redis) -> None:
    store = open_store(store_settings(tmp_path, repo, type="redis", connection_string=redis.connection))
    described = store.apply()
    store.materialize(datetime(2013, 1, 2, tzinfo=UTC))
    assert PASSWORD not in json.dumps(described)
    for path in (p for home in (tmp_path, repo) for p in home.rglob("*") if p.is_file()):
        assert PASSWORD.encode() not in path.read_bytes()


def test_settings_of_another_project_see_nothing_of_the_first(
    tmp_path: Path, repo: Path, online: dict[str, Any]
) -> None:
    first = store_settings(tmp_path / "first", repo, "history", **online)
    store = open_store(first)
    store.apply()
    store.materialize(START.to_pydatetime() + timedelta(days=2))
    other = open_store(replace(first, project="another", registry=tmp_path / "other" / "registry.db"))
    other.apply()
    [found] = other.online([entity("EWR")])
    assert set(found.values()) == {None}
