"""Features: every row with what was known at its time, and the newest values online."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from drivetrain.backends.features import SQLITE_FILE, FeatureStore, FeatureStoreSettings
from drivetrain.definition.definition import FILE_NAME
from drivetrain.definition.parts import Data, Features, Online
from drivetrain.errors import DataError, DefinitionError, Problem
from drivetrain.records import Artifact, FeaturesOutputs, Reference, Scalar
from drivetrain.stages import StageContext
from drivetrain.usercode import closure

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_CONNECTION_KEY = "features.online.connection"


@dataclass(frozen=True, slots=True)
class Inputs:
    snapshot: Artifact


def run(
    context: StageContext, inputs: Inputs, *, features: Callable[[FeatureStoreSettings], FeatureStore]
) -> FeaturesOutputs:
    """Joins the features to the rows, point in time, and materialises them as of the window's end.

    `frame.parquet` holds every row whose label is known, sorted by time, with its own columns first and the features
    after them. `frame.json` says which column is what: `label`, `timestamp`, `keys` (`data.key`), `features` in the
    model's order, `types` (theirs, Arrow's names) and `others` (the columns not named so far). With a Feast service the
    features are exactly its columns; without, all columns but label, timestamp and keys.

    Raises `DataError` if a column is missing or has the name of a feature, `DefinitionError` if the service or a
    variable of the connection is missing, `StageError` if the repository cannot be loaded, `Unavailable` if the online
    store does not answer.
    """
    data, wanted = context.definition.data, context.definition.features
    context.say("reading the snapshot")
    snapshot = context.objects.get(inputs.snapshot, context.work / "snapshot")
    rows = _sorted_rows(_read(snapshot / "rows"), data.timestamp)
    last = _last(rows, data.timestamp)
    labelled = _labelled(rows, data)
    counts: dict[str, Scalar] = {"rows": labelled.num_rows, "dropped_unlabelled": rows.num_rows - labelled.num_rows}
    del rows
    if wanted is None:
        frame, names, definitions = labelled, *_own_columns(labelled, data)
        online = Reference("online_store", "none", {"views": 0, "as_of": None})
    else:
        last = max([last, *_place_tables(context, wanted, snapshot)])
        store = features(_settings(context, wanted))
        frame, names, definitions = _join(context, store, labelled, str(data.timestamp))
        end = data.window.end or last
        context.say(f"writing features to {wanted.online.store} as of {end.isoformat()}")
        online = Reference(
            "online_store", wanted.online.store, {"views": store.materialize(end), "as_of": end.isoformat()}
        )
    counts |= {"features": len(names), **_label_rate(frame[data.label])}
    return FeaturesOutputs(
        frame=context.objects.put("frame", _write_frame(context.work / "frame", frame, names, data), counts),
        definitions=context.objects.put(
            "definitions",
            _write_json(context.work / "definitions", "features.json", definitions),
            {"features": len(names)},
        ),
        online=online,
    )


# rows


def _read(directory: Path) -> pa.Table:
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise DataError("the snapshot has no rows", hint="see the stage ingest")
    return pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive")


def _sorted_rows(rows: pa.Table, timestamp: str | None) -> pa.Table:
    """The rows by time, those of one time in the order of the snapshot; times in microseconds, UTC."""
    if timestamp is None:
        return rows
    times = _utc(_column(rows, timestamp, "data.timestamp"), timestamp)
    rows = rows.set_column(rows.column_names.index(timestamp), timestamp, times)
    if times.null_count:
        raise DataError(f"{times.null_count} rows have no time", where=timestamp)
    moments = times.cast(pa.int64()).to_numpy()
    return rows if (moments[1:] >= moments[:-1]).all() else rows.take(np.argsort(moments, kind="stable"))


def _column(rows: pa.Table, name: str, key: str) -> pa.ChunkedArray:
    if name not in rows.column_names:
        raise DataError(f"the rows have no column {name}", hint=f"they have {', '.join(rows.column_names)}", where=key)
    return rows[name]


def _utc(times: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not pa.types.is_timestamp(times.type):
        raise DataError(f"{times.type} is no time", where=name)
    return times.cast(_TIMESTAMP, safe=False)


def _labelled(rows: pa.Table, data: Data) -> pa.Table:
    """The rows whose label is there and was known when the window ended."""
    label = _column(rows, data.label, "data.label")
    known = pc.is_valid(label)
    if pa.types.is_floating(label.type):
        known = pc.and_(known, pc.invert(pc.fill_null(pc.is_nan(label), True)))
    if data.window.end is not None and data.timestamp is not None:
        latest = pa.scalar(data.window.end - data.label_delay, _TIMESTAMP)
        known = pc.and_(known, pc.less_equal(rows[data.timestamp], latest))
    return rows.filter(known)


def _last(rows: pa.Table, timestamp: str | None) -> datetime:
    """The last row's time; the beginning of time where there is none."""
    found = pc.max(rows[timestamp]).as_py() if timestamp is not None else None
    return found or datetime(1970, 1, 1, tzinfo=UTC)


def _own_columns(rows: pa.Table, data: Data) -> tuple[list[str], dict[str, Any]]:
    special = {data.label, data.timestamp, *data.key}
    names = [name for name in rows.column_names if name not in special]
    columns = [{"name": name, "type": str(rows.schema.field(name).type)} for name in names]
    return names, {"source": "rows", "features": columns}


# the feature store


def _repo(context: StageContext, wanted: Features) -> Path:
    return context.work / "repo" / Path(wanted.repo).name


