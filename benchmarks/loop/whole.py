"""The whole loop on a small project that a real gateway serves: how long from the first request of a changed world until a retraining runs,
and until its model is promoted. Once at real speed, watched by `drivetrain watch`, and once in `drivetrain replay`, on the simulated clock.

Both play the same world, whose unit is the monitoring window: four seconds at real speed, a day in the replay.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from benchmarks.loop.bench import OURS, Bench
from benchmarks.measures import Findings, Measurement, Target
from benchmarks.timing import environment
from drivetrain import wiring
from drivetrain.journal import Decision, Journal

RACE = "loop"
NAME = "shifting"
REAL, SIMULATED = 4, 86_400
"""Seconds of a window, at real speed and in the replay."""
ROWS = 200
"""Rows, and so requests, a window."""
LEARNT = 10
"""Windows that a model is trained on."""
CALM = 2.3
"""Windows of requests before the world changes."""
PLAYED = 10
"""Windows that the replay goes on after it."""
PATIENCE = 240.0
"""Seconds at real speed until a promotion is no longer waited for."""
ROUNDS = 3
"""Most rounds at real speed."""
SHIFT = 3.0
DEFINITION = """\
name: {name}
data:
  source: rows.csv
  timestamp: at
  label: y
  window: {{start: "{start}", end: "{end}", length: {learnt}s}}
train: {{function: "train.py:train"}}
evaluate: {{metric: roc_auc, minimum: 0.6, holdout: {{fraction: 0.2}}, champion: {{tolerance: 0.1}}}}
serving:
  port: 0
  canary:
    shadow: {quarter}s
    steps: [50, 100]
    step_time: {quarter}s
    step_requests: 20
    limit: {limit}s
    failures: 0.2
    slower: 5
    quality: 1
monitoring: {{window: {window}s, late: {quarter}s, least_labels: 50}}
loop: {{every: {quarter}s}}
triggers:
  - {{name: shift, signal: drift, feature: a, above: 0.25, cooldown: {limit}s}}
"""
TRAIN = """\
from sklearn.linear_model import LogisticRegression


def train(features, label):
    return LogisticRegression().fit(features, label)
