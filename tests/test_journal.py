"""The journal: what is written is there, whoever reads and whatever is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.errors import SystemFault
from drivetrain.journal import Decision, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.db")


def test_a_run_and_its_attempts_are_read_back(journal: Journal) -> None:
    journal.start_run("r1", "flights", {"code": "c"}, 7, 10.0)
    first = journal.start_attempt("r1", "train", "key", 11.0)
    journal.end_attempt("r1", "train", first, "retried", 12.0, message="no answer", hint="wait")
    second = journal.start_attempt("r1", "train", "key", 13.0)
    journal.end_attempt("r1", "train", second, "done", 14.0, outputs={"a": 1}, peak_memory=5)
    journal.say("r1", "train", "fitting", 13.5)
    journal.end_run("r1", "done", 0, 15.0)
    run = journal.run("r1")
    assert run is not None
    assert (run.state, run.exit_code, run.ended, run.facts) == ("done", 0, 15.0, {"code": "c"})
    assert [(row.attempt, row.state, row.message) for row in journal.attempts("r1")] == [
        (1, "retried", "no answer"),
        (2, "done", ""),
    ]
    assert journal.latest("r1")["train"].outputs == {"a": 1}
    assert journal.events("r1") == [("train", 13.5, "fitting")]


def test_an_attempt_left_open_by_a_killed_process_is_closed_as_lost(journal: Journal) -> None:
    journal.start_run("r1", "flights", {}, 7, 10.0)
    journal.start_attempt("r1", "train", "key", 11.0)
    assert journal.start_attempt("r1", "train", "key", 20.0) == 2
    assert [row.state for row in journal.attempts("r1")] == ["lost", "running"]


def test_a_run_is_found_by_the_beginning_of_its_id_if_that_is_unique(journal: Journal) -> None:
    for run_id in ("aa1", "aa2", "b"):
        journal.start_run(run_id, "flights", {}, 7, 10.0)
    assert journal.run("b") == journal.run("b")
    found = journal.run("aa1")
    assert found is not None
    assert found.id == "aa1"
    assert journal.run("aa") is None
    assert journal.run("") is None


def test_a_resumed_run_keeps_when_it_began_and_tells_what_it_is_about_now(journal: Journal) -> None:
    journal.start_run("r1", "flights", {"a": 1}, 7, 10.0)
    journal.end_run("r1", "interrupted", 130, 11.0)
    journal.start_run("r1", "flights", {"a": 2}, 8, 20.0)
    run = journal.run("r1")
    assert run is not None
    assert (run.state, run.started, run.ended, run.pid, run.facts) == ("running", 10.0, None, 8, {"a": 2})


def test_a_file_digest_holds_only_for_the_same_size_time_and_inode(journal: Journal) -> None:
    journal.keep_file_digest("rows.csv", 10, 1, 2, "d")
    assert journal.file_digest("rows.csv", 10, 1, 2) == "d"
    assert [journal.file_digest("rows.csv", *other) for other in ((11, 1, 2), (10, 2, 2), (10, 1, 3))] == [None] * 3


def test_a_journal_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="the journal cannot be written"):
        Journal(tmp_path / "file" / "journal.db")


def test_processes_that_make_one_journal_at_once_all_open_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from drivetrain.journal import Journal\n"
        "for line in sys.stdin:\n    at, path = line.split()\n"
        "    while time.time() < float(at): pass\n    Journal(Path(path)).close(); print('opened', flush=True)\n"
    )
    words = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]
    try:
        for number in range(100):
            at = time.time() + 0.01
            for process in both:
                assert process.stdin is not None
                process.stdin.write(f"{at} {tmp_path / str(number) / 'journal.db'}\n")
            for process in both:
                assert process.stdout is not None
                assert process.stdout.readline() == "opened\n"
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    """The size limit of a process stands for a full disk: SQLite sees the same failing write."""
    path = tmp_path / "journal.db"
    code = f"""
