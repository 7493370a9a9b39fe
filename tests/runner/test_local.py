"""The runner on this machine: order, cache, retries, limits, refusals, damaged artifacts, and what it writes down."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.runner import Plan, RunResult, Step, local, process, schedule
from drivetrain.backends.runner.local import LocalRunner, lock
from drivetrain.backends.runner.process import Process, prepare
from drivetrain.cli.progress import Lines
from drivetrain.errors import SystemFault, Unavailable
from drivetrain.journal import Journal
from drivetrain.redact import Redactor

SECRET = "s3cr3t-value"


class Bench:
    """A project directory with a runner, and steps of `steps.py`."""

    def __init__(self, root: Path) -> None:
        self.root, self.state, self.calls = root, root / "state", root / "calls"
        self.calls.mkdir()
        self.objects = open_directory(self.state / "objects")
        self.journal = Journal(self.state / "journal.db")
        self.ids = iter(f"run{n}" for n in range(1000))

    def step(self, name: str, entry: str, inputs: dict[str, str] | None = None, **more: Any) -> Step:
        outputs = {"refuse": "Judged", "make": "Made"}.get(entry, "Number")
        payload = {
            "calls": str(self.calls),
            "objects": str(self.state / "objects"),
            "secret": SECRET,
            **more.pop("payload", {}),
        }
        return Step(name, f"steps:{entry}", f"steps:{outputs}", name, inputs or {}, payload, **more)

    def run(self, *steps: Step, cores: int = 2, **options: Any) -> RunResult:
        runner = LocalRunner(
            self.journal,
            self.objects,
            self.state,
            Lines(quiet=True),
            Redactor({"X_TOKEN": SECRET}),
            lambda: next(self.ids),
            cores,
        )
        return runner.run(Plan("bench", steps, {}), **options)

    def called(self, step: str) -> int:
        path = self.calls / step
        return path.stat().st_size if path.exists() else 0


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(schedule, "FIRST_WAIT", 0.02)
    return Bench(tmp_path)


def states(result: RunResult) -> list[str]:
    return [step.state for step in result.steps]


def chain(bench: Bench) -> Sequence[Step]:
    return [
        bench.step("a", "add"),
        bench.step("b", "add", {"x": "a.value"}),
        bench.step("c", "add", {"x": "a.value", "y": "b.value"}),
    ]


def test_steps_get_the_outputs_of_those_before_and_a_second_run_finds_all_cached(bench: Bench) -> None:
    first = bench.run(*chain(bench))
    assert states(first) == ["done"] * 3
    assert [step.outputs.value for step in first.steps] == [1, 2, 4]
    second = bench.run(*chain(bench))
    assert states(second) == ["cached"] * 3
    assert [step.outputs for step in second.steps] == [step.outputs for step in first.steps]
    assert [bench.called(name) for name in "abc"] == [1, 1, 1]


def test_a_changed_fingerprint_repeats_the_step_but_not_those_whose_inputs_stay_the_same(bench: Bench) -> None:
    bench.run(*chain(bench))
    a, b, c = chain(bench)
    changed = Step("b", b.entry, b.outputs, "b2", b.inputs, b.payload)
    assert states(bench.run(a, changed, c)) == ["cached", "done", "cached"]


def test_until_and_fresh(bench: Bench) -> None:
    assert states(bench.run(*chain(bench), only=["b"])) == ["done", "done"]
    assert states(bench.run(*chain(bench), fresh=["b", "c"])) == ["cached", "done", "done"]


def test_a_cached_result_is_not_used_when_the_world_has_moved_on(bench: Bench) -> None:
    step = bench.step("a", "add", still_holds="steps:never")
    bench.run(step)
    assert states(bench.run(step)) == ["done"]


def test_independent_steps_work_at_the_same_time_and_share_the_cores(bench: Bench) -> None:
    twins = [bench.step(name, "meet", payload={"twins": ["left", "right"]}) for name in ("left", "right")]
    result = bench.run(*twins, cores=4)
    assert [step.outputs.value for step in result.steps] == [2, 2]


def test_a_step_may_claim_its_threads(bench: Bench) -> None:
    result = bench.run(bench.step("alone", "meet", payload={"twins": ["alone"]}, cpu=3))
    assert result.steps[0].outputs.value == 3


def test_what_is_unavailable_is_tried_again_and_only_so_often(bench: Bench) -> None:
    result = bench.run(bench.step("later", "flaky", payload={"good_from": 3}))
    assert states(result) == ["done"]
    assert [row.state for row in bench.journal.attempts(result.run_id)] == ["retried", "retried", "done"]
    result = bench.run(bench.step("never", "flaky", payload={"good_from": 9}))
    assert (result.exit_code, result.steps[0].message, result.steps[0].hint) == (
        1,
        "the server does not answer",
        "wait",
    )
    assert bench.called("never") == 3


@pytest.mark.parametrize(
    ("how", "limits", "message"),
    [
        ("raise", {}, "ValueError: no such thing as ***"),
        ("mistaken", {}, "checks.json:3: a: is wrong; checks.json:7: b: too"),
        ("hang", {"timeout": 0.5}, "took longer than 0.5 s and was ended"),
        ("eat", {"memory": 300 * 2**20}, "MiB of memory, over its limit of 300 MiB"),
        ("memory", {}, "ran out of memory"),
        ("die", {}, "died (signal 11) without a word"),
        ("killed", {}, "was killed, most likely because the machine ran out of memory"),
        ("leave", {}, "died (exit code 3) without a word"),
        ("exit", {}, "SystemExit: 5"),
    ],
)
def test_a_step_that_misbehaves_fails_with_one_message_and_stops_what_follows(
    bench: Bench, how: str, limits: dict[str, Any], message: str
) -> None:
    good = bench.step("good", "add")
    bad = bench.step("bad", "misbehave", {"x": "good.value"}, payload={"how": how}, **limits)
    result = bench.run(good, bad, bench.step("after", "add", {"x": "bad.value"}))
    assert states(result) == ["done", "failed", "skipped"]
    assert result.exit_code == (2 if how == "mistaken" else 1)  # a mistake of the definition
    assert message in result.steps[1].message
    assert bench.called("after") == 0
    assert states(bench.run(good)) == ["cached"]


def test_a_refusal_stops_the_run_with_its_own_exit_code_also_from_the_cache(bench: Bench) -> None:
    gate, after = bench.step("gate", "refuse"), bench.step("after", "add", {"x": "gate.verdict"})
    for _ in range(2):
        result = bench.run(gate, after)
        assert (result.state, result.exit_code, states(result)) == ("refused", 3, ["refused", "skipped"])
        assert result.steps[0].message == "0.61 is below 0.70"
    assert (bench.called("gate"), bench.called("after")) == (1, 0)


def damage(bench: Bench, change: Callable[[Path], None]) -> None:
    for path in (bench.state / "objects" / "blobs").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            change(path)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(b"y" * 1000), lambda path: path.write_bytes(b"x" * 10), lambda path: path.unlink()],
    ids=["flipped", "truncated", "gone"],
)
def test_a_damaged_artifact_is_made_again_and_never_used(bench: Bench, change: Callable[[Path], None]) -> None:
    maker = bench.step("maker", "make")
    assert states(bench.run(maker)) == ["done"]
    damage(bench, change)
    result = bench.run(maker, bench.step("user", "use", {"piece": "maker.piece"}))
    assert states(result) == ["done", "done"]
    assert result.steps[1].outputs.value == 1000
    assert bench.called("maker") == 2


def test_what_a_step_prints_goes_to_its_log_without_secrets(bench: Bench) -> None:
    result = bench.run(bench.step("talker", "talk"))
    log = (bench.state / "logs" / result.run_id / "talker.log").read_text()
    assert log == "printed ***\nfrom a child\nno newline\n"
    assert bench.journal.events(result.run_id)[0][2] == "reading with ***"
    for path in bench.state.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_only_one_run_at_a_time(bench: Bench) -> None:
    with lock(bench.state), pytest.raises(SystemFault, match="another run is at work in this project"):
        bench.run(*chain(bench))


def test_who_looks_whether_a_run_is_at_work_keeps_none_from_beginning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GLANCE", 60.0)
    assert not local.is_held(bench.root / "nothing")
    with lock(bench.state):
        assert local.is_held(bench.state)
    assert not local.is_held(bench.state)
    with (bench.state / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        letting_go.start()
        with lock(bench.state):
            letting_go.join()
    assert not local.is_held(bench.state)


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="cannot be written"), lock(tmp_path / "file" / "state"):
        pass


def test_a_damaged_cache_entry_is_a_miss(bench: Bench) -> None:
    result = bench.run(bench.step("a", "add"))
    for bad in (b"{", b"[]", json.dumps({"outputs": {"other": 1}}).encode()):
        bench.objects.set_ref(f"cache/{result.steps[0].key}", bad)
        assert states(bench.run(bench.step("a", "add"))) == ["done"]


# workers that end, print and leave things behind as they should not


def gone(pid: int) -> bool:
    """Whether the process has ended, within half a minute; one that nobody has waited for yet has ended as well."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("kill", [True, False])
