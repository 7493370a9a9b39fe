"""A chunk of rows in the one form that is stored: plain column types, nulls for NaN, no index; and its columns' types."""

from __future__ import annotations

import datetime
import decimal
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.errors import DataError
from drivetrain.tables import TableSpec

ROWS = 65_536
"""Rows in a chunk, and in a row group of what is written."""

_INDEX = re.compile(r"__index_level_\d+__")


def plain(chunk: pd.DataFrame | pa.Table | pa.RecordBatch, spec: TableSpec) -> Iterator[pa.Table]:
    """The chunk as tables of at most `ROWS` rows, ready to be staged.

    Raises one `DataError` that names every column that is missing, twice there, or of a type that cannot be stored.
    """
    if isinstance(chunk, pd.DataFrame):
        chunk = _from_frame(chunk, spec)
    elif isinstance(chunk, pa.RecordBatch):
        chunk = pa.Table.from_batches([chunk])
    if not chunk.column_names and not chunk.num_rows:
        return
    chunk = chunk.drop_columns([name for name in set(chunk.column_names) if _INDEX.fullmatch(name)])
    check_names(chunk.column_names, spec)
    schema = _plain_schema(chunk.schema, spec)
    for start in range(0, max(chunk.num_rows, 1), ROWS):
        part = chunk.slice(start, ROWS)
        columns = [_plain_column(column, entry.type) for column, entry in zip(part.columns, schema, strict=True)]
        yield pa.table(columns, schema=schema)


def check_names(names: list[str], spec: TableSpec) -> None:
    """Raises `DataError` if a needed column is missing, or two columns have the same name but for upper and lower case."""
    wanted = [("key", name) for name in spec.key] + list(spec.needed)
    if spec.timestamp:
        wanted.insert(0, ("timestamp", spec.timestamp))
    problems = [
        f"{role} column {name!r} is missing{_similar(name, names)}" for role, name in wanted if name not in names
    ]
    hint = f"the columns are {', '.join(names)}" if problems else ""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if names.count(name) > 1:
            problems.append(f"column {name!r} is there {names.count(name)} times")
        elif other != name:
            problems.append(f"columns {other!r} and {name!r} differ in upper and lower case alone")
    if problems:
        raise DataError("; ".join(dict.fromkeys(problems)), hint=hint or "rename the columns", where=spec.where)


def _similar(name: str, names: list[str]) -> str:
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def _from_frame(frame: pd.DataFrame, spec: TableSpec) -> pa.Table:
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if named:
        frame = frame.reset_index(level=named)
    names = [str(name) for name in frame.columns]
    if names:
        check_names(names, spec)
    columns, problems = [], []
    for position, name in enumerate(names):
        series = frame.iloc[:, position]
        try:
            columns.append(_from_series(series, name == spec.timestamp))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problems.append(f"column {name!r} {error}")
    if problems:
        raise DataError(
            "; ".join(problems), hint="give each column one type, such as `frame[column].astype(str)`", where=spec.where
        )
    return pa.table(columns, names=names)


def _from_series(series: pd.Series, timestamp: bool) -> pa.Array:
    if series.dtype != object:
        return _joined(pa.array(series, from_pandas=True))
    kinds = {_kind(value) for value in series.array[~series.isna().to_numpy()]}
    if timestamp and kinds <= {"str", "date", "time with a zone", "time without a zone"}:
        # Through text, because pyarrow would take times without a zone among those with one for UTC.
        return pa.array([_as_text(value) for value in series.array], type=pa.string())
    if len(kinds) > 1 and kinds != {"int", "float"}:
        raise TypeError(f"holds values of several types: {', '.join(sorted(kinds))}")
    return _joined(pa.array(series, from_pandas=True))


def _kind(value: object) -> str:
    if isinstance(value, datetime.datetime):
        return "time without a zone" if value.tzinfo is None else "time with a zone"
    for kind in (str, bytes, datetime.date, decimal.Decimal, dict):
        if isinstance(value, kind):
            return kind.__name__
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | np.integer):
        return "int"
    if isinstance(value, float | np.floating):
        return "float"
    return "list" if isinstance(value, list | tuple | np.ndarray) else type(value).__name__


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else value.isoformat()  # type: ignore[call-overload, attr-defined]


