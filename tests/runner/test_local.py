"""The runner on this machine: order, cache, retries, limits, refusals, damaged artifacts, and what it writes down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.runner import Plan, RunResult, Step, schedule
from drivetrain.backends.runner.local import LocalRunner, lock
from drivetrain.cli.progress import Lines
from drivetrain.errors import SystemFault
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
    assert result.exit_code == 1
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


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="cannot be written"), lock(tmp_path / "file" / "state"):
        pass


def test_a_damaged_cache_entry_is_a_miss(bench: Bench) -> None:
    result = bench.run(bench.step("a", "add"))
    for bad in (b"{", b"[]", json.dumps({"outputs": {"other": 1}}).encode()):
        bench.objects.set_ref(f"cache/{result.steps[0].key}", bad)
        assert states(bench.run(bench.step("a", "add"))) == ["done"]
