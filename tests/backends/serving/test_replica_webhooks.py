"""Webhooks, to a server that notes what it is sent and answers as it is told; and the same to Cog's own server beside."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.serving.replica import webhooks
from tests.backends.serving import compare
from tests.backends.serving.cog_runners import RUNNERS
from tests.backends.serving.servers import Server, bundle, running

ASYNC = {"prefer": "respond-async"}
NO_THROTTLE = {"COG_THROTTLE_RESPONSE_INTERVAL": "0", "WEBHOOK_AUTH_TOKEN": "s3cret"}


@dataclass
class Receiver:
    """What was received; `statuses` are answered in turn, then 200."""

    port: int = 0
    got: list[tuple[Mapping[str, str], Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=1"

    def bodies(self) -> list[Any]:
        return [body for _, body in self.got]

    def wait_for(self, count: int, within: float = 60.0) -> list[Any]:
        """The bodies, when there are so many."""
        deadline = time.monotonic() + within
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count}: {self.bodies()}"
            time.sleep(0.01)
        return self.bodies()

    def wait_for_end(self, within: float = 60.0) -> list[Any]:
        """The bodies, when one of them is of a prediction that has ended."""
        deadline = time.monotonic() + within
        while not any(body["status"] in ("succeeded", "failed", "canceled") for body in self.bodies()):
            assert time.monotonic() < deadline, self.bodies()
            time.sleep(0.01)
        return self.bodies()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    receiver.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.hold.wait(30)
            receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, json.loads(body)))
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module", params=["cog", "replica"])
def streaming(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = bundle(tmp_path_factory.mktemp(request.param) / "b", RUNNERS["streaming"], streams=True)
    with running(request.param, place, variables=NO_THROTTLE) as server:
        yield server


def ask(server: Server, inputs: Mapping[str, Any], receiver: Receiver, headers: Mapping[str, str], **more: Any) -> int:
    server.wait_for("READY")
    return server.request(
        "POST", "/predictions", {"input": inputs, "webhook": receiver.url, **more}, headers
    ).status  # fmt: skip


def test_every_event_is_told_with_the_state_so_far(streaming: Server, receiver: Receiver) -> None:
    assert ask(streaming, {"count": 2, "seconds": 0.1}, receiver, ASYNC, id="w1") == 202
    receiver.wait_for(5)
    # Cog's server sends events of one prediction side by side: they are compared in the order of what they know.
    found = sorted(
        receiver.bodies(),
        key=lambda body: (len(body.get("output", [])), len(body["logs"]), body["status"] == "succeeded"),
    )
    assert [compare.masked(body) for body in found] == [
        {"id": "w1", "logs": "", "metrics": {}, "status": "processing"},
        {"id": "w1", "logs": "begin\n", "metrics": {}, "status": "processing"},
        {"id": "w1", "logs": "begin\n", "metrics": {}, "output": ["part0 "], "status": "processing"},
        {"id": "w1", "logs": "begin\n", "metrics": {}, "output": ["part0 ", "part1 "], "status": "processing"},
        {
            "id": "w1",
            "logs": "begin\n",
            "metrics": {"predict_time": "<seconds>"},
            "output": ["part0 ", "part1 "],
            "status": "succeeded",
        },
    ]


def test_only_wanted_events_are_told(streaming: Server, receiver: Receiver) -> None:
    ask(streaming, {"count": 2}, receiver, ASYNC, webhook_events_filter=["completed"])
    assert [body["status"] for body in receiver.wait_for_end()] == ["succeeded"]


def test_the_end_of_a_failed_prediction_is_told_with_what_it_had_given(streaming: Server, receiver: Receiver) -> None:
    ask(streaming, {"count": 3, "fail_at": 1}, receiver, ASYNC, webhook_events_filter=["completed"])
    (body,) = receiver.wait_for_end()
    assert body["status"] == "failed"
    assert body["error"].endswith("ValueError: stopped at 1")
    assert (body["logs"], body["output"]) == ("begin\n", ["part0 "])


def test_a_prediction_that_is_waited_for_tells_its_webhook_too(streaming: Server, receiver: Receiver) -> None:
    assert ask(streaming, {"count": 1}, receiver, {}, webhook_events_filter=["completed"]) == 200
    assert receiver.wait_for_end()[0]["output"] == ["part0 "]


def test_wrong_input_is_refused_at_once_and_no_webhook_told(streaming: Server, receiver: Receiver) -> None:
    assert ask(streaming, {"count": "x"}, receiver, ASYNC) == 422
    for _ in range(3):
        assert ask(streaming, {"count": "x"}, receiver, {}) == 422
    assert ask(streaming, {"count": 1}, receiver, {}, webhook_events_filter=["completed"]) == 200
    assert [body["status"] for body in receiver.wait_for_end()] == ["succeeded"]


def test_headers_of_a_webhook(streaming: Server, receiver: Receiver) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    ask(streaming, {"count": 0}, receiver, trace | ASYNC, webhook_events_filter=["completed"])
    receiver.wait_for_end()
    headers = receiver.got[0][0]
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer s3cret"
    assert {name: headers[name] for name in trace} == trace


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_the_end_is_told_again_until_it_is_taken(streaming: Server, receiver: Receiver, status: int) -> None:
    receiver.statuses = [status]
    ask(streaming, {"count": 1}, receiver, ASYNC, webhook_events_filter=["completed"])
    first, second = receiver.wait_for(2)
    assert first == second


def test_an_answer_that_will_not_change_is_not_asked_for_again(streaming: Server, receiver: Receiver) -> None:
    receiver.statuses = [404]
    ask(streaming, {"count": 1}, receiver, ASYNC, webhook_events_filter=["completed"])
    receiver.wait_for(1)
    with receiving() as other:  # another prediction has been told twice meanwhile
        other.statuses = [500]
        ask(streaming, {"count": 1}, other, ASYNC, webhook_events_filter=["completed"])
        other.wait_for(2)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "nonsense", "http://", "http://127.0.0.1:x/", ""]
)
def test_an_address_that_is_none_does_not_stop_the_prediction(streaming: Server, url: str) -> None:
    streaming.wait_for("READY")
    reply = streaming.request("POST", "/predictions", {"input": {"count": 1}, "webhook": url})
    assert (reply.status, reply.json()["output"]) == (200, ["part0 "])


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = bundle(tmp_path_factory.mktemp("r") / "b", RUNNERS["streaming"])
    with running("replica", place, variables={"COG_THROTTLE_RESPONSE_INTERVAL": "60"}) as server:
        yield server


def test_start_and_logs_are_throttled_and_outputs_and_the_end_are_not(replica: Server, receiver: Receiver) -> None:
    ask(replica, {"count": 3}, receiver, ASYNC)
    found = receiver.wait_for_end()
    assert [(body["logs"], len(body.get("output", ())), body["status"]) for body in found] == [
        ("", 0, "processing"),
        ("begin\n", 1, "processing"),
        ("begin\n", 2, "processing"),
        ("begin\n", 3, "processing"),
        ("begin\n", 3, "succeeded"),
    ]


def test_a_receiver_that_hangs_delays_no_prediction(replica: Server, receiver: Receiver) -> None:
    receiver.hold.clear()
    for number in range(20):
        assert ask(replica, {"count": 2}, receiver, {}, id=f"h{number}") == 200
    assert replica.get("/metrics").status == 200
    receiver.hold.set()
    receiver.wait_for(20 * 4)  # start, two outputs, the end; its line was printed too soon after the start
    for number in range(20):
        of_one = [len(body.get("output", ())) for body in receiver.bodies() if body["id"] == f"h{number}"]
        assert of_one == [0, 1, 2, 2]  # in order


def test_what_is_on_its_way_arrives_before_the_replica_ends(tmp_path: Path, receiver: Receiver) -> None:
    with running("replica", bundle(tmp_path / "b", RUNNERS["streaming"])) as server:
        receiver.statuses = [503, 503]
        ask(server, {"count": 2, "seconds": 0.3}, receiver, ASYNC, webhook_events_filter=["completed"])
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert [body["status"] for body in receiver.bodies()] == ["succeeded"] * 3


def test_a_prediction_that_never_ran_is_told_as_failed_if_its_caller_was_promised_it(
    tmp_path: Path, receiver: Receiver
) -> None:
    source = RUNNERS["acting"]
    with running("replica", bundle(tmp_path / "b", source), options=("--timeout", "1")) as server:
        for number in range(2):
            body = {"input": {"action": "wait", "seconds": 600}, "webhook": receiver.url, "id": str(number)}
            body["webhook_events_filter"] = ["completed"]
            assert server.request("POST", "/predictions", body, ASYNC).status == 202
        found = {body["id"]: body for body in receiver.wait_for(2)}
        assert [found[key]["status"] for key in ("0", "1")] == ["failed", "failed"]
        assert "longer than 1 s" in found["0"]["error"]


def test_events_that_wait_for_a_receiver_are_bounded_and_the_end_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "WAITING", 1000)
    posted: list[bytes] = []

    async def scenario() -> None:
        sender = webhooks.Sender(webhooks.Rules(interval=0.0))
        go_on = asyncio.Event()

        async def post(url: str, body: bytes, trace: object) -> webhooks.Said:
            await go_on.wait()
            posted.append(body)
            return webhooks.Said(True, False, "")

        monkeypatch.setattr(sender, "post", post)
        webhook = sender.webhook("http://127.0.0.1:9/", webhooks.EVENTS)
        assert webhook is not None
        for number in range(100):
            webhook.tell("output", lambda number=number: {"output": "x" * 90, "number": number})
        webhook.tell("completed", lambda: {"status": "succeeded"})
        go_on.set()
        await sender.close(10.0)
        assert sender.lost == 101 - len(posted) > 80

    asyncio.run(scenario())
    assert posted[-1] == b'{"status":"succeeded"}'
