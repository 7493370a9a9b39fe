"""The online look-up gives what Feast gives: the same entities through both, on SQLite and on a real redis-server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.features import LOOKUP_PLAN, FeatureStoreSettings
from drivetrain.backends.features.feast import Feast
from drivetrain.backends.features.online import Lookup, open_lookup
from drivetrain.backends.features.online_demand import as_type
from drivetrain.backends.features.online_keys import Source, redis_field
from drivetrain.backends.features.online_plan import Key
from drivetrain.backends.features.online_values import decode
from drivetrain.errors import DataError, DefinitionError
from tests.backends.redis_server import Server

pytestmark = [
    # Feast's own remarks on what it does itself.
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning"),
]

ROOT = Path(__file__).parents[2]
END = datetime(2024, 5, 2, tzinfo=UTC)
REPO = """
from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

FACTOR = 10.0

def source(name):
    return FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="at")

shop = Entity(name="shop_entity", join_keys=["shop"], value_type=ValueType.STRING)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
slot = Entity(name="slot", join_keys=["slot"], value_type=ValueType.INT32)

scalars = FeatureView(
    name="scalars", entities=[shop], ttl=timedelta(hours=1), source=source("scalars"),
    schema=[Field(name="a_text", dtype=String), Field(name="a_double", dtype=Float64), Field(name="a_float", dtype=Float32),
            Field(name="an_int", dtype=Int64), Field(name="a_small", dtype=Int32), Field(name="a_bool", dtype=Bool),
            Field(name="a_time", dtype=UnixTimestamp), Field(name="a_blob", dtype=Bytes)])
lists = FeatureView(
    name="lists", entities=[shop], source=source("lists"),
    schema=[Field(name="texts", dtype=Array(String)), Field(name="doubles", dtype=Array(Float64)),
            Field(name="floats", dtype=Array(Float32)), Field(name="ints", dtype=Array(Int64)),
            Field(name="bools", dtype=Array(Bool)), Field(name="times", dtype=Array(UnixTimestamp))])
visits = FeatureView(
    name="visits", entities=[shop, user], source=source("visits"), schema=[Field(name="visits", dtype=Int64)])
planned = FeatureView(
    name="planned", entities=[slot, user], source=source("planned"),
    schema=[Field(name="load", dtype=Float64), Field(name="crew", dtype=String)])
everybody = FeatureView(name="everybody", source=source("everybody"), schema=[Field(name="season", dtype=String)])

basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64), Field(name="coupon", dtype=String)])

@on_demand_feature_view(
    sources=[scalars[["a_double", "a_text"]], basket], mode="pandas",
    schema=[Field(name="worth", dtype=Float64), Field(name="worth32", dtype=Float32), Field(name="label", dtype=String),
            Field(name="rounded", dtype=Int64), Field(name="big", dtype=Bool)])
def in_pandas(inputs: pd.DataFrame) -> pd.DataFrame:
    worth = inputs["a_double"] * inputs["amount"]
    label = inputs["coupon"].fillna("-") + "/" + inputs["scalars__a_text"].fillna("?")
    return pd.DataFrame({"worth": worth, "worth32": (worth / 3).astype("float32"), "label": label,
                         "rounded": worth.fillna(0.0).round().astype("int64"), "big": worth > 1.0})

@on_demand_feature_view(
    sources=[visits, basket], mode="python",
    schema=[Field(name="per_visit", dtype=Float64), Field(name="often", dtype=Bool), Field(name="steps", dtype=Array(Int64))])
def in_python(inputs: dict) -> dict:
    known = [value or 0 for value in inputs["visits"]]
    return {"per_visit": [a / v if v else None for a, v in zip(inputs["amount"], known)], "often": [v > 3 for v in known],
            "steps": [list(range(min(v, 4) + 1)) for v in known]}

@on_demand_feature_view(sources=[basket], mode="python", singleton=True, schema=[Field(name="doubled", dtype=Float64)])
def alone(inputs: dict) -> dict:
    return {"doubled": inputs["amount"] * 2}

