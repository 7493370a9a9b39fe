"""The look-up's stores and its plan: lost connections, locked files, wrong plans, and what a caller gets wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from drivetrain.backends.features import online_plan, online_redis
from drivetrain.backends.features.connection import address
from drivetrain.backends.features.online import Lookup, open_lookup
from drivetrain.backends.features.online_demand import load
from drivetrain.backends.features.online_keys import Source, redis_field
from drivetrain.backends.features.online_plan import Feature, Key, OnDemand, Plan, View
from drivetrain.errors import (
    CorruptArtifact,
    DataError,
    DefinitionError,
    DrivetrainError,
    StageError,
    SystemFault,
    Unavailable,
)
from tests.backends.redis_server import PASSWORD, Server

SHOP = Key("shop", "shop", "STRING")
SALES = View("sales", (SHOP,), (Feature("mean", "mean", "DOUBLE"), Feature("count", "count", "INT64")))
WEATHER = View("weather", (Key("city", "place", "STRING"),), (Feature("temp", "temp", "DOUBLE"),))
PLAN = Plan("project", "service", (SALES, WEATHER), (), {}, ("mean", "count", "temp"))
BERLIN = {"shop": "a", "city": "Berlin"}


def double(value: float) -> bytes:
    return b"\x29" + struct.pack("<d", value)


STORED = {("sales", "mean"): double(1.5), ("sales", "count"): b"\x20\x05", ("weather", "temp"): double(20.0)}
FOUND = {"mean": 1.5, "count": 5, "temp": 20.0}


def key(view: View, entity: Mapping[str, Any]) -> bytes:
    written = Source(view.keys, [view]).key(entity)
    assert written is not None
    return written


def fill(server: Server) -> None:
    """Puts Berlin's values into database 1, and the server keeps them."""
    for view in (SALES, WEATHER):
        name = key(view, BERLIN) + b"project"
        words = [b"HSET", name]
        for feature in view.features:
            words += [redis_field(view.name, feature.name), STORED[view.name, feature.name]]
        assert server.command(b"HSET", *words[1:]).startswith(b":")
    assert server.command(b"SAVE") == b"+OK\r\n"


def options(home: Path, store: Mapping[str, Any], plan: Plan = PLAN) -> dict[str, Any]:
    online_plan.write(plan, home / "lookup.json")
    return {"plan": str(home / "lookup.json"), "store": store}


def sqlite_store(home: Path) -> Path:
    path = home / "online db?.sqlite"
    with sqlite3.connect(path) as database:
        for view in (SALES, WEATHER):
            database.execute(f'CREATE TABLE "project_{view.name}" (entity_key BLOB, feature_name TEXT, value BLOB)')
            for feature in view.features:
                row = (key(view, BERLIN), feature.name, STORED[view.name, feature.name])
                database.execute(f'INSERT INTO "project_{view.name}" VALUES (?, ?, ?)', row)
    database.close()
    return path


def within(found: Lookup, use: Callable[[Lookup], Awaitable[Any]]) -> Any:
    """What `use` gives, on an event loop of its own, of the kind that the gateway has."""

    async def run() -> Any:
        try:
            return await use(found)
        finally:
            await found.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(run(), 30.0))


def fetched(found: Lookup, *entities: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = within(found, lambda opened: opened.fetch(entities))
    return rows


async def until(found: Lookup, seconds: float = 10.0) -> float:
    """Seconds until the store answers again."""
    started = time.monotonic()
    while True:
        try:
            assert await found.fetch([BERLIN]) == [FOUND]
        except Unavailable:
            assert time.monotonic() - started < seconds, "it does not come back"
            await asyncio.sleep(0.005)
        else:
            return time.monotonic() - started


async def until_told(found: Lookup) -> None:
    """Asks, with 50 ms of patience each time, until the store itself says that it is gone."""
    for _ in range(100):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await found.fetch([BERLIN])


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "redis").mkdir()
    server = Server(tmp_path / "redis")
    fill(server)
    yield server
    server.kill()


def redis_options(home: Path, server: Server) -> dict[str, Any]:
    return options(home, {"type": "redis", "connection_string": server.connection})


# what comes back


