"""Requests that name entities get their features: in each protocol, with what is missing, and while the store is away."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.features import online_plan
from drivetrain.backends.features.online import open_lookup
from drivetrain.backends.features.online_keys import Source, redis_field
from drivetrain.backends.features.online_plan import Feature, Key, Plan, View
from drivetrain.backends.serving.gateway.enrich import Enriched, enrich
from drivetrain.backends.serving.gateway.settings import LookingUp
from drivetrain.errors import DataError, StageError, SystemFault, Unavailable
from tests.backends.redis_server import Server

JSON = "application/json"
KNOWN = {
    ("a", "Berlin"): {"temp": 20.5, "count": 3, "sky": "clear"},
    ("b", "Rome"): {"temp": None, "count": 0, "sky": None},
}


class Features:
    """Two features of a shop in a city, from a dict; what it was asked is kept."""

    keys = ("city", "shop")
    entity_keys = ("city", "shop")
    features = ("temp", "count", "sky")

    def __init__(
        self, fault: Exception | None = None, values: Mapping[tuple[str, str], Mapping[str, Any]] = KNOWN
    ) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self._fault = fault
        self._values = values

    async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        self.asked.append([dict(entity) for entity in entities])
        if self._fault is not None:
            raise self._fault
        nothing = dict.fromkeys(self.features)
        return [self._values.get((entity["shop"], entity["city"]), nothing) for entity in entities]

    async def prepare(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Distances(Features):
    """With an on-demand feature of a column that is no join key."""

    keys = ("city", "distance", "shop")


def settings(**changed: Any) -> LookingUp:
    return LookingUp("x:y", {}, **changed)


def run(
    path: str, body: Any, features: Features | None = None, content_type: str = JSON, **changed: Any
) -> tuple[Enriched, Any]:
    """What became of the request, and its body as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = asyncio.run(enrich(path, content_type, raw, features or Features(), settings(**changed)))
    return found, json.loads(found.body) if found.error is None else json.loads(found.error.body)


COG, V1, V2 = "/predictions", "/v1/models/shop:predict", "/v2/models/shop/infer"
BERLIN = {"shop": "a", "city": "Berlin"}
ROME = {"shop": "b", "city": "Rome"}


def tensor(name: str, data: list[Any], datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


# Cog


@pytest.mark.parametrize("path", [COG, "/predictions/some-id"])
def test_inputs_that_name_an_entity_get_its_features_beside_them(path: str) -> None:
    body = {"id": "x", "input": {**BERLIN, "more": [1, {"a": None}]}, "webhook": "http://x"}
    found, written = run(path, body)
    assert written == {**body, "input": {**body["input"], **KNOWN["a", "Berlin"]}}  # type: ignore[dict-item]
    assert (found.missing, found.error, found.looked_up, found.failed) == ([], None, 1, False)


def test_what_the_caller_gives_himself_is_kept() -> None:
    _, written = run(COG, {"input": {**BERLIN, "temp": -1, "sky": None}})
    assert written["input"] == {**BERLIN, "temp": -1, "sky": None, "count": 3}


def test_an_input_without_a_value_is_left_out_and_told() -> None:
    found, written = run(COG, {"input": ROME})
    assert written["input"] == {**ROME, "count": 0}
    assert list(found.missing) == ["temp", "sky"]


def test_a_default_takes_the_place_of_what_is_missing_and_is_told_all_the_same() -> None:
    found, written = run(COG, {"input": {"shop": "?", "city": "?"}}, defaults={"temp": 10.0, "sky": "unknown"})
    assert written["input"] == {"shop": "?", "city": "?", "temp": 10.0, "sky": "unknown"}
    assert list(found.missing) == ["temp", "count", "sky"]


def test_rows_in_a_list_are_looked_up_together_and_get_nulls() -> None:
    features = Features()
    rows = [BERLIN, {"temp": 1.0}, ROME, {**BERLIN, "sky": "dark"}]
    found, written = run(
        COG, {"input": {"rows": rows, "other": [1, 2], "objects": [{"x": 1}], "mixed": [1, {"shop": "a"}]}}, features
    )
    assert written["input"] == {
        "rows": [
            {**BERLIN, **KNOWN["a", "Berlin"]},
            {"temp": 1.0},
            {**ROME, "temp": None, "count": 0, "sky": None},
            {**BERLIN, "sky": "dark", "temp": 20.5, "count": 3},
        ],
        "other": [1, 2],
        "objects": [{"x": 1}],
        "mixed": [1, {"shop": "a"}],
    }
    assert features.asked == [[BERLIN, ROME, BERLIN]]
    assert (list(found.missing), found.looked_up) == (["temp", "sky"], 3)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": {"shop": "a"}}, ["city"]),
        ({"input": {"rows": [BERLIN, {"city": "Rome"}]}}, ["rows", 1, "shop"]),
    ],
)
def test_a_missing_key_is_answered_as_cog_answers_a_missing_input(body: Any, place: list[Any]) -> None:
    features = Features()
    found, written = run(COG, body, features)
    assert found.error is not None
    assert found.error.status == 422
    [detail] = written["detail"]
    assert detail["loc"] == ["body", "input", *place]
    assert detail["type"] == "missing"
    assert "Field required" in detail["msg"]
    assert features.asked == []


