"""Chunks on disk: rows within the window, in the order in which they were read, each with its number."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drivetrain.tables import TableSpec
from drivetrain.tables.chunks import ROWS, Types, held_types, plain
from drivetrain.tables.partitions import to_micros
from drivetrain.tables.times import INSTANT, Faults, to_utc

SEQUENCE = "__drivetrain_sequence"
"""Column with each row's number: of rows with equal keys and times the one that was read last is kept."""

SUMMARY = "staged.json"


@dataclass(frozen=True, slots=True)
class Staged:
    """A directory of staged rows. Times are microseconds since 1970, over all rows that were read."""

    directory: Path
    held: pa.Schema
    declared: pa.Schema
    rows: int
    outside: int
    """Rows outside of the window; they are not stored."""
    first: int | None
    last: int | None

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.parquet"))


@dataclass(slots=True)
class _Stager:
    spec: TableSpec
    directory: Path
    number: int
    types: Types
    faults: Faults
    rows: int = 0
    outside: int = 0
    first: int | None = None
    last: int | None = None
    waiting: list[pa.Table] = field(default_factory=list)
    writer: pq.ParquetWriter | None = None
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    files: int = 0

    def add(self, table: pa.Table) -> None:
        table = self._in_window(table)
        self.types.observe(held_types(table), table.schema)
        if table.num_rows:
            numbers = pa.array(np.arange(self.number, self.number + table.num_rows, dtype=np.int64))
            self.number += table.num_rows
            self.rows += table.num_rows
            self.waiting.append(table.append_column(SEQUENCE, numbers))
            if sum(part.num_rows for part in self.waiting) >= ROWS:
                self.flush()

    def _in_window(self, table: pa.Table) -> pa.Table:
        name = self.spec.timestamp
        if name is None:
            self._check_keys(table, pa.scalar(True))
            return table
        position = table.schema.get_field_index(name)
        given = _array(table.column(position))
        self.faults.note(
            f"column {name!r} is null in {{}} rows", "every row needs its time: drop those rows, or fill them in",
            _blank(given),
        )  # fmt: skip
        times = to_utc(given, name, self.spec.timezone, self.faults)
        table = table.set_column(position, pa.field(name, INSTANT), times)
        micros = times.cast(pa.int64())
        known = times.is_valid()
        low, high = pc.min_max(micros).as_py().values()
        if low is not None:
            self.first = low if self.first is None else min(low, self.first)
            self.last = high if self.last is None else max(high, self.last)
        inside = known
        if self.spec.start is not None and not self.spec.keeps_earlier:
            inside = pc.and_(inside, pc.greater_equal(micros, to_micros(self.spec.start)))
        if self.spec.end is not None:
            inside = pc.and_(inside, pc.less(micros, to_micros(self.spec.end)))
        inside = pc.fill_null(inside, False)
        self._check_keys(table, pc.or_(inside, pc.invert(known)))
        kept = table.filter(inside)
        self.outside += pc.sum(known).as_py() - kept.num_rows if table.num_rows else 0
        return kept

    def _check_keys(self, table: pa.Table, counted: pa.Array) -> None:
        for name in self.spec.key:
            self.faults.note(
                f"key column {name!r} is null in {{}} rows", "give every row its key, or name other key columns",
                pc.and_(table.column(name).is_null(), counted),
            )  # fmt: skip

    def flush(self) -> None:
        """Writes the waiting rows as one row group; begins a file where the columns' types have changed."""
        if not self.waiting:
            return
        schema = pa.schema([*(e for e in self.types.schema if not pa.types.is_null(self.types.held[e.name])),
                            pa.field(SEQUENCE, pa.int64())])  # fmt: skip
        parts = [_fitted(part, schema) for part in self.waiting]
        if self.writer is None or self.schema != schema:
            self.close()
            self.writer = pq.ParquetWriter(self.directory / f"{self.files:06d}.parquet", schema, compression="snappy")
            self.schema = schema
            self.files += 1
        self.writer.write_table(pa.concat_tables(parts).combine_chunks(), row_group_size=2 * ROWS)
        self.waiting = []

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def stage(
    chunks: Iterable[pd.DataFrame | pa.Table | pa.RecordBatch], spec: TableSpec, directory: Path, number: int = 0
) -> Staged:
    """Writes the chunks to the new directory, its rows numbered from `number` on.

    Raises `DataError` once everything is read, with all rows counted that have no time, a time that cannot be read, or
    no key; and at once where columns are missing or do not fit together.
    """
    directory.mkdir(parents=True)
    stager = _Stager(spec, directory, number, Types(spec), Faults(spec.where))
    try:
        for chunk in chunks:
            for table in plain(chunk, spec):
                stager.add(table)
        stager.faults.check()
        stager.flush()
    finally:
        stager.close()
    held, declared = (pa.schema(list(types.items())) for types in (stager.types.held, stager.types.declared))
    return Staged(directory, held, declared, stager.rows, stager.outside, stager.first, stager.last)


def save(staged: Staged) -> None:
    """Writes `staged.json` beside the files, so that `load` finds the same again."""
    values = {
        "held": base64.b64encode(staged.held.serialize()).decode(),
        "declared": base64.b64encode(staged.declared.serialize()).decode(),
        "rows": staged.rows, "outside": staged.outside, "first": staged.first, "last": staged.last,
    }  # fmt: skip
    (staged.directory / SUMMARY).write_text(json.dumps(values, sort_keys=True) + "\n", encoding="utf-8")


def load(directory: Path) -> Staged:
    """What `save` wrote. Raises `OSError`, `KeyError` or `ValueError` if it is not that."""
    values = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    held, declared = (pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values[name]))) for name in ("held", "declared"))
    return Staged(directory, held, declared, values["rows"], values["outside"], values["first"], values["last"])


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for entry in schema:
        position = table.schema.get_field_index(entry.name)
        # A column that is all null here may have come under another type.
        absent = position < 0 or table.column(position).null_count == table.num_rows
        columns.append(
            pa.nulls(table.num_rows, entry.type) if absent else table.column(position).cast(entry.type, safe=False)
        )
    return pa.table(columns, schema=schema)


def _array(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return pa.array([], type=column.type) if isinstance(joined, pa.ChunkedArray) else joined


def _blank(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column.is_null()
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
