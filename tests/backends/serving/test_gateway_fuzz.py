"""Requests that nobody would write, against a gateway that looks features up and captures, with a replica behind it: each gets an answer
in time, none a server error, and both live. `make test-slow` sends them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings

from drivetrain.backends.features import online_plan
from drivetrain.backends.features.online_plan import Feature, Key, Plan, View
from drivetrain.backends.serving.gateway.settings import Capturing, LookingUp
from tests.backends.serving.cog_runners import RUNNERS
from tests.backends.serving.fuzzing import (
    ANYTHING,
    COG_BODIES,
    RELAXED,
    V1_BODIES,
    Client,
    check_json,
    check_v2,
    send,
    v2_requests,
)
from tests.backends.serving.gateways import Gateway, running
from tests.backends.serving.servers import bundle

pytestmark = pytest.mark.slow

OPENER = "drivetrain.backends.features.online:open_lookup"
NAMED = View("named", (Key("name", "name", "STRING"),), (Feature("y", "y", "DOUBLE"),))
"""An input of the runner is the key, another one the feature."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    place = tmp_path_factory.mktemp("fuzz")
    online_plan.write(Plan("project", "service", (NAMED,), (), {}, ("y",)), place / "plan.json")
    with closing(sqlite3.connect(place / "online.db")) as store:
        store.execute("CREATE TABLE project_named (entity_key BLOB, feature_name TEXT, value BLOB)")
    options = {"plan": str(place / "plan.json"), "store": {"type": "sqlite", "path": str(place / "online.db")}}
    lookup = LookingUp(OPENER, options, defaults={"y": 1.0}, timeout=20.0)
    capturing = Capturing(directory=str(place / "log"))
    with running(place / "home", name="model", lookup=lookup, capturing=capturing, timeout=20.0) as found:
        found.serve("one", bundle(place / "b", RUNNERS["typed"]))
        (front,) = found.replicas()
        processes = [front, *front.children()]
        yield found
        assert found.process.poll() is None
        assert [front, *front.children()] == processes, found.text()[-3000:]
        answer = found.predict(x=2, name="abc")
        assert (answer.json()["output"]["value"], answer.headers["x-drivetrain-missing-features"]) == (3.0, "y")
        numbers = found.metrics()
        assert numbers["drivetrain_gateway_lookup_failures_total"] == 0
        assert numbers['drivetrain_gateway_captured_events_total{outcome="lost"}'] == 0
        assert "Traceback" not in found.text() + (place / "home" / "model-one.log").read_text()
        assert found.end() == 0


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    found = Client(gateway.settings.port)
    yield found
    found.close()


def test_requests_made_from_the_openapi_document_are_answered(gateway: Gateway) -> None:
    send(gateway.settings.port, gateway.request("GET", "/openapi.json").json(), 500)


@given(request=v2_requests())
@settings(max_examples=400, **RELAXED)
def test_v2_bodies_are_answered_or_refused(client: Client, request: tuple[bytes, Mapping[str, str]]) -> None:
    check_v2(client, request, refused=(400, 415))  # nothing is looked up for binary tensors, and the caller is told so


@given(body=V1_BODIES | ANYTHING)
@settings(max_examples=300, **RELAXED)
def test_v1_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/v1/models/model:predict", body, (200, 400))


@given(body=COG_BODIES | ANYTHING)
@settings(max_examples=300, **RELAXED)
def test_cog_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/predictions", body, (200, 400, 422))