def test_a_key_of_a_wrong_type_is_answered_as_cog_answers_it() -> None:
    fault = DataError("5 is no STRING", hint="give text", where="shop")
    found, written = run(COG, {"input": {**BERLIN, "shop": 5}}, Features(fault))
    assert found.error is not None
    assert found.error.status == 422
    assert written == {
        "detail": [{"loc": ["body", "input", "shop"], "msg": "5 is no STRING; give text", "type": "value_error"}]
    }
    assert not found.failed


# V1


def test_v1_instances_get_their_features() -> None:
    body = {"instances": [BERLIN, {"x": 1}, ROME], "signature_name": "s"}
    found, written = run(V1, body)
    assert written == {
        "instances": [{**BERLIN, **KNOWN["a", "Berlin"]}, {"x": 1}, {**ROME, "temp": None, "count": 0, "sky": None}],
        "signature_name": "s",
    }
    assert list(found.missing) == ["temp", "sky"]


def test_v1_mistakes_are_400_and_say_where() -> None:
    found, written = run(V1, {"instances": [BERLIN, {"shop": "a"}]})
    assert found.error is not None
    assert found.error.status == 400
    assert written == {"error": "instances.1.city: Field required; the look-up needs city"}


# V2


def test_v2_tensors_of_keys_give_way_to_tensors_of_features() -> None:
    inputs = [tensor("shop", ["a", "b", "?"]), {**tensor("city", ["Berlin", "Rome", "?"]), "shape": [3, 1]}]
    more = {**tensor("more", [1, 2, 3], "INT64"), "parameters": {"a": 1}}
    body = {"id": "1", "inputs": [inputs[0], more, inputs[1]], "parameters": {"p": 1}, "outputs": [{"name": "o"}]}
    found, written = run(V2, body, defaults={"sky": "grey"})
    assert written == {
        **body,
        "inputs": [
            more,
            tensor("temp", [20.5, None, None], "FP64"),
            tensor("count", [3.0, 0.0, None], "FP64"),
            tensor("sky", ["clear", "grey", "grey"]),
        ],
    }
    assert (list(found.missing), found.looked_up) == (["temp", "count", "sky"], 3)


def test_v2_datatypes_follow_from_the_values() -> None:
    values = {
        ("a", "Berlin"): {"temp": [1.0, 2.0], "count": 3, "sky": True},
        ("b", "Rome"): {"temp": [3.0, 4.0], "count": 4, "sky": False},
    }
    body = {"inputs": [{**tensor("shop", [["a"], ["b"]]), "shape": [2, 1]}, tensor("city", ["Berlin", "Rome"])]}
    _, written = run("/v2/models/shop/versions/3/infer", body, Features(values=values))
    assert written["inputs"] == [
        {"name": "temp", "shape": [2, 2], "datatype": "FP64", "data": [1.0, 2.0, 3.0, 4.0]},
        tensor("count", [3, 4], "INT64"),
        tensor("sky", [True, False], "BOOL"),
    ]


