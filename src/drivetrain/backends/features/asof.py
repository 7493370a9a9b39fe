"""Histories in parquet files, read by DuckDB: the value known at a row's time, and the newest of each entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb
import pyarrow as pa

from drivetrain.errors import DataError


@dataclass(frozen=True, slots=True)
class History:
    """A table of values, each known from `timestamp` on. `keys` maps a column of the rows to the file's own column, `values` the
    name of a result to it; `ttl` is in microseconds, None for ever; of values at one instant the latest `created` counts."""

    path: str
    keys: Mapping[str, str]
    values: Mapping[str, str]
    timestamp: str
    created: str | None
    ttl: int | None
    label: str
    """What messages call the table."""


def join_as_of(rows: pa.Table, at: str, histories: Sequence[History]) -> list[pa.Table]:
    """For each history a table of its values, row by row those known at `rows[at]`, the row's own instant included.

    Null where there is no value by then, or where the newest is older than `ttl`. Times without a zone are taken as UTC, and
    all are compared in whole microseconds. Raises `DataError` if an entity has two different values at one instant.
    """
    used = sorted({at, *(key for history in histories for key in history.keys)})
    moments = rows.select(used).append_column("__row", pa.array(range(rows.num_rows), pa.int64()))
    with duckdb.connect() as connection:
        connection.register("given", moments)
        connection.execute(f"CREATE TEMP VIEW moments AS SELECT *, epoch_us({_quoted(at)}) AS __at FROM given")
        return [_join(connection, history) for history in histories]


def _join(connection: duckdb.DuckDBPyConnection, history: History) -> pa.Table:
    # Numbered names, so that no column of the user's can be taken for one of these.
    keys = {f"__key{number}": column for number, column in enumerate(history.keys)}
    values = {f"__value{number}": name for number, name in enumerate(history.values)}
    columns = [f"{_quoted(history.keys[column])} AS {alias}" for alias, column in keys.items()]
    columns += [f"{_quoted(history.values[name])} AS {alias}" for alias, name in values.items()]
    columns.append(f"epoch_us({_quoted(history.timestamp)}) AS __known")
    columns.append(f"{_quoted(history.created) if history.created else 'NULL'} AS __created")
    known = " AND ".join(f"{column} IS NOT NULL" for column in [*keys, "__known"])
    connection.execute(
        f"""CREATE OR REPLACE TEMP VIEW history AS
            SELECT * FROM (SELECT {", ".join(columns)} FROM read_parquet({_text(history.path)})) WHERE {known}"""
    )
    _refuse_ties(connection, history, list(keys), list(values))
    source = "history"
    if history.created:
        moment = ", ".join([*keys, "__known"])
        source = f"""(SELECT * FROM history QUALIFY row_number() OVER
            (PARTITION BY {moment} ORDER BY __created DESC NULLS LAST) = 1)"""
    matches = [f"r.{_quoted(column)} = h.{alias}" for alias, column in keys.items()]
    fresh = "true" if history.ttl is None else f"r.__at - h.__known <= {history.ttl}"
    results = [f"CASE WHEN {fresh} THEN h.{alias} END AS {alias}" for alias in values]
    joined = connection.sql(
        f"""SELECT {", ".join(results)} FROM moments r ASOF LEFT JOIN {source} h
            ON {" AND ".join([*matches, "r.__at >= h.__known"])} ORDER BY r.__row"""
    ).to_arrow_table()
    return joined.rename_columns(list(values.values()))


def _refuse_ties(connection: duckdb.DuckDBPyConnection, history: History, keys: list[str], values: list[str]) -> None:
    moment = ", ".join([*keys, "__known", "__created"])
    tie = connection.execute(
        f"""SELECT {moment} FROM history GROUP BY {moment}
            HAVING min(hash({", ".join(values)})) <> max(hash({", ".join(values)})) ORDER BY ALL LIMIT 1"""
    ).fetchone()
    if tie:
        entity = ", ".join(f"{key}={value}" for key, value in zip(history.keys, tie, strict=False))
        at = datetime.fromtimestamp(tie[len(keys)] / 1_000_000, UTC).isoformat()
        raise DataError(
            f"two different values for {entity} at {at}: which of them is joined would be chance",
            hint="name the table's key (data.tables.NAME.key), or give the source a created_timestamp_column",
            where=history.label,
        )


def newest(
    path: str, keys: Sequence[str], values: Sequence[str], timestamp: str, created: str | None, until: datetime
) -> pa.Table:
    """The columns of each entity's latest row up to and including `until`, `timestamp` in microseconds, UTC."""
    extra = [created] if created else []
    columns = ", ".join(_quoted(name) for name in dict.fromkeys([*keys, *values, *extra]))
    order = ", ".join(["__known DESC", *(f"{_quoted(name)} DESC NULLS LAST" for name in extra)])
    group = ", ".join(map(_quoted, keys)) or "true"
    with duckdb.connect() as connection:
        table = connection.sql(
            f"""SELECT {columns}, __known FROM
                (SELECT *, epoch_us({_quoted(timestamp)}) AS __known FROM read_parquet({_text(path)}))
                WHERE __known <= {round(until.timestamp() * 1_000_000)}
                QUALIFY row_number() OVER (PARTITION BY {group} ORDER BY {order}) = 1"""
        ).to_arrow_table()
    known = table["__known"].cast(pa.timestamp("us", tz="UTC"))
    return table.drop_columns(["__known"]).append_column(timestamp, known)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
