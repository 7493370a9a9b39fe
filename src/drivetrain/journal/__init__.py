"""What happened: runs, attempts, events, predictions and decisions of one project, and digests of its files, in one SQLite database.

Every change is one transaction with `synchronous=FULL`, so that a process killed at any instant leaves a journal that
tells how far it came. Only the process that holds the project's lock writes runs, only the one that holds the loop's lock
writes decisions; anyone may read, and anyone may approve.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivetrain.errors import SystemFault
from drivetrain.journal.opening import connect
from drivetrain.journal.rows import AttemptRow, Decision, RunRow
from drivetrain.journal.schema import MIGRATIONS
from drivetrain.records import Scalar

__all__ = ["AttemptRow", "Decision", "Journal", "RunRow"]


class Journal:
    """The journal in the file `path`, made if it is not there. Raises `SystemFault` if that cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(path)
            self._db.execute("pragma synchronous=full")
            version: int = self._db.execute("pragma user_version").fetchone()[0]
            for number in range(version, len(MIGRATIONS)):
                self._db.executescript(MIGRATIONS[number])
                self._db.execute(f"pragma user_version={number + 1}")

    def close(self) -> None:
        """Ends the connection; a second call does nothing."""
        self._db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            text = str(error)
            hint = "free some space" if "full" in text or "space" in text else "check that the directory can be written"
            raise SystemFault(f"the journal cannot be written: {text}", where=str(self.path), hint=hint) from error

    def _write(self, statement: str, *values: object) -> None:
        with self._translated():
            self._db.execute(statement, values)

    # runs

    def start_run(self, run_id: str, lifecycle: str, facts: Mapping[str, Scalar], pid: int, now: float) -> None:
        """Opens a run, or opens it again when it is resumed, under a new process and with what it is about now."""
        self._write(
            "insert into runs values (?, ?, 'running', null, ?, null, ?, ?) "
            "on conflict (id) do update set state = 'running', exit_code = null, ended = null, pid = excluded.pid, "
            "facts = excluded.facts",
            run_id, lifecycle, now, pid, json.dumps(facts),
        )  # fmt: skip

    def end_run(self, run_id: str, state: str, exit_code: int, now: float) -> None:
        """Closes a run."""
        self._write("update runs set state = ?, exit_code = ?, ended = ? where id = ?", state, exit_code, now, run_id)

    def run(self, run_id: str) -> RunRow | None:
        """The run of that id, or of the only one that begins so."""
        rows = self._runs("where id = ? or id like ? || '%' order by id = ? desc limit 2", run_id, run_id, run_id)
        exact = [row for row in rows if row.id == run_id]
        return exact[0] if exact else rows[0] if len(rows) == 1 else None

    def runs(self, limit: int = 1000) -> list[RunRow]:
        """The newest runs, newest first."""
        return self._runs("order by rowid desc limit ?", limit)

    def _runs(self, clause: str, *values: object) -> list[RunRow]:
        names = ("id", "lifecycle", "state", "exit_code", "started", "ended", "pid", "facts")
        with self._translated():
            rows = self._db.execute(f"select {', '.join(names)} from runs {clause}", values).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [RunRow(**{**row, "facts": json.loads(row["facts"])}) for row in found]

    # attempts

    def start_attempt(self, run_id: str, stage: str, key: str, now: float) -> int:
        """Opens an attempt and returns its number, from 1. One left open by a killed process is closed as `lost`."""
        with self._translated(), self._transaction():
            self._close_lost(run_id, stage, now)
            number: int = self._db.execute(
                "select coalesce(max(attempt), 0) + 1 from attempts where run_id = ? and stage = ?", (run_id, stage)
            ).fetchone()[0]
            self._db.execute(
                "insert into attempts (run_id, stage, attempt, state, key, started) values (?, ?, ?, 'running', ?, ?)",
                (run_id, stage, number, key, now),
            )
        return number

    def end_attempt(
        self, run_id: str, stage: str, attempt: int, state: str, now: float, *,
        outputs: Mapping[str, Any] | None = None, peak_memory: int = 0, message: str = "", hint: str = "",
    ) -> None:  # fmt: skip
        """Closes an attempt with what came of it."""
        self._write(
            "update attempts set state = ?, ended = ?, outputs = ?, peak_memory = ?, message = ?, hint = ? "
            "where run_id = ? and stage = ? and attempt = ?",
            state, now, None if outputs is None else json.dumps(outputs, sort_keys=True), peak_memory, message, hint,
            run_id, stage, attempt,
        )  # fmt: skip

    def keep_cached(
        self, run_id: str, rows: Sequence[tuple[str, str, str, Mapping[str, Any], str]], now: float
    ) -> None:
        """Writes attempts that took their results from the cache, in one transaction: stage, state, key, outputs, message."""
        with self._translated(), self._transaction():
            for stage, *_ in rows:
                self._close_lost(run_id, stage, now)
            self._db.executemany(
                "insert into attempts (run_id, stage, attempt, state, key, started, ended, outputs, message) values "
                "(?1, ?2, (select coalesce(max(attempt), 0) + 1 from attempts where run_id = ?1 and stage = ?2), "
                "?3, ?4, ?5, ?5, ?6, ?7)",
                [
                    (run_id, stage, state, key, now, json.dumps(outputs, sort_keys=True), message)
                    for stage, state, key, outputs, message in rows
                ],
            )

    def _close_lost(self, run_id: str, stage: str, now: float) -> None:
        self._db.execute(
            "update attempts set state = 'lost', ended = ? where run_id = ? and stage = ? and state = 'running'",
            (now, run_id, stage),
        )

    def attempts(self, run_id: str) -> list[AttemptRow]:
        """Every attempt of a run, in the order in which they began."""
        names = (
            "run_id", "stage", "attempt", "state", "key", "started", "ended", "peak_memory", "outputs", "message", "hint",
        )  # fmt: skip
        with self._translated():
            # Not by time: the clock may have been set back.
            rows = self._db.execute(
                f"select {', '.join(names)} from attempts where run_id = ? order by rowid", (run_id,)
            ).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [AttemptRow(**{**row, "outputs": json.loads(row["outputs"] or "null")}) for row in found]

    def latest(self, run_id: str) -> dict[str, AttemptRow]:
        """The last attempt at each stage of a run."""
        return {row.stage: row for row in self.attempts(run_id)}

    # events

    def say(self, run_id: str, stage: str, text: str, now: float) -> None:
        """Keeps a line of progress."""
        self._write("insert into events values (?, ?, ?, ?)", run_id, stage, now, text)

    def events(self, run_id: str) -> list[tuple[str, float, str]]:
        """The lines of a run: stage, time, text."""
        with self._translated():
            return self._db.execute(
                "select stage, time, text from events where run_id = ? order by rowid", (run_id,)
            ).fetchall()

    # predictions

    def keep_prediction(self, prediction_id: str, revision: str, run_id: str, now: float) -> None:
        """Remembers which revision, made by which run, gave a prediction."""
        self._write("insert or replace into predictions values (?, ?, ?, ?)", prediction_id, revision, run_id, now)

    def prediction(self, prediction_id: str) -> tuple[str, str, float] | None:
        """Revision, run and time of a prediction."""
        with self._translated():
            row: tuple[str, str, float] | None = self._db.execute(
                "select revision, run_id, time from predictions where id = ?", (prediction_id,)
            ).fetchone()
        return row

    # decisions

    def open_decision(self, decision: Decision) -> bool:
        """Writes a decision down before it is acted upon; False, and nothing changes, if there is one of its id."""
        with self._translated(), self._transaction():
            written = self._db.execute(
                "insert or ignore into decisions values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    decision.id, decision.at, decision.trigger, decision.action, decision.state, decision.reason,
                    json.dumps(decision.numbers), decision.run_id, decision.revision, decision.changed,
                ),
            ).rowcount  # fmt: skip
            if written:
                self._step(decision)
        return bool(written)

    def change_decision(self, decision: Decision) -> None:
        """Writes down what has become of a decision: state, reason, numbers, run and revision, with a step of its history."""
        with self._translated(), self._transaction():
            self._db.execute(
                "update decisions set state = ?, reason = ?, numbers = ?, run_id = ?, revision = ?, changed = ? where id = ?",
                (
                    decision.state, decision.reason, json.dumps(decision.numbers), decision.run_id, decision.revision,
                    decision.changed, decision.id,
                ),
            )  # fmt: skip
            self._step(decision)

    def _step(self, decision: Decision) -> None:
        step = (decision.id, decision.changed, decision.state, decision.reason)
        self._db.execute("insert into decision_steps values (?, ?, ?, ?)", step)

    def decision(self, decision_id: str) -> Decision | None:
        """The decision of that id, or the only one that begins so."""
        rows = self._decisions("where id = ? or id like ? || '%' order by id = ? desc limit 2", *[decision_id] * 3)
        exact = [row for row in rows if row.id == decision_id]
        return exact[0] if exact else rows[0] if len(rows) == 1 else None

    def decisions(self, limit: int = 1000, held: bool = True) -> list[Decision]:
        """The newest decisions, newest first; without `held` those alone that something was done or asked about."""
        return self._decisions("where ? or state != 'held' order by rowid desc limit ?", held, limit)

    def decisions_in(self, states: Collection[str]) -> list[Decision]:
        """Every decision that is in one of these states, oldest first."""
        marks = ", ".join("?" * len(states))
        return self._decisions(f"where state in ({marks}) order by rowid", *states)

    def _decisions(self, clause: str, *values: object) -> list[Decision]:
        names = ("id", "at", "trigger", "action", "state", "reason", "numbers", "run_id", "revision", "changed")
        columns = ", ".join(f'"{name}"' for name in names)
        with self._translated():
            rows = self._db.execute(f"select {columns} from decisions {clause}", values).fetchall()
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [Decision(**{**row, "numbers": json.loads(row["numbers"])}) for row in found]

    def decision_steps(self, decision_id: str) -> list[tuple[float, str, str]]:
        """The history of a decision: time, state, reason."""
        with self._translated():
            return self._db.execute(
                "select at, state, reason from decision_steps where decision_id = ? order by rowid", (decision_id,)
            ).fetchall()

    def steps_after(self, place: int, limit: int = 100) -> list[tuple[int, Decision]]:
        """What decisions came to, after a place in the history of all of them, oldest first: each with its place, and with the state, the
        reason and the time of then; all else as it is now."""
        with self._translated():
            rows = self._db.execute(
                "select rowid, decision_id, at, state, reason from decision_steps where rowid > ? order by rowid limit ?",
                (place, limit),
            ).fetchall()
        decisions = {decision_id: self.decision(decision_id) for _, decision_id, *_ in rows}
        return [
            (number, replace(found, changed=at, state=state, reason=reason))
            for number, decision_id, at, state, reason in rows
            if (found := decisions[decision_id]) is not None
        ]

    def newest_step(self) -> int:
        """The place of the newest entry in the history of all decisions; 0 if there is none."""
        with self._translated():
            found: int = self._db.execute("select coalesce(max(rowid), 0) from decision_steps").fetchone()[0]
        return found

    def approve(self, decision_id: str, approved: bool, now: float) -> None:
        """Keeps somebody's word about a decision that waits for it; the loop takes note at its next look. The last word counts."""
        self._write("insert or replace into approvals values (?, ?, ?)", decision_id, int(approved), now)

    def approval(self, decision_id: str) -> bool | None:
        """Whether the decision was approved or rejected; None while nobody has said."""
        with self._translated():
            row = self._db.execute("select approved from approvals where decision_id = ?", (decision_id,)).fetchone()
        return bool(row[0]) if row else None

    # the loop's memory

    def see_alerts(self, alerts: Sequence[tuple[str, str, str, str]], now: float, keep: int = 10_000) -> int:
        """Keeps alerts that were told: fingerprint, when it began, status, document. One that is known is counted, no more.

        Returns how many were new. Of all that were ever told the `keep` latest are remembered.
        """
        new = 0
        with self._translated(), self._transaction():
            for fingerprint, starts_at, status, document in alerts:
                known = self._db.execute(
                    "update alerts set last = ?, times = times + 1 where fingerprint = ? and starts_at = ? and status = ?",
                    (now, fingerprint, starts_at, status),
                ).rowcount
                if not known:
                    row = (fingerprint, starts_at, status, document, now, now)
                    self._db.execute("insert into alerts values (?, ?, ?, ?, ?, ?, 1)", row)
                    new += 1
            if new:
                self._db.execute(
                    "delete from alerts where rowid in (select rowid from alerts order by last desc, rowid desc limit -1 offset ?)",
                    (keep,),
                )
        return new

    def alerts(self, limit: int = 1000) -> list[tuple[str, str, str, str, float, int]]:
        """The alerts that were told, the latest first: fingerprint, when it began, status, document, last told, how often."""
        with self._translated():
            return self._db.execute(
                "select fingerprint, starts_at, status, document, last, times from alerts order by rowid desc limit ?",
                (limit,),
            ).fetchall()

    def rollout(self, candidate: str) -> str | None:
        """The state of a candidate's rollout, as it was kept; None if there is none."""
        with self._translated():
            row = self._db.execute("select state from rollouts where candidate = ?", (candidate,)).fetchone()
        return row[0] if row else None

    def keep_rollout(self, candidate: str, state: str, now: float) -> None:
        """Keeps how far a candidate's rollout has come, as JSON."""
        self._write("insert or replace into rollouts values (?, ?, ?)", candidate, state, now)

    def loop_value(self, name: str) -> str | None:
        """What the loop keeps under that name from one look to the next."""
        with self._translated():
            row = self._db.execute("select value from loop_state where name = ?", (name,)).fetchone()
        return row[0] if row else None

    def keep_loop_value(self, name: str, value: str) -> None:
        """Keeps something for the loop's next look."""
        self._write("insert or replace into loop_state values (?, ?)", name, value)

    # digests of files, so that a large file is read only when it has changed

    def file_digest(self, path: str, size: int, mtime_ns: int, inode: int) -> str | None:
        """The digest kept for a file that still has this size, time and inode."""
        with self._translated():
            row = self._db.execute(
                "select digest from file_digests where path = ? and size = ? and mtime_ns = ? and inode = ?",
                (path, size, mtime_ns, inode),
            ).fetchone()
        return row[0] if row else None

    def keep_file_digest(self, path: str, size: int, mtime_ns: int, inode: int, digest: str) -> None:
        """Keeps a file's digest."""
        self._write("insert or replace into file_digests values (?, ?, ?, ?, ?)", path, size, mtime_ns, inode, digest)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has SQLite roll back by itself
                self._db.execute("rollback")
            raise
        self._db.execute("commit")