def test_v2_tensors_that_the_caller_gives_are_kept() -> None:
    given_ = tensor("temp", [1.0], "FP32")
    _, written = run(V2, {"inputs": [tensor("shop", ["a"]), tensor("city", ["Berlin"]), given_]})
    assert written["inputs"] == [given_, tensor("count", [3], "INT64"), tensor("sky", ["clear"])]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([tensor("shop", ["a"])], "city: the tensor is missing"),
        ([tensor("shop", ["a"]), tensor("city", ["x", "y"])], "city 2, shop 1"),
        ([tensor("shop", [["a", "b"]]), tensor("city", ["x"])], "shop: a key is one value a row"),
        ([{"name": "shop", "shape": [1], "datatype": "BYTES"}, tensor("city", ["x"])], "shop: the tensor has no data"),
    ],
)
def test_v2_mistakes_are_400_and_say_where(inputs: list[Any], said: str) -> None:
    found, written = run(V2, {"inputs": inputs})
    assert found.error is not None
    assert found.error.status == 400
    assert said in written["error"]


def test_binary_tensors_of_keys_are_refused_and_others_pass() -> None:
    def binary(name: str) -> bytes:
        header = json.dumps(
            {"inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]}
        )
        return header.encode() + struct.pack("<I", 1) + b"\xff"

    kind = "application/octet-stream"
    found = asyncio.run(enrich(V2, kind, binary("shop"), Features(), settings()))
    assert found.error is not None
    assert found.error.status == 415
    assert "as JSON" in found.error.body.decode()
    for body in (binary("image"), b"\x00\x01", b"{}", b"[]", b'{"inputs": [5]}'):
        assert asyncio.run(enrich(V2, kind, body, Features(), settings())) == Enriched(body)


# what passes as it came

UNTOUCHED: list[tuple[str, bytes]] = [
    (COG, b'{"input":  {"temp": 1,  "count": 2}}'),
    (COG, b'{"input": {"rows": [{"temp": 1e2}, {"x": "\\u00e4"}]}}'),
    (COG, b'{"input": 5}'), (COG, b'{"id": "x"}'), (COG, b"[1]"), (COG, b"{"), (COG, b""), (COG, b"\xff"), (COG, b"null"),
    (V1, b'{"instances": [ {"temp": 1} ]}'), (V1, b'{"instances": [[1, 2]]}'), (V1, b'{"inputs": []}'), (V1, b'{"instances": []}'),
    (V2, b'{"inputs": [ {"name": "temp", "data": [1]} ]}'), (V2, b'{"inputs": [{}]}'), (V2, b'{"inputs": {}}'), (V2, b"{}"),
    ("/health-check", b'{"input": {"shop": "a"}}'), ("/v1/models/shop", b'{"instances": [{"shop": "a"}]}'),
    ("/v2/models/shop/infer/", b"x"), ("/feedback", b'{"input": {"shop": "a"}}'),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), UNTOUCHED)
def test_a_request_that_names_no_entity_passes_byte_for_byte(path: str, body: bytes) -> None:
    features = Features()
    assert asyncio.run(enrich(path, JSON, body, features, settings())) == Enriched(body)
    assert features.asked == []


def test_a_request_that_brings_every_feature_needs_no_look_up() -> None:
    body = json.dumps({"input": {"shop": "a", "temp": 1, "count": 2, "sky": "x"}}).encode()
    assert asyncio.run(enrich(COG, JSON, body, Features(Unavailable("away")), settings())) == Enriched(body)
    tensors = [tensor("shop", ["a"]), tensor("temp", [1.0]), tensor("count", [1]), tensor("sky", ["x"])]
    body = json.dumps({"inputs": tensors}).encode()
    assert asyncio.run(enrich(V2, JSON, body, Features(Unavailable("away")), settings())) == Enriched(body)


