"""Services on this machine, started and ended for real: every test here talks to a gateway and its replicas."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.serving import Endpoint, alive, process
from drivetrain.backends.serving.alive import Server
from drivetrain.backends.serving.gateway import settings as gateway_settings
from drivetrain.backends.serving.gateway.settings import Scaling
from drivetrain.backends.serving.local import LocalServing, open_serving
from drivetrain.errors import ServingError, StageError
from drivetrain.records import Artifact, DeployOutputs, Reference
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
SLOW = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        time.sleep(60)

    def run(self, distance: float) -> float:
        return distance
"""


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServing, Path]]:
    """One service with typed inputs, for the tests that leave it as it is."""
    place = tmp_path_factory.mktemp("typed")
    serving = LocalServing(place / "state", ready_within=60)
    serving.deploy(settings(place / "state", "typed"), "typed-1", bundle(place / "bundle", TYPED), RUNNER)
    yield serving, place
    end_everything(place / "state")


def answer(serving: LocalServing, name: str = "typed", timeout: float = 60.0, **inputs: object) -> Mapping[str, Any]:
    endpoint = serving.find(name)
    assert endpoint is not None
    return serving.predict(endpoint, inputs, next(IDS), timeout)


def ask(serving: LocalServing, name: str = "typed", timeout: float = 60.0, **inputs: object) -> Any:
    return answer(serving, name, timeout, **inputs)["output"]


def test_a_deployed_runner_answers_and_says_which_revision_it_is(typed: tuple[LocalServing, Path]) -> None:
    found = answer(typed[0], distance=120.0)
    assert (found["output"]["delay"], found["output"]["carrier"]) == (12.0, "AA")
    assert found["revision"] == "typed-1"


def test_refused_inputs_name_every_field(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError) as caught:
        ask(typed[0], distance=-1, carrier="ZZ")
    assert "distance: -1 is less than the minimum" in caught.value.message
    assert "carrier:" in caught.value.message


def test_a_missing_input_is_named(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match="distance: Field required"):
        ask(typed[0])


def test_an_exception_in_the_runner_is_an_error_with_its_message(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match=r"the prediction failed: .*no such carrier") as caught:
        ask(typed[0], distance=1, action="raise")
    assert "no such carrier" in Path(caught.value.hint.partition(": ")[2]).read_text(), "the traceback"


def test_a_hundred_predictions_in_a_row_are_all_answered(typed: tuple[LocalServing, Path]) -> None:
    serving, _ = typed
    assert [ask(serving, distance=number)["delay"] for number in range(100)] == [n / 10 for n in range(100)]


def test_predictions_wait_for_a_busy_model(typed: tuple[LocalServing, Path]) -> None:
    serving, _ = typed
    endpoint = serving.find("typed")
    assert endpoint is not None
    found: list[float] = []

    def talk(number: int) -> None:
        inputs = {"distance": number, "seconds": 0.2}
        found.append(serving.predict(endpoint, inputs, next(IDS), 60)["output"]["delay"])

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_an_answer_that_takes_too_long_is_an_error(typed: tuple[LocalServing, Path]) -> None:
    with pytest.raises(ServingError, match="no answer in time"):
        ask(typed[0], distance=1, seconds=0.6, timeout=0.2)


def test_a_label_can_be_told_later(typed: tuple[LocalServing, Path]) -> None:
    serving, _ = typed
    endpoint = serving.find("typed")
    assert endpoint is not None
    serving.feedback(endpoint, answer(serving, distance=1)["id"], {"late": True})


def test_the_same_revision_deployed_again_is_left_alone(typed: tuple[LocalServing, Path]) -> None:
    serving, place = typed
    before = serving.find("typed")
    again = open_serving(place / "state")
    assert again.deploy(settings(place / "state", "typed"), "typed-1", place / "bundle", RUNNER) == before


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
        serving.deploy(settings(place / "state", "typed"), "typed-2", bundle(place / "broken", BROKEN), RUNNER)
    assert "model file is missing" in str(caught.value)
    assert serving.find("typed") == before
    assert ask(serving, distance=1)
    assert [entry.revision for entry in serving.status("typed").revisions] == ["typed-1"]
    assert not (place / "state/serving/bundles/typed-2").exists()


def test_a_revision_that_does_not_answer_its_first_request_leaves_the_old_one_serving(
    typed: tuple[LocalServing, Path],
) -> None:
    serving, place = typed
    before = serving.find("typed")
    example = {"distance": 1, "action": "raise"}
    with pytest.raises(ServingError, match="no such carrier"):
        serving.deploy(settings(place / "state", "typed"), "typed-3", place / "bundle", RUNNER, example)
    assert serving.find("typed") == before
    assert [entry.revision for entry in serving.status("typed").revisions] == ["typed-1"]


def test_a_first_revision_that_is_not_ready_in_time_leaves_no_service(state: Path, tmp_path: Path) -> None:
    serving = LocalServing(state, stopped_within=5)
    wanted = settings(state, "slow", ready_within=1.5)
    with pytest.raises(ServingError, match="ready"):
        serving.deploy(wanted, "slow-1", bundle(tmp_path / "slow", SLOW), RUNNER)
    assert started(state) == []
    assert serving.find("slow") is None


