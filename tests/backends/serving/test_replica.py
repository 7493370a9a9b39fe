"""The replica as a process: the routes beside Cog's, deadlines, the queue, tokens, metrics."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.serving.asking import NOT_RUN, child_of, metric, place_of, until, worker_of
from tests.backends.serving.servers import HOST, Reply, Server, environment, in_background, parse, running
from tests.ports import free_port

RUN_ONCE = """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float, held: bool = False) -> float:
        with open("ran.txt", "a") as file:
            file.write(f"{x}\\n")
        while held and not pathlib.Path("go").exists():
            time.sleep(0.005)
        return x
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("replica", place_of(tmp_path_factory.mktemp("echo"), "echo")) as server:
        yield server


def test_the_request_id_is_the_predictions_id_where_nothing_else_names_one(echo: Server) -> None:
    headers = {"x-request-id": "from-header"}
    assert echo.request("POST", "/predictions", {"input": {"x": 1}}, headers).json()["id"] == "from-header"
    assert echo.request("POST", "/predictions", {"input": {"x": 1}, "id": "body"}, headers).json()["id"] == "body"
    assert echo.request("PUT", "/predictions/path", {"input": {"x": 1}}, headers).json()["id"] == "path"
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
    assert echo.request("POST", "/v2/models/model/infer", {"inputs": [tensor]}, headers).json()["id"] == "from-header"


def test_ids_that_are_made_are_never_the_same(echo: Server) -> None:
    assert len({echo.predict({"x": 1}).json()["id"] for _ in range(50)}) == 50


def test_metrics_count_by_protocol_and_outcome(echo: Server) -> None:
    def counts() -> dict[str, float]:
        asked = [("cog", "succeeded"), ("cog", "refused"), ("v1", "succeeded"), ("v1", "refused"), ("v2", "refused")]
        return {f"{p} {o}": metric(echo, "requests_total", protocol=p, outcome=o) for p, o in asked}

    before = counts()
    echo.predict({"x": 1})
    echo.predict({})
    echo.request("POST", "/v1/models/model:predict", {"instances": [1.0]})
    echo.request("POST", "/v1/models/model:predict", {"instances": ["a"]})
    echo.request("POST", "/v2/models/model/infer", b"{")
    assert {name: count - before[name] for name, count in counts().items()} == dict.fromkeys(before, 1)
    assert metric(echo, "ready") == 1
    assert metric(echo, "in_flight") == 0
    assert metric(echo, "model_load_seconds") > 0
    for hop in ("queue", "decode", "compute", "encode"):
        assert metric(echo, "hop_seconds_count", hop=hop) > 0
    assert metric(echo, "request_seconds_count", protocol="cog") > 0


def test_metrics_are_what_prometheus_reads(echo: Server) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    reply = echo.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    assert families["drivetrain_replica_requests"].type == "counter"
    latency = families["drivetrain_replica_request_seconds"]
    assert latency.type == "histogram"
    assert all(sample.labels["model_name"] == "model" for sample in latency.samples)


def test_a_failed_prediction_counts_as_failed_though_cogs_api_says_200(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, "failing")) as server:
        reply = server.predict({"x": 1})
        assert (reply.status, reply.json()["status"], reply.json()["error"]) == (
            200,
            "failed",
            "ValueError: no such carrier",
        )
        assert server.request("POST", "/v1/models/model:predict", {"instances": [1.0]}).status == 500
        assert metric(server, "requests_total", protocol="cog", outcome="failed") == 1
        assert metric(server, "requests_total", protocol="cog", outcome="succeeded") == 0
        assert metric(server, "requests_total", protocol="v1", outcome="failed") == 1