def test_entities_are_answered_in_their_order_each_with_all_features(tmp_path: Path, redis: Server) -> None:
    nobody = dict.fromkeys(FOUND)
    asked = [{"shop": "b", "city": "Berlin"}, BERLIN, {"shop": "a", "city": "Rome", "more": 1}, BERLIN]
    expected = [{**nobody, "temp": 20.0}, FOUND, {**FOUND, "temp": None}, FOUND]
    for store in (
        redis_options(tmp_path, redis),
        options(tmp_path, {"type": "sqlite", "path": str(sqlite_store(tmp_path))}),
    ):
        rows = fetched(open_lookup(store), *asked)
        assert list(rows) == expected
        assert [list(row) for row in rows] == [["mean", "count", "temp"]] * 4
        assert list(fetched(open_lookup(store))) == []


def test_one_look_up_asks_each_key_once_and_in_one_round_trip(tmp_path: Path, redis: Server) -> None:
    found = open_lookup(redis_options(tmp_path, redis))
    other = {"shop": "b", "city": "Berlin"}

    async def use(opened: Lookup) -> tuple[int, int]:
        await opened.fetch([BERLIN])
        before = commands(redis)
        await opened.fetch([BERLIN, other] * 50)
        return before, commands(redis)

    before, after = within(found, use)
    assert after - before == 3, "two shops and one city"


def commands(server: Server) -> int:
    said = server.command(b"INFO", b"commandstats").decode()
    [line] = [line for line in said.splitlines() if line.startswith("cmdstat_hmget")]
    return int(line.split("calls=")[1].split(",")[0])


def test_of_a_key_that_is_null_nothing_is_known(tmp_path: Path, redis: Server) -> None:
    [row] = fetched(open_lookup(redis_options(tmp_path, redis)), {"shop": None, "city": "Berlin"})
    assert row == {"mean": None, "count": None, "temp": 20.0}


@pytest.mark.parametrize(
    ("entity", "where"), [({"shop": "a"}, "city"), ({}, "city, shop"), ({"shop": 5, "city": "Rome"}, "shop")]
)
def test_an_entity_that_lacks_a_key_or_has_a_wrong_one_is_a_data_error(
    tmp_path: Path, entity: dict[str, Any], where: str
) -> None:
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(sqlite_store(tmp_path))}))
    with pytest.raises(DataError) as caught:
        fetched(found, BERLIN, entity)
    assert caught.value.where == where


# on-demand features


def demanding(source: str, function: str = "made", kind: str = "DOUBLE", pickled: str = "") -> Plan:
    made = OnDemand(
        "made", "python", False, {"a": "amount", "mean": "mean"}, (Feature("x", "x", kind),), function, source, pickled
    )
    return replace(PLAN, on_demand=(made,), requested={"amount": "DOUBLE"}, features=("x", "temp"))


def test_only_the_services_features_come_back_not_what_they_are_computed_from(tmp_path: Path) -> None:
    plan = demanding("def made(inputs):\n    return {'x': [a * m for a, m in zip(inputs['a'], inputs['mean'])]}")
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(sqlite_store(tmp_path))}, plan))
    assert list(found.keys) == ["amount", "city", "shop"]
    assert list(found.entity_keys) == ["city", "shop"]
    assert fetched(found, {**BERLIN, "amount": 4}) == [{"x": 6.0, "temp": 20.0}]


@pytest.mark.parametrize("amount", ["4", True, [4]])
def test_a_requested_column_of_another_type_is_a_data_error(tmp_path: Path, amount: Any) -> None:
    plan = demanding("def made(inputs):\n    return {'x': inputs['a']}")
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(sqlite_store(tmp_path))}, plan))
    with pytest.raises(DataError) as caught:
        fetched(found, {**BERLIN, "amount": amount})
    assert caught.value.where == "amount"
    with pytest.raises(DataError, match="amount: missing"):
        fetched(found, BERLIN)


@pytest.mark.parametrize(
    ("body", "said"),
    [("1 / 0", "ZeroDivisionError"), ("return {'y': []}", "KeyError"), ("return {'x': [1.0, 2.0]}", "another number")],
)
def test_a_function_that_fails_names_its_view(tmp_path: Path, body: str, said: str) -> None:
    store = {"type": "sqlite", "path": str(sqlite_store(tmp_path))}
    found = open_lookup(options(tmp_path, store, demanding(f"def made(inputs):\n    {body}")))
    with pytest.raises(StageError, match=said) as caught:
        fetched(found, {**BERLIN, "amount": 1.0})
    assert caught.value.where == "on-demand view made"