"""


@dataclass(frozen=True, slots=True)
class Closed:
    """What the loop did, in seconds from the first request of the changed world. None: it did not come to that."""

    decided: float | None
    running: float | None
    promoted: float | None
    state: str
    """Of the decision, in the end; with its reason."""
    failed: int = 0
    """Requests without an answer, of `asked`."""
    asked: int = 0


def world(start: float, end: float, window: float, seed: int, moved: bool = False) -> pd.DataFrame:
    """Rows from `start` up to `end`, seconds since 1970, in order of time: `a` moves by three, and the label goes on to depend on `b`."""
    random = np.random.default_rng([seed, moved])
    count = round(ROWS * (end - start) / window)
    at = np.sort(random.uniform(start, end, count)).round(3)
    a, b = random.normal(size=count) + SHIFT * moved, random.normal(size=count)
    y = (random.uniform(size=count) < 1 / (1 + np.exp(-2 * b))).astype(int)
    return pd.DataFrame({"at": pd.to_datetime(at, unit="s", utc=True), "a": a.round(4), "b": b.round(4), "y": y})


def definition(start: float, window: int) -> str:
    """The project's definition, its first model trained on the windows from `start` on."""
    times = {"start": _instant(start), "end": _instant(start + LEARNT * window)}
    spans = {"learnt": LEARNT * window, "quarter": window // 4, "limit": 20 * window, "window": window}
    return DEFINITION.format(name=NAME, **times, **spans)


def in_time(window: float) -> float:
    """Seconds within which the retraining has to run: two windows, the lateness and two looks, each a quarter of a window."""
    return 2 * window + window / 4 + 2 * window / 4


def targets(how: str, window: float, rounds: Sequence[Closed]) -> list[Target]:
    """That the retraining ran in time, in the slowest round, and that every round ended in a promotion."""
    running = [each.running for each in rounds if each.running is not None]
    every = len(running) == len(rounds) > 0
    unpromoted = [each.state for each in rounds if each.promoted is None]
    return [
        Target(
            RACE,
            f"{how}: from the first request of the changed world to the running retraining, slowest of {len(rounds)}",
            max(running) if every else None,
            in_time(window),
            "two windows, lateness and two looks",
            error="" if every else "; ".join(each.state for each in rounds if each.running is None) or "no round",
        ),
        Target(RACE, f"{how}: rounds of {len(rounds)} without a promotion", float(len(unpromoted)), 0.0, "limit", unit=""),
    ]  # fmt: skip


def race(bench: Bench) -> Findings:
    """The race with its targets. Takes one to two minutes a round."""
    real: list[Closed] = []
    for number in range(min(bench.rounds, ROUNDS)):
        bench.say(f"  at real speed, round {number + 1}")
        real.append(at_real_speed(bench.scratch / f"real-{number}", number))
    bench.say("  in a replay")
    replayed, seconds = in_replay(bench.scratch / "replayed")
    ways: list[tuple[str, int, Sequence[Closed]]] = [
        ("at real speed", REAL, real), ("in a replay, simulated", SIMULATED, [replayed]),
    ]  # fmt: skip
    measurements = [
        Measurement(OURS, f"{how}: until {what}", tuple(found for each in rounds if (found := pick(each)) is not None))
        for how, _, rounds in ways
        for what, pick in _MOMENTS.items()
    ]
    measurements.append(Measurement(OURS, f"{LEARNT + CALM + PLAYED:g} days replayed, in real time", (seconds,)))
    notes = [
        f"{how}: {each.asked - each.failed:,} of {each.asked:,} requests answered; the retraining: {each.state}"
        for how, _, rounds in ways
        for each in rounds
    ]
    return Findings(
        [target for how, window, rounds in ways for target in targets(how, window, rounds)], measurements, notes
    )


_MOMENTS: dict[str, Callable[[Closed], float | None]] = {
    "the decision": lambda closed: closed.decided,
    "the running retraining": lambda closed: closed.running,
    "the promotion": lambda closed: closed.promoted,
}


# at real speed


def at_real_speed(project: Path, seed: int) -> Closed:
    """One round: a model is trained on the last windows and served, `drivetrain watch` looks on, and the world changes."""
    end = int(time.time())
    start = end - LEARNT * REAL
    write(project, definition(start, REAL), world(start, end, REAL, seed))
    with _deployed(project), _watched(project):
        begin = time.time()
        change = begin + CALM * REAL
        calm = world(end, change, REAL, seed + 100)
        moved = world(change, change + PATIENCE, REAL, seed + 100, moved=True)
        # Rows that have yet to happen do no harm: a retraining's window ends when it is decided on.
        pd.concat([calm, moved]).to_csv(project / "rows.csv", mode="a", header=False, index=False)
        asked = pd.concat([calm[calm["at"] >= pd.Timestamp(begin, unit="s", tz="UTC")], moved])
        journal = Journal(project / ".drivetrain" / "journal.db")
        times, answered = _ask(project, asked, lambda: _ended(journal))
        first = next(sent for sent in times if sent >= change)
        decision = _retraining(journal)
        if decision is None:
            return Closed(None, None, None, "never decided on", answered.count(False), len(answered))
        run = journal.run(str(decision.run_id))
        return Closed(
            decision.at - first,
            None if run is None else run.started - first,
            decision.changed - first if decision.state == "promoted" else None,
            _told(decision.state, decision.reason),
            answered.count(False),
            len(answered),
        )


def _retraining(journal: Journal) -> Decision | None:
    """The first decision that a run belongs to."""
    return next((row for row in reversed(journal.decisions(held=False)) if row.run_id), None)


def _ended(journal: Journal) -> bool:
    found = _retraining(journal)
    return found is not None and found.state not in ("waiting", "acting", "training", "rollout")


def _ask(project: Path, rows: pd.DataFrame, over: Callable[[], bool]) -> tuple[list[float], list[bool]]:
    """Asks about each row at its time until it is over: when each was sent, and whether it was answered."""
    endpoint = wiring.serving(project / ".drivetrain").find(NAME)
    if endpoint is None:
        raise RuntimeError("nothing serves")
    address = urlsplit(endpoint.url)
    sent: list[float] = []
    answers: list[Future[bool]] = []
    looked = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        times = rows["at"].dt.tz_localize(None).to_numpy(dtype="datetime64[ms]").astype(np.int64) / 1000
        for at, a, b in zip(times.tolist(), rows["a"].tolist(), rows["b"].tolist(), strict=True):
            time.sleep(max(0.0, at - time.time()))
            sent.append(time.time())
            answers.append(pool.submit(_answered, str(address.hostname), int(address.port or 80), {"a": a, "b": b}))
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                if over():
                    break
    return sent, [answer.result() for answer in answers]


def _answered(host: str, port: int, row: dict[str, float]) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        body = json.dumps({"input": {"rows": [row]}})
        connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status == 200 and json.loads(answer.read())["status"] == "succeeded"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


@contextmanager
def _watched(project: Path) -> Iterator[None]:
    """`drivetrain watch` beside the block, from its first look on."""
    log = project / "watch.log"
    door = project / ".drivetrain" / "loop" / "door.json"
    with log.open("wb") as said:
        watching = subprocess.Popen(
            [*_COMMAND, "watch"], cwd=project, env=_environment(project), stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60.0
        while not door.exists():
            if watching.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"drivetrain watch: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield
    finally:
        watching.send_signal(signal.SIGTERM)
        watching.wait()


# in a replay


def in_replay(project: Path) -> tuple[Closed, float]:
    """The same world played by `drivetrain replay`; and how long that took, in seconds."""
    start = pd.Timestamp("2024-03-01", tz="UTC").timestamp()
    begin = start + LEARNT * SIMULATED
    change = begin + CALM * SIMULATED
    end = change + PLAYED * SIMULATED
    calm, moved = world(start, change, SIMULATED, 0), world(change, end, SIMULATED, 0, moved=True)
    write(project, definition(start, SIMULATED), pd.concat([calm, moved]))
    with _deployed(project):
        began = time.perf_counter()
        span = ["--from", _instant(begin), "--to", _instant(end), "--step", f"{SIMULATED // 4}s"]
        played = json.loads(_drivetrain(project, "replay", *span, "--quiet", "--json"))
        seconds = time.perf_counter() - began
    return closed_in(played, moved["at"].iloc[0].timestamp()), seconds


def closed_in(played: dict[str, Any], first: float) -> Closed:
    """What a replay's document says, `first` being the time of the first request of the changed world. A retraining runs at the simulated
    instant at which it is decided on: the clock waits for it."""
    found = next((row for row in played["decisions"] if row["run"]), None)
    if found is None:
        return Closed(None, None, None, "never decided on", played["failed"], played["asked"])
    decided = found["at"] - first
    promoted = found["changed"] - first if found["state"] == "promoted" else None
    told = _told(found["state"], found["reason"])
    return Closed(decided, decided, promoted, told, played["failed"], played["asked"])


# projects


def write(project: Path, text: str, rows: pd.DataFrame) -> None:
    """The project's files."""
    project.mkdir(parents=True)
    rows.to_csv(project / "rows.csv", index=False)
    (project / "drivetrain.yaml").write_text(text)
    (project / "train.py").write_text(TRAIN)


_COMMAND = [sys.executable, "-c", "from drivetrain.cli.main import main; main()"]


@contextmanager
def _deployed(project: Path) -> Iterator[None]:
    """The first model is trained and serves during the block."""
    try:
        _drivetrain(project, "run", "--quiet")
        yield
    finally:
        _carried_out(project, "deploy", "--stop")


def _drivetrain(project: Path, *arguments: str) -> str:
    done = _carried_out(project, *arguments)
    if done.returncode:
        raise RuntimeError(f"drivetrain {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _carried_out(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments], cwd=project, env=_environment(project), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )  # fmt: skip


def _environment(project: Path) -> dict[str, str]:
    home = project / "home"
    home.mkdir(exist_ok=True)
    return environment(home, {})


def _told(state: str, reason: str) -> str:
    return f"{state.replace('_', ' ')} ({reason})" if reason else state


def _instant(at: float) -> str:
    return pd.Timestamp(at, unit="s", tz="UTC").isoformat()
