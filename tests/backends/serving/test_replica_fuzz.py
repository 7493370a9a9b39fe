"""Requests that nobody would write, against a running replica: each gets an answer in time, none a server error, and the worker lives.

`make test-slow` (the marker `slow`) sends ten thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings

from tests.backends.serving.asking import worker_of
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
from tests.backends.serving.servers import Server, bundle, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = bundle(tmp_path_factory.mktemp("fuzz") / "b", RUNNERS["typed"])
    with running("replica", place, options=("--timeout", "20")) as found:
        worker = worker_of(found)
        yield found
        assert found.process.poll() is None
        assert worker_of(found) == worker, f"the worker died:\n{found.log.read_text()[-3000:]}"
        assert found.health() == "READY"
        assert found.predict({"x": 2}).json()["output"]["value"] == 3.0
        assert "Traceback" not in found.log.read_text()


def test_requests_made_from_the_openapi_document_are_answered(server: Server) -> None:
    send(server.port, server.get("/openapi.json").json(), 250)


@pytest.mark.slow
def test_thousands_of_requests_made_from_the_openapi_document_are_answered(server: Server) -> None:
    send(server.port, server.get("/openapi.json").json(), 3000)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    found = Client(server.port)
    yield found
    found.close()


@given(request=v2_requests())
@settings(max_examples=150, **RELAXED)
def test_v2_bodies_are_answered_or_refused(client: Client, request: tuple[bytes, Mapping[str, str]]) -> None:
    check_v2(client, request)


@given(body=V1_BODIES | ANYTHING)
@settings(max_examples=100, **RELAXED)
def test_v1_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/v1/models/model:predict", body, (200, 400))


@given(body=COG_BODIES | ANYTHING)
@settings(max_examples=100, **RELAXED)
def test_cog_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/predictions", body, (200, 400, 422))


@pytest.mark.slow
@given(request=v2_requests())
@settings(max_examples=3000, **RELAXED)
def test_thousands_of_v2_bodies_are_answered_or_refused(
    client: Client, request: tuple[bytes, Mapping[str, str]]
) -> None:
    check_v2(client, request)


@pytest.mark.slow
@given(body=V1_BODIES | ANYTHING)
@settings(max_examples=2000, **RELAXED)
def test_thousands_of_v1_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/v1/models/model:predict", body, (200, 400))


@pytest.mark.slow
@given(body=COG_BODIES | ANYTHING)
@settings(max_examples=2000, **RELAXED)
def test_thousands_of_cog_bodies_are_answered_or_refused(client: Client, body: Any) -> None:
    check_json(client, "/predictions", body, (200, 400, 422))