def test_a_function_whose_source_does_not_stand_alone_comes_from_its_pickle() -> None:
    import base64

    import dill

    def made(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"x": [PLAN.project for _ in inputs["a"]]}

    pickled = base64.b64encode(dill.dumps(made, recurse=True)).decode()
    [view] = demanding("@missing_decorator\nx = made(missing)\n", pickled=pickled).on_demand
    assert load(view)({"a": [1]}) == {"x": ["project"]}
    for broken in (replace(view, pickled=""), replace(view, pickled="AAAA")):
        with pytest.raises(StageError, match="cannot be loaded"):
            load(broken)


def test_decorators_are_not_needed_to_load_a_function() -> None:
    [view] = demanding(
        '    @on_demand(\n        mode="python")\n    def made(inputs: pd.DataFrame):\n        return np.pi\n'
    ).on_demand
    assert 3 < load(view)({}) < 4


# the plan


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    plan = demanding("def made(inputs):\n    return {}")
    online_plan.write(plan, tmp_path / "plan.json")
    assert online_plan.read(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"views": 5}', "\xff"])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptArtifact, match="no look-up plan"):
        online_plan.read(tmp_path / "plan.json")


def test_a_plan_that_only_feast_can_serve_is_refused(tmp_path: Path) -> None:
    plan = demanding("")
    for wrong, said in (
        (replace(plan, on_demand=(replace(plan.on_demand[0], mode="substrait"),)), "made cannot be served online"),
        (replace(plan, key_version=2), "version 2, not 3"),
    ):
        online_plan.write(wrong, tmp_path / "plan.json")
        with pytest.raises(DefinitionError) as caught:
            online_plan.read(tmp_path / "plan.json")
        assert said in caught.value.problems[0].message


def test_without_a_plan_there_is_no_look_up(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        open_lookup({"plan": str(tmp_path / "none.json"), "store": {"type": "sqlite", "path": "x"}})
    assert "drivetrain run" in caught.value.hint


def test_a_plan_that_is_written_anew_is_taken_up(
    tmp_path: Path, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.backends.features.online._LOOK", 0.0)
    found = open_lookup(redis_options(tmp_path, redis))

    async def use(opened: Lookup) -> None:
        assert await opened.fetch([BERLIN]) == [FOUND]
        (tmp_path / "lookup.json").write_text("{")  # of no use: the former stays
        for _ in range(20):
            assert await opened.fetch([BERLIN]) == [FOUND]
            await asyncio.sleep(0.002)
        online_plan.write(replace(PLAN, views=(WEATHER,), features=("temp",)), tmp_path / "lookup.json")
        deadline = time.monotonic() + 10
        while list(opened.features) != ["temp"]:
            many = await asyncio.gather(*(opened.fetch([BERLIN]) for _ in range(50)))
            assert all(rows in ([FOUND], [{"temp": 20.0}]) for rows in many)
            assert time.monotonic() < deadline
        assert list(opened.keys) == ["city"]
        assert await opened.fetch([{"city": "Berlin"}]) == [{"temp": 20.0}]

    within(found, use)


# SQLite


def test_a_database_that_is_locked_is_waited_for_without_holding_the_event_loop(tmp_path: Path) -> None:
    path = sqlite_store(tmp_path)
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(path)}))

    async def use(opened: Lookup) -> None:
        assert await opened.fetch([BERLIN]) == [FOUND]
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE")
        asked = asyncio.create_task(opened.fetch([BERLIN]))
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert not asked.done()
        writer.execute("COMMIT")
        writer.close()
        assert await asked == [FOUND]

    within(found, use)


def test_a_database_that_is_not_there_or_none_is_unavailable_until_it_is(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(path)}))

    async def use(opened: Lookup) -> None:
        with pytest.raises(Unavailable, match="cannot be read"):
            await opened.fetch([BERLIN])
        path.write_bytes(b"no database" * 100)
        with pytest.raises(Unavailable, match="cannot be read"):
            await opened.fetch([BERLIN])
        sqlite_store(tmp_path).rename(path)
        assert await opened.fetch([BERLIN]) == [FOUND]

    within(found, use)


