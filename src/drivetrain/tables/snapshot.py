"""Staged rows deduplicated, sorted and written as parquet in partitions; equal rows give equal bytes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drivetrain.errors import DataError, SystemFault
from drivetrain.tables import TableSpec
from drivetrain.tables.chunks import ROWS, Types
from drivetrain.tables.partitions import Size, after, from_micros, name, to_micros
from drivetrain.tables.staging import SEQUENCE, Staged

MEMORY = "64MB"
"""What DuckDB may use; beyond it, it spills to the temporary directory."""

MORE_MEMORY = ("512MB", "2GB")
"""What it may use when it cannot do with less: rows with very many or very long columns are sorted in larger blocks."""

THREADS = 2

ALL = "all"
"""The one partition of a table without a timestamp."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One parquet file of a table; `sha256` over its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` has written. Times in UTC, ISO 8601; `labelled` counts the values of each needed column."""

    columns: dict[str, str]
    rows: int
    duplicates: int
    outside: int
    first: str | None
    last: str | None
    partitions: tuple[Partition, ...]
    labelled: dict[str, int]


def write(
    staged: list[Staged], spec: TableSpec, size: Size, directory: Path, scratch: Path, done: Callable[[str, int], None]
) -> Written:
    """Writes `PARTITION.parquet` files to the new directory and says `done(partition, rows)` after each.

    Of rows with equal keys the latest stays, of those the one read last; without a key, one of rows that are equal
    throughout. Rows are sorted by time, then key, then all columns. Raises `DataError` if no row is left, or if the
    pieces' columns do not fit together.
    """
    types = Types(spec)
    for piece in staged:
        types.observe(piece.held, piece.declared)
    _check_any(staged, spec)
    present = [column for column, kind in types.held.items() if not pa.types.is_null(kind)]
    if not present:
        raise DataError(f"every column is null in all {sum(piece.rows for piece in staged):,} rows", where=spec.where)
    files = [str(file) for piece in staged for file in piece.files]
    for memory in (MEMORY, *MORE_MEMORY):
        directory.mkdir(parents=True)
        writer = _Writer(types.schema, spec, size, directory, done)
        try:
            with _connect(scratch, memory) as connection:
                duplicates = _find_duplicates(connection, files, spec, present)
                for batch in _sorted_rows(connection, files, spec, present, duplicates):
                    writer.add(_completed(batch, types.schema))
            break
        except duckdb.Error as error:
            if isinstance(error, duckdb.OutOfMemoryException) and memory != MORE_MEMORY[-1]:
                writer.abandon()
                shutil.rmtree(directory)
                continue
            raise SystemFault(
                f"sorting failed: {str(error).splitlines()[0]}", hint="see that the disk has room", where=spec.where
            ) from error
        finally:
            writer.close()
    return Written(
        columns={entry.name: str(entry.type) for entry in types.schema},
        rows=writer.rows, duplicates=duplicates, outside=sum(piece.outside for piece in staged),
        first=_iso(writer.first), last=_iso(writer.last), partitions=tuple(writer.partitions), labelled=writer.labelled,
    )  # fmt: skip


def _check_any(staged: list[Staged], spec: TableSpec) -> None:
    if sum(piece.rows for piece in staged):
        return
    outside = sum(piece.outside for piece in staged)
    if not outside:
        raise DataError("there are no rows", hint="see that the source has data in the window", where=spec.where)
    first = min(piece.first for piece in staged if piece.first is not None)
    last = max(piece.last for piece in staged if piece.last is not None)
    raise DataError(
        f"none of the {outside:,} rows lies in the window from {spec.start or 'the first row'} to {spec.end or 'the last row'}: "
        f"the first is of {_iso(first)}, the last of {_iso(last)}",
        hint="change data.window", where=spec.where,
    )  # fmt: skip


def _connect(scratch: Path, memory: str) -> duckdb.DuckDBPyConnection:
    settings = {
        "memory_limit": memory, "threads": THREADS, "temp_directory": str(scratch), "preserve_insertion_order": False,
    }  # fmt: skip
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'").fetchall()
    return connection


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _source(files: list[str]) -> str:
    names = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    return f"read_parquet([{names}], union_by_name=true)"


