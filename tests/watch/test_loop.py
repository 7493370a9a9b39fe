"""The loop put together, on a project whose service is stopped: what it sees, what it says, and who may look."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.serving import Endpoint
from drivetrain.backends.serving.local import LocalServing
from drivetrain.engines.rules import Evaluator
from drivetrain.errors import SystemFault
from drivetrain.watch import conditions
from drivetrain.watch.alerts import read
from drivetrain.watch.loop import Loop, document, open_loop
from drivetrain.watch.monitor import CaughtUp
from drivetrain.watch.retraining import Retrainings
from drivetrain.watch.window_state import Measured, WindowReport
from tests.watch import projects

NOON = datetime(2013, 6, 1, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
MORE = """\
triggers:
  - {name: drifted, signal: drift, above: 0.25, hold: 1h}
  - {name: slow, signal: latency, above: 50ms, action: rollback}
  - {name: hourly, signal: schedule, cron: "0 * * * *", timezone: Europe/Berlin, action: notify, cooldown: 1s, weekly_cap: 1000}
"""
Opened = Callable[..., Loop]


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    projects.watched(tmp_path / "wine", MORE)
    return tmp_path / "wine"


def alert(name: str, status: str, began: str = "2013-06-01T11:00:00Z") -> list[tuple[str, str, str, str]]:
    labels = {"alertname": name, "service": "wine"}
    told = {"status": status, "labels": labels, "startsAt": began, "fingerprint": name, "annotations": {"value": "0.4"}}
    return read(json.dumps({"version": "4", "alerts": [told]}).encode(), "wine", {name}).alerts


def test_a_schedule_is_acted_upon_each_time_that_it_is_due_and_made_up_for_once(wine: Path, clock: Clock) -> None:
    with open_loop(projects.opened(wine), clock) as loop:
        assert loop.tick() == [], "what was due before anybody looked is not made up for"
        clock.now += HOUR
        (decision,) = loop.tick()
        assert (decision.id, decision.state) == ("20130601-130000-hourly", "done")
        assert decision.reason == "0 * * * * (Europe/Berlin) is due"
        assert loop.tick() == []
    clock.now += 10 * HOUR + 90
    with open_loop(projects.opened(wine), clock) as loop:
        assert [found.trigger for found in loop.tick()] == ["hourly"]
        assert loop.tick() == []


def test_without_a_champion_nothing_is_decided(tmp_path: Path, clock: Clock) -> None:
    with open_loop(projects.opened(projects.write(tmp_path / "wine", MORE)), clock) as loop:
        loop.tick()
        clock.now += HOUR
        assert loop.tick() == []
        assert loop.looked is not None
        assert loop.looked.champion is None


def test_a_rehearsal_explains_each_trigger_and_writes_no_decision(wine: Path, clock: Clock) -> None:
    with open_loop(projects.opened(wine), clock) as loop:
        loop.tick()
    clock.now += HOUR
    opened = projects.opened(wine)
    with open_loop(opened, clock) as loop:
        found = json.loads(json.dumps(document(loop.rehearse())))
    assert opened.journal.decisions() == []
    by_name = {one["trigger"]: one for one in found["triggers"]}
    drifted, slow, hourly = (by_name[name] for name in ("drifted", "slow", "hourly"))
    assert (drifted["value"], drifted["threshold"], drifted["comparison"], drifted["hold"]) == (
        None,
        0.25,
        "above",
        HOUR,
    )
    assert (drifted["state"], drifted["outcome"], drifted["why"]) == ("unknown", "nothing", "drift is not known yet")
    assert (slow["threshold"], slow["state"]) == (0.05, "unknown")
    assert (hourly["value"], hourly["state"], hourly["outcome"], hourly["action"]) == (1.0, "firing", "act", "notify")


def test_nobody_else_may_watch_meanwhile(wine: Path, clock: Clock) -> None:
    with open_loop(projects.opened(wine), clock), pytest.raises(SystemFault, match=r"watched already \(process \d+\)"):
        open_loop(projects.opened(wine), clock)
    open_loop(projects.opened(wine), clock).close()


def test_a_clock_that_was_set_back_is_said_once_and_nothing_waits_until_it_has_caught_up(
    wine: Path, clock: Clock
) -> None:
    opened = projects.opened(wine)
    with open_loop(opened, clock) as loop:
        clock.now += 400 * 24 * HOUR
        loop.tick()
        clock.now += HOUR
        assert len(loop.tick()) == 1
        clock.now = NOON
        assert loop.tick() == []
        clock.now += HOUR
        assert len(loop.tick()) == 1
    said = [text for stage, _, text in opened.journal.events("loop") if stage == "clock"]
    assert said == ["the clock was set back by 400 d; rests go on from now"]


def test_a_clock_that_leaps_ahead_does_not_let_an_alert_hold(
    wine: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = Clock(0.0)
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "monotonic", steady)
    opened = projects.opened(wine)
    with Loop(opened, clock, patient=False) as loop:
        loop.tick()
        pending = {
            "trigger": "drifted",
            "fingerprint": "f",
            "state": "pending",
            "at": clock.now,
            "value": 0.3,
            "labels": {},
        }
        state = {"drifted": [pending | {"since": clock.now - 60.0}]}
        loop._evaluator = Evaluator.from_json(list(loop._rules.values()), state)
        clock.now, steady.now = clock.now + 30, 30.0
        assert loop._see_clock(clock.now) is None
        assert loop._evaluator.to_json()["drifted"][0]["since"] == NOON - 60
        clock.now, steady.now = clock.now + 24 * HOUR, 60.0
        loop._see_clock(clock.now)
        assert loop._evaluator.to_json()["drifted"][0]["since"] == NOON - 60 + 24 * HOUR - 30
    assert [stage for stage, _, _ in opened.journal.events("loop")] == ["clock"]


class Told:
    """A gateway's metrics, whose requests are as many as they are set to."""

    def __init__(self) -> None:
        self.requests = 0
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                labels = 'revision="wine-1-00000001",outcome="answered"'
                body = f"{conditions.REQUESTS}{{{labels}}} {told.requests}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint("wine", "wine-1-00000001", f"http://127.0.0.1:{self.server.server_port}", 1)


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    with found.server:
        thread = threading.Thread(target=found.server.serve_forever)
        thread.start()
        yield found
        found.server.shutdown()
        thread.join()