def _place_tables(context: StageContext, wanted: Features, snapshot: Path) -> list[datetime]:
    """Makes the working copy: the repository's files, and under `data/` a file for each table of the snapshot.

    Only what counts towards the stage's cache key is copied, so nothing else can change the features. Returns the last
    time of each table that has times.
    """
    source, copy = context.project / wanted.repo, _repo(context, wanted)
    for path in closure(context.project, [wanted.repo]):
        if (context.project / path).is_relative_to(source):
            target = copy / (context.project / path).relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(context.project / path, target)
    if (source / ".feastignore").is_file():
        shutil.copyfile(source / ".feastignore", copy / ".feastignore")
    (copy / "data").mkdir(parents=True)
    lasts = []
    for directory in sorted((snapshot / "tables").glob("*")):
        table = context.definition.data.tables.get(directory.name)
        files = sorted(directory.glob("*.parquet"))
        last = _concatenate(files, copy / "data" / f"{directory.name}.parquet", table.timestamp if table else None)
        shutil.rmtree(directory)
        lasts += [last] if last else []
    return lasts


def _concatenate(files: Sequence[Path], target: Path, timestamp: str | None) -> datetime | None:
    """Writes partitions as one file, a row group at a time; returns the last time. Feast reads one file for a table, and fails on
    nanoseconds."""
    schema = pa.unify_schemas([pq.read_schema(file) for file in files], promote_options="permissive")
    schema = pa.schema([field.with_type(_microseconds(field.type)) for field in schema])
    last: datetime | None = None
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches():
                absent = [name for name in schema.names if name not in batch.schema.names]
                table = pa.Table.from_batches([batch])
                for name in absent:
                    table = table.append_column(name, pa.nulls(len(batch), schema.field(name).type))
                table = table.select(schema.names).cast(schema, safe=False)
                writer.write_table(table)
                if timestamp in schema.names:
                    newest = pc.max(_utc(table[timestamp], str(timestamp))).as_py()
                    last = max(filter(None, (last, newest)), default=None)
    return last


def _microseconds(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("us", tz=kind.tz) if pa.types.is_timestamp(kind) else kind


def _settings(context: StageContext, wanted: Features) -> FeatureStoreSettings:
    home = context.state / "feast"
    home.mkdir(parents=True, exist_ok=True)
    online: dict[str, Any] = {"type": "sqlite", "path": str(context.state / SQLITE_FILE)}
    if wanted.online.store == "redis":
        online = {"type": "redis", "connection_string": _connection(wanted.online)}
    return FeatureStoreSettings(
        project=context.definition.name,
        repo=_repo(context, wanted),
        service=wanted.service,
        registry=home / "registry.db",
        online=online,
    )


def _connection(online: Online) -> str:
    """The connection with `${NAME}` replaced by the environment's value: the one place where the stage reads it."""
    unset = sorted({name for name in _VARIABLE.findall(online.connection) if not os.environ.get(name)})
    if unset:
        message = f"the environment variable {', '.join(unset)} is not set"
        raise DefinitionError([Problem(FILE_NAME, 0, _CONNECTION_KEY, message, f"export {unset[0]}=...")])
    return _VARIABLE.sub(lambda found: os.environ[found[1]], online.connection)


def _join(
    context: StageContext, store: FeatureStore, rows: pa.Table, timestamp: str
) -> tuple[pa.Table, list[str], dict[str, Any]]:
    definitions = dict(store.apply())
    names = [column.name for column in store.columns()]
    clashes = [name for name in names if name in rows.column_names]
    if clashes:
        raise DataError(
            f"features have the names of row columns: {', '.join(clashes)}",
            hint="rename the features, or leave the columns out where the rows are loaded",
        )
    context.say(f"joining {len(names)} features to {rows.num_rows:,} rows")
    joined = store.join(rows.to_pandas(), timestamp)
    # The rows' own columns stay as they were: pandas would make floats of integers with nulls.
    for name in names:
        rows = rows.append_column(name, _arrow(joined[name]))
    return rows, names, definitions


def _arrow(values: pd.Series[Any]) -> pa.Array:
    column = pa.array(values, from_pandas=True)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


# what is written


def _label_rate(label: pa.ChunkedArray) -> dict[str, Scalar]:
    """The share of ones, if the label is made of zeros and ones."""
    kind = label.type
    if not len(label) or not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return {}
    numbers = label.cast(pa.float64(), safe=False) if not pa.types.is_boolean(kind) else label.cast(pa.int8())
    if set(pc.unique(numbers).to_pylist()) <= {0, 1}:
        return {"label_rate": round(pc.mean(numbers).as_py(), 6)}
    return {}


def _write_frame(directory: Path, frame: pa.Table, features: Sequence[str], data: Data) -> Path:
    special = {data.label, data.timestamp, *data.key, *features}
    types = {name: str(frame.schema.field(name).type) for name in features}
    _write_json(
        directory,
        "frame.json",
        {
            "label": data.label,
            "timestamp": data.timestamp,
            "keys": list(data.key),
            "features": list(features),
            "types": types,
            "others": [name for name in frame.column_names if name not in special],
        },
    )
    # Without pandas' own metadata, which names library versions.
    bare = frame.replace_schema_metadata(None)
    pq.write_table(bare, directory / "frame.parquet", compression="zstd", row_group_size=65_536, store_schema=True)
    return directory


def _write_json(directory: Path, name: str, value: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / name).write_text(text, encoding="utf-8")
    return directory