def _find_duplicates(
    connection: duckdb.DuckDBPyConnection, files: list[str], spec: TableSpec, present: list[str]
) -> int:
    """Fills the table `duplicates` with the numbers of the rows to leave out; returns how many there are."""
    same = ", ".join(_quoted(column) for column in spec.key or present)
    latest = f"{_quoted(spec.timestamp)} DESC, " if spec.key and spec.timestamp else ""
    # Hashes first, since most tables have few duplicates: eight bytes a row instead of the row.
    connection.execute(
        f"""CREATE TEMP TABLE duplicates AS
        WITH suspects AS (SELECT h FROM (SELECT hash({same}) AS h FROM {_source(files)}) GROUP BY h HAVING count(*) > 1)
        SELECT {SEQUENCE} FROM (
            SELECT {SEQUENCE}, row_number() OVER (PARTITION BY {same} ORDER BY {latest}{SEQUENCE} DESC) AS place
            FROM {_source(files)} WHERE hash({same}) IN (SELECT h FROM suspects))
        WHERE place > 1"""
    ).fetchall()
    return int(connection.sql("SELECT count(*) FROM duplicates").fetchall()[0][0])


def _sorted_rows(
    connection: duckdb.DuckDBPyConnection, files: list[str], spec: TableSpec, present: list[str], duplicates: int
) -> Iterator[pa.RecordBatch]:
    order = ([spec.timestamp] if spec.timestamp else []) + list(spec.key or present)
    left_out = f"ANTI JOIN duplicates USING ({SEQUENCE})" if duplicates else ""
    return iter(
        connection.sql(
            f"SELECT {', '.join(map(_quoted, present))} FROM {_source(files)} {left_out} "
            f"ORDER BY {', '.join(f'{_quoted(column)} ASC NULLS LAST' for column in dict.fromkeys(order))}"
        ).to_arrow_reader(ROWS)
    )


def _completed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    columns = []
    for entry in schema:
        position = batch.schema.get_field_index(entry.name)
        columns.append(
            pa.nulls(batch.num_rows, entry.type) if position < 0 else batch.column(position).cast(entry.type)
        )
    return pa.table(columns, schema=schema)


@dataclass(slots=True)
class _Writer:
    """Cuts sorted rows into partitions, and those into row groups of `ROWS`, whatever the batches they come in."""

    schema: pa.Schema
    spec: TableSpec
    size: Size
    directory: Path
    done: Callable[[str, int], None]
    rows: int = 0
    first: int | None = None
    last: int | None = None
    partitions: list[Partition] = field(default_factory=list)
    labelled: dict[str, int] = field(default_factory=dict)
    waiting: list[pa.Table] = field(default_factory=list)
    name: str = ALL
    end: float = float("-inf")
    """First microsecond after the partition that is open."""
    written: int = 0
    open: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        for _, column in self.spec.needed:
            values = table.num_rows - table.column(column).null_count
            self.labelled[column] = self.labelled.get(column, 0) + values
        if self.spec.timestamp is None:
            self._append(table)
            return
        micros = pc.cast(table.column(self.spec.timestamp), pa.int64()).to_numpy()
        if not len(micros):
            return
        self.first = int(micros[0]) if self.first is None else self.first
        self.last = int(micros[-1])
        start = 0
        while start < len(micros):
            if micros[start] >= self.end:
                self.close()
                instant = from_micros(int(micros[start]))
                self.name, self.end = name(instant, self.size), to_micros(after(instant, self.size))
            stop = int(np.searchsorted(micros, self.end, side="left"))
            self._append(table.slice(start, stop - start))
            start = stop

    def _append(self, table: pa.Table) -> None:
        self.waiting.append(table)
        if sum(part.num_rows for part in self.waiting) >= ROWS:
            whole = pa.concat_tables(self.waiting)
            full = whole.num_rows - whole.num_rows % ROWS
            self._write(whole.slice(0, full))
            self.waiting = [whole.slice(full)] if full < whole.num_rows else []

    def _write(self, table: pa.Table) -> None:
        if self.open is None:
            self.open = pq.ParquetWriter(self._path, self.schema, compression="zstd", version="2.6")
        for start in range(0, table.num_rows, ROWS):
            self.open.write_table(table.slice(start, ROWS).combine_chunks(), row_group_size=ROWS)
        self.written += table.num_rows

    @property
    def _path(self) -> Path:
        return self.directory / f"{self.name}.parquet"

    def abandon(self) -> None:
        """Lets go of what is not written yet."""
        self.waiting = []
        if self.open is not None:
            self.open.close()
            self.open = None

    def close(self) -> None:
        """Ends the partition that is open, if any."""
        if self.waiting:
            self._write(pa.concat_tables(self.waiting))
            self.waiting = []
        if self.open is None:
            return
        self.open.close()
        self.open = None
        with self._path.open("rb") as file:
            self.partitions.append(Partition(self.name, self.written, hashlib.file_digest(file, "sha256").hexdigest()))
        self.done(self.name, self.written)
        self.written = 0


def _iso(micros: int | None) -> str | None:
    return None if micros is None else from_micros(micros).isoformat().replace("+00:00", "Z")