def test_a_worker_ended_right_after_its_start_ends(tmp_path: Path, kill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 600.0)  # being asked is enough, however busy the machine is
    prepare(["json:loads"])
    for _ in range(5):
        worker = Process("x", [], 1, tmp_path / "x.log", str)
        ending = threading.Thread(target=worker.end, args=(kill,), daemon=True)
        ending.start()
        ending.join(60)
        assert not ending.is_alive()
        assert gone(worker.pid)


def test_a_step_that_prints_faster_than_can_be_read_is_ended_in_time(bench: Bench) -> None:
    began = time.monotonic()
    result = bench.run(bench.step("flood", "flood", timeout=0.5))
    assert result.steps[0].message == "took longer than 0.5 s and was ended"
    assert time.monotonic() - began < 30


def test_output_without_ends_of_lines_is_written_piece_by_piece_without_secrets(bench: Bench) -> None:
    result = bench.run(bench.step("bar", "draw_bar"))
    log = (bench.state / "logs" / result.run_id / "bar.log").read_bytes()
    assert log == b"".join(b"\r***" + b"." * 10_000 for _ in range(300)) + b"\n"


def test_what_a_step_leaves_running_ends_with_it(bench: Bench) -> None:
    result = bench.run(bench.step("parent", "leave_a_child"))
    assert gone(result.steps[0].outputs.value)


