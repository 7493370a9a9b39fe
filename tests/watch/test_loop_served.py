"""The loop on a service that answers: what each action does to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivetrain import deployment, wiring
from drivetrain import project as projects
from drivetrain.backends.serving import alive
from drivetrain.journal import Decision
from drivetrain.project import Project
from drivetrain.watch.loop import Loop, open_loop
from tests.lifecycle.conftest import write_wine
from tests.watch.test_loop import alert

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
MORE = """\
serving: {port: 0}
triggers:
  - {name: broken, signal: errors, above: 0.99, action: rollback, cooldown: 1s}
  - {name: busy, signal: traffic, above: 1000000, action: scale, scale: {min: 2, max: 2}, cooldown: 1s}
  - {name: again, signal: traffic, above: 1000000, cooldown: 1ms, weekly_cap: 100}
"""


@pytest.fixture
def wine(tmp_path: Path, drivetrain: Command) -> Iterator[Path]:
    root = write_wine(tmp_path / "wine")
    definition = root / "drivetrain.yaml"
    definition.write_text(definition.read_text().replace("serving: {port: 0}\n", MORE))
    yield root
    drivetrain("deploy", "--stop", directory=root)


def run(drivetrain: Command, root: Path, *arguments: str) -> str:
    found = drivetrain("run", "--json", *arguments, directory=root)
    assert found.returncode == 0, found.stderr
    revision: str = json.loads(found.stdout)["stages"][-1]["outputs"]["revision"]["id"]
    return revision


def look(loop: Loop, opened: Project, name: str, status: str) -> list[Decision]:
    """A look while the alert fires, or is resolved."""
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(loop.clock()))
    opened.journal.see_alerts(alert(name, status, began), loop.clock())
    return loop.tick()


def test_every_action_is_done_to_a_real_service(wine: Path, drivetrain: Command) -> None:
    first = run(drivetrain, wine)
    second = run(drivetrain, wine, "--param", "train.parameters.C=0.7", "--param", "evaluate.champion.tolerance=0.2")
    opened = projects.open_project(wine)
    serving, clock = wiring.serving(opened.state), iter(range(10**9))
    began = time.time()

    def now() -> float:
        return began + next(clock)

    with open_loop(opened, now, patient=True) as loop:
        assert loop.tick() == []
        (decision,) = look(loop, opened, "broken", "firing")
        assert (decision.state, decision.revision) == ("done", first), decision.reason
        assert deployment.leading(opened).revision == first != second
        found = serving.find("wine")
        assert found is not None
        assert found.revision == first
        opened.journal._db.execute("delete from alerts")

        (decision,) = look(loop, opened, "busy", "firing")
        assert (decision.state, serving.status("wine").scale) == ("scaled", (2, 2))
        server = alive.read(alive.record_path(opened.state, "wine"))
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        while alive.is_alive(server):
            time.sleep(0.01)
        assert loop.tick() == []
        assert serving.status("wine").scale == (2, 2), "the gateway is back, and has the trigger's bounds"
        opened.journal._db.execute("delete from alerts")
        (decision,) = loop.tick()
        assert (decision.state, serving.status("wine").scale) == ("done", (1, 1))

        (decision,) = look(loop, opened, "again", "firing")
        assert (decision.state, "the champion's model again" in decision.reason) == ("unchanged", True), decision.reason
        opened.journal._db.execute("delete from alerts")
        definition = wine / "drivetrain.yaml"
        definition.write_text(
            definition.read_text().replace("minimum: 0.8", "minimum: 1.0").replace("C: 1.0", "C: 0.00001")
        )
        began += 4000
        (decision,) = look(loop, opened, "again", "firing")
        assert decision.state == "refused", decision.reason
        assert decision.reason.startswith("evaluate: ")
        assert "nothing is retrained for 2 h" in decision.reason
        assert deployment.leading(opened).revision == first
        assert {entry.revision for entry in serving.status("wine").revisions if entry.weight} == {first}