def test_a_new_revision_takes_over_on_the_same_port_and_stopping_leaves_no_process(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    wanted = settings(state, "one", free_port())
    first = serving.deploy(wanted, "one-1", bundle(tmp_path / "1", constant(1)), RUNNER, {"distance": 1})
    assert ask(serving, "one", distance=1) == 1
    before = children(first.pid)
    second = serving.deploy(wanted, "one-2", bundle(tmp_path / "2", constant(2)), RUNNER, {"distance": 1})
    assert (first.url, first.pid) == (second.url, second.pid)
    assert ask(serving, "one", distance=1) == 2
    assert serving.status("one").former == "one-1"
    eventually(lambda: not any(runs(pid) for pid in before))
    now = children(second.pid)
    assert len(now) >= 3, "the replica's front, its worker, and the worker's own child"
    assert serving.stop("one")
    eventually(lambda: not any(runs(pid) for pid in now))
    assert serving.find("one") is None
    assert not serving.stop("one")


def test_the_bundles_of_the_serving_and_of_the_former_revision_are_kept(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    wanted = settings(state, "one")
    for number in (1, 2, 3):
        place = bundle(tmp_path / str(number), constant(number))
        serving.deploy(wanted, f"one-{number}", place, RUNNER)
    assert sorted(path.name for path in (state / "serving/bundles").iterdir()) == ["one-2", "one-3"]


def test_a_revision_can_be_brought_up_beside_and_given_a_share(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    wanted = settings(state, "one")
    serving.deploy(wanted, "one-1", bundle(tmp_path / "1", constant(1)), RUNNER)
    serving.deploy(wanted, "one-2", bundle(tmp_path / "2", constant(2)), RUNNER, promote=False)
    assert {ask(serving, "one", distance=1) for _ in range(10)} == {1}
    status = serving.route("one", {"one-1": 50, "one-2": 50})
    assert [(entry.revision, entry.weight) for entry in status.revisions] == [("one-1", 50), ("one-2", 50)]
    assert sorted(ask(serving, "one", distance=1) for _ in range(20)) == [1] * 10 + [2] * 10
    with pytest.raises(ServingError, match="one-9"):
        serving.route("one", {"one-9": 100})


def test_changed_settings_start_the_gateway_anew_with_the_same_revision(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    port = free_port()
    source = bundle(tmp_path / "1", constant(1))
    before = serving.deploy(settings(state, "one", port), "one-1", source, RUNNER)
    after = serving.deploy(settings(state, "one", port, scaling=Scaling(max=2)), "one-1", source, RUNNER)
    assert (after.url, after.revision) == (before.url, "one-1")
    assert after.pid != before.pid
    assert not runs(before.pid)
    assert ask(serving, "one", distance=1) == 1


def test_a_port_that_another_process_holds_is_named_with_that_process(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError) as caught:
            serving.deploy(settings(state, "one", port), "one-1", bundle(tmp_path / "1", constant(1)), RUNNER)
    assert f"port {port} of {HOST} is taken by process {os.getpid()}" in caught.value.message
    assert "serving.port: 0" in caught.value.hint


def test_an_address_of_another_machine_is_refused(serving: LocalServing, state: Path, tmp_path: Path) -> None:
    source = bundle(tmp_path / "1", constant(1))
    for port in (0, 5000):
        with pytest.raises(ServingError, match="cannot listen on 192"):
            serving.deploy(settings(state, "one", port, "192.0.2.1"), "one-1", source, RUNNER)


def test_a_crashed_model_is_one_error_and_is_back_by_itself(serving: LocalServing, state: Path, tmp_path: Path) -> None:
    endpoint = serving.deploy(settings(state, "one"), "one-1", bundle(tmp_path / "1", TYPED), RUNNER)
    with pytest.raises(ServingError, match="the prediction failed"):
        serving.predict(endpoint, {"distance": 1, "action": "die"}, "p1", 60)
    assert ask(serving, "one", distance=10)["delay"] == 1.0


def test_a_deployment_killed_halfway_is_completed_by_the_next(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    slow = bundle(tmp_path / "slow", SLOW.replace("60", "2"))
    wanted = settings(state, "one")
    code = (
        "import sys, pathlib\n"
        "from drivetrain.backends.serving.gateway.settings import read\n"
        "from drivetrain.backends.serving.local import open_serving\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "open_serving(place).deploy(read(place / 'wanted.json'), 'one-1', pathlib.Path(sys.argv[2]), 'run.py:Runner')"
    )
    gateway_settings.write(wanted, state / "wanted.json")
    with subprocess.Popen([sys.executable, "-c", code, str(state), str(slow)]) as deployment:
        eventually(lambda: (state / "serving/bundles/one-1").exists())
        deployment.kill()
    (abandoned,) = started(state)
    assert alive.is_alive(abandoned), "it outlives whoever started it"
    endpoint = serving.deploy(wanted, "one-1", slow, RUNNER)
    assert endpoint.pid == abandoned.pid
    assert ask(serving, "one", distance=1) == 1


def test_a_gateway_that_was_killed_leaves_no_replica_and_comes_back_with_a_deployment(
    serving: LocalServing, state: Path, tmp_path: Path
) -> None:
    source = bundle(tmp_path / "1", constant(1))
    endpoint = serving.deploy(settings(state, "one"), "one-1", source, RUNNER)
    below = children(endpoint.pid)
    os.kill(endpoint.pid, signal.SIGKILL)
    # The worker's own child is the user's: it is ended with the service's process group by whoever deploys next.
    eventually(lambda: serving.find("one") is None)
    again: Endpoint = serving.deploy(settings(state, "one"), "one-1", source, RUNNER)
    assert serving.find("one") == again
    eventually(lambda: not any(runs(pid) for pid in below))


def test_a_process_that_was_given_the_same_id_later_is_not_taken_for_the_gateway() -> None:
    mine = Server("one", HOST, 1, None, os.getpid(), os.getpgrp(), alive.start_time(os.getpid()))
    other = Server("one", HOST, 1, None, os.getpid(), os.getpgrp(), "1")
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
