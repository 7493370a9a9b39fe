"""The gateway's door: where requests go, what is added to them, and who is let in."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.serving.http.messages import Exchange, Response
from tests.backends.serving import servers
from tests.backends.serving.certificates import certificate
from tests.backends.serving.gateways import (
    TOKEN,
    configure,
    fakes,
    never,
    ready,
    running,
    succeed,
    wait_until,
)

BEARER = {"authorization": f"Bearer {TOKEN}"}


def test_each_revision_answers_its_exact_share_and_says_so(tmp_path: Path) -> None:
    with (
        fakes(succeed, succeed) as (old, new),
        running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway,
    ):
        ready(gateway, "old", "new")
        assert gateway.route(old=95, new=5).status == 200
        found = Counter(gateway.predict(x=n).headers["x-drivetrain-revision"] for n in range(100))
        assert found == {"old": 95, "new": 5}
        assert (len(old.requests), len(new.requests)) == (95, 5)


def test_a_header_keeps_its_revision(tmp_path: Path) -> None:
    with (
        fakes(succeed, succeed) as (old, new),
        running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway,
    ):
        ready(gateway, "old", "new")
        assert gateway.route(old=50, new=50, sticky="X-User").status == 200

        def revision(user: int) -> str:
            return gateway.predict({"x-user": f"u{user}"}, x=1).headers["x-drivetrain-revision"]

        before = {user: revision(user) for user in range(20)}
        assert set(before.values()) == {"old", "new"}
        assert gateway.route(old=20, new=80, sticky="X-User").status == 200
        after = {user: revision(user) for user in range(20)}
        assert [user for user in before if before[user] == "new" and after[user] == "old"] == []


def test_request_ids_are_passed_on_and_returned_or_made(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict({"x-request-id": "mine-7"}, x=1).headers["x-request-id"] == "mine-7"
        assert fake.requests[-1].header(b"x-request-id") == b"mine-7"
        made = {gateway.predict(x=1).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        assert (fake.requests[-1].header(b"x-request-id") or b"").decode() in made
        assert "x-request-id" in gateway.request("GET", "/nowhere").headers


def test_requests_reach_the_replica_as_they_came(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        body = bytes(range(256)) * 4000
        headers = {"x-custom": "7", "inference-header-content-length": "12", "content-type": "application/octet-stream"}
        gateway.request("POST", "/v2/models/echo/infer?a=%20b&c", body, headers | {"connection": "x-hop", "x-hop": "1"})
        found = fake.requests[-1]
        assert (found.method, found.path, found.query, found.body) == (
            "POST",
            "/v2/models/echo/infer",
            "a=%20b&c",
            body,
        )
        assert found.header(b"x-custom") == b"7"
        assert found.header(b"inference-header-content-length") == b"12"
        assert found.header(b"content-type") == b"application/octet-stream"
        assert found.header(b"x-hop") is None
        gateway.request("GET", "/a%20b/%C3%A4")
        assert fake.requests[-1].path == "/a b/ä"


def test_answers_reach_the_client_as_they_came(tmp_path: Path) -> None:
    def answer(exchange: Exchange) -> None:
        headers = [(b"x-own", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-request-id", b"another")]
        exchange.reply(Response(418, b"\x00\x01 tea", headers, b"image/tea"))

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        found = gateway.predict({"x-request-id": "mine"}, x=1)
        assert (found.status, found.body, found.content_type) == (418, b"\x00\x01 tea", "image/tea")
        assert (found.headers["x-own"], found.headers["x-request-id"]) == ("1", "mine")


def test_a_shadow_gets_a_copy_of_each_prediction_and_its_answers_are_dropped(tmp_path: Path) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.reply(Response(500, b'{"detail":"broken"}'))

    with fakes(succeed, fail) as (old, new), running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway:
        ready(gateway, "old", "new")
        assert gateway.route(old=100, shadow="new").status == 200
        replies = [gateway.predict(x=n) for n in range(10)]
        gateway.request("GET", "/openapi.json")
        assert {(reply.status, reply.headers["x-drivetrain-revision"]) for reply in replies} == {(200, "old")}
        wait_until(lambda: len(new.requests) == 10)
        # Each copy has a connection of its own where the one before is still busy: they may overtake each other.
        assert sorted(request.body for request in new.requests) == sorted(request.body for request in old.requests[:10])
        sample = 'drivetrain_gateway_shadow_total{revision="new",outcome="failed"}'
        wait_until(lambda: gateway.metrics()[sample] == 10)
        assert gateway.metrics()['drivetrain_gateway_requests_total{revision="new",outcome="failed"}'] == 0


def test_a_copy_whose_prediction_fails_counts_as_failed_though_cog_answers_200(tmp_path: Path) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.reply(Response(200, b'{"status":"failed","error":"no such carrier"}'))

    with fakes(succeed, fail) as (old, new), running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway:
        ready(gateway, "old", "new")
        assert gateway.route(old=100, shadow="new").status == 200
        assert gateway.predict(x=1).status == 200
        sample = 'drivetrain_gateway_shadow_total{revision="new",outcome="%s"}'
        wait_until(lambda: gateway.metrics()[sample % "failed"] == 1)
        assert gateway.metrics()[sample % "sent"] == 0


def test_a_shadow_that_hangs_delays_nobody_and_gets_no_more_than_it_can_hold(tmp_path: Path) -> None:
    with fakes(succeed, never) as (old, new), running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway:
        ready(gateway, "old", "new")
        assert gateway.route(old=100, shadow="new").status == 200
        assert {gateway.predict(x=n).status for n in range(100)} == {200}
        assert gateway.metrics()['drivetrain_gateway_shadow_total{revision="new",outcome="dropped"}'] == 36
        wait_until(lambda: len(new.requests) == 64)


def test_what_would_call_somebody_back_is_not_copied(tmp_path: Path) -> None:
    with (
        fakes(succeed, succeed) as (old, new),
        running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway,
    ):
        ready(gateway, "old", "new")
        gateway.route(old=100, shadow="new")
        gateway.predict({"prefer": "respond-async"}, x=1)
        gateway.request("POST", "/predictions", {"input": {}, "webhook": "http://localhost:1/"})
        gateway.predict(x=3)
        wait_until(lambda: new.requests)
        assert [json.loads(request.body)["input"] for request in new.requests] == [{"x": 3}]


def test_changes_need_the_token(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        doors = [("GET", "/-/status"), ("PUT", "/-/traffic"), ("PUT", "/-/revisions/x"), ("DELETE", "/-/revisions/x")]
        doors += [("POST", path) for path in ("/feedback", "/shutdown", "/predictions/7/cancel", "/trainings/7/cancel")]
        for method, path in [*doors, ("POST", "/trainings"), ("PUT", "/trainings/7"), ("POST", "/trainings/")]:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
                assert gateway.request(method, path, headers=headers).status == 401
        assert fake.requests == []
        assert gateway.predict(x=1).status == 200
        assert gateway.request("POST", "/trainings", {"input": {}}, BEARER).status == 200
        assert (fake.requests[-1].path, fake.requests[-1].header(b"authorization")) == ("/trainings", None)
        for method, path in [("GET", "/trainings"), ("POST", "/trainingsets")]:
            assert gateway.request(method, path).status == 200


def test_predictions_need_the_token_where_they_are_guarded_and_the_replica_never_sees_it(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}, guard_predictions=True) as gateway:
        wait_until(lambda: gateway.predict(BEARER, x=1).status == 200)
        assert fake.requests[-1].header(b"authorization") is None
        for method, path in [("POST", "/predictions"), ("POST", "/predictions/7/cancel"), ("PUT", "/predictions/7")]:
            assert gateway.request(method, path, {"input": {}}).status == 401
        assert gateway.request("POST", "/v1/models/echo:predict", {"instances": []}).status == 401
        assert gateway.request("GET", "/health-check").status == 200
        assert gateway.request("GET", "/metrics").status == 200


def test_a_caller_may_bring_credentials_of_the_models_own_but_the_services_token_goes_no_further(
    tmp_path: Path,
) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict({"authorization": "Basic eDp5"}, x=1).status == 200
        assert fake.requests[-1].header(b"authorization") == b"Basic eDp5"
        assert gateway.predict(BEARER, x=1).status == 200
        assert fake.requests[-1].header(b"authorization") is None


@pytest.mark.parametrize("given", ["soon", "1.5", "9" * 400, "9" * 5000])
def test_a_deadline_that_is_none_is_a_bad_request(tmp_path: Path, given: str) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        answer = gateway.predict({"x-request-timeout-ms": given}, x=1)
        assert (answer.status, fake.requests) == (400, [])
        assert "X-Request-Timeout-Ms" in answer.json()["detail"]


def test_bodies_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}, body=1000) as gateway:
        ready(gateway, "one")
        assert gateway.request("POST", "/predictions", b"x" * 1000).status == 200
        assert gateway.request("POST", "/predictions", b"x" * 1001).status == 413


def test_a_put_and_a_cancel_go_to_the_replica_that_has_the_prediction(tmp_path: Path) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.reply(Response(404 if exchange.request.path.endswith("cancel") else 202, b"{}"))

    def holder(exchange: Exchange) -> None:
        exchange.reply(Response(200 if exchange.request.path.endswith("cancel") else 202, b"{}"))

    with fakes(answer, holder) as (old, new), running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway:
        ready(gateway, "old", "new")
        gateway.route(old=50, new=50)
        for number in range(6):
            for _ in range(3):
                gateway.request("PUT", f"/predictions/p{number}", {"input": {}})
        puts = [{request.path for request in fake.requests} for fake in (old, new)]
        assert puts[0] & puts[1] == set()
        assert len(puts[0] | puts[1]) == 6
        mine = new.requests[0].path
        assert gateway.request("POST", f"{mine}/cancel", headers=BEARER).headers["x-drivetrain-revision"] == "new"
        # Where one that came by POST is, is not known: the replicas are asked in turn.
        for door in ("predictions", "trainings"):
            assert gateway.request("POST", f"/{door}/posted/cancel", headers=BEARER).status == 200
            assert new.requests[-1].path == f"/{door}/posted/cancel"


def test_answers_are_passed_on_piece_by_piece(tmp_path: Path) -> None:
    more = threading.Event()

    def answer(exchange: Exchange) -> None:
        async def tell() -> None:
            stream = exchange.stream(200, [(b"x-own", b"1")], b"text/event-stream")
            await stream.write(b"event: output\ndata: 1\n\n")
            await fake.loop.run_in_executor(None, more.wait, 10)
            await stream.write(b"event: done\ndata: 2\n\n")
            stream.end()

        tasks.append(fake.loop.create_task(tell()))

    tasks: list[Any] = []
    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        connection = http.client.HTTPConnection(servers.HOST, gateway.settings.port, timeout=60)
        connection.request("POST", "/predictions", b"{}", {"Accept": "text/event-stream", "X-Request-Id": "s1"})
        response = connection.getresponse()
        assert response.read(23) == b"event: output\ndata: 1\n\n"
        more.set()
        assert response.read() == b"event: done\ndata: 2\n\n"
        assert response.headers["x-drivetrain-revision"] == "one"
        assert response.headers["x-request-id"] == "s1"
        connection.close()
        sample = 'drivetrain_gateway_requests_total{revision="one",outcome="succeeded"}'
        wait_until(lambda: gateway.metrics()[sample] == 1)


def test_it_speaks_tls(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    with fakes(succeed) as (fake,):
        home = tmp_path / "home"
        with running(home, upstreams={"one": fake.url}, certificate=public, key=private) as gateway:
            context = ssl.create_default_context(cafile=public)
            connection = http.client.HTTPSConnection("localhost", gateway.settings.port, timeout=60, context=context)

            def predict() -> int:
                connection.request("POST", "/predictions", b'{"input":{}}')
                answer = connection.getresponse()
                answer.read()
                return answer.status

            assert predict() == 200
            connection.close()


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with running(tmp_path / "first") as gateway:
        file = configure(tmp_path / "second", port=gateway.settings.port)
        command = [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(file)]
        with tempfile.TemporaryDirectory() as scratch:
            variables = {**os.environ, "TMPDIR": scratch}
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=variables)
            assert os.listdir(scratch) == [], "nothing of it is left"
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert f"cannot listen on 127.0.0.1:{gateway.settings.port}" in done.stderr
        assert not (tmp_path / "second" / "echo.routes.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "settings cannot be read"), ('{"nme": 1}', "no field nme"), ("{}", "settings cannot be read")],
)
def test_settings_that_cannot_be_read_are_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    command = [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr
