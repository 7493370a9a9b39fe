"""Cog's own server, started and ended for real: every test here talks to real processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from drivetrain.backends.serving import alive, process
from drivetrain.backends.serving.alive import Server
from drivetrain.backends.serving.local import LocalServing, open_serving
from drivetrain.errors import ServingError, StageError
from drivetrain.records import Artifact, DeployOutputs, Reference

RUNNER = "run.py:Runner"
HOST = "127.0.0.1"
IDS = map(str, itertools.count())
TYPED = """
import os, time
from cog import BaseRunner, Input

class Runner(BaseRunner):
    def setup(self) -> None:
        self.pid = os.getpid()

    def run(
        self,
        distance: float = Input(description="miles", ge=0),
        carrier: str = Input(default="AA", choices=["AA", "UA"]),
        action: str = "",
        seconds: float = 0.0,
    ) -> dict:
        time.sleep(seconds)
        if action == "raise":
            raise ValueError("no such carrier")
        if action == "die":
            os._exit(3)
        return {"delay": distance / 10, "carrier": carrier, "pid": self.pid}
"""
BROKEN = """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        raise RuntimeError("model file is missing")

    def run(self, distance: float) -> float:
        return distance
"""
CONSTANT = """
import subprocess
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"])

    def run(self, distance: float) -> int:
        return NUMBER
"""
SLOW = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        time.sleep(60)

    def run(self, distance: float) -> float:
        return distance
"""


def constant(number: int) -> str:
    return CONSTANT.replace("NUMBER", str(number))


def bundle(place: Path, source: str, inputs: dict[str, str] | None = None) -> Path:
    """A bundle with that runner and a schema of `inputs` (name: JSON type, all required)."""
    (place / ".cog").mkdir(parents=True)
    (place / "run.py").write_text(source)
    inputs = inputs or {"distance": "number"}
    properties = {name: {"type": kind} for name, kind in inputs.items()}
    schemas = {"Input": {"type": "object", "properties": properties, "required": list(inputs)}, "Output": {}}
    (place / ".cog/openapi_schema.json").write_text(json.dumps({"components": {"schemas": schemas}}))
    return place


def eventually(condition: Callable[[], object], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def group_members(group: int) -> list[int]:
    """The processes of a group that still run."""
    listing = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(pid) for pid, of, state in rows if int(of) == group and not state.startswith("Z")]


def started(state: Path) -> list[Server]:
    """Every server that the state directory has a record of."""
    return [server for path in (state / "serving").glob("*.json") if (server := alive.read(path))]


def end_everything(state: Path) -> None:
    for server in started(state):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.group, signal.SIGKILL)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    end_everything(tmp_path / "state")


@pytest.fixture
def serving(state: Path) -> LocalServing:
    return LocalServing(state, ready_within=60)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServing, Path]]:
    """One server with typed inputs, for the tests that leave it as it is; its schema is the one made from the runner."""
    place = tmp_path_factory.mktemp("typed")
    serving = LocalServing(place / "state", ready_within=60)
    source = bundle(place / "bundle", TYPED)
    (source / ".cog/openapi_schema.json").write_text(json.dumps(serving.schema(source, RUNNER)))
    serving.deploy("typed", "typed-1", source, RUNNER, HOST, 0)
    yield serving, place
    end_everything(place / "state")


def ask(serving: LocalServing, name: str = "typed", timeout: float = 30.0, **inputs: object) -> object:
    endpoint = serving.find(name)
    assert endpoint is not None
    return serving.predict(endpoint, inputs, next(IDS), timeout)["output"]


def test_a_deployed_runner_answers(typed: tuple[LocalServing, Path]) -> None:
    answer = ask(typed[0], distance=120.0)
    assert isinstance(answer, dict)
    assert (answer["delay"], answer["carrier"]) == (12.0, "AA")


def test_refused_inputs_name_every_field(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError) as caught:
        ask(typed[0], distance=-1, carrier="ZZ")
    assert "distance: -1 is less than the minimum" in caught.value.message
    assert "carrier:" in caught.value.message


def test_a_missing_input_is_named(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match="distance: Field required"):
        ask(typed[0])