def test_a_deadline_that_has_passed_is_504_and_never_run(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, RUN_ONCE)) as server:
        first = in_background(server, "POST", "/predictions", {"input": {"x": 1, "held": True}})
        server.wait_for("BUSY")
        late = server.request("POST", "/predictions", {"input": {"x": 2}}, {"x-request-timeout-ms": "100"})
        assert (late.status, late.headers[NOT_RUN], late.json()["status"]) == (504, "1", "failed")
        kserve = server.request(
            "POST", "/v1/models/model:predict", {"instances": [{"x": 3}]}, {"x-request-timeout-ms": "100"}
        )
        assert (kserve.status, kserve.headers[NOT_RUN]) == (504, "1")
        (tmp_path / "go").touch()
        assert first().status == 200
        assert (
            server.request("POST", "/predictions", {"input": {"x": 4}}, {"x-request-timeout-ms": "60000"}).status == 200
        )
        assert (tmp_path / "ran.txt").read_text().split() == ["1", "4"]
        assert metric(server, "requests_total", protocol="cog", outcome="expired") == 1


def test_a_deadline_that_is_no_number_is_refused(echo: Server) -> None:
    for path, body in (("/predictions", {"input": {"x": 1}}), ("/v1/models/model:predict", {"instances": [1.0]})):
        reply = echo.request("POST", path, body, {"x-request-timeout-ms": "soon"})
        assert reply.status == 400
        assert "X-Request-Timeout-Ms" in reply.json()["error"]


def test_beyond_the_queue_calls_are_turned_away_with_503_and_the_rest_is_answered_in_order(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, RUN_ONCE), options=("--queue", "2")) as server:
        asked = [in_background(server, "POST", "/predictions", {"input": {"x": 0, "held": True}})]
        server.wait_for("BUSY")
        for x in (1, 2):
            asked.append(in_background(server, "POST", "/predictions", {"input": {"x": x}}))
            until(lambda wanted=x: metric(server, "queue_length") == wanted)
        for method, path, body in (
            ("POST", "/predictions", {"input": {"x": 9}}),
            ("PUT", "/predictions/p", {"input": {"x": 9}}),
            ("POST", "/v1/models/model:predict", {"instances": [{"x": 9}]}),
        ):
            reply = server.request(method, path, body)
            assert (reply.status, reply.headers["retry-after"], reply.headers[NOT_RUN]) == (503, "1", "1")
            assert "2 calls wait already" in reply.json()["error"]
        refused = server.request("POST", "/predictions", {"input": {"x": 9}}, {"prefer": "respond-async"})
        assert refused.status == 503
        (tmp_path / "go").touch()
        assert [wait().status for wait in asked] == [200, 200, 200]
        assert (tmp_path / "ran.txt").read_text().split() == ["0", "1", "2"]
        assert metric(server, "requests_total", protocol="cog", outcome="rejected") == 3
        assert server.predict({"x": 3}).status == 200


def test_who_asks_again_for_a_prediction_that_waits_is_told_so(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, RUN_ONCE)) as server:
        first = in_background(server, "POST", "/predictions", {"input": {"x": 0, "held": True}})
        server.wait_for("BUSY")
        right = in_background(server, "PUT", "/predictions/right", {"input": {"x": 1}})
        # Too large to be looked at before its turn.
        body = {"input": {"x": "a" * 100_000}}
        wrong = in_background(server, "PUT", "/predictions/wrong", body)
        until(lambda: metric(server, "queue_length") == 2)
        again = server.request("PUT", "/predictions/right", {"input": {"x": 1}})
        assert (again.status, again.json()["status"], again.json()["input"]) == (202, "starting", {"x": 1})
        again = server.request("PUT", "/predictions/wrong", body)
        assert (again.status, again.json()["status"], again.json()["input"]) == (202, "starting", {})
        assert server.request("PUT", "/predictions/small", {"input": {"x": "a"}}).status == 422
        assert server.request("POST", "/predictions/right/cancel").status == 200
        assert right().json()["status"] == "canceled"
        (tmp_path / "go").touch()
        assert (first().status, wrong().status) == (200, 422)
        assert (tmp_path / "ran.txt").read_text().split() == ["0"]


def test_it_ends_at_once_while_the_model_is_still_being_set_up(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, "slow setup"), until=("STARTING",)) as server:
        until(lambda: worker_of(server))
        worker = worker_of(server)
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert not _lives(worker)