def test_a_column_of_an_on_demand_feature_alone_asks_for_no_look_up() -> None:
    body = b'{"input": {"distance": 5, "temp": 1}}'
    assert asyncio.run(enrich(COG, JSON, body, Distances(), settings())) == Enriched(body)
    found, written = run(COG, {"input": BERLIN}, Distances())
    assert found.error is not None
    assert written["detail"][0]["loc"] == ["body", "input", "distance"]


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text().filter(lambda name: name not in ("shop", "city", *Features.features)), ANY, max_size=4),
    ANY,
)
def test_what_is_neither_key_nor_feature_comes_through_unchanged(inputs: dict[str, Any], extra: Any) -> None:
    _, written = run(COG, {"extra": extra, "input": {**inputs, **BERLIN}})
    assert written == {"extra": extra, "input": {**inputs, **BERLIN, **KNOWN["a", "Berlin"]}}
    _, written = run(V1, {"instances": [{**BERLIN, **inputs}], "extra": extra})
    assert written == {"extra": extra, "instances": [{**BERLIN, **inputs, **KNOWN["a", "Berlin"]}]}


@given(st.binary(max_size=200) | ANY.map(lambda value: json.dumps(value).encode()), st.sampled_from([COG, V1, V2]))
def test_no_body_makes_it_raise(body: bytes, path: str) -> None:
    found = asyncio.run(enrich(path, JSON, body, Features(), settings()))
    assert found.body == body


@pytest.mark.parametrize("path", [COG, V1, V2])
@pytest.mark.parametrize("kind", [JSON, "application/octet-stream"])
def test_a_body_nested_without_end_passes_to_the_replica(path: str, kind: str) -> None:
    deep = b"[" * 200_000
    for body in (
        deep,
        b'{"input": ' + deep,
        b'{"input": {"shop": ' + deep,
        b'{"instances": [{"shop":' + deep,
        b'{"inputs": ' + deep,
    ):
        assert asyncio.run(enrich(path, kind, body, Features(), settings())) == Enriched(body)


def test_values_that_json_has_no_form_for_are_written_as_text_or_numbers() -> None:
    values = {("a", "Berlin"): {"temp": datetime(2024, 5, 2, tzinfo=UTC), "count": Decimal("1.5"), "sky": b"\x00"}}
    _, written = run(COG, {"input": BERLIN}, Features(values=values))
    assert written["input"] == {**BERLIN, "temp": "2024-05-02T00:00:00Z", "count": 1.5, "sky": "AA=="}
    _, written = run(V2, {"inputs": [tensor("shop", ["a"]), tensor("city", ["Berlin"])]}, Features(values=values))
    assert written["inputs"] == [
        tensor("temp", ["2024-05-02T00:00:00Z"]), tensor("count", ["1.5"]), tensor("sky", ["AA=="])
    ]  # fmt: skip


# when the look-up fails


@pytest.mark.parametrize("path", [COG, V1, V2])
@pytest.mark.parametrize(
    ("fault", "status"),
    [(Unavailable("Redis does not answer"), 503), (SystemFault("Redis refused"), 503), (StageError("it raised"), 500)],
)
def test_a_failed_look_up_is_an_error_that_says_so(path: str, fault: Exception, status: int) -> None:
    body = {
        COG: {"input": BERLIN}, V1: {"instances": [BERLIN]}, V2: {"inputs": [tensor("shop", ["a"]), tensor("city", ["x"])]},
    }[path]  # fmt: skip
    found, written = run(path, body, Features(fault))
    assert found.error is not None
    assert (found.error.status, found.failed) == (status, True)
    assert str(fault) in written["detail"] == written["error"]
    assert (b"retry-after", b"1") in found.error.headers or status == 500


def test_a_failed_look_up_counts_as_all_missing_where_defaults_are_wanted() -> None:
    fault = Unavailable("away")
    found, written = run(COG, {"input": BERLIN}, Features(fault), on_failure="defaults", defaults={"count": 7})
    assert written["input"] == {**BERLIN, "count": 7}
    assert (list(found.missing), found.error, found.failed) == (["temp", "count", "sky"], None, True)
    _, written = run(V1, {"instances": [{**BERLIN, "temp": 1}]}, Features(fault), on_failure="defaults")
    assert written["instances"] == [{**BERLIN, "temp": 1, "count": None, "sky": None}]
    _, written = run(
        V2, {"inputs": [tensor("shop", ["a"]), tensor("city", ["x"])]}, Features(fault), on_failure="defaults"
    )
    assert written["inputs"] == [tensor(name, [None], "FP64") for name in Features.features]


