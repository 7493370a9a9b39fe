"""Requests and answers are captured beside the predictions: sampled by id, counted when lost, sent as KServe's logger sends them."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cloudevents.http import CloudEvent, from_http

from drivetrain.backends.serving.gateway import capture
from drivetrain.backends.serving.gateway.capture import Recorder, open_recorder
from drivetrain.backends.serving.gateway.captured import find, read
from drivetrain.backends.serving.gateway.contracts import Recorder as Contract
from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event
from drivetrain.backends.serving.gateway.settings import Capturing
from drivetrain.errors import ServingError

AT = 1_700_000_000.25
WITHIN = 40.0


def ask(recorder: Contract, event_id: str, body: bytes = b'{"input":{"x":1}}') -> bool:
    return recorder.request(event_id, "flights-3", "/predictions", "application/json", body, AT)


def answer(recorder: Contract, event_id: str, body: bytes = b'{"output":3}', status: int = 200) -> None:
    recorder.response(event_id, "flights-3", "/predictions", "application/json", body, AT + 0.5, status, 0.0021)


def until(condition: Callable[[], bool], *, within: float = WITHIN) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def events_of(directory: Path) -> list[Event]:
    return [event for _, event in read(directory)]


@contextlib.contextmanager
def recording(settings: Capturing) -> Iterator[Recorder]:
    recorder = open_recorder(settings, "flights")
    try:
        yield recorder
    finally:
        recorder.close(WITHIN)


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
def test_request_answer_and_label_are_in_the_log_under_every_policy(tmp_path: Path, sync: str) -> None:
    with recording(Capturing(directory=str(tmp_path / "capture"), sync=sync)) as recorder:
        assert ask(recorder, "a")
        answer(recorder, "a", status=500)
        recorder.feedback("a", b'{"id":"a","label":1}', AT + 9)
        until(lambda: recorder.counters().written == 3)
        found = find(tmp_path / "capture", "a")
    assert [event.type for event in found] == [REQUEST, RESPONSE, FEEDBACK]
    request, response, label = found
    assert (request.body, request.revision, request.at) == (b'{"input":{"x":1}}', "flights-3", AT)
    assert (response.status, response.took, response.at, response.service) == (500, 0.0021, AT + 0.5, "flights")
    assert label.body == b'{"id":"a","label":1}'
    assert recorder.counters().lost == 0
    assert recorder.counters().bytes > 0


def test_what_waits_is_written_when_the_recorder_is_closed_and_what_comes_later_is_lost(tmp_path: Path) -> None:
    recorder = open_recorder(Capturing(directory=str(tmp_path)), "flights")
    for number in range(2000):
        ask(recorder, str(number))
    recorder.close(WITHIN)
    assert [event.id for event in events_of(tmp_path)] == [str(number) for number in range(2000)]
    assert not ask(recorder, "late")
    answer(recorder, "late")
    counters = recorder.counters()
    assert (counters.written, counters.lost, counters.queue) == (2000, 1, 0)


def test_the_sample_depends_on_the_id_alone(tmp_path: Path) -> None:
    ids = [f"{number:032x}" for number in range(5000)] + [str(number) for number in range(5000)]
    taken: list[set[str]] = []
    for round_ in range(2):
        with recording(Capturing(directory=str(tmp_path / str(round_)), sample=0.2, queue=20_000)) as recorder:
            taken.append({event_id for event_id in ids if ask(recorder, event_id)})
    assert taken[0] == taken[1]
    assert 0.18 * len(ids) < len(taken[0]) < 0.22 * len(ids)
    assert {event.id for event in events_of(tmp_path / "1")} == taken[0]
    with recording(Capturing(directory=str(tmp_path / "more"), sample=0.5)) as recorder:
        assert all(ask(recorder, event_id) for event_id in taken[0]), "a larger sample holds the smaller one"
    with recording(Capturing(directory=str(tmp_path / "none"), sample=0.0)) as recorder:
        assert not any(ask(recorder, event_id) for event_id in ids)


def test_nowhere_to_keep_anything_is_nothing_wanted_and_nothing_lost() -> None:
    with recording(Capturing()) as recorder:
        assert not ask(recorder, "a")
        recorder.feedback("a", b"{}", AT)
        assert recorder.counters() == capture.Counters(0, 0, 0, 0)


def test_settings_that_say_nothing_are_refused() -> None:
    for settings, said in (
        (Capturing(sync="often"), "often"),
        (Capturing(sample=1.5), "1.5"),
        (Capturing(sink="file:///tmp/x"), "file:///tmp/x"),
    ):
        with pytest.raises(ServingError, match=said):
            open_recorder(settings, "flights")


def test_ids_and_paths_of_any_kind_neither_raise_nor_spoil_the_log(tmp_path: Path) -> None:
    odd = ["", "é", "\ud800", 'a"b\\c', "x\r\nCe-Type: evil", "\0", "i" * 5000]
    with recording(Capturing(directory=str(tmp_path))) as recorder:
        for event_id in odd:
            recorder.request(event_id, "r", f"/predictions/{event_id}", event_id, b"x", AT)
    assert [event.id for event in events_of(tmp_path)] == [event_id.replace("\ud800", "?") for event_id in odd]
    assert len(find(tmp_path, "x\r\nCe-Type: evil")) == 1


def test_a_queue_that_is_full_costs_events_not_time_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    writev = os.writev

    def stuck(file: int, parts: list[bytes]) -> int:
        assert go.wait(15)
        return writev(file, parts)

    monkeypatch.setattr(os, "writev", stuck)
    with recording(Capturing(directory=str(tmp_path), queue=50)) as recorder:
        for number in range(500):
            assert ask(recorder, str(number)), "it was in the sample, if lost"
        assert recorder.counters().queue <= 50
        lost = recorder.counters().lost
        assert lost >= 500 - 50 - 1 - capture._PORTION
        go.set()
        until(lambda: recorder.counters().written == 500 - lost)
        before = recorder.counters().lost
        ask(recorder, "large", b"x" * (capture.QUEUE_BYTES + 1))
        assert recorder.counters().lost == before + 1


def test_an_event_larger_than_a_segment_is_lost_alone(tmp_path: Path) -> None:
    with recording(Capturing(directory=str(tmp_path), segment=10_000, keep=100_000)) as recorder:
        for number, size in enumerate((10, 20_000, 10)):
            ask(recorder, str(number), b"x" * size)
    assert [event.id for event in events_of(tmp_path)] == ["0", "2"]
    assert (recorder.counters().written, recorder.counters().lost) == (2, 1)


def test_a_full_disk_loses_events_not_predictions_and_capture_goes_on_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (small_disk / "ballast").write_bytes(b"b" * 800_000)
    with recording(Capturing(directory=str(small_disk / "log"), segment=100_000)) as recorder:
        for number in range(400):
            assert ask(recorder, str(number), b"d" * 1000)
        until(lambda: recorder.counters().lost > 0 and recorder.counters().queue == 0)
        assert any("No space left on device" in message for message in caplog.messages)
        (small_disk / "ballast").unlink()
        tried = 0
        done = recorder.counters().written

        def again() -> bool:
            nonlocal tried
            tried += 1
            ask(recorder, f"later-{tried}")
            return recorder.counters().written > done

        until(again)
        until(lambda: recorder.counters().queue == 0)
    counters = recorder.counters()
    assert counters.written + counters.lost == 400 + tried
    found = [event.id for event in events_of(small_disk / "log")]
    assert len(found) == counters.written
    assert found[0] == "0"
    assert found[-1].startswith("later-")


def test_a_directory_that_cannot_be_is_loss_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with recording(Capturing(directory=str(tmp_path / "file" / "log"))) as recorder:
        assert ask(recorder, "a")
    assert (recorder.counters().written, recorder.counters().lost) == (0, 1)


def test_a_disk_that_fails_once_costs_what_was_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fdatasync
    failures = [OSError(errno.EIO, "Input/output error")]

    def failing(file: int) -> None:
        if failures:
            raise failures.pop()
        sync(file)

    monkeypatch.setattr(os, "fdatasync", failing)
    monkeypatch.setattr(capture, "_TRY_AGAIN", 0.0)
    with recording(Capturing(directory=str(tmp_path), sync="always")) as recorder:
        ask(recorder, "a")
        until(lambda: not failures)
        ask(recorder, "b")
        until(lambda: recorder.counters().written == 2)
    assert [event.id for event in events_of(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(("sync", "least", "most"), [("never", 0, 0), ("interval", 1, 4), ("always", 5, 10)])
def test_the_disk_is_asked_to_keep_as_often_as_the_policy_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, least: int, most: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    began = time.monotonic()
    with recording(Capturing(directory=str(tmp_path), sync=sync)) as recorder:
        for number in range(5):
            ask(recorder, str(number))
            until(lambda number=number: recorder.counters().written == number + 1)
    seconds = time.monotonic() - began if sync == "interval" else 0.0  # it is asked once in each
    assert least <= len(calls) <= most + seconds


WRITING = """
    import sys, time
    from drivetrain.backends.serving.gateway.capture import open_recorder
    from drivetrain.backends.serving.gateway.settings import Capturing
    recorder = open_recorder(Capturing(directory=sys.argv[1], sync=sys.argv[2], segment=200_000), "flights")
    number = 0
    while True:
        while recorder.counters().queue > 5_000:  # a slow disk: what does not fit would be lost, and is not looked for here
            time.sleep(0.001)
        for _ in range(20):
            recorder.request(str(number), "r", "/predictions", "application/json", b"x" * 500, 1.7e9)
            number += 1
        time.sleep(0.001)
        print(recorder.counters().written, flush=True)
