"""Deployments that are cut off, that fail, and that meet another; swaps under load; what must not be seen."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from drivetrain.backends.serving import Endpoint, alive, process
from drivetrain.backends.serving.control import Control
from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.settings import LookingUp, Scaling
from drivetrain.backends.serving.local import LocalServing
from drivetrain.errors import ServingError
from tests.backends.serving.gateways import Clients
from tests.backends.serving.services import (
    HOST,
    RUNNER,
    bundle,
    children,
    constant,
    end_everything,
    eventually,
    runs,
    settings,
    started,
)
from tests.ports import free_port

NOT_TO_BE_OPENED = LookingUp("nowhere:nothing", {})
"""With this no gateway comes up."""
TRIPLE = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, distance: float) -> float:
        time.sleep(0.005)
        return 3 * distance
"""


def ask(serving: LocalServing, name: str = "one") -> Any:
    endpoint = serving.find(name)
    assert endpoint is not None
    return serving.predict(endpoint, {"distance": 1}, "p", 60.0)["output"]


def gateways(state: Path, name: str) -> list[int]:
    """Every gateway of the service that runs, recorded or not."""
    file = str(state / "serving" / f"{name}.started.json")
    return [
        found.pid
        for found in psutil.process_iter(["cmdline"])
        if found.info["cmdline"] and found.info["cmdline"][-1] == file
    ]


@pytest.mark.parametrize("fixed", [True, False])
def test_settings_with_which_no_gateway_comes_up_leave_the_former_one_serving(
    serving: LocalServing, state: Path, tmp_path: Path, fixed: bool
) -> None:
    wanted = settings(state, "one", free_port() if fixed else 0)
    source = bundle(tmp_path / "1", constant(1))
    before = serving.deploy(wanted, "one-1", source, RUNNER)
    with pytest.raises(ServingError) as caught:
        serving.deploy(replace(wanted, lookup=NOT_TO_BE_OPENED), "one-2", source, RUNNER)
    assert "nowhere:nothing cannot be opened" in caught.value.message
    assert f"serves {'again' if fixed else 'on'} at {before.url}" in caught.value.message
    eventually(lambda: serving.find("one"))
    assert ask(serving) == 1
    assert len(gateways(state, "one")) == 1
    assert serving.deploy(wanted, "one-1", source, RUNNER).url == before.url
    assert serving.stop("one")
    assert gateways(state, "one") == []


@pytest.mark.parametrize("fixed", [True, False])
def test_changed_settings_hand_the_grpc_port_over_whatever_becomes_of_the_other(
    serving: LocalServing, state: Path, tmp_path: Path, fixed: bool
) -> None:
    ports = [free_port() for _ in range(3)]
    source = bundle(tmp_path / "1", constant(1))
    wanted = settings(state, "one", ports[0] if fixed else 0, grpc_port=ports[1])
    before = serving.deploy(wanted, "one-1", source, RUNNER)
    after = serving.deploy(replace(wanted, port=ports[2] if fixed else 0, timeout=50.0), "one-1", source, RUNNER)
    assert after.pid != before.pid
    assert not runs(before.pid)
    assert not process.is_free(HOST, ports[1])
    with pytest.raises(ServingError, match="serves again") as caught:
        serving.deploy(replace(wanted, port=0, lookup=NOT_TO_BE_OPENED), "one-1", source, RUNNER)
    assert "nowhere:nothing cannot be opened" in caught.value.message
    eventually(lambda: serving.find("one"))
    assert ask(serving) == 1
    assert not process.is_free(HOST, ports[1])