def test_many_keys_are_read_in_several_statements(tmp_path: Path) -> None:
    found = open_lookup(options(tmp_path, {"type": "sqlite", "path": str(sqlite_store(tmp_path))}))
    rows = fetched(found, *({"shop": f"shop {number}", "city": "Berlin"} for number in range(1200)), BERLIN)
    assert rows[-1] == FOUND
    assert [row["mean"] for row in rows[:-1]] == [None] * 1200


# Redis


def test_a_server_that_is_killed_and_started_again_is_found_again(
    tmp_path: Path, redis: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    found = open_lookup(redis_options(tmp_path, redis))

    async def use(opened: Lookup) -> list[float]:
        times = []
        for _ in range(3):
            assert await opened.fetch([BERLIN]) == [FOUND]
            await asyncio.to_thread(redis.kill)
            for _ in range(20):
                with pytest.raises(Unavailable, match="Redis does not answer") as caught:
                    await opened.fetch([BERLIN])
                assert PASSWORD not in str(caught.value) + caught.value.hint
                await asyncio.sleep(0.005)
            await asyncio.to_thread(redis.start)
            times.append(await until(opened))
        return times

    times = within(found, use)
    with capsys.disabled():
        print(f"\nRedis back: first values after {', '.join(f'{1000 * seconds:.0f} ms' for seconds in times)}")


def test_a_server_that_is_down_costs_a_request_no_time(tmp_path: Path, redis: Server) -> None:
    found = open_lookup(redis_options(tmp_path, redis))
    redis.kill()

    async def use(opened: Lookup) -> None:
        with pytest.raises(Unavailable):
            await opened.fetch([BERLIN])  # the first one tries to connect
        for _ in range(1000):
            with pytest.raises(Unavailable):
                await opened.fetch([BERLIN])

    within(found, use)


def test_a_server_that_hangs_costs_each_request_its_own_time_alone(
    tmp_path: Path, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_redis, "_STALLED", 0.3)
    found = open_lookup(redis_options(tmp_path, redis))

    async def use(opened: Lookup) -> None:
        assert await opened.fetch([BERLIN]) == [FOUND]
        redis.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="no answer within"):
                await until_told(opened)
        finally:
            redis.process.send_signal(signal.SIGCONT)
        await until(opened)
        rows = await asyncio.gather(*(opened.fetch([BERLIN]) for _ in range(200)))
        assert rows == [[FOUND]] * 200

    within(found, use)


def test_a_request_that_is_given_up_does_not_shift_the_others_answers(tmp_path: Path, redis: Server) -> None:
    found = open_lookup(redis_options(tmp_path, redis))
    unknown = {"shop": "nobody", "city": "nowhere"}

    async def use(opened: Lookup) -> None:
        await opened.fetch([BERLIN])
        asked = [asyncio.create_task(opened.fetch([BERLIN if number % 2 else unknown])) for number in range(400)]
        await asyncio.sleep(0)
        for task in asked[::3]:
            task.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, answer in enumerate(answers):
            if not isinstance(answer, asyncio.CancelledError):
                assert answer == [FOUND if number % 2 else dict.fromkeys(FOUND)]
        assert sum(isinstance(answer, asyncio.CancelledError) for answer in answers) >= 100

    within(found, use)


def test_large_answers_come_in_many_pieces(tmp_path: Path, redis: Server) -> None:
    city = View("city", (Key("city", "place", "STRING"),), (Feature("text", "text", "STRING"),))
    text = "ü" * 3_000_000
    stored = text.encode()
    length, prefix = len(stored), bytearray(b"\x12")
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    redis.command(b"HSET", key(city, BERLIN) + b"project", redis_field("city", "text"), bytes(prefix) + stored)
    plan = Plan("project", "service", (city,), (), {}, ("text",))
    found = open_lookup(options(tmp_path, {"type": "redis", "connection_string": redis.connection}, plan))
    assert fetched(found, {"city": "Berlin"}) == [{"text": text}]