def test_an_exception_in_the_runner_is_an_error_with_its_message(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match="the prediction failed: ValueError: no such carrier"):
        ask(typed[0], distance=1, action="raise")


def test_a_hundred_predictions_in_a_row_are_all_answered(typed: tuple[LocalServing, Path]) -> None:
    serving, _ = typed
    answers = [ask(serving, distance=number) for number in range(100)]
    assert [answer["delay"] for answer in answers if isinstance(answer, dict)] == [n / 10 for n in range(100)]


def test_a_prediction_waits_for_a_busy_server(typed: tuple[LocalServing, Path]) -> None:
    serving, _ = typed
    endpoint = serving.find("typed")
    assert endpoint is not None
    long: list[object] = []
    talk = partial(serving.predict, endpoint, timeout=30)
    thread = threading.Thread(target=lambda: long.append(talk({"distance": 1, "seconds": 0.8}, "long")))
    thread.start()
    try:
        server = alive.read(alive.record_path(typed[1] / "state", "typed"))
        assert server is not None
        eventually(lambda: alive.health(server).get("status") == "BUSY")
        assert serving.find("typed") is not None, "a busy server is alive"
        with pytest.raises(ServingError, match="no free slot"):
            ask(serving, distance=2, timeout=0.05)
        with pytest.raises(ServingError, match="still running"):
            serving.predict(server.endpoint, {"distance": 2}, "long", 5)
        assert ask(serving, distance=2) is not None
    finally:
        thread.join()
    assert len(long) == 1


def test_an_answer_that_takes_too_long_is_an_error(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match="no answer within"):
        ask(typed[0], distance=1, seconds=0.6, timeout=0.2)


def test_the_same_revision_deployed_again_is_left_alone(typed: tuple[LocalServing, Path]) -> None:
    serving, place = typed
    before = serving.find("typed")
    after = open_serving(place / "state").deploy("typed", "typed-1", place / "bundle", RUNNER, HOST, 0)
    assert after == before


def test_a_cached_deployment_holds_while_its_revision_answers(typed: tuple[LocalServing, Path]) -> None:
    payload = {"state": str(typed[1] / "state"), "name": "typed"}
    outputs = [
        DeployOutputs(Reference("revision", name), Artifact("bundle", "0", 0)) for name in ("typed-1", "typed-2")
    ]
    assert [alive.still_holds(payload, each) for each in outputs] == [True, False]
    assert not alive.still_holds({**payload, "name": "other"}, outputs[0])


