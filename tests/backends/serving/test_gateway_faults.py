"""Replicas and gateways killed, stopped and cut off under load: no request is lost without an error, and everything recovers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from drivetrain.backends.serving.gateway.settings import Scaling
from tests.backends.serving.gateways import Clients, Gateway, gone, running, start, wait_until
from tests.backends.serving.servers import HOST, message

Bundle = Callable[[str], Path]
TWO = Scaling(min=2, max=2)
FAILS_WHILE = """
from pathlib import Path
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        if Path("FILE").exists():
            raise RuntimeError("the disk is full")

    def run(self, x: float) -> float:
        return 3 * x
"""


def inputs(number: int) -> dict[str, Any]:
    return {"x": number, "y": 1}


def expected(number: int) -> float:
    return 3.0 * number + 1


def asking(gateway: Gateway, count: int = 4) -> Clients:
    return Clients(gateway.settings.port, inputs, expected, count)


def all_processes(gateway: Gateway) -> list[int]:
    """The gateway's children, and theirs."""
    return [process.pid for process in psutil.Process(gateway.process.pid).children(recursive=True)]


def _replaced(gateway: Gateway, victim: int) -> bool:
    """Whether there are two replicas that answer, and that one is none of them."""
    fronts = {process.pid for process in gateway.replicas()}
    return len(fronts) == 2 and victim not in fronts and gateway.revision("one")["ready"] == 2


