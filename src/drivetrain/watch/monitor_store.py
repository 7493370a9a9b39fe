"""The monitor's state on disk. Whatever a batch of events changes, and the position after it, is one transaction: a process killed
between any two statements has either counted the batch or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from drivetrain.backends.serving.gateway.events import Event
from drivetrain.errors import SystemFault
from drivetrain.journal.opening import connect
from drivetrain.watch.window_state import WindowReport

_VERSION = 1
_SCHEMA = """
create table facts (name text primary key, value real not null) without rowid;
create table positions (source text primary key, position text not null) without rowid;
create table revisions (number integer primary key, name text not null unique);
create table windows (revision text not null, start real not null, state blob not null, primary key (revision, start)) without rowid;
create table closed (
    revision text not null, start real not null, finish real not null, report blob not null, state blob,
    primary key (revision, start)
) without rowid;
create index closed_by_end on closed (finish);
create table seen (number integer primary key, identities blob not null);
create table halves (identity integer primary key, event blob not null);
create table kept (
    identity integer not null, revision integer not null, at real not null, predictions blob not null, slices text not null,
    primary key (identity, revision)
) without rowid;
create index kept_by_time on kept (at);
create table waiting (identity integer primary key, at real not null, label text not null);
create table labelled (start real primary key, rows integer not null) without rowid;
create table counters (kind text not null, outcome text not null, count integer not null, primary key (kind, outcome)) without rowid;
"""
_MOST_CLOSED = 20_000
"""Closed windows whose reports are kept."""
_MOST_STATES = 500
"""Closed windows whose counts are kept too, for pictures."""

_encode = msgspec.json.Encoder().encode
_report = msgspec.json.Decoder(WindowReport).decode
_pack = msgspec.msgpack.Encoder().encode
_event = msgspec.msgpack.Decoder(Event).decode


@dataclass(frozen=True, slots=True)
class Kept:
    """A prediction that waits for its label: the numbers of its rows one after the other, little-endian float64, and of each row its
    slices by column."""

    identity: int
    revision: str
    at: float
    predictions: bytes
    slices: Sequence[Mapping[str, str]] = ()


class MonitorStore:
    """The state in the file `path`, made if it is not there. Raises `SystemFault` if that cannot be, as do all its methods."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(path)
            # After a power cut the last batches may be gone, position and all, and are read again.
            self._db.execute("pragma synchronous=normal")
            self._db.execute("pragma cache_size=-32000")
            with self.transaction():
                if self._db.execute("pragma user_version").fetchone()[0] == 0:
                    for statement in _SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"pragma user_version={_VERSION}")

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
            raise SystemFault(
                f"the monitor's state cannot be kept: {text}", where=str(self._path), hint=hint
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything within is kept, or nothing."""
        with self._translated():
            self._db.execute("begin immediate")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                self._numbers.clear()
                raise
            self._db.execute("commit")

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self._translated():
            return self._db.execute(statement, values).fetchall()

    # facts and positions

    def version(self) -> int:
        """Changes whenever another connection has changed the file."""
        return int(self._rows("pragma data_version")[0][0])

    def facts(self) -> dict[str, float]:
        """Single numbers by name."""
        return dict(self._rows("select name, value from facts"))

    def keep_fact(self, name: str, value: float) -> None:
        """Sets a number."""
        self._db.execute("insert or replace into facts values (?, ?)", (name, value))

    def position(self, source: str) -> str | None:
        """Where the reading of a source has come to."""
        found = self._rows("select position from positions where source = ?", source)
        return str(found[0][0]) if found else None

    def keep_position(self, source: str, position: str) -> None:
        """Sets where the reading of a source has come to."""
        self._db.execute("insert or replace into positions values (?, ?)", (source, position))

    # windows

    def windows(self) -> list[tuple[str, float, bytes]]:
        """The open windows: revision, start, state."""
        return self._rows("select revision, start, state from windows order by start, revision")

    def keep_windows(self, windows: Iterable[tuple[str, float, bytes]]) -> None:
        """Writes open windows."""
        self._db.executemany("insert or replace into windows values (?, ?, ?)", windows)

    def close_window(self, report: WindowReport, state: bytes) -> None:
        """An open window becomes a closed one. The oldest closed ones go."""
        self._db.execute("delete from windows where revision = ? and start = ?", (report.revision, report.start))
        row = (report.revision, report.start, report.end, _encode(report), state)
        self._db.execute("insert into closed values (?, ?, ?, ?, ?)", row)
        for change, most in (("update closed set state = null", _MOST_STATES), ("delete from closed", _MOST_CLOSED)):
            # A window's states are dropped once: those before have none.
            oldest = self._db.execute(
                "select finish from closed order by finish desc limit 1 offset ?", (most,)
            ).fetchone()
            if oldest is not None:
                also = " and state is not null" if "state" in change else ""
                self._db.execute(f"{change} where finish <= ?{also}", oldest)

    def reports(self, since: float = float("-inf"), revision: str | None = None) -> list[WindowReport]:
        """The closed windows that end after `since`, oldest first."""
        rows = self._rows(
            "select report from closed where finish > ? and (?2 is null or revision = ?2) order by start, revision", since, revision
        )  # fmt: skip
        return [_report(row[0]) for row in rows]

    def newest_reports(self, revision: str) -> Generator[WindowReport, None, None]:
        """The closed windows of a revision, newest first, each decoded when it is asked for."""
        with self._translated():
            rows = self._db.execute("select report from closed where revision = ? order by start desc", (revision,))
            for row in rows:
                yield _report(row[0])

    def closed_state(self, revision: str, start: float) -> bytes | None:
        """The counts of a closed window; None if they are no longer kept, or there was none."""
        found = self._rows("select state from closed where revision = ? and start = ?", revision, start)
        return found[0][0] if found else None

    def closed_starts(self) -> set[float]:
        """The starts of all windows that are closed."""
        return {row[0] for row in self._rows("select distinct start from closed")}

    # events

    def seen(self) -> list[tuple[int, np.ndarray]]:
        """Identities of events, in the portions in which they came."""
        rows = self._rows("select number, identities from seen order by number")
        return [(number, np.frombuffer(blob, "<u8")) for number, blob in rows]

    def keep_seen(self, number: int, identities: np.ndarray, forget_before: int) -> None:
        """Writes a portion, and drops older ones."""
        self._db.execute("insert into seen values (?, ?)", (number, identities.astype("<u8").tobytes()))
        self._db.execute("delete from seen where number < ?", (forget_before,))

    def halves(self) -> dict[int, Event]:
        """Requests without answers yet, and answers without requests."""
        return {_unsigned(key): _event(blob) for key, blob in self._rows("select identity, event from halves")}

    def change_halves(self, gone: Iterable[int], new: Iterable[tuple[int, Event]]) -> None:
        """Drops some, and adds others."""
        self._db.executemany("delete from halves where identity = ?", [(_signed(key),) for key in gone])
        self._db.executemany(
            "insert or replace into halves values (?, ?)", [(_signed(key), _pack(event)) for key, event in new]
        )

    def counters(self) -> dict[tuple[str, str], int]:
        """How many events there were, by kind and outcome."""
        return {(kind, outcome): n for kind, outcome, n in self._rows("select kind, outcome, count from counters")}

    def keep_counters(self, counters: Iterable[tuple[str, str, int]]) -> None:
        """Sets counters."""
        self._db.executemany("insert or replace into counters values (?, ?, ?)", counters)

    # predictions and labels

    def _number(self, revision: str) -> int:
        if revision not in self._numbers:
            self._db.execute("insert or ignore into revisions (name) values (?)", (revision,))
            found = self._db.execute("select number from revisions where name = ?", (revision,)).fetchone()
            self._numbers[revision] = found[0]
        return self._numbers[revision]

    def keep_predictions(self, predictions: Iterable[Kept]) -> None:
        """Adds predictions."""
        self._db.executemany(
            "insert or ignore into kept values (?, ?, ?, ?, ?)",
            [
                (_signed(one.identity), self._number(one.revision), one.at, one.predictions,
                 _encode(one.slices).decode() if one.slices else "")
                for one in predictions
            ],
        )  # fmt: skip

    def predictions(self, identities: Sequence[int]) -> list[Kept]:
        """The predictions of these identities, of every revision."""
        found: list[Kept] = []
        for start in range(0, len(identities), 500):
            some = [_signed(key) for key in identities[start : start + 500]]
            rows = self._db.execute(
                "select identity, name, at, predictions, slices from kept join revisions on number = revision "
                f"where identity in ({', '.join('?' * len(some))})",
                some,
            ).fetchall()
            found += [
                Kept(_unsigned(key), name, at, blob, msgspec.json.decode(text or "[]"))
                for key, name, at, blob, text in rows
            ]
        return found

    def drop_predictions(self, identities: Iterable[int]) -> None:
        """Drops those that have their label."""
        self._db.executemany("delete from kept where identity = ?", [(_signed(key),) for key in identities])

    def drop_old_predictions(self, before: float) -> int:
        """Drops those from before a time, and says how many."""
        return self._db.execute("delete from kept where at < ?", (before,)).rowcount

    def thin_predictions(self, level: int) -> int:
        """Keeps those alone that are in the sample of a level (`in_sample`), and says how many went."""
        return self._db.execute("delete from kept where identity & ? != 0", ((1 << level) - 1,)).rowcount

    def count_predictions(self) -> int:
        """How many wait."""
        return int(self._rows("select count(*) from kept")[0][0])

    def waiting(self) -> dict[int, tuple[float, str]]:
        """Labels whose predictions have not come: time and label (JSON) by identity."""
        rows = self._rows("select identity, at, label from waiting")
        return {_unsigned(key): (at, label) for key, at, label in rows}

    def change_waiting(self, gone: Iterable[int], new: Iterable[tuple[int, float, str]]) -> None:
        """Drops some, and adds others."""
        self._db.executemany("delete from waiting where identity = ?", [(_signed(key),) for key in gone])
        self._db.executemany(
            "insert or replace into waiting values (?, ?, ?)", [(_signed(key), at, label) for key, at, label in new]
        )

    def add_labelled(self, rows: Iterable[tuple[float, int]]) -> None:
        """Adds rows to the count of those whose labels became known in a window."""
        self._db.executemany(
            "insert into labelled values (?, ?) on conflict (start) do update set rows = rows + excluded.rows", rows
        )

    def labelled_since(self, at: float) -> int:
        """Rows whose labels became known in windows that start at a time or later."""
        return int(self._rows("select coalesce(sum(rows), 0) from labelled where start >= ?", at)[0][0])


def in_sample(identity: int, level: int) -> bool:
    """Whether an identity is among the one in 2^level that are kept."""
    return identity & ((1 << level) - 1) == 0


def _signed(identity: int) -> int:
    return identity - (1 << 64) if identity >= 1 << 63 else identity


def _unsigned(identity: int) -> int:
    return identity & ((1 << 64) - 1)
