"""What a replica does when something breaks: every request gets an answer, no answer is wrong, and it recovers by itself."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.backends.serving.asking import NOT_RUN, metric, place_of, ready, until, worker_of
from tests.backends.serving.conftest import RUNNERS
from tests.backends.serving.servers import HOST, Server, in_background, message, running

ECHO = RUNNERS["echo"]
WAITING = RUNNERS["sleeping"]
HUNGRY = """
import resource
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        limit = 2 * 1024**3
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def run(self, size: int) -> int:
        return len(bytearray(size))
"""
GREEDY_SETUP = """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        raise MemoryError("the model does not fit")

    def run(self, x: float) -> float:
        return x
"""
DIES_IN_SETUP = """
import os
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        os._exit(7)

    def run(self, x: float) -> float:
        return x
"""


SECOND_HELD = ECHO.replace(
    "class Runner(BaseRunner):",
    """class Runner(BaseRunner):
    def setup(self) -> None:
        import pathlib, time
        held = pathlib.Path("begun").exists()
        pathlib.Path("begun").touch()
        while held and not pathlib.Path("go").exists():
            time.sleep(0.005)
""",
)
"""Its second worker is not set up before there is a file `go`."""


@dataclass
class Load:
    """Clients that ask one after another, each on a connection of its own, until told to stop."""

    server: Server
    clients: int = 8
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "a request got no answer"

    def _ask_on(self, number: int) -> None:
        connection = http.client.HTTPConnection(HOST, self.server.port, timeout=20)
        x = number * 1_000_000
        while not self._stop.is_set():
            x += 1
            try:
                self._ask(connection, x)
            except (OSError, http.client.HTTPException) as error:
                self.outcomes["lost"] += 1
                self.wrong.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, x: int) -> None:
        body = json.dumps({"input": {"x": x}, "id": str(x)})
        connection.request("POST", "/predictions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        told = json.loads(response.read())
        self.outcomes[str(response.status)] += 1
        if response.status == 200 and (told["output"], told["id"]) != (3 * x, str(x)):
            self.wrong.append(f"{x}: {told}")
        if response.status == 503:
            if response.headers[NOT_RUN] != "1":
                self.wrong.append(f"{x}: 503 that does not say that it was not run")
            time.sleep(0.02)


def test_a_worker_killed_under_load_loses_no_request_and_is_replaced(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, ECHO)) as server, Load(server) as load:
        for _ in range(3):
            before = load.outcomes["200"]
            until(lambda before=before: load.outcomes["200"] > before + 100)
            worker = worker_of(server)
            os.kill(worker, signal.SIGKILL)
            took = until(lambda worker=worker: worker_of(server) not in (0, worker) and ready(server))
            print(f"worker killed under load: ready again after {took:.2f} s")
        before = load.outcomes["200"]
        until(lambda: load.outcomes["200"] > before + 100)
        assert metric(server, "worker_deaths_total") == 3
    assert load.wrong == []
    assert set(load.outcomes) <= {"200", "500", "503"}
    assert load.outcomes["500"] <= 3  # what was being run, each time


def test_health_turns_unready_while_the_worker_is_gone_and_comes_back(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, SECOND_HELD)) as server:
        os.kill(worker_of(server), signal.SIGKILL)
        until(lambda: not ready(server))
        assert server.health() == "UNHEALTHY"
        assert server.get("/health-check").status == 200
        assert server.get("/v1/models/model").status == 503
        assert server.get("/v2/models/model/ready").status == 503
        assert server.get("/v2/health/live").status == 200
        assert server.get("/openapi.json").status == 200
        refused = server.predict({"x": 1})
        assert (refused.status, refused.headers["retry-after"], refused.headers[NOT_RUN]) == (503, "1", "1")
        kserve = server.request("POST", "/v1/models/model:predict", {"instances": [1.0]})
        assert (kserve.status, kserve.headers[NOT_RUN]) == (503, "1")
        assert metric(server, "ready") == 0
        (tmp_path / "go").touch()
        until(lambda: ready(server))
        assert server.predict({"x": 1}).json()["output"] == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [(GREEDY_SETUP, "MemoryError: the model does not fit"), (RUNNERS["broken"], "RuntimeError: model file is missing")],
)
def test_a_setup_that_raises_is_told_and_the_front_stays(tmp_path: Path, source: str, words: str) -> None:
    with running("replica", place_of(tmp_path, source), until=("SETUP_FAILED",)) as server:
        told = server.get("/health-check").json()
        assert told["setup"]["status"] == "failed"
        assert words in told["setup"]["logs"]
        assert server.predict({"x": 1}).status == 503
        assert not ready(server)
        assert server.get("/v2/health/live").status == 503
        assert words in server.log.read_text()
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_a_worker_that_always_dies_in_setup_is_given_up_after_a_few_chances(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, DIES_IN_SETUP), until=("DEFUNCT",)) as server:
        assert not ready(server)
        live = server.get("/v2/health/live")
        assert (live.status, live.json()) == (503, {"error": "Server is not live."})
        assert server.predict({"x": 1}).status == 503
        assert "exited with code 7" in server.get("/health-check").json()["setup"]["logs"]


def test_a_prediction_that_runs_out_of_memory_fails_alone(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, HUNGRY)) as server:
        worker = worker_of(server)
        reply = server.predict({"size": 3 * 1024**3})
        assert (reply.status, reply.json()["status"]) == (200, "failed")
        assert "MemoryError" in reply.json()["error"]
        assert server.predict({"size": 1000}).json()["output"] == 1000
        assert worker_of(server) == worker


def test_a_prediction_that_hangs_is_ended_and_those_that_wait_are_run_by_the_next_worker(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, WAITING), options=("--timeout", "5")) as server:
        hanging = in_background(server, "POST", "/predictions", {"input": {"seconds": 3600}})
        server.wait_for("BUSY")
        waiting = [
            in_background(server, "POST", "/predictions", {"input": {"seconds": 0, "x": x}}) for x in range(1, 4)
        ]
        began = time.monotonic()
        reply = hanging()
        assert (reply.status, reply.json()["status"]) == (504, "failed")
        assert "longer than 5 s" in reply.json()["error"]
        assert NOT_RUN not in reply.headers
        assert [wait().json()["output"] for wait in waiting] == [1, 2, 3]
        print(f"a hanging prediction: those behind it were answered after {time.monotonic() - began:.2f} s")
        server.wait_for("READY")


def test_clients_that_go_leave_nothing_behind(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, WAITING)) as server:
        body = json.dumps({"input": {"seconds": 3600}}).encode()
        head = {"content-type": "application/json"}
        for path, raw in (
            ("/predictions", body),
            ("/v1/models/model:predict", json.dumps({"instances": [{"seconds": 3600}]}).encode()),
        ):
            clients = []
            for number in range(10):
                client = socket.create_connection((HOST, server.port), 5)
                client.sendall(message("POST", path, head, raw))
                clients.append(client)
                until(lambda wanted=number + 1: metric(server, "in_flight") == wanted)
            for client in clients:
                client.close()
            took = until(lambda: metric(server, "in_flight") == 0)
            print(f"ten clients of {path} have gone: their predictions ended after {took:.2f} s")
        assert server.predict({"seconds": 0, "x": 5}).json()["output"] == 5
        assert metric(server, "worker_deaths_total") == 0
        assert metric(server, "requests_total", protocol="cog", outcome="canceled") == 10


def test_clients_that_send_slowly_hold_nobody_up_and_are_cut_off(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, ECHO)) as server:
        slow = [socket.create_connection((HOST, server.port), 30) for _ in range(50)]
        for client in slow:
            client.sendall(b"POST /predictions HTTP/1.1\r\nhost: x\r\n")
        began = time.monotonic()
        cut = set()
        while len(cut) < len(slow):
            assert time.monotonic() < began + 60, f"{len(slow) - len(cut)} slow clients are still connected"
            assert server.predict({"x": 1}).json()["output"] == 3
            for number, client in enumerate(slow):
                if number not in cut and not dribbles(client):
                    cut.add(number)
            time.sleep(0.2)
        print(f"slow clients were cut off after {time.monotonic() - began:.1f} s")
        for client in slow:
            client.close()


def dribbles(client: socket.socket) -> bool:
    """Sends a little more; False if the server has ended the connection."""
    try:
        client.sendall(b"x: y\r\n")
        client.setblocking(False)
        return client.recv(65536) != b"" and False
    except BlockingIOError:
        client.setblocking(True)
        return True
    except OSError:
        return False


def test_when_told_to_end_it_answers_everything_it_was_asked_and_exits_with_0(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, RUNNERS["held"])) as server:
        asked = [in_background(server, "POST", "/predictions", {"input": {"x": x}}) for x in range(12)]
        until(lambda: metric(server, "in_flight") == 12)
        idle = socket.create_connection((HOST, server.port), 60)
        began = time.monotonic()
        server.process.terminate()
        until(lambda: "ending" in server.log.read_text())
        (tmp_path / "go").touch()
        replies = [wait() for wait in asked]
        assert server.process.wait(20) == 0
        print(f"drained 12 requests and ended after {time.monotonic() - began:.2f} s")
        assert [reply.status for reply in replies] == [200] * 12
        assert sorted(reply.json()["output"] for reply in replies) == list(range(12))
        assert idle.recv(10) == b""
        idle.close()
        assert worker_of(server) == 0


def test_a_load_of_new_connections_loses_no_accepted_request_when_it_ends(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, ECHO)) as server:
        answered: Counter[int] = Counter()
        lost: list[str] = []
        refused = threading.Event()

        def ask() -> None:
            while not refused.is_set():
                try:
                    connection = socket.create_connection((HOST, server.port), 10)
                except ConnectionRefusedError:
                    refused.set()
                    return
                except ConnectionResetError:  # as below, before the call has returned
                    lost.append("reset")
                    continue
                with connection:
                    status = ask_once(connection)
                if status:
                    answered[status] += 1
                else:
                    lost.append("no answer")

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: answered[200] > 200)
        server.process.terminate()
        for thread in threads:
            thread.join(20)
        assert server.process.wait(20) == 0
        assert set(answered) == {200}
        # A connection that the kernel had completed, but that the server had not been handed when it closed its socket, is reset.
        assert len(lost) <= len(threads), lost
        print(f"ended under load: {answered[200]} answered, {len(lost)} reset before they were accepted")


def ask_once(connection: socket.socket) -> int:
    """The status of the answer; 0 if there is none."""
    answer = b""
    try:
        raw = message("POST", "/predictions", {"content-type": "application/json"}, b'{"input": {"x": 2}}')
        connection.sendall(raw)
        while piece := connection.recv(65536):
            answer += piece
    except OSError:
        return 0
    return int(answer.split(b" ")[1]) if answer else 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with running("replica", place_of(tmp_path, WAITING)) as server:
        asked = threading.Thread(target=_ask_in_vain, args=(server,))
        asked.start()
        server.wait_for("BUSY")
        worker = worker_of(server)
        server.process.terminate()
        until(lambda: "ending" in server.log.read_text())
        assert server.process.poll() is None
        server.process.terminate()
        assert server.process.wait(30) == 1
        asked.join(10)
        until(lambda: not Path(f"/proc/{worker}").exists())


def _ask_in_vain(server: Server) -> None:
    with pytest.raises((ConnectionError, OSError)):
        server.predict({"seconds": 3600})