import resource, signal, sys
from pathlib import Path
from drivetrain.errors import SystemFault
from drivetrain.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path({str(path)!r}))
journal.start_run("r1", "flights", {{}}, 7, 10.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    for number in range(10_000):
        journal.say("r1", "train", "x" * 1000, float(number))
except SystemFault as error:
    print(error, "|", error.hint)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the journal cannot be written" in found.stdout
    again = Journal(path)
    assert again.run("r1") is not None
    assert len(again.events("r1")) > 5


def test_the_latest_attempt_is_the_last_one_begun_even_when_the_clock_was_set_back(journal: Journal) -> None:
    journal.start_run("r1", "flights", {}, 7, 100.0)
    journal.end_attempt("r1", "train", journal.start_attempt("r1", "train", "k", 101.0), "retried", 102.0)
    journal.end_attempt("r1", "train", journal.start_attempt("r1", "train", "k", 50.0), "done", 51.0, outputs={"a": 1})
    journal.start_run("r2", "flights", {}, 7, 60.0)
    assert journal.latest("r1")["train"].state == "done"
    assert [run.id for run in journal.runs()] == ["r2", "r1"]


def test_an_attempt_that_a_killed_process_left_open_is_lost_when_the_result_is_then_found_cached(
    journal: Journal,
) -> None:
    journal.start_run("r1", "flights", {}, 7, 10.0)
    journal.start_attempt("r1", "train", "k", 11.0)
    journal.keep_cached("r1", [("train", "cached", "k", {"a": 1}, "")], 20.0)
    assert [attempt.state for attempt in journal.attempts("r1")] == ["lost", "cached"]


def test_a_full_disk_is_told_as_what_it_is(journal: Journal) -> None:
    journal.start_run("r1", "flights", {}, 7, 10.0)
    pages = journal._db.execute("pragma page_count").fetchone()[0]
    journal._db.execute(f"pragma max_page_count={pages}")
    with pytest.raises(SystemFault, match="full") as caught:
        journal.keep_cached("r1", [("train", "cached", "k", {"a": "x" * 1_000_000}, "")], 20.0)
    assert caught.value.hint == "free some space"


def _decision(decision_id: str = "d1", state: str = "training", now: float = 10.0) -> Decision:
    return Decision(decision_id, 10.0, "drift", "retrain", state, "0.3 > 0.25", {"value": 0.3}, "r1", None, now)


def test_a_decision_is_written_once_and_keeps_its_history(journal: Journal) -> None:
    assert journal.open_decision(_decision())
    assert not journal.open_decision(_decision(state="acting"))
    journal.change_decision(replace(_decision(), state="promoted", reason="better", revision="flights-2", changed=20.0))
    found = journal.decision("d")
    assert found is not None
    assert (found.state, found.revision, found.at, found.changed) == ("promoted", "flights-2", 10.0, 20.0)
    assert found.numbers == {"value": 0.3}
    assert [row.id for row in journal.decisions()] == ["d1"]
    assert journal.decision_steps("d1") == [(10.0, "training", "0.3 > 0.25"), (20.0, "promoted", "better")]
    assert journal.decision("x") is None
    steps = [(place, row.state, row.changed) for place, row in journal.steps_after(0)]
    assert steps == [(1, "training", 10.0), (2, "promoted", 20.0)]
    assert [place for place, _ in journal.steps_after(1)] == [2] == [journal.newest_step()]


def test_an_alert_that_is_told_again_is_counted_and_the_oldest_are_forgotten(journal: Journal) -> None:
    assert journal.see_alerts([("f1", "t1", "firing", "{}"), ("f1", "t1", "firing", "{}")], 10.0) == 1
    assert journal.see_alerts([("f1", "t1", "resolved", "{}")], 11.0) == 1
    assert [(row[0], row[2], row[5]) for row in journal.alerts()] == [("f1", "resolved", 1), ("f1", "firing", 2)]
    storm = [(f"g{number}", "t1", "firing", "{}") for number in range(50)]
    assert journal.see_alerts(storm, 12.0, keep=20) == 50
    assert [row[0] for row in journal.alerts()] == [f"g{number}" for number in reversed(range(30, 50))]


def test_the_last_word_about_a_decision_counts(journal: Journal) -> None:
    assert journal.approval("d1") is None
    journal.approve("d1", True, 10.0)
    journal.approve("d1", False, 11.0)
    assert journal.approval("d1") is False


def test_rollouts_and_the_loops_memory_are_read_back(journal: Journal) -> None:
    assert journal.rollout("flights-2") is None
    journal.keep_rollout("flights-2", '{"step": 0}', 10.0)
    journal.keep_rollout("flights-2", '{"step": 1}', 11.0)
    assert journal.rollout("flights-2") == '{"step": 1}'
    assert journal.loop_value("rules") is None
    journal.keep_loop_value("rules", "{}")
    assert journal.loop_value("rules") == "{}"


def test_a_journal_of_the_version_before_the_loop_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old = Journal(path)
    old.start_run("r1", "flights", {}, 7, 10.0)
    for table in ("decisions", "decision_steps", "approvals", "alerts", "rollouts", "loop_state"):
        old._db.execute(f"drop table {table}")
    old._db.execute("pragma user_version=1")
    old.close()
    journal = Journal(path)
    assert [row.id for row in journal.runs()] == ["r1"]
    assert journal.open_decision(_decision())