@on_demand_feature_view(sources=[basket], mode="python", schema=[Field(name="scaled", dtype=Float64)])
def failing(inputs: dict) -> dict:
    return {"scaled": [1 / (amount - 13.0) for amount in inputs["amount"]]}

everything = FeatureService(name="everything", features=[scalars, lists, visits, planned, everybody])
computed = FeatureService(name="computed", features=[visits, in_pandas, in_python, everybody])
single = FeatureService(name="single", features=[scalars[["a_double"]], alone])
only_computed = FeatureService(name="only_computed", features=[in_python[["often", "per_visit"]]])
renamed = FeatureService(name="renamed", features=[
    scalars[["a_double", "a_text"]], scalars[["a_double"]].with_name("there").with_join_key_map({"shop": "other_shop"}),
    planned.with_name("plans"), in_pandas.with_name("demand")[["worth", "label"]]])
one_alias = FeatureService(name="one_alias", features=[visits.with_name("seen"), scalars[["an_int"]]])
broken = FeatureService(name="broken", features=[scalars[["a_double"]], failing])
"""
SHOPS, USERS, SLOTS = ["berlin", "köln", "", "x" * 300], [1, -7, 2**53 + 1], [0, -3, 2**31 - 1]
SERVICES = {
    "everything": ("shop", "user_id", "slot"),
    "computed": ("shop", "user_id", "amount", "coupon"),
    "single": ("shop", "amount", "coupon"),
    "only_computed": ("shop", "user_id", "amount", "coupon"),
    "renamed": ("shop", "other_shop", "user_id", "slot", "amount", "coupon"),
    "one_alias": ("shop", "user_id"),
}
"""Service -> what its entities name."""


def tables() -> dict[str, pa.Table]:
    """Histories with nulls, extremes and empty lists, each a day old."""
    at = [END - timedelta(days=1)]
    return {
        "scalars": pa.table({
            "shop": SHOPS, "at": at * 4,
            "a_text": ["é\x00'\"", "", None, "y" * 1000], "a_double": [1.5, -0.0, None, 1e30],
            "a_float": pa.array([0.1, None, 3.0, -1e30], pa.float32()), "an_int": [2**62, None, -1, 0],
            "a_small": pa.array([-(2**31), 7, None, 128], pa.int32()), "a_bool": [True, False, None, True],
            "a_time": pa.array([END, None, datetime(1969, 1, 1, tzinfo=UTC), END], pa.timestamp("us", "UTC")),
            "a_blob": pa.array([b"\x00\xff", b"", None, b"z" * 200], pa.binary()),
        }),
        "lists": pa.table({
            "shop": SHOPS, "at": at * 4,
            "texts": [["a", ""], [], None, ["ü"]], "doubles": [[0.5, -1.0], [], None, [1e9]],
            "floats": pa.array([[0.1], [], None, [2.0, 3.0]], pa.list_(pa.float32())), "ints": [[-1, 2**60], [], None, [0]],
            "bools": [[True, False], [], None, [False]],
            "times": pa.array([[END, END], [], None, [END]], pa.list_(pa.timestamp("us", "UTC"))),
        }),
        "visits": pa.table({"shop": SHOPS[:3], "user_id": USERS, "at": at * 3, "visits": [5, None, 1]}),
        "planned": pa.table({
            "slot": pa.array(SLOTS, pa.int32()), "user_id": USERS, "at": at * 3, "load": [0.25, None, 9.0],
            "crew": ["A", "B", None],
        }),
        "everybody": pa.table({"at": at, "season": ["spring"]}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("online") / "repo"
    (home / "data").mkdir(parents=True)
    (home / "definitions.py").write_text(REPO)
    for name, table in tables().items():
        pq.write_table(table, home / "data" / f"{name}.parquet")
    return home


@pytest.fixture(params=["sqlite", "redis"])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of an online store that is empty."""
    if request.param == "sqlite":
        return {"type": "sqlite", "path": str(tmp_path / "online.db")}
    server: Server = request.getfixturevalue("redis")
    server.command(b"FLUSHALL")
    return {"type": "redis", "connection_string": server.connection}


