"""What the rules read outlives the process: long windows are as long after a restart, and a kill costs a minute."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from drivetrain.backends.serving.gateway.metrics import Metrics
from drivetrain.definition.definition import Definition
from drivetrain.engines.rules import Evaluator
from drivetrain.errors import SystemFault
from drivetrain.watch import conditions
from drivetrain.watch.loop import open_loop
from drivetrain.watch.signals import Signals
from tests.watch import projects
from tests.watch.test_loop import HOUR, NOON, Clock

DAY = 24 * HOUR
DEFINITION = Definition.model_validate(
    {
        "name": "wine", "data": {"source": "a.csv", "label": "late"}, "train": {"function": "train.py:train"},
        "evaluate": {"metric": "accuracy"},
    }
)  # fmt: skip


class Gateway:
    """Tells the gateway's own numbers at `/metrics`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = ("\n".join(own.metrics.text()) + "\n").encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def asked(self, good: int, bad: int = 0) -> None:
        for status, count in ((200, good), (500, bad)):
            for _ in range(count):
                self.metrics.of("wine-1").count(status, 0.001)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    found = Gateway()
    yield found
    found.close()


def signals(kept: Path) -> Signals:
    kept.mkdir(exist_ok=True)
    return Signals(DEFINITION, conditions.rules(DEFINITION), kept, kept)


def fires(found: Signals, now: float) -> list[str]:
    alerts = Evaluator(conditions.rules(DEFINITION)).evaluate(found.series, now)
    return [alert.trigger for alert in alerts if alert.state == "firing"]


def two_percent_of_errors(found: Signals, gateway: Gateway, now: float) -> float:
    """A minute of them; when it ends."""
    for _ in range(3):
        found.look(gateway.url, [], now)
        gateway.asked(98, 2)
        now += 30.0
    return now - 30.0


def test_a_minute_of_errors_after_a_restart_sets_off_no_window_of_hours_or_days(
    tmp_path: Path, gateway: Gateway
) -> None:
    found, now = signals(tmp_path), NOON - 3 * DAY
    while now < NOON:
        found.look(gateway.url, [], now)
        gateway.asked(100)
        now += 1200.0
    found.keep()
    again = signals(tmp_path)
    assert again.recall() is None
    now = two_percent_of_errors(again, gateway, NOON)
    assert fires(again, now) == []
    assert again.budgets.left(now)["availability"] > 0.5, "what was asked for three days counts"


def test_at_a_first_start_every_window_is_what_there_is_as_in_prometheus(tmp_path: Path, gateway: Gateway) -> None:
    found = signals(tmp_path)
    assert found.recall() is None
    now = two_percent_of_errors(found, gateway, NOON)
    assert fires(found, now) == ["slo-availability-1h", "slo-availability-6h", "slo-availability-3d"]
    assert found.budgets.left(now) == {"availability": pytest.approx(-19), "latency": 1.0}


def test_the_budgets_go_on_where_they_were_whatever_happened_meanwhile(tmp_path: Path, gateway: Gateway) -> None:
    found = signals(tmp_path)
    gateway.asked(5000, 5000)
    found.look(gateway.url, [], NOON)
    assert found.budgets.left(NOON) == {}, "nothing is known of what was before"
    gateway.asked(999, 1)
    found.look(gateway.url, [], NOON + 30)
    found.keep()
    gateway.asked(1000)
    again = signals(tmp_path)
    again.recall()
    again.look(None, [], NOON + HOUR)
    again.look(gateway.url, [], NOON + HOUR + 30)
    assert again.budgets.left(NOON + HOUR + 30) == {"availability": pytest.approx(0.5), "latency": 1.0}
    gateway.metrics = Metrics()
    gateway.asked(2000)
    again.look(gateway.url, [], NOON + HOUR + 60)
    assert again.budgets.left(NOON + HOUR + 60)["availability"] == pytest.approx(0.75), "the gateway began anew"


def test_what_cannot_be_read_begins_anew_and_is_said(tmp_path: Path) -> None:
    opened = projects.watched(tmp_path / "wine")
    home = opened.state / "loop"
    home.mkdir(parents=True)
    (home / "series").write_bytes(b"nonsense")
    (home / "budgets").write_text('{"looked": 1}')
    with open_loop(opened, Clock()) as loop:
        loop.tick()
    with open_loop(opened, Clock()):
        pass
    ((stage, _, text),) = opened.journal.events("loop")
    assert stage == "signals"
    assert text == (
        f"the series in {home / 'series'} and the error budgets in {home / 'budgets'} cannot be read: "
        "what is measured over a time begins anew"
    )


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    found = signals(tmp_path / "kept")
    (tmp_path / "kept" / "series").mkdir()
    with pytest.raises(SystemFault, match="series cannot be written"):
        found.keep()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["series"]


KILLED = """\
import os, signal, sys
from types import SimpleNamespace
from drivetrain.watch.loop import open_loop
from tests.watch import projects
from tests.watch.test_loop import NOON, Clock
clock = Clock()
loop = open_loop(projects.opened(__import__("pathlib").Path(sys.argv[1])), clock)
loop._serving = SimpleNamespace(find=lambda name: SimpleNamespace(url=sys.argv[2]), restore=lambda name: None)
for looks in range(int(sys.argv[3])):
    clock.now = NOON + 30 * looks
    loop.tick()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_loop_that_is_killed_loses_a_minute_at_most(tmp_path: Path, gateway: Gateway) -> None:
    gateway.asked(10)
    opened = projects.watched(tmp_path / "wine")
    for looks in (20, 21):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "wine"), gateway.url, str(looks)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        found = Signals(DEFINITION, conditions.rules(DEFINITION), opened.root, opened.state / "loop")
        assert found.recall() is None
        (first, *others) = found.series.within(conditions.REQUESTS, (), NOON + HOUR, HOUR)
        times = first[1]
        assert all(other[1].tolist() == times.tolist() for other in others)
        assert times[0] == NOON * 1000
        assert NOON + 30 * (looks - 1) - times[-1] / 1000 <= 60