def _joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _plain_schema(schema: pa.Schema, spec: TableSpec) -> pa.Schema:
    entries, problems = [], []
    for entry in schema:
        kind = _plain_type(entry.type)
        if kind is None:
            problems.append(f"column {entry.name!r} has type {entry.type}, which cannot be stored")
        entries.append((entry.name, kind or pa.null()))
    if problems:
        raise DataError(
            "; ".join(problems),
            hint="numbers, text, bool, dates, times, decimals, bytes and lists of them can be",
            where=spec.where,
        )
    return pa.schema(entries)


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type under which a column of type `kind` is stored, or None if it cannot be."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _plain_type(kind.value_type)
        return inner and pa.list_(inner)
    if types.is_struct(kind):
        parts = [(part.name, _plain_type(part.type)) for part in kind]
        return None if not parts or any(inner is None for _, inner in parts) else pa.struct(parts)
    for test, stored in _STORED:
        if test(kind):
            return stored
    if types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC" if kind.tz else None)
    keeps = types.is_boolean(kind) or types.is_integer(kind) or types.is_decimal128(kind) or types.is_null(kind)
    return kind if keeps or kind in (pa.float32(), pa.float64()) else None


_STORED = (
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind), pa.string()),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind), pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_date, pa.date32()),
    (pa.types.is_time, pa.time64("us")),
    (pa.types.is_float16, pa.float32()),
)  # fmt: skip


def _plain_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    column = _joined(column)
    if isinstance(column, pa.ChunkedArray):  # no chunk at all
        column = pa.array([], type=column.type)
    if column.type != kind:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        column = column.cast(kind, safe=False)
    if pa.types.is_floating(kind):
        # One form for "no value", and one for zero, so that equal rows are found and equal data give equal bytes.
        column = pc.if_else(pc.is_nan(column), None, pc.add(column, pa.scalar(0.0, kind)))
    return column


@dataclass(slots=True)
class Types:
    """The types of a table's columns over all of its chunks, in the order in which the columns came.

    A column that is null throughout a chunk has no say in its type there, so that the same rows in other chunks give
    the same types.
    """

    spec: TableSpec
    held: dict[str, pa.DataType] = field(default_factory=dict)
    """By the values; null while none was seen."""
    declared: dict[str, pa.DataType] = field(default_factory=dict)
    """By the chunks' schemas; used if a column has no value in the whole table."""

    def observe(self, held: Iterable[pa.Field], declared: Iterable[pa.Field]) -> None:
        """Takes a chunk's types in. Raises `DataError` naming every column that does not fit those before."""
        problems = []
        for entry in held:
            old = self.held.get(entry.name, pa.null())
            new = unified(old, entry.type)
            if new is None:
                problems.append(f"column {entry.name!r} is {old} in some chunks and {entry.type} in others")
            self.held[entry.name] = new or old
        for entry in declared:
            both = unified(self.declared.get(entry.name, pa.null()), entry.type)
            self.declared[entry.name] = both or pa.null()
        if problems:
            raise DataError("; ".join(problems), hint="give each column one type throughout", where=self.spec.where)

    @property
    def schema(self) -> pa.Schema:
        """The schema to store; a column without any type or value is `double`, as pandas has it."""
        chosen = []
        for name, held in self.held.items():
            kind = self.declared[name] if pa.types.is_null(held) else held
            chosen.append((name, pa.float64() if pa.types.is_null(kind) else kind))
        return pa.schema(chosen)


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, or None: integers widen and become floats, null becomes anything."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = unified(one.value_type, other.value_type)
        return inner and pa.list_(inner)
    whole = pa.types.is_integer(one) and pa.types.is_integer(other)
    if (
        whole
        and pa.uint64() in (one, other)
        and not (pa.types.is_unsigned_integer(one) and pa.types.is_unsigned_integer(other))
    ):
        return None
    numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other))
    if not numbers:
        return None
    both = [pa.schema([("x", kind)]) for kind in (one, other)]
    return pa.unify_schemas(both, promote_options="permissive").field("x").type


def held_types(table: pa.Table) -> pa.Schema:
    """The table's schema with the type null for each column that has no value."""
    return pa.schema(
        (entry.name, pa.null() if column.null_count == len(column) else entry.type)
        for entry, column in zip(table.schema, table.columns, strict=True)
    )
