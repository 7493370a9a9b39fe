"""Controller and gateway killed again and again at random points of retrainings and rollouts, while somebody keeps asking."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from drivetrain import deployment, wiring
from drivetrain import project as projects
from drivetrain.backends.serving import alive
from drivetrain.backends.serving.alive import Server
from drivetrain.engines.triggers import OPEN
from drivetrain.journal import Decision
from drivetrain.project import Project
from tests.lifecycle.conftest import write_wine
from tests.watch.test_loop import alert

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
DRAWS = 30
LOOP = """\
serving:
  port: 0
  canary: {shadow: 500ms, steps: [30, 100], step_time: 500ms, step_requests: 20, limit: 2m, failures: 0.5, slower: 10, quality: 0.9}
monitoring: {window: 1h}
loop: {every: 200ms, backoff: 1s}
triggers:
  - {name: go, signal: traffic, above: 1000000, action: retrain, cooldown: 1ms, weekly_cap: 1000}
"""


class Callers:
    """Ask all the time; note each answer that is none, and how many runs are at work."""

    def __init__(self, wine: Path) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self.outages: list[float] = []
        self.most_runs = 0
        self._wine = wine
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        """A connection that cannot be had, or that ends, is a gateway that was killed; every answer there is has to be one."""
        example = json.loads(next((self._wine / ".drivetrain/serving/bundles").glob("*/example.json")).read_text())
        body, lost = json.dumps({"input": example}), None
        while not self._ending.wait(0.01):
            server = the_gateway(self._wine)
            if server is None:
                continue
            connection = http.client.HTTPConnection(server.address, server.port, timeout=30)
            try:
                connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                lost = lost or time.monotonic()
                continue
            finally:
                connection.close()
            if answer.status == 200:
                self.answered += 1
            elif b"did not come up" not in text and answer.status != 502:
                self.wrong.append(f"{answer.status} {text[:300].decode(errors='replace')}")
            if lost is not None:
                self.outages.append(time.monotonic() - lost)
                lost = None

    def _count(self) -> None:
        while not self._ending.wait(0.05):
            self.most_runs = max(self.most_runs, len(runs_at_work(self._wine)))


def the_gateway(wine: Path) -> Server | None:
    return alive.read(alive.record_path(wine / ".drivetrain", "wine"))


def runs_at_work(wine: Path) -> list[int]:
    """The processes of `drivetrain run` on this project; those that they fork have their command line, and are left out."""
    found = {}
    for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "run" in words and str(wine) in words and ("--candidate" in words or "--resume" in words):
            found[process.info["pid"]] = process.info["ppid"]
    return [pid for pid, parent in found.items() if parent not in found]


class Watching:
    """`drivetrain watch` as a process that is started again whenever it was killed."""

    def __init__(self, wine: Path) -> None:
        self._command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "watch", "--json"]
        self._wine = wine
        self._log = (wine / "watch.log").open("ab")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, cwd=self._wine, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


@pytest.fixture
def wine(tmp_path: Path, drivetrain: Command) -> Iterator[Path]:
    root = write_wine(tmp_path / "wine")
    definition = root / "drivetrain.yaml"
    text = definition.read_text().replace("serving: {port: 0}\n", LOOP)
    definition.write_text(text.replace("  minimum: 0.8\n", "  minimum: 0.8\n  champion: {compare: false}\n"))
    found = drivetrain("run", "--json", directory=root)
    assert found.returncode == 0, found.stderr
    yield root
    drivetrain("deploy", "--stop", directory=root)


def new_rows(wine: Path, number: int) -> None:
    """Other data, so that the next retraining gives another model."""
    lines = (wine / "wine.csv").read_text().splitlines()
    changed = lines[1 + number].split(",")
    changed[0] = f"{float(changed[0]) + 0.01:.4f}"
    (wine / "wine.csv").write_text("\n".join([*lines, ",".join(changed)]) + "\n")


def made(opened: Project) -> list[Decision]:
    return [row for row in opened.journal.decisions(held=False) if row.trigger == "go"]


def until(condition: Callable[[], Any], within: float = 600.0) -> Any:
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def test_thirty_kills_of_controller_and_gateway_lose_and_double_nothing(wine: Path, drivetrain: Command) -> None:
    chance = random.Random(4)
    opened = projects.open_project(wine)
    serving = wiring.serving(opened.state)
    promoted = 0
    watching = Watching(wine)
    try:
        with Callers(wine) as callers:
            until(lambda: callers.answered > 20)
            for round_ in range(DRAWS // 2):
                new_rows(wine, round_)
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                opened.journal.see_alerts(alert("go", "firing", began), time.time())
                decided = until(lambda expected=round_ + 1: len(made(opened)) == expected and made(opened)[0])
                opened.journal.see_alerts(alert("go", "resolved", began), time.time())

                def under_way() -> bool:
                    return made(opened)[0].state in OPEN

                # One kill anywhere from the decision to the promotion, one while two revisions serve.
                time.sleep(chance.uniform(0.0, 6.0))
                watching.kill()
                until(lambda: made(opened)[0].state not in ("training", "acting"))
                time.sleep(chance.uniform(0.0, 2.0))
                if round_ % 3 == 2:
                    watching.kill()
                else:
                    server = the_gateway(wine)
                    assert server is not None
                    with suppress(ProcessLookupError):
                        os.kill(server.pid, signal.SIGKILL)
                until(lambda: not under_way())
                last = made(opened)[0]
                assert last.id == decided.id
                assert last.state in ("promoted", "rolled_back"), last.reason
                promoted += last.state == "promoted"
                until(lambda: serving.find("wine"))
                status = serving.status("wine")
                weights = {entry.revision: entry.weight for entry in status.revisions if entry.weight}
                assert weights == {deployment.leading(opened).revision: 100}
                assert (deployment.leading(opened).revision == last.revision) == (last.state == "promoted")
        assert (callers.wrong, callers.most_runs) == ([], 1)
    finally:
        watching.end()
    decisions = made(opened)
    assert len(decisions) == DRAWS // 2, "each alert made one decision, and no other"
    assert len({row.run_id for row in decisions}) == len(decisions)
    runs = {row.id: row.state for row in opened.journal.runs()}
    assert [runs.get(row.run_id or "") for row in decisions] == ["done"] * len(decisions)
    for row in decisions:
        states = [state for _, state, _ in opened.journal.decision_steps(row.id)]
        assert states[0] == "training"
        assert states.count("promoted") + states.count("rolled_back") == 1
    print(
        f"{promoted} of {len(decisions)} promoted; {callers.answered} answers; outages of "
        f"{', '.join(f'{seconds:.1f}' for seconds in callers.outages)} s"
    )
