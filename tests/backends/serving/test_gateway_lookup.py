"""Online features through a real gateway: the first request is as fast as the others, and a store that goes away costs no wrong answer."""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.features import online_plan
from drivetrain.backends.features.online_keys import Source, redis_field
from drivetrain.backends.features.online_plan import Feature, Key, OnDemand, Plan, View
from drivetrain.backends.serving.gateway.settings import LookingUp
from drivetrain.backends.serving.http.messages import Exchange, Response
from tests.backends.redis_server import Server
from tests.backends.serving.gateways import at_once, fakes, ready, running

OPENER = "drivetrain.backends.features.online:open_lookup"
SHOPS = View("shops", (Key("shop", "shop", "STRING"),), (Feature("temp", "temp", "DOUBLE"),))
SLOW_AT_FIRST = """
def doubled(inputs):
    import sys, time
    if "called_before" not in sys.modules:
        time.sleep(5.0)
        sys.modules["called_before"] = sys
    return inputs.assign(double=2 * inputs["amount"])
"""
DOUBLED = OnDemand(
    "doubled",
    "pandas",
    False,
    {"amount": "amount"},
    (Feature("double", "double", "INT64"),),
    "doubled",
    SLOW_AT_FIRST,
    "",
)


def test_the_first_request_does_not_pay_for_what_an_on_demand_feature_does_at_its_first_call(tmp_path: Path) -> None:
    online_plan.write(Plan("p", "s", (), (DOUBLED,), {"amount": "INT64"}, ("double",)), tmp_path / "plan.json")
    sqlite3.connect(tmp_path / "online.db").close()
    options = {"plan": str(tmp_path / "plan.json"), "store": {"type": "sqlite", "path": str(tmp_path / "online.db")}}
    with (
        fakes(echo) as (fake,),
        running(
            tmp_path / "home", upstreams={"one": fake.url}, lookup=LookingUp(OPENER, options, timeout=3.0)
        ) as gateway,
    ):
        ready(gateway, "one")
        answer = gateway.predict(amount=21)
        assert (answer.status, answer.json()["output"]) == (200, {"amount": 21, "double": 42})


def echo(exchange: Exchange) -> None:
    """The inputs that came."""
    inputs = json.loads(exchange.request.body)["input"]
    exchange.reply(Response(200, json.dumps({"status": "succeeded", "output": inputs}).encode()))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "redis").mkdir()
    server = Server(tmp_path / "redis")
    key = Source(SHOPS.keys, [SHOPS]).key({"shop": "a"})
    assert key is not None
    server.command(b"HSET", key + b"project", redis_field("shops", "temp"), b"\x29" + struct.pack("<d", 20.5))
    assert server.command(b"SAVE") == b"+OK\r\n"
    yield server
    server.kill()


@pytest.mark.parametrize("policy", ["error", "defaults"])
def test_redis_stopped_and_started_again_under_load_costs_no_wrong_answer(
    tmp_path: Path, redis: Server, policy: str
) -> None:
    online_plan.write(Plan("project", "service", (SHOPS,), (), {}, ("temp",)), tmp_path / "plan.json")
    options = {
        "plan": str(tmp_path / "plan.json"),
        "store": {"type": "redis", "connection_string": redis.connection},
    }
    lookup = LookingUp(OPENER, options, on_failure=policy, defaults={"temp": -99.0}, timeout=5.0)
    with fakes(echo) as (fake,), running(tmp_path / "home", upstreams={"one": fake.url}, lookup=lookup) as gateway:
        ready(gateway, "one")

        def asked(_: int) -> tuple[float, str]:
            answer = gateway.predict(shop="a")
            return time.monotonic(), judged(answer.status, answer.headers.get("x-drivetrain-missing-features"), answer)

        def judged(status: int, missing: str | None, answer: Any) -> str:
            if status == 503:
                assert policy == "error"
                assert "Redis" in answer.json()["detail"] or "no answer within" in answer.json()["detail"]
                return "error"
            assert status == 200
            temp = answer.json()["output"]["temp"]
            assert (temp, missing) in ((20.5, None), (-99.0, "temp"))
            assert missing is None or policy == "defaults"
            return "values" if missing is None else "defaults"

        def round_of(count: int) -> list[tuple[float, str]]:
            return [found for found in at_once(asked, count) if found is not None]

        assert {kind for _, kind in round_of(8)} == {"values"}
        redis.kill()
        assert {kind for _, kind in round_of(8)} == {policy}
        redis.start()
        back = time.monotonic()
        after = []
        while not after or {kind for _, kind in after[-8:]} != {"values"}:
            found = round_of(8)
            assert len(found) == 8, "each request has its answer, and a right one"
            after += found
            assert time.monotonic() - back < 60.0
        recovered = min(at for at, kind in after if kind == "values") - back
        metrics = gateway.metrics()
    print(f"Redis back, policy {policy}: the first values after {recovered:.2f} s")
    away = 8 + sum(kind != "values" for _, kind in after)
    assert metrics["drivetrain_gateway_lookup_failures_total"] == away