def test_a_look_up_that_takes_too_long_is_given_up() -> None:
    class Slow(Features):
        async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
            await asyncio.sleep(30)
            raise AssertionError

    found, written = run(COG, {"input": BERLIN}, Slow(), timeout=0.02)
    assert found.error is not None
    assert (found.error.status, found.failed) == (503, True)
    assert "no answer within 0.02 s" in written["detail"]
    found, written = run(COG, {"input": BERLIN}, Slow(), timeout=0.02, on_failure="defaults")
    assert (written["input"], found.failed) == (BERLIN, True)


# with a real redis-server

SHOPS = View("shops", (Key("shop", "shop", "STRING"),), (Feature("temp", "temp", "DOUBLE"),))
PLAN = Plan("project", "service", (SHOPS,), (), {}, ("temp",))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    key = Source(SHOPS.keys, [SHOPS]).key({"shop": "a"})
    assert key is not None
    server.command(b"HSET", key + b"project", redis_field("shops", "temp"), b"\x29" + struct.pack("<d", 20.5))
    assert server.command(b"SAVE") == b"+OK\r\n"
    yield server
    server.kill()


@pytest.mark.parametrize("policy", ["error", "defaults"])
def test_redis_stopped_and_started_again_under_requests_costs_no_wrong_answer(
    tmp_path: Path, redis: Server, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    online_plan.write(PLAN, tmp_path / "plan.json")
    store = {"type": "redis", "connection_string": redis.connection}
    looking = settings(on_failure=policy, defaults={"temp": -99.0}, timeout=10.0)
    away = "error" if policy == "error" else "defaults"
    body = b'{"input": {"shop": "a"}}'
    seen: list[tuple[float, str]] = []

    async def ask(features: Any, enough: asyncio.Event) -> None:
        while not enough.is_set():
            seen.append((time.monotonic(), judged(await enrich(COG, JSON, body, features, looking))))
            await asyncio.sleep(0.001)

    def judged(found: Enriched) -> str:
        if found.error is not None:
            assert (found.error.status, policy, found.failed) == (503, "error", True)
            assert "Redis" in found.error.body.decode()
            return "error"
        inputs = json.loads(found.body)["input"]
        if found.failed:
            assert (inputs, list(found.missing), policy) == ({"shop": "a", "temp": -99.0}, ["temp"], "defaults")
            return "defaults"
        assert (inputs, list(found.missing)) == ({"shop": "a", "temp": 20.5}, [])
        return "values"

    async def scenario() -> float:
        features = open_lookup({"plan": str(tmp_path / "plan.json"), "store": store})
        enough = asyncio.Event()

        async def until(kind: str) -> float:
            """Until 50 requests that are begun from now on have ended so; now."""
            since = time.monotonic()
            while sum(at > since and found == kind for at, found in seen) < 50:
                await asyncio.sleep(0.02)
            return since

        async with asyncio.TaskGroup() as clients:
            for _ in range(4):
                clients.create_task(ask(features, enough))
            await until("values")
            await asyncio.to_thread(redis.kill)
            await until(away)
            await asyncio.to_thread(redis.start)
            back = await until("values")
            enough.set()
        await features.close()
        return back

    back = asyncio.run(asyncio.wait_for(scenario(), 90))
    kinds = [kind for _, kind in seen]
    assert kinds[0] == kinds[-1] == "values"
    assert away in kinds
    recovered = next(at for at, kind in seen if at > back and kind == "values") - back
    assert all(kind == "values" for at, kind in seen if at > back + recovered)
    with capsys.disabled():
        print(
            f"\nRedis back, policy {policy}: first values after {1000 * recovered:.0f} ms; {len(seen)} requests, none lost"
        )