def made(home: Path, repo: Path, service: str, online: Mapping[str, Any]) -> Feast:
    """The service with its features written."""
    store = Feast(FeatureStoreSettings("online-shop", repo, service, home / "registry.db", online))
    store.apply()
    store.materialize(END)
    return store


def plan_of(home: Path) -> Path:
    return home / LOOKUP_PLAN.name


def lookup(home: Path, online: Mapping[str, Any]) -> Lookup:
    return open_lookup({"plan": str(plan_of(home)), "store": online})


def fetched(found: Lookup, entities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    async def fetch() -> list[dict[str, Any]]:
        try:
            return [dict(row) for row in await found.fetch(entities)]
        finally:
            await found.close()

    return asyncio.run(fetch())


def by_feast(store: Feast, entities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What real Feast says, its answer's columns turned into rows."""
    known = store._registered
    answer = store._store.get_online_features(
        known.service, list(entities), full_feature_names=known.full_names
    ).to_dict()
    return [{column.name: answer[column.name][row] for column in known.columns} for row in range(len(entities))]


def entities(names: Sequence[str], count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Known entities, unknown ones, and repeated ones."""
    random = np.random.default_rng(seed)
    choices: dict[str, list[Any]] = {
        "shop": [*SHOPS, "nowhere"], "other_shop": [*SHOPS, "nowhere"], "user_id": [*USERS, 99], "slot": [*SLOTS, 5],
        "amount": [0.0, 2.5, -1.25], "coupon": ["A", "", "ß"],
    }  # fmt: skip
    exact = [{name: choices[name][number] for name in names} for number in range(3)]
    return exact + [{name: choices[name][random.integers(len(choices[name]))] for name in names} for _ in range(count)]


# equal to Feast


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "single"])
def test_the_look_up_gives_what_feast_gives(tmp_path: Path, repo: Path, online: dict[str, Any], service: str) -> None:
    store = made(tmp_path, repo, service, online)
    asked = entities(SERVICES[service])
    found, expected = fetched(lookup(tmp_path, online), asked), by_feast(store, asked)
    assert [list(row) for row in found] == [[column.name for column in store.columns()]] * len(asked)
    assert [kinds(row) for row in found] == [kinds(row) for row in expected]
    assert found == expected
    known = {name for row in found for name, value in row.items() if value is not None}
    assert known == set(found[0]), "every feature has a value somewhere"
    assert any(value is None for row in found for value in row.values())


def kinds(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: type(value).__name__ for name, value in row.items()}


def test_a_function_for_single_rows_is_called_for_each(tmp_path: Path, repo: Path, online: dict[str, Any]) -> None:
    """Feast calls it for the first row alone."""
    store = made(tmp_path, repo, "single", online)
    asked = entities(SERVICES["single"], 4)
    found = fetched(lookup(tmp_path, online), asked)
    assert found == [by_feast(store, [one])[0] for one in asked]
    assert [row["doubled"] for row in found] == [2 * one["amount"] for one in asked]


def test_values_older_than_their_views_ttl_are_given_as_feast_gives_them(
    tmp_path: Path, repo: Path, online: dict[str, Any]
) -> None:
    store = made(
        tmp_path, repo, "everything", online
    )  # the view `scalars` has a ttl of an hour, its values are years old
    one = {"shop": "berlin", "user_id": 1, "slot": 0}
    [found] = fetched(lookup(tmp_path, online), [one])
    assert found["a_double"] == by_feast(store, [one])[0]["a_double"] == 1.5


def test_the_flights_example_is_looked_up_as_by_feast(tmp_path: Path, online: dict[str, Any]) -> None:
    repo = tmp_path / "feature_repo"
    shutil.copytree(
        ROOT / "examples" / "flights" / "feature_repo", repo, ignore=shutil.ignore_patterns("__pycache__", "data")
    )
    (repo / "data").mkdir()
    places, airlines = ["EWR", "JFK", "LGA"], ["UA", "DL"]
    random = np.random.default_rng(5)
    keys = {"origin": places, "dest": ["LAX", "SFO"], "carrier": airlines}
    for name, columns in FLIGHTS.items():
        joined = [key for key in keys if key in columns[0]]
        rows = pd.MultiIndex.from_product([keys[key] for key in joined], names=joined).to_frame(index=False)
        for column in columns[1]:
            rows[column] = random.normal(size=len(rows))
        for column in columns[2]:
            rows[column] = [f"{column} {number}" for number in range(len(rows))]
        rows["known"] = END - timedelta(hours=2)
        rows.to_parquet(repo / "data" / f"{name}.parquet", coerce_timestamps="us", index=False)
    store = made(tmp_path, repo, "late_arrival", online)
    asked = [
        {"origin": place, "dest": dest, "carrier": carrier, "departs": departs}
        for place, dest, carrier, departs in [
            ("EWR", "LAX", "UA", "2013-03-29T17:30"), ("LGA", "SFO", "DL", "2013-01-01T06:05"),
            ("JFK", "XXX", "DL", "2013-12-31T23:59"), ("BOS", "LAX", "??", "no time"),
        ]
    ]  # fmt: skip
    found = lookup(tmp_path, online)
    assert list(found.keys) == ["carrier", "departs", "dest", "origin"]
    assert list(found.entity_keys) == ["carrier", "dest", "origin"]
    assert list(found.features) == [column.name for column in store.columns()]
    rows = fetched(found, asked)
    assert rows == by_feast(store, asked)
    assert rows[0]["hour"] == 17.5
    assert rows[3] == dict.fromkeys(rows[3])
    assert first_look_up(tmp_path, online, asked[0]) == rows[0]


def first_look_up(home: Path, online: dict[str, Any], entity: dict[str, Any]) -> Any:
    """What the first look-up of a new process gives within the 100 ms that it has by default: importing pandas takes longer."""
    code = (
        "import asyncio, json, sys\n"
        "from drivetrain.backends.features.online import open_lookup\n"
        "async def ask(options, entity):\n"
        "    found = open_lookup(options)\n"
        "    await found.prepare()\n"
        "    async with asyncio.timeout(0.1):\n"
        "        [row] = await found.fetch([entity])\n"
        "    await found.close()\n"
        "    print(json.dumps(row))\n"
        "asyncio.run(ask(*map(json.loads, sys.argv[1:])))"
    )
    options = {"plan": str(plan_of(home)), "store": dict(online)}
    command = [sys.executable, "-c", code, json.dumps(options), json.dumps(entity)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def named(prefix: str, *windows: str) -> list[str]:
    return [f"{prefix}_{figure}_{window}" for window in windows for figure in ("mean", "late", "count")]


FLIGHTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "airlines": (["carrier"], [], ["airline"]),
    "routes": (["origin", "dest"], ["distance"], ["from_airport", "to_airport"]),
    "weather": (["origin"], ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"], []),
    "carrier_delays": (["carrier"], named("carrier", "3h", "1d", "7d"), []),
    "route_delays": (["origin", "dest"], named("route", "1d", "7d"), []),
    "origin_arrivals": (["origin"], named("origin", "3h", "1d", "7d"), []),
    "origin_departures": (["origin"], named("departures", "1h", "3h"), []),
}
"""Table -> its keys, numbers and texts."""


# keys and values, byte by byte

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True)
TYPED = st.one_of(
    st.tuples(st.just("STRING"), st.text(max_size=200)),
    st.tuples(st.just("INT32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("INT64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("BYTES"), st.binary(max_size=40)),
    st.tuples(st.just("UNIX_TIMESTAMP"), st.integers(-(2**40), 2**40)),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_entity_keys_are_feasts_bytes(data: st.DataObject) -> None:
    names = data.draw(NAMES)
    typed = [data.draw(TYPED) for _ in names]
    protos = [python_values_to_proto_values([value], ValueType[kind])[0] for kind, value in typed]
    for proto, (kind, value) in zip(protos, typed, strict=True):
        if proto.WhichOneof("val") is None:  # Feast takes an empty value for none, and never writes such a key
            setattr(proto, f"{kind.lower()}_val", value)
    expected = serialize_entity_key(
        EntityKey(join_keys=names, entity_values=protos), entity_key_serialization_version=3
    )
    keys = [Key(f"my {name}", name, kind) for name, (kind, _) in zip(names, typed, strict=True)]
    entity = {f"my {name}": value for name, (_, value) in zip(names, typed, strict=True)}
    assert Source(keys, []).key(entity) == expected


@given(st.text(), st.text())
def test_redis_fields_are_feasts_bytes(view: str, feature: str) -> None:
    assert redis_field(view, feature) == _mmh3(f"{view}:{feature}")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("STRING", [5, True, 1.5, ["a"], {"a": 1}]),
        ("INT32", ["5", True, 1.5, 2**31, float("inf"), float("nan"), [1]]),
        ("INT64", ["5", False, 0.1, 2**63, {}]),
        ("UNIX_TIMESTAMP", ["yesterday", [], 1.5]),
    ],
)
def test_a_key_of_another_type_is_refused(kind: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(DataError) as caught:
            Source([Key("column", "name", kind)], []).key({"column": value})
        assert caught.value.where == "column"


def test_whole_floats_and_times_count_as_keys() -> None:
    assert key_of("INT64", 5.0) == key_of("INT64", 5)
    assert key_of("UNIX_TIMESTAMP", "2024-05-02T00:00:00") == key_of("UNIX_TIMESTAMP", int(END.timestamp()))
    assert key_of("UNIX_TIMESTAMP", END) == key_of("UNIX_TIMESTAMP", "2024-05-02T02:00:00+02:00")
    assert key_of("STRING", None) is None


def key_of(kind: str, value: Any) -> bytes | None:
    return Source([Key("column", "name", kind)], []).key({"column": value})


def test_a_view_with_keys_of_fractions_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:
        Source([Key("column", "name", "DOUBLE")], [])
    assert "DOUBLE" in caught.value.problems[0].message


ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BYTES": st.binary(max_size=300),
    "STRING": st.text(max_size=300),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "DOUBLE": st.floats(allow_nan=False),
    "FLOAT": st.floats(width=32, allow_nan=False),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    "UUID": st.uuids(),
    "TIME_UUID": st.uuids(),
    "DECIMAL": st.decimals(allow_nan=False, allow_infinity=False),
    "ZONED_TIMESTAMP": st.datetimes(
        datetime(1950, 1, 1), datetime(2100, 1, 1), timezones=st.sampled_from([UTC, ZoneInfo("America/New_York")])
    ),
    "JSON": st.dictionaries(st.text(max_size=5), st.integers(-9, 9) | st.none() | st.text(max_size=5), max_size=3),
}
SIMPLE = [name for name in ELEMENTS if name not in ("ZONED_TIMESTAMP", "JSON")]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_every_stored_value_is_read_as_feast_reads_it(data: st.DataObject) -> None:
    kind = data.draw(
        st.sampled_from([*ELEMENTS, *(f"{name}_LIST" for name in SIMPLE), *(f"{name}_SET" for name in SIMPLE)])
    )
    element = ELEMENTS[kind.removesuffix("_LIST").removesuffix("_SET")]
    if kind.endswith("_LIST"):
        value = data.draw(st.lists(element, max_size=5))
    elif kind.endswith("_SET"):
        value = data.draw(st.sets(element, max_size=5))
    else:
        value = data.draw(element)
    [stored] = python_values_to_proto_values([value], ValueType[kind])
    same(stored)


def same(stored: Value) -> None:
    read, expected = decode(stored.SerializeToString()), feast_value_type_to_python_type(stored)
    assert (read, type(read)) == (expected, type(expected))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(max_size=5)
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), SCALARS | st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=4))
def test_nested_values_are_read_as_feast_reads_them(value: dict[str, Any]) -> None:
    for kind, given_ in (
        ("MAP", value),
        ("STRUCT", value),
        ("MAP_LIST", [value, {"deeper": value}]),
        ("STRUCT_LIST", [value]),
    ):
        [stored] = python_values_to_proto_values([given_], ValueType[kind])
        same(stored)
    same(python_values_to_proto_values([[[1, 2], [3], []]], ValueType.VALUE_LIST)[0])
    same(python_values_to_proto_values([[{"a"}, {"b"}]], ValueType.VALUE_SET)[0])
    keys = [5, True, 2.5, UUID(int=7), Decimal("1.5"), b"b", END]
    same(python_values_to_proto_values([dict.fromkeys(keys, "x")], ValueType.SCALAR_MAP)[0])
    same(python_values_to_proto_values([[{"a": 1}, [2]]], ValueType.JSON_LIST)[0])


def test_nulls_and_odd_values_are_read_as_feast_reads_them() -> None:
    assert decode(None) is decode(b"") is None
    for stored in (
        Value(),
        Value(null_val=0),
        Value(unix_timestamp_val=-(2**63)),
        Value(unix_timestamp_list_val={"val": [-(2**63), 0]}),
        Value(json_val="no json"),
        Value(zoned_timestamp_val={"unix_timestamp": 5, "zone": "UTC-07:30"}),
        Value(zoned_timestamp_val={"unix_timestamp": 5, "zone": "GMT"}),
        Value(zoned_timestamp_val={"unix_timestamp": 5, "zone": ""}),
        Value(zoned_timestamp_val={"unix_timestamp": -(2**63), "zone": "UTC"}),
        Value(scalar_map_val={"val": [{"value": Value(int64_val=1)}]}),
    ):
        same(stored)


COMPUTED: list[tuple[str, list[Any]]] = [
    ("INT64", [1.0, np.int64(5), True, None, np.nan]), ("INT32", [1, np.float64(2.0)]), ("DOUBLE", [1.5, np.float64(0.1), None]),
    ("FLOAT", [0.1, np.float32(0.1), None]), ("STRING", ["a", 5, None]), ("BOOL", [True, np.bool_(False), None]),
    ("UNIX_TIMESTAMP", [END, pd.Timestamp(END), END.replace(tzinfo=None), 7, None]),
    ("UNIX_TIMESTAMP", [np.datetime64("2024-05-02T00:00:00.5"), np.datetime64("2024-05-02T00:00:00.123456789")]),
    ("INT64_LIST", [[1, 2], [], None, np.array([3, 4])]), ("DOUBLE_LIST", [[0.5], np.array([1.5])]),
    ("STRING_LIST", [["a"], np.array(["b"], object)]), ("BOOL_LIST", [[True], [np.bool_(False)]]),
    ("FLOAT_LIST", [[0.1]]), ("BYTES", [b"a", None]), ("STRING_SET", [{"a"}, set()]), ("UUID", [UUID(int=1), str(UUID(int=2))]),
    ("DECIMAL", [Decimal("1.10")]), ("JSON", [{"a": [1]}, '{"b": 2}']), ("MAP", [{"a": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), COMPUTED)
def test_computed_values_become_what_feast_makes_of_them(kind: str, values: list[Any]) -> None:
    for value in values:
        [stored] = python_values_to_proto_values([value], ValueType[kind])
        expected, made_ = feast_value_type_to_python_type(stored), as_type(kind, value)
        assert (made_, type(made_)) == (expected, type(expected))