def test_shutdown_and_cancel_need_the_token_where_there_is_one(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, "echo"), variables={"DRIVETRAIN_TOKEN": "secret"}) as server:
        assert server.predict({"x": 1}).status == 200
        for path in ("/predictions/any/cancel", "/shutdown"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
                reply = server.request("POST", path, None, headers)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        right = {"authorization": "Bearer secret"}
        assert server.request("POST", "/predictions/any/cancel", None, right).status == 404
        assert server.request("POST", "/shutdown", None, right).status == 200
        assert server.process.wait(20) == 0
        assert "secret" not in server.log.read_text()


def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    place = place_of(tmp_path / "b", "echo")
    path = str(tmp_path / "r.sock")
    command = [
        sys.executable,
        "-m",
        "drivetrain.backends.serving.replica",
        "--bundle",
        str(place),
        "--runner",
        "run.py:Runner",
    ]
    process = subprocess.Popen(
        [*command, "--name", "model", "--uds", path], env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: _ask(path, b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") == 200)
        assert os.stat(path).st_mode & 0o077 == 0
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert not os.path.exists(path)


def _ask(path: str, raw: bytes) -> int:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(raw)
            return parse(b"".join(iter(lambda: connection.recv(65536), b""))).status
    except (OSError, ConnectionError):
        return 0


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    place = place_of(tmp_path, "echo")
    port = free_port()
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [
        sys.executable,
        "-m",
        "drivetrain.backends.serving.replica",
        "--bundle",
        str(place),
        "--runner",
        "run.py:Runner",
    ]
    command += ["--name", "model", "--port", str(port), "--die-with-parent"]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: child_of(pid))
    worker = child_of(pid)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    until(lambda: not _lives(pid) and not _lives(worker))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_runner_may_be_named_by_cogs_environment_variable(tmp_path: Path) -> None:
    place = place_of(tmp_path, "echo")
    port = free_port()
    variables = {"COG_PREDICT_TYPE_STUB": "run.py:Runner", "PORT": str(port)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "drivetrain.backends.serving.replica"],
            cwd=place, env=environment() | variables, stdout=log, stderr=log,
        )  # fmt: skip
    server = Server(port, process, tmp_path / "log")
    try:
        server.wait_for("READY")
        assert server.predict({"x": 2}).json()["output"] == 6
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_one_connection_carries_many_requests_answered_in_order(echo: Server) -> None:
    connection = http.client.HTTPConnection(HOST, echo.port, timeout=20)
    for x in range(20):
        connection.request(
            "POST", "/predictions", json.dumps({"input": {"x": x}}), {"content-type": "application/json"}
        )
        assert json.loads(connection.getresponse().read())["output"] == 3 * x
    connection.close()
    body = b'{"input": {"x": %d}}'
    head = b"POST /predictions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection((HOST, echo.port), 20) as raw:
        raw.sendall(b"".join(head % len(body % x) + body % x for x in range(9)))
        raw.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answers = b"".join(iter(lambda: raw.recv(65536), b""))
    assert [int(found) for found in re.findall(rb'"output":(\d+)', answers)] == [3 * x for x in range(9)]


def test_a_large_body_does_not_hold_up_health_checks(tmp_path: Path) -> None:
    source = """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, text: str) -> int:
        return len(text)
"""
    with running("replica", place_of(tmp_path, source)) as server:
        text = "x" * (20 * 1024 * 1024)
        waiting = in_background(server, "POST", "/predictions", {"input": {"text": text}})
        slowest = 0.0
        while metric(server, "requests_total", protocol="cog", outcome="succeeded") == 0:
            began = time.monotonic()
            assert server.health() in ("READY", "BUSY")
            slowest = max(slowest, time.monotonic() - began)
        assert waiting().json()["output"] == len(text)
        print(f"slowest health check beside a body of 20 MB: {slowest * 1000:.1f} ms")


def test_a_body_beyond_the_limit_is_413(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, "echo"), options=("--body-limit", "1000")) as server:
        reply: Reply = server.request("POST", "/predictions", b'{"input": {"x": 1, "z": "' + b"x" * 2000 + b'"}}')
        assert reply.status == 413
        assert server.predict({"x": 1}).status == 200