@pytest.mark.parametrize("change", [",password=wrong", ",username=nobody", ",db=99"])
def test_a_server_that_refuses_is_no_outage_and_no_password_is_told(tmp_path: Path, redis: Server, change: str) -> None:
    store = {"type": "redis", "connection_string": redis.connection + change}
    with pytest.raises(SystemFault, match="Redis refused") as caught:
        fetched(open_lookup(options(tmp_path, store)), BERLIN)
    assert not isinstance(caught.value, Unavailable)
    assert PASSWORD not in str(caught.value)


def test_what_is_no_hash_is_refused_and_the_connection_goes_on(tmp_path: Path, redis: Server) -> None:
    found = open_lookup(redis_options(tmp_path, redis))
    other = {"shop": "other", "city": "Berlin"}
    redis.command(b"SET", key(SALES, other) + b"project", b"text")

    async def use(opened: Lookup) -> None:
        with pytest.raises(SystemFault, match="WRONGTYPE"):
            await opened.fetch([other])
        assert await opened.fetch([BERLIN]) == [FOUND]

    within(found, use)


def test_something_that_is_no_redis_is_unavailable(tmp_path: Path) -> None:
    async def run() -> None:
        answered = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            answered.set()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        store = {"type": "redis", "connection_string": f"127.0.0.1:{port},password=x"}
        found = open_lookup(options(tmp_path, store))
        with pytest.raises(Unavailable, match="no Redis protocol"):
            await found.fetch([BERLIN])
        await found.close()
        await answered.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_closed_look_up_answers_no_more(tmp_path: Path, redis: Server) -> None:
    found = open_lookup(redis_options(tmp_path, redis))

    async def use(opened: Lookup) -> None:
        waiting = asyncio.create_task(opened.fetch([BERLIN]))
        await asyncio.sleep(0)
        await opened.close()
        with pytest.raises(DrivetrainError):
            await waiting
        with pytest.raises(Unavailable):
            await opened.fetch([BERLIN])

    within(found, use)


# the connection string


def test_a_connection_string_is_an_address_with_the_environments_values() -> None:
    found = address(
        "${HOST}:7000,db=3,username=me,password=${SECRET},socket_connect_timeout=2", {"HOST": "h", "SECRET": '"12"'}
    )
    assert (found.host, found.port, found.database, found.username, found.password) == ("h", 7000, 3, "me", "12")
    assert (found.tls, found.connect_within) == (None, 2.0)
    assert "12" not in repr(found)
    plain = address("localhost:6379", {})
    assert (plain.username, plain.password, plain.database, plain.connect_within) == (None, None, 0, 5.0)


@pytest.mark.parametrize(
    "text", ["localhost", "h:1,password=${UNSET}", "h:1,db=one", "h:1,ssl=true,ssl_ca_certs=/no/such.pem"]
)
def test_a_connection_string_that_cannot_be_used_is_a_mistake_in_the_definition(text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        address(text, {})
    assert caught.value.problems[0].key == "features.online.connection"


def test_tls_options_mean_what_they_mean_to_feasts_client() -> None:
    strict = address("h:1,ssl=true", {}).tls
    loose = address("h:1,ssl=True,ssl_cert_reqs=none", {}).tls
    assert strict is not None
    assert strict.check_hostname
    assert loose is not None
    assert not loose.check_hostname


# what it costs to have it


def test_a_look_up_needs_neither_feast_nor_pandas(tmp_path: Path) -> None:
    online_plan.write(PLAN, tmp_path / "lookup.json")
    code = f"""
import sys
from drivetrain.backends.features.online import open_lookup
open_lookup({{"plan": {str(tmp_path / "lookup.json")!r}, "store": {{"type": "redis", "connection_string": "h:1"}}}})
print(sorted({{"feast", "pandas", "numpy", "pyarrow", "duckdb", "redis", "dill", "pydantic"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ})
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_plans_hold_no_secrets_and_no_paths(tmp_path: Path, redis: Server) -> None:
    written = json.dumps(options(tmp_path, {})) + (tmp_path / "lookup.json").read_text()
    assert PASSWORD not in written
    assert str(tmp_path) not in (tmp_path / "lookup.json").read_text()