"""


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
def test_killed_while_writing_everything_that_was_counted_as_written_is_there(tmp_path: Path, sync: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITING), tmp_path, sync], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 2000:
            break
    process.send_signal(signal.SIGKILL)
    counted = [int(line) for line in process.stdout.read().splitlines() if line]
    process.wait(10)
    process.stdout.close()
    written = max(counted, default=2000)
    found = [event.id for event in events_of(tmp_path)]
    assert found == [str(number) for number in range(len(found))]
    assert len(found) >= written
    with recording(Capturing(directory=str(tmp_path))) as recorder:
        ask(recorder, "after")
    assert [event.id for event in events_of(tmp_path)] == [*found, "after"]


class Broker:
    """An HTTP server that keeps what it is sent, and answers with the next of `statuses` (200 when there is none left)."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[CloudEvent] = queue.SimpleQueue()
        self.raw: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.length = True
        broker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                broker.go.wait(15)
                status = broker.statuses.pop(0) if broker.statuses else 200
                if status == 200:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    broker.raw.append(headers)
                    broker.got.put(from_http(headers, body, data_unmarshaller=lambda data: data))
                self.send_response(status)
                if broker.length:
                    self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/broker/default"

    def next(self) -> CloudEvent:
        return self.got.get(timeout=WITHIN)

    def stop(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def broker() -> Iterator[Broker]:
    found = Broker()
    yield found
    found.stop()


def test_the_sink_gets_what_the_cloudevents_library_reads_as_kserves_events(broker: Broker) -> None:
    with recording(Capturing(sink=broker.address)) as recorder:
        ask(recorder, "prediction 1", b'{"input":"\xc3\xa9"}')
        request = broker.next()
        answer(recorder, "prediction 1")
        response = broker.next()
        until(lambda: recorder.counters().sent == 2)
    assert recorder.counters().unsent == 0
    assert request["specversion"] == "1.0"
    assert request["id"] == response["id"] == "prediction%201"
    assert request["type"] == "org.kubeflow.serving.inference.request"
    assert response["type"] == "org.kubeflow.serving.inference.response"
    assert request["time"] == "2023-11-14T22:13:20.250000Z"
    assert request["datacontenttype"] == "application/json"
    assert request.data == b'{"input":"\xc3\xa9"}'
    assert (request["inferenceservicename"], request["component"], request["metadata"]) == (
        "flights",
        "predictor",
        "{}",
    )
    assert (response["revision"], response["path"], response["status"], response["took"]) == (
        "flights-3", "/predictions", "200", "0.002100",
    )  # fmt: skip
    assert {"ce-source", "ce-recordedtime", "ce-namespace", "ce-endpoint"} <= broker.raw[0].keys()


def test_no_id_can_end_a_header_line(broker: Broker) -> None:
    with recording(Capturing(sink=broker.address)) as recorder:
        recorder.request("a\r\nCe-Type: b", "r\n", "/\r\n", "text/plain\r\nX: y", b"x", AT)
        found = broker.next()
    assert found["type"] == REQUEST
    assert found["id"] == "a%0D%0ACe-Type:%20b"
    assert "x" not in broker.raw[0]


def test_log_and_sink_get_the_same_events(tmp_path: Path, broker: Broker) -> None:
    with recording(Capturing(directory=str(tmp_path), sink=broker.address)) as recorder:
        for number in range(200):
            ask(recorder, str(number))
        until(lambda: recorder.counters().sent == 200)
    assert {broker.next()["id"] for _ in range(200)} == {event.id for event in events_of(tmp_path)}


def test_a_sink_that_is_busy_is_tried_again_and_one_that_refuses_is_not(broker: Broker) -> None:
    with recording(Capturing(sink=broker.address)) as recorder:
        broker.statuses = [503, 429]
        ask(recorder, "busy")
        assert broker.next()["id"] == "busy"
        broker.statuses = [400]
        ask(recorder, "refused")
        until(lambda: recorder.counters().unsent == 1)
        ask(recorder, "fine")
        assert broker.next()["id"] == "fine"
        until(lambda: recorder.counters().sent == 2)


def test_a_sink_that_hangs_holds_up_nothing_and_what_does_not_fit_is_counted(tmp_path: Path, broker: Broker) -> None:
    broker.go.clear()
    with recording(Capturing(directory=str(tmp_path), sink=broker.address, queue=100)) as recorder:
        for number in range(300):
            ask(recorder, str(number))
            until(lambda: recorder.counters().queue < 50)
        until(lambda: recorder.counters().written == 300)
        assert recorder.counters().unsent >= 300 - 100 - capture._PORTION
        before = time.monotonic()
        recorder.close(0.2)
        assert time.monotonic() - before < 12
        counters = recorder.counters()
        assert counters.sent + counters.unsent == 300
        broker.go.set()


def test_a_sink_that_hangs_is_kept_no_more_bytes_for_than_the_log(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "QUEUE_BYTES", 1_000_000)
    broker.go.clear()
    with recording(Capturing(directory=str(tmp_path), sink=broker.address)) as recorder:
        for number in range(50):
            ask(recorder, str(number), b"x" * 100_000)
            until(lambda number=number: recorder.counters().written == number + 1)
        assert recorder.counters().unsent == 40
        broker.go.set()
        until(lambda: recorder.counters().sent == 10)
        ask(recorder, "later", b"x" * 1_000_000)
        until(lambda: recorder.counters().sent == 11)
    assert recorder.counters().unsent == 40


def test_a_sink_that_is_not_there_yet_gets_what_still_waits(broker: Broker) -> None:
    port = broker.server.server_port
    broker.stop()
    with recording(Capturing(sink=f"http://127.0.0.1:{port}/")) as recorder:
        ask(recorder, "early")
        time.sleep(0.05)
        assert recorder.counters().sent == 0
    assert recorder.counters().unsent == 1, "all tries failed, or it was closed before"


@pytest.mark.parametrize("length", [True, False])
def test_a_sink_that_closes_its_connections_still_gets_everything_once(broker: Broker, length: bool) -> None:
    broker.length = length
    broker.server.RequestHandlerClass.protocol_version = "HTTP/1.0"  # type: ignore[attr-defined]
    with recording(Capturing(sink=broker.address)) as recorder:
        for number in range(30):
            ask(recorder, str(number))
        until(lambda: recorder.counters().sent == 30)
    assert recorder.counters().unsent == 0
    assert len(broker.raw) == 30


def test_the_reader_loads_nothing_heavy() -> None:
    found = subprocess.run(
        [
            sys.executable, "-c",
            "import sys; import drivetrain.backends.serving.gateway.captured; "
            "print([name for name in ('asyncio', 'ssl', 'numpy', 'httptools', 'uvloop') if name in sys.modules])",
        ],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"