def test_asking_who_serves_imports_no_http_library(typed: tuple[LocalServing, Path]) -> None:
    code = (
        "import sys, pathlib\n"
        "from drivetrain.backends.serving import alive\n"
        f"assert alive.find(pathlib.Path({str(typed[1] / 'state')!r}), 'typed')\n"
        "print([m for m in ('http.client', 'subprocess', 'ssl', 'psutil', 'cog', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_runner_whose_setup_raises_leaves_the_old_revision_serving(typed: tuple[LocalServing, Path]) -> None:
    serving, place = typed
    before = serving.find("typed")
    with pytest.raises(ServingError) as caught:
        serving.deploy("typed", "typed-2", bundle(place / "broken", BROKEN), RUNNER, HOST, 0)
    assert "setup failed: RuntimeError: model file is missing" in caught.value.message
    assert "Worker initialization failed" in caught.value.message, "the end of the log"
    assert serving.find("typed") == before
    assert ask(serving, distance=1)
    assert len(started(place / "state")) == 1
    assert not (place / "state/serving/bundles/typed-2").exists()


def test_a_revision_that_does_not_answer_its_first_request_leaves_the_old_one_serving(
    typed: tuple[LocalServing, Path],
) -> None:
    serving, place = typed
    before = serving.find("typed")
    with pytest.raises(ServingError, match=r"did not answer its first request: .*no such carrier"):
        serving.deploy(
            "typed", "typed-3", place / "bundle", RUNNER, HOST, 0, example={"distance": 1, "action": "raise"}
        )
    assert serving.find("typed") == before
    assert len(started(place / "state")) == 1


def test_a_server_that_is_not_ready_in_time_is_ended(state: Path, tmp_path: Path) -> None:
    serving = LocalServing(state, ready_within=1.5, stopped_within=0.5)
    with pytest.raises(ServingError, match=r"not ready within 1\.5 s"):
        serving.deploy("slow", "slow-1", bundle(tmp_path / "slow", SLOW), RUNNER, HOST, 0)
    assert started(state) == []
    assert serving.find("slow") is None


def test_a_new_revision_takes_the_fixed_port_and_stopping_leaves_no_process(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    port = process.free_port(HOST)
    first = serving.deploy("one", "one-1", bundle(tmp_path / "1", constant(1)), RUNNER, HOST, port, {"distance": 1})
    old = started(state)
    assert ask(serving, "one", distance=1) == 1
    second = serving.deploy("one", "one-2", bundle(tmp_path / "2", constant(2)), RUNNER, HOST, port, {"distance": 1})
    assert (first.url, second.url) == (f"http://{HOST}:{port}",) * 2
    assert ask(serving, "one", distance=1) == 2
    assert group_members(old[0].group) == []
    (now,) = started(state)
    assert now.former == "one-1"
    assert len(group_members(now.group)) == 3, "server, worker, and the worker's own child"
    assert serving.stop("one")
    assert group_members(now.group) == []
    assert serving.find("one") is None
    assert not serving.stop("one")


def test_if_the_new_revision_fails_on_the_fixed_port_the_old_one_is_brought_back(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    port = process.free_port(HOST)
    serving.deploy("one", "one-1", bundle(tmp_path / "1", constant(1)), RUNNER, HOST, port)
    fussy = BROKEN.replace("raise", f"import os\n        if os.environ['PORT'] == '{port}':\n            raise")
    with pytest.raises(ServingError, match="model file is missing"):
        serving.deploy("one", "one-2", bundle(tmp_path / "2", fussy), RUNNER, HOST, port)
    endpoint = serving.find("one")
    assert endpoint is not None
    assert (endpoint.revision, endpoint.url) == ("one-1", f"http://{HOST}:{port}")
    assert ask(serving, "one", distance=1) == 1
    (now,) = started(state)
    assert serving.stop("one")
    assert group_members(now.group) == []


def test_a_port_that_another_process_holds_is_named_with_that_process(serving: LocalServing, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            serving.deploy("one", "one-1", bundle(tmp_path / "1", constant(1)), RUNNER, HOST, port)
    assert f"port {port} of {HOST} is taken by process {os.getpid()}" in caught.value.message
    assert "serving.port: 0" in caught.value.hint


def test_an_address_of_another_machine_is_refused(serving: LocalServing, tmp_path: Path) -> None:
    source = bundle(tmp_path / "1", constant(1))
    for port in (0, 5000):
        with pytest.raises(ServingError, match="cannot listen on 192"):
            serving.deploy("one", "one-1", source, RUNNER, "192.0.2.1", port)


def test_a_crashed_worker_is_no_endpoint_and_a_deployment_mends_it(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    source = bundle(tmp_path / "1", TYPED, {"distance": "number"})
    schema = json.loads((source / ".cog/openapi_schema.json").read_text())
    schema["components"]["schemas"]["Input"]["properties"]["action"] = {"type": "string"}
    (source / ".cog/openapi_schema.json").write_text(json.dumps(schema))
    endpoint = serving.deploy("one", "one-1", source, RUNNER, HOST, 0)
    with pytest.raises(ServingError, match="Worker crashed"):
        serving.predict(endpoint, {"distance": 1, "action": "die"}, "p1", 10)
    eventually(lambda: serving.find("one") is None)
    with pytest.raises(ServingError, match="cannot predict any more") as caught:
        serving.predict(endpoint, {"distance": 1}, "p2", 10)
    assert "deploy again" in caught.value.hint
    crashed = started(state)
    again = serving.deploy("one", "one-1", source, RUNNER, HOST, 0)
    assert serving.find("one") == again
    assert group_members(crashed[0].group) == []


def test_a_deployment_killed_halfway_leaves_nothing_behind_after_the_next(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    slow = bundle(tmp_path / "slow", SLOW)
    code = (
        "import sys, pathlib\n"
        "from drivetrain.backends.serving.local import open_serving\n"
        "open_serving(pathlib.Path(sys.argv[1])).deploy('one', 'one-1', pathlib.Path(sys.argv[2]), 'run.py:Runner', '127.0.0.1', 0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(state), str(slow)]) as deployment:
        eventually(lambda: started(state))
        deployment.kill()
    (abandoned,) = started(state)
    assert alive.is_alive(abandoned), "it outlives whoever started it"
    LocalServing(state, stopped_within=0.5).stop("one")
    assert group_members(abandoned.group) == []
    assert started(state) == []


def test_a_process_that_was_given_the_same_id_later_is_not_taken_for_the_server(tmp_path: Path) -> None:
    mine = Server("one", "one-1", RUNNER, HOST, 1, os.getpid(), os.getpgrp(), alive.start_time(os.getpid()))
    other = Server("one", "one-1", RUNNER, HOST, 1, os.getpid(), os.getpgrp(), "1")
    assert (alive.is_alive(mine), alive.is_alive(other)) == (True, False)
    assert not process.end(other, 0.1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "one"}'])
def test_a_damaged_record_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving/one.json").write_text(text)
    assert alive.find(tmp_path, "one") is None


def test_the_schema_says_what_cog_says_of_the_inputs(
    serving: LocalServing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    source = bundle(tmp_path / "1", 'print("hello from the import")\n' + TYPED)
    document = serving.schema(source, RUNNER)
    schemas = document["components"]["schemas"]
    assert schemas["Input"]["required"] == ["distance"]
    assert schemas["Input"]["properties"]["distance"] == {
        "title": "Distance", "type": "number", "description": "miles", "minimum": 0.0, "x-order": 0,
    }  # fmt: skip
    assert schemas["Input"]["properties"]["carrier"]["default"] == "AA"
    assert schemas["carrier"]["enum"] == ["AA", "UA"]
    assert schemas["Output"] == {"title": "Output", "type": "object"}
    assert "/predictions" in document["paths"]
    assert serving.schema(source, RUNNER) == document
    assert not list(source.rglob("*.pyc")), "nothing is left in the bundle"


INPUTS = """
from typing import Optional
from cog import BaseRunner, Input, Path, Secret

class Runner(BaseRunner):
    def run(
        self,
        rows: list[dict],
        key: Secret = Input(default="hunter2"),
        weights: Path = Input(default="weights.bin"),
        limit: Optional[int] = Input(default=None, le=10),
        seed: int = Input(default=None),
        name: str = Input(default="a", min_length=1, max_length=5, regex="[a-z]+", deprecated=True),
    ) -> list[float]:
        return []
"""


def test_optional_inputs_and_defaults_are_as_cog_has_them_and_a_secret_is_not_shown(
    serving: LocalServing, tmp_path: Path
) -> None:
    document = serving.schema(bundle(tmp_path / "1", INPUTS), RUNNER)
    found = document["components"]["schemas"]["Input"]
    assert found["required"] == ["rows", "seed"]
    assert found["properties"]["rows"]["items"] == {"type": "object"}
    assert found["properties"]["weights"]["default"] == "weights.bin"
    assert found["properties"]["limit"]["nullable"]
    assert found["properties"]["name"]["pattern"] == "[a-z]+"
    assert document["components"]["schemas"]["Output"]["items"] == {"type": "number"}
    assert "hunter2" not in json.dumps(document)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nosuchmodule", "No module named 'nosuchmodule'"),
        ("raise SystemExit(3)", "the runner cannot be loaded"),
        ("class Other: pass", "Runner"),
        ("from cog import BaseRunner\nclass Runner(BaseRunner):\n    def run(self, x) -> int: return 1", "annotation"),
    ],
)
def test_a_runner_that_cannot_be_loaded_is_an_error_with_its_own_message(
    serving: LocalServing, tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(StageError, match=message) as caught:
        serving.schema(bundle(tmp_path / "1", source), RUNNER)
    assert caught.value.where == RUNNER