def test_a_killed_replica_costs_the_requests_it_had_one_clear_error_each(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home", scaling=TWO) as gateway:
        gateway.serve("one", bundle("echo"))
        wait_until(lambda: gateway.revision("one")["ready"] == 2)
        with asking(gateway) as clients:
            for _ in range(3):
                clients.wait_for(100)
                victim = gateway.replicas()[0].pid
                os.kill(victim, signal.SIGKILL)
                back = wait_until(lambda: _replaced(gateway, victim))  # noqa: B023
                print(f"2 replicas again {back:.2f} s after one was killed")
            clients.wait_for(100)
        assert clients.wrong == []
        assert len(clients.errors) <= 3 * 4
        assert all("broke off; whether the prediction was run is not known" in error for error in clients.errors)


def test_while_the_only_replica_is_started_again_requests_wait(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", bundle("echo"))
        gateway.replicas()[0].kill()
        began = time.monotonic()
        found = [gateway.predict(x=2) for _ in range(3)]
        print(f"an answer {time.monotonic() - began:.2f} s after the only replica was killed")
        assert found[-1].status == 200
        assert all(reply.status in (200, 502) for reply in found)


def test_a_replica_that_hangs_is_taken_out_and_replaced(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home", scaling=TWO) as gateway:
        gateway.serve("one", bundle("echo"))
        wait_until(lambda: gateway.revision("one")["ready"] == 2)
        hung = gateway.replicas()[0]
        with asking(gateway) as clients:
            clients.wait_for(50)
            hung.send_signal(signal.SIGSTOP)
            out = wait_until(lambda: gateway.revision("one")["ready"] == 1)
            clients.wait_for(50)
            back = wait_until(lambda: gone([hung.pid]) and gateway.revision("one")["ready"] == 2)
            clients.wait_for(50)
        print(f"a hung replica was out of traffic after {out:.1f} s, and replaced after {out + back:.1f} s")
        assert clients.wrong == []
        assert len(clients.errors) <= 4
        assert all("broke off" in error for error in clients.errors)


def test_a_worker_that_dies_costs_one_error_and_the_next_requests_wait_for_the_new_one(
    tmp_path: Path, bundle: Bundle
) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", bundle("crashing"))
        died = gateway.predict(how="kill")
        assert died.status == 500 or died.json()["status"] == "failed"
        began = time.monotonic()
        assert gateway.predict(x=5).json()["output"]["x"] == 5
        print(f"an answer {time.monotonic() - began:.2f} s after the worker was killed")


def test_a_replica_that_gives_its_model_up_after_serving_is_replaced_until_the_model_loads_again(
    tmp_path: Path, bundle: Bundle
) -> None:
    full = tmp_path / "full"
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", bundle(FAILS_WHILE.replace("FILE", str(full))))
        assert gateway.predict(x=2).json()["output"] == 6
        (front,) = gateway.replicas()
        full.touch()
        for worker in front.children():
            worker.kill()
        wait_until(lambda: "it has given up: RuntimeError: the disk is full" in gateway.text(), 60)
        wait_until(lambda: gone([front.pid]), 60)
        found = gateway.predict(x=2)
        assert (found.status, "the disk is full" in found.json()["error"]) == (503, True)
        full.unlink()
        back = wait_until(lambda: gateway.predict(x=2).status == 200, 60)
        assert gateway.revision("one")["ready"] == 1
        print(f"an answer {back:.2f} s after the model could be loaded again")


def test_a_gateway_killed_leaves_no_process_and_comes_back_with_the_same_routes(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        assert gateway.deploy("new", place).status == 200
        assert gateway.route(old=75, new=25, sticky="x-user").status == 200
        before = gateway.status()
        sockets = Path(json.loads((tmp_path / "home" / "echo.routes.json").read_text())["sockets"])
        pids = all_processes(gateway)
        assert len(pids) >= 4
        gateway.kill()
        took = wait_until(lambda: gone(pids))
        began = time.monotonic()
        again = start(gateway.file)
        try:
            assert again.predict(x=2).json()["output"] == 6
            back = time.monotonic() - began
            wait_until(lambda: again.status() == before)
            assert not sockets.exists()
        finally:
            again.kill()
        print(f"its processes were gone after {took:.2f} s; an answer {back:.2f} s after it was started again")


def test_sigterm_lets_requests_under_way_finish_and_ends_everything(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as gateway:
        place = bundle("held")
        gateway.serve("one", place)
        pids = all_processes(gateway)
        client = _begin(gateway, {"x": 7})
        wait_until(lambda: gateway.metrics()['drivetrain_gateway_in_flight{revision="one"}'] == 1)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "ending" in gateway.text())
        (place / "go").touch()
        answer = _rest(client)
        assert b" 200 " in answer.partition(b"\r\n")[0]
        assert b'"output":7' in answer
        assert gateway.process.wait(20) == 0
        assert gone(pids)


def test_sigterm_twice_ends_everything_at_once(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", bundle("sleeping"))
        pids = all_processes(gateway)
        client = _begin(gateway, {"seconds": 3600.0})
        wait_until(lambda: gateway.metrics()['drivetrain_gateway_in_flight{revision="one"}'] == 1)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "ending" in gateway.text())
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 1
        wait_until(lambda: gone(pids))
        assert _rest(client) == b""


def test_clients_that_go_and_clients_that_are_slow_hold_up_nobody(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", bundle("echo"))
        head = message("POST", "/predictions", {"content-type": "application/json", "content-length": "30"}, b"")
        slow = [socket.create_connection((HOST, gateway.settings.port)) for _ in range(50)]
        for client in slow:
            client.sendall(head + b'{"input"')
        with asking(gateway, 2) as clients:
            for _ in range(50):
                _begin(gateway, {"x": 1}).close()
            clients.wait_for(200)
        assert clients.errors == []
        assert clients.wrong == []
        for client in slow:
            client.close()
        wait_until(lambda: gateway.metrics()['drivetrain_gateway_in_flight{revision="one"}'] == 0)


def test_a_bundle_that_is_gone_when_the_gateway_comes_back_is_one_clear_error(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("one", place)
        gateway.kill()
        source = (place / "run.py").read_text()
        (place / "run.py").unlink()
        again = start(gateway.file)
        try:
            found = again.predict(x=1)
            assert found.status == 503
            assert "revision one does not come up" in found.json()["error"]
            assert again.revision("one")["state"] == "failed"
            assert again.request("GET", "/health-check").json()["status"] == "SETUP_FAILED"
            (place / "run.py").write_text(source)
            back = wait_until(lambda: again.predict(x=1).status == 200)
            print(f"an answer {back:.2f} s after the bundle was mended")
        finally:
            again.kill()


def test_state_that_is_no_state_is_one_clear_error(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.kill()
        (tmp_path / "home" / "echo.routes.json").write_text("{")
        process = _started(gateway)
        assert process.wait(20) == 1
        assert "echo.routes.json is not a gateway's state" in gateway.text()


def test_a_change_that_cannot_be_written_down_is_refused_and_not_made(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        assert gateway.deploy("new", place).status == 200
        # Where the next state would be written there is something else.
        (tmp_path / "home" / f".echo.routes.json.{gateway.process.pid}").mkdir()
        before = gateway.status()
        for found in (gateway.route(new=100), gateway.deploy("third", place), gateway.admin("DELETE", "revisions/new")):
            assert found.status == 500
            assert "cannot be written" in found.json()["error"]
        assert gateway.status() == before
        assert gateway.predict(x=2).headers["x-drivetrain-revision"] == "old"
        wait_until(lambda: len(gateway.replicas()) == 2)


def _started(gateway: Gateway) -> Any:
    with gateway.log.open("ab") as log:
        command = [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(gateway.file)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ))


def _begin(gateway: Gateway, asked: dict[str, Any]) -> socket.socket:
    """Sends a request without waiting for its answer."""
    client = socket.create_connection((HOST, gateway.settings.port), 60)
    body = json.dumps({"input": asked}).encode()
    client.sendall(message("POST", "/predictions", {"content-type": "application/json"}, body))
    return client


def _rest(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))