def test_what_fires_by_the_gateways_metrics_fires_on_after_the_loop_was_killed(
    tmp_path: Path, clock: Clock, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = projects.watched(
        tmp_path / "wine", "triggers: [{name: busy, signal: traffic, above: 10, window: 2m, action: notify}]"
    ).root
    monkeypatch.setattr(LocalServing, "find", lambda serving, name: told.endpoint)

    def looked(loop: Loop) -> str:
        """What becomes of the trigger at a look, half a minute and 3,000 requests after the one before."""
        clock.now, told.requests = clock.now + 30.0, told.requests + 3000
        loop.tick()
        assert loop.looked is not None
        return loop.looked.triggers[0].state

    loop = open_loop(projects.opened(root), clock)
    assert [looked(loop) for _ in range(4)] == ["unknown", "firing", "firing", "firing"]
    for _ in range(3):
        loop._lock.close()  # all that the kernel does for a process that is killed
        loop = open_loop(projects.opened(root), clock)
        assert looked(loop) == "firing"
    loop.close()


def test_the_rules_of_the_objectives_are_shown_after_the_triggers_with_what_is_left_of_the_budgets(
    wine: Path, clock: Clock
) -> None:
    with open_loop(projects.opened(wine), clock) as loop:
        loop._signals.budgets._of["availability"].count(clock.now, 1000, 5)
        found = json.loads(json.dumps(document(loop.rehearse())))
        text = loop.looked.text if loop.looked else ""
    names = [one["trigger"] for one in found["triggers"]]
    assert names[:3] == ["drifted", "slow", "hourly"]
    assert names[3:] == [f"slo-{what}-{span}" for span in ("1h", "6h", "3d") for what in ("availability", "latency")]
    assert {one["action"] for one in found["triggers"][3:]} == {"notify"}
    assert found["budgets"] == {"availability": pytest.approx(-4.0)}
    assert found["triggers"][3]["why"] == (
        "the share of requests without an answer is not known yet; -4 of the error budget is left"
    )
    shown = re.search(r'^drivetrain_loop_error_budget_left{objective="availability",service="wine"} (.*)$', text, re.M)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(-4.0)


def test_of_a_window_what_could_not_be_looked_into_is_said_once_for_each_kind(
    wine: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"answered": 90, "refused": 4, "unreadable": 3, "too_large": 1200, "unreadable_answer": 0}
    closed = [[WindowReport("wine-1-00000001", NOON - HOUR, NOON, 90, outcomes)], []]
    opened = projects.opened(wine)
    with open_loop(opened, clock) as loop:
        monkeypatch.setattr(loop._monitor, "catch_up", lambda source, now: CaughtUp(0, closed.pop(0)))
        loop.tick()
        clock.now += 30
        loop.tick()
    window = "the window of wine-1-00000001 that ended 2013-06-01 12:00 UTC"
    assert [(stage, text) for stage, _, text in opened.journal.events("loop")] == [
        ("unreadable", f"{window}: 3 requests hold none of the model's features"),
        ("too_large", f"{window}: 1,200 requests are larger than what is looked into"),
    ]


def test_series_that_cannot_be_written_down_keep_nothing_from_being_done(wine: Path, clock: Clock) -> None:
    opened = projects.opened(wine)
    loop = open_loop(opened, clock)
    loop.tick()
    (opened.state / "loop" / "series").unlink()
    (opened.state / "loop" / "series").mkdir()
    clock.now += HOUR
    assert [found.trigger for found in loop.tick()] == ["hourly"]
    assert ["series cannot be written" in text for stage, _, text in opened.journal.events("loop")] == [True]
    (opened.state / "loop" / "series").rmdir()
    loop.close()


def test_what_alertmanager_tells_is_acted_upon(wine: Path, clock: Clock) -> None:
    opened = projects.opened(wine)
    with open_loop(opened, clock) as loop:
        opened.journal.see_alerts(alert("slow", "firing"), clock.now)
        (decision,) = loop.tick()
        assert (decision.trigger, decision.action, decision.state) == ("slow", "rollback", "failed")
        assert decision.reason.startswith("no other revision has served yet")
        assert (decision.numbers["value"], decision.numbers["threshold"]) == (0.4, 0.05)
        clock.now += 30
        assert loop.tick() == [], "it fires still, and has been acted upon"
        assert loop.looked is not None
        assert {one.trigger: one.rule for one in loop.looked.triggers}["slow"] == "cooldown"


def test_a_storm_of_alerts_makes_one_decision(wine: Path, clock: Clock) -> None:
    opened = projects.opened(wine)
    storm = [(f"f{number}", *row[1:]) for number in range(4_000) for row in alert("slow", "firing")]
    with open_loop(opened, clock) as loop:
        opened.journal.see_alerts(storm, clock.now)
        assert len(loop.tick()) == 1
        clock.now += 30
        opened.journal.see_alerts(storm, clock.now)
        assert loop.tick() == []
        resolved = [(mark, began, "resolved", document) for mark, began, _, document in storm[1:]]
        opened.journal.see_alerts(resolved, clock.now)
        assert loop.tick() == []
        assert loop.looked is not None
        assert {one.trigger: one.state for one in loop.looked.triggers}["slow"] == "firing", "one of them is left"


def test_with_prometheus_as_the_evaluator_only_alertmanager_is_heeded(tmp_path: Path, clock: Clock) -> None:
    opened = projects.watched(tmp_path / "wine", MORE + "loop: {evaluator: prometheus}")
    with open_loop(opened, clock) as loop:
        loop.tick()
        clock.now += HOUR
        assert loop.tick() == []
        opened.journal.see_alerts(alert("hourly", "firing"), clock.now)
        assert [(found.trigger, found.state) for found in loop.tick()] == [("hourly", "done")]


def test_what_it_measures_is_told_as_prometheus_reads_it(wine: Path, clock: Clock) -> None:
    with open_loop(projects.opened(wine), clock) as loop:
        loop.tick()
        clock.now += HOUR
        loop.tick()
        assert loop.looked is not None
        text = loop.looked.text
    assert 'drivetrain_monitor_schedule_due{service="wine",trigger="hourly"} 1.0' in text
    assert 'drivetrain_loop_firing{service="wine",trigger="hourly"} 1.0' in text
    assert 'drivetrain_loop_firing{service="wine",trigger="slow"} 0.0' in text
    assert f'drivetrain_loop_looked_timestamp_seconds{{service="wine"}} {clock.now!r}' in text


def test_a_retraining_of_a_patient_loop_is_over_when_the_look_is(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process that cannot even read its definition; what a run makes of it is tested where runs are."""
    opened = projects.watched(tmp_path / "wine", 'triggers: [{name: daily, signal: schedule, cron: "0 0 * * *"}]')
    (opened.root / "drivetrain.yaml").write_text("name: wine\nnothing: else\n")
    begun: list[Any] = []
    begin = Retrainings._begin

    def counted(runs: Retrainings, run_id: str, *arguments: Any, **options: Any) -> None:
        begun.append(run_id)
        begin(runs, run_id, *arguments, **options)

    monkeypatch.setattr(Retrainings, "_begin", counted)
    with open_loop(opened, clock, patient=True) as loop:
        loop.tick()
        clock.now += 24 * HOUR
        (decision,) = loop.tick()
    assert (decision.state, begun) == ("failed", [decision.run_id])
    assert "the definition" in decision.reason
    assert "nothing is retrained for 1 h" in decision.reason


def test_staying_costs_what_the_windows_since_the_last_retraining_have_lost(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth = "loop: {worth: {per_prediction: 0.1, training: 30, rollout: 5}}"
    opened = projects.watched(tmp_path / "wine", MORE + worth)
    journal = opened.journal
    with open_loop(opened, clock) as loop:
        measured, guessed = Measured(0.7, 0.6, 0.8, 500), Measured(0.85, 0.8, 0.9, 1000)
        windows = [
            WindowReport("wine-1-00000001", NOON - 2 * HOUR, NOON - HOUR, 1000, metric="accuracy", quality=measured),
            WindowReport("wine-1-00000001", NOON - HOUR, NOON, 2000, metric="accuracy", estimate=guessed),
            WindowReport("wine-1-00000001", NOON, NOON + HOUR, 5000, metric="accuracy"),
        ]
        asked: list[tuple[float, str]] = []

        def history(since: float, revision: str) -> list[WindowReport]:
            asked.append((since, revision))
            return [window for window in windows if window.end > since]

        monkeypatch.setattr(loop._monitor, "history", history)
        journal.see_alerts(alert("drifted", "firing"), clock.now)
        (held,) = loop.tick()
        assert held.state == "held"
        assert held.numbers["staying"] == pytest.approx(0.2 * 0.1 * 1000 + 0.05 * 0.1 * 2000)
        assert held.numbers["cost"] == 35
        assert "staying has cost 30 since the last retraining, and a retraining costs 35" in held.reason
        failed = replace(held, id="r", state="failed", at=NOON - 5 * HOUR, changed=NOON - 5 * HOUR)
        journal.open_decision(failed)
        clock.now += 30
        loop.tick()
        clock.now += 30
        loop.tick()
    assert asked == [(at, "wine-1-00000001") for at in (0.0, NOON - 5 * HOUR, NOON + HOUR)], "no window is read twice"