def test_a_message_with_bytes_that_are_no_text_is_told_all_the_same(bench: Bench) -> None:
    result = bench.run(bench.step("blame", "blame_a_file"))
    assert (result.state, result.steps[0].message) == ("failed", "ValueError: caf\\udce9.csv")
    assert bench.journal.events(result.run_id)[0][2] == "reading caf\\udce9"


def test_a_waiting_worker_that_was_killed_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start = schedule.Schedule._start_spare

    def start_and_kill(self: schedule.Schedule) -> None:
        start(self)
        for spare in self._spare.values():
            if spare.alive():
                os.kill(spare.pid, signal.SIGKILL)
                spare._process.join()

    monkeypatch.setattr(schedule.Schedule, "_start_spare", start_and_kill)
    first = bench.step("first", "add", warm=["json"])
    assert states(bench.run(first, bench.step("second", "add", {"x": "first.value"}, warm=["json"]))) == ["done"] * 2


def test_a_damaged_artifact_that_two_steps_find_at_once_is_made_again_once(bench: Bench) -> None:
    maker = bench.step("maker", "make")
    bench.run(maker)
    damage(bench, lambda path: path.write_bytes(b"y" * 1000))
    twins = [
        bench.step(name, "use_together", {"piece": "maker.piece"}, payload={"twins": ["left", "right"]})
        for name in ("left", "right")
    ]
    assert states(bench.run(maker, *twins)) == ["done"] * 3
    assert bench.called("maker") == 2


def test_a_step_done_is_not_repeated_when_only_its_cache_entry_could_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("the store does not answer")

    step = bench.step("a", "add")
    with monkeypatch.context() as patch:
        patch.setattr(schedule.cache, "keep", refuse)
        with pytest.raises(Unavailable):
            bench.run(step)
    assert states(bench.run(step, resume="run0")) == ["cached"]
    assert bench.called("a") == 1


def test_an_interrupt_is_heeded_only_where_nothing_is_half_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = schedule.cache.keep

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        keep(*arguments)

    monkeypatch.setattr(schedule.cache, "keep", interrupted)
    result = bench.run(*chain(bench))
    assert (result.state, result.exit_code, states(result)) == ("interrupted", 130, ["done", "skipped", "skipped"])
    assert [row.state for row in bench.journal.attempts(result.run_id)] == ["done"]