def test_a_grpc_port_that_another_process_holds_is_named_and_ends_nothing(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    source = bundle(tmp_path / "1", constant(1))
    before = serving.deploy(settings(state, "one"), "one-1", source, RUNNER)
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            serving.deploy(settings(state, "one", grpc_port=port), "one-1", source, RUNNER)
    assert f"port {port} of {HOST} is taken by process {os.getpid()}" in caught.value.message
    assert caught.value.hint == "end that process, or set `serving.grpc_port` to another port"
    assert runs(before.pid)
    assert ask(serving) == 1


def test_two_deployments_at_a_time_make_one_service(serving: LocalServing, state: Path, tmp_path: Path) -> None:
    found: list[Endpoint] = []

    def deploy(number: int) -> None:
        source = bundle(tmp_path / str(number), constant(number))
        found.append(
            LocalServing(state, ready_within=60).deploy(settings(state, "one"), f"one-{number}", source, RUNNER)
        )

    threads = [threading.Thread(target=deploy, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert len({endpoint.pid for endpoint in found}) == 1
    assert len(gateways(state, "one")) == 1
    last = found[-1].revision
    assert (serving.status("one").endpoint.revision, ask(serving)) == (last, int(last[-1]))


def test_a_gateway_that_nobody_knows_of_any_more_is_ended_by_the_next_deployment(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    source = bundle(tmp_path / "1", constant(1))
    lost = serving.deploy(settings(state, "one"), "one-1", source, RUNNER)
    below = children(lost.pid)
    # As a command leaves it that is killed after it has started another gateway, and before it has ended this one.
    alive.record_path(state, "one").unlink()
    again = serving.deploy(settings(state, "one"), "one-1", source, RUNNER)
    assert gateways(state, "one") == [again.pid]
    eventually(lambda: not any(runs(pid) for pid in below))
    assert ask(serving) == 1


def test_a_service_keeps_its_bundles_when_another_of_the_project_is_deployed(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    serving.deploy(settings(state, "one"), "one-1", bundle(tmp_path / "1", constant(1)), RUNNER)
    serving.deploy(settings(state, "two"), "two-1", bundle(tmp_path / "2", constant(2)), RUNNER)
    assert sorted(path.name for path in (state / "serving/bundles").iterdir()) == ["one-1", "two-1"]
    assert list(serving.running()) == ["one", "two"]


def test_a_deployment_whose_switch_fails_takes_its_revision_back(
    serving: LocalServing, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(state, "one")
    serving.deploy(wanted, "one-1", bundle(tmp_path / "1", constant(1)), RUNNER)

    def fail(control: Control, traffic: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        raise ServingError("it does not answer")

    second = bundle(tmp_path / "2", constant(2))
    with monkeypatch.context() as patched:
        patched.setattr(Control, "route", fail)
        with pytest.raises(ServingError, match="does not answer"):
            serving.deploy(wanted, "one-2", second, RUNNER)
    assert [entry.revision for entry in serving.status("one").revisions] == ["one-1"]
    assert [path.name for path in (state / "serving/bundles").iterdir()] == ["one-1"]
    assert ask(serving) == 1


def test_a_service_that_sleeps_still_has_a_new_revision_answer_its_example(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    wanted = settings(state, "one", scaling=Scaling(min=0, max=1, window=6.0, grace=0.0))
    serving.deploy(wanted, "one-1", bundle(tmp_path / "1", constant(1)), RUNNER, {"distance": 1})
    eventually(lambda: serving.status("one").revisions[0].state == "asleep", 60.0)
    broken = constant(2).replace("return 2", "raise ValueError('no such carrier')")
    with pytest.raises(ServingError, match="no such carrier"):
        serving.deploy(wanted, "one-2", bundle(tmp_path / "2", broken), RUNNER, {"distance": 1})
    assert ask(serving) == 1


def test_the_token_is_in_its_file_alone(
    serving: LocalServing, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_SERVICE", "a-token")  # what `settings` writes into the token's file
    endpoint = serving.deploy(settings(state, "one"), "one-1", bundle(tmp_path / "1", constant(1)), RUNNER)
    serving.feedback(endpoint, "p", ask(serving))
    pids = [endpoint.pid, *children(endpoint.pid)]
    assert len(pids) >= 3
    for pid in pids:
        for what in ("environ", "cmdline"):
            assert b"a-token" not in Path(f"/proc/{pid}/{what}").read_bytes()
    serving.stop("one")
    seen = [path for path in state.rglob("*") if path.is_file() and b"a-token" in path.read_bytes()]
    assert [path.name for path in seen] == ["one.token"]


def test_swapping_scaling_and_rolling_back_under_load_fails_no_request(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    wanted = settings(state, "one", free_port(), scaling=Scaling(min=1, max=2, target=2.0, window=6.0))
    places = {number: bundle(tmp_path / str(number), TRIPLE) for number in (1, 2)}

    def deploy(number: int) -> float:
        began = time.monotonic()
        serving.deploy(wanted, f"one-{number}", places[number], RUNNER, {"distance": 1})
        return time.monotonic() - began

    deploy(1)
    with Clients(wanted.port, lambda number: {"distance": number}, lambda number: 3.0 * number, 6) as clients:
        clients.wait_for(50)
        eventually(lambda: serving.status("one").revisions[0].ready == 2)
        times = []
        for number in (2, 1):
            times.append(deploy(number))
            assert serving.status("one").endpoint.revision == f"one-{number}"
            clients.wait_for(50)
        serving.route("one", {"one-1": 50, "one-2": 50})
        clients.wait_for(100)
        (replica, *_) = psutil.Process(started(state)[0].pid).children()
        replica.kill()
        killed = time.monotonic()
        eventually(lambda: any(entry.ready < entry.wanted for entry in serving.status("one").revisions))
        eventually(lambda: all(entry.ready == entry.wanted for entry in serving.status("one").revisions))
        recovered = time.monotonic() - killed
        clients.wait_for(50)
        serving.route("one", {"one-2": 100})
        clients.wait_for(50)
    print(
        f"swap {times[0]:.2f} s, rollback {times[1]:.2f} s, a killed replica is replaced in {recovered:.2f} s;"
        f" {clients.total} requests, slowest {clients.slowest:.2f} s"
    )
    assert clients.wrong == []
    # What the killed replica had in hand: whether it was run is not known, and each caller is told so.
    assert all("broke off" in error for error in clients.errors)
    assert len(clients.errors) <= 6
    assert serving.stop("one")
    asked = [event.id for _, event in captured.read(state / "serving/one.capture") if event.type.endswith(".request")]
    assert len(set(asked)) == clients.total


def test_a_gateway_that_was_killed_is_restored_with_its_traffic_and_one_that_was_stopped_is_not(tmp_path: Path) -> None:
    state = tmp_path / "state"
    serving = LocalServing(state, ready_within=60)
    try:
        wanted = settings(state, "again")
        for number in (1, 2):
            serving.deploy(wanted, f"again-{number}", bundle(tmp_path / f"b{number}", constant(number)), RUNNER)
        serving.route("again", {"again-1": 30, "again-2": 70})
        assert serving.restore("again") is None, "it lives"
        before = serving.find("again")
        assert before is not None
        os.kill(before.pid, signal.SIGKILL)
        eventually(lambda: not runs(before.pid))
        port = int(before.url.rpartition(":")[2])
        is_free = process.is_free("127.0.0.1", port)  # any client of this machine may have it, and leave it again
        after = serving.restore("again")
        assert after is not None
        assert after.revision == "again-2"
        assert after.url == before.url or not is_free
        assert {entry.revision: entry.weight for entry in serving.status("again").revisions} == {
            "again-1": 30,
            "again-2": 70,
        }
        serving.stop("again")
        assert serving.restore("again") is None
    finally:
        end_everything(state)
