"""Ingest: raw rows become a partitioned, deduplicated snapshot."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from drivetrain.definition.parts import Data, Table
from drivetrain.definition.values import is_function, split_function
from drivetrain.errors import CorruptArtifact, DataError
from drivetrain.records import Artifact, IngestOutputs, decode, digest, encode
from drivetrain.stages import StageContext
from drivetrain.tables import TableSpec, files, snapshot, staging
from drivetrain.tables.functions import Loader, loader
from drivetrain.tables.partitions import Piece, pieces
from drivetrain.tables.snapshot import Written
from drivetrain.tables.staging import Staged
from drivetrain.tables.times import check_zone
from drivetrain.usercode import code_digest

ROWS = "rows"

_PIECE_FORMAT = 1
"""Counts towards the key of every remembered piece: raised when the form of staged rows changes."""


@dataclass(frozen=True)
class Inputs:
    """Ingest is the first stage: it takes nothing from others."""


def run(context: StageContext, inputs: Inputs) -> IngestOutputs:
    """Reads the rows and all further tables; gives one artifact of kind `snapshot`.

    The artifact holds `rows/PARTITION.parquet`, `tables/NAME/PARTITION.parquet`, and `snapshot.json`, which says of
    each table: columns with their Arrow types, rows, duplicates, rows outside of the window, first and last time, and
    each partition's rows and SHA-256. Tables without a timestamp have the one partition `all`.

    Raises `DataError` if the data are not what the definition says, `StageError` if the user's function fails.
    """
    data = context.definition.data
    specs = _specs(data)
    check_zone(data.timezone, ROWS)
    loaders = _loaders(context, specs)
    out = context.work / "snapshot"
    rows, *tables = [_ingest(context, spec, loaders.get(spec), out) for spec in specs]
    histories = {spec.name: table for spec, table in zip(specs[1:], tables, strict=True)}
    (out / "snapshot.json").write_text(_summary(rows, histories), encoding="utf-8")
    artifact = context.objects.put(
        "snapshot", out,
        {
            "rows": rows.rows, "duplicates": rows.duplicates, "columns": len(rows.columns),
            "first": rows.first, "last": rows.last, "tables": len(tables),
        },
    )  # fmt: skip
    return IngestOutputs(snapshot=artifact)


def _specs(data: Data) -> list[TableSpec]:
    window = data.window
    if data.timestamp is None and not is_function(data.source) and (window.start or window.end):
        raise DataError("a window needs times to compare with", hint="name the column in data.timestamp", where=ROWS)
    odd = [name for name in data.tables if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    if odd:
        raise DataError(f"{odd[0]!r} is no name for a table", hint="letters, digits, - and _", where="data.tables")
    bare = [name for name, table in data.tables.items() if table.timestamp is None]
    if bare:
        raise DataError(
            f"{', '.join(f'data.tables.{name}' for name in bare)}: a history needs a timestamp",
            hint="name the column with each row's time as `timestamp`", where="data.tables",
        )  # fmt: skip

    def spec(name: str, table: Table, needed: tuple[tuple[str, str], ...], history: bool) -> TableSpec:
        return TableSpec(
            name, table.source, table.timestamp, tuple(table.key), needed, data.timezone,
            window.start, window.end, keeps_earlier=history,
        )  # fmt: skip

    rows = spec(ROWS, data, (("label", data.label),), history=False)
    return [rows, *(spec(name, table, (), history=True) for name, table in sorted(data.tables.items()))]


def _loaders(context: StageContext, specs: list[TableSpec]) -> dict[TableSpec, Loader]:
    parameters = context.definition.data.parameters
    loaders = {spec: loader(context.project, spec.source, parameters) for spec in specs if is_function(spec.source)}
    known = {name for entry in loaders.values() for name in entry.accepts}
    stray = [name for name in parameters if not any(name in entry.parameters for entry in loaders.values())]
    if stray:
        near = difflib.get_close_matches(stray[0], sorted(known), n=1)
        raise DataError(
            f"no function takes the parameter {', '.join(map(repr, stray))}",
            hint=f"did you mean {near[0]!r}?" if near else "remove it", where="data.parameters",
        )  # fmt: skip
    return loaders


def _ingest(context: StageContext, spec: TableSpec, function: Loader | None, out: Path) -> Written:
    """Reads one table and writes its partitions under `out`."""
    staged = list(_staged(context, spec, function))
    directory = out / "tables" / spec.name if spec.keeps_earlier else out / ROWS
    written = snapshot.write(
        staged, spec, context.definition.data.partition, directory, context.work / "spill",
        lambda partition, rows: context.say(f"{spec.name}: {partition}, {rows:,} rows"),
    )  # fmt: skip
    for role, column in spec.needed:
        if not written.labelled[column]:
            raise DataError(
                f"{role} {column!r} is null in all {written.rows:,} rows",
                hint="see how it is computed",
                where=spec.where,
            )
    return written


def _staged(context: StageContext, spec: TableSpec, function: Loader | None) -> Iterator[Staged]:
    home = context.work / "staged" / ("rows" if not spec.keeps_earlier else f"table-{spec.name}")
    if function is None:
        yield staging.stage(files.chunks(spec, context.project, home / "copies"), spec, home / "all")
        return
    if not function.takes_window or spec.timestamp is None or spec.start is None or spec.end is None:
        yield staging.stage(function.chunks(start=spec.start, end=spec.end), spec, home / "all")
        return
    now = datetime.now(UTC)
    for piece in pieces(spec.start, spec.end, context.definition.data.partition):
        yield _piece(context, spec, function, piece, home / piece.name, remember=piece.end <= now)


def _piece(
    context: StageContext, spec: TableSpec, function: Loader, piece: Piece, directory: Path, *, remember: bool
) -> Staged:
    """One piece of the window: from an earlier run if nothing has changed since, otherwise from the function.

    A piece that is not over yet is not remembered, because further rows may come.
    """
    part = dataclasses.replace(spec, start=piece.start, end=piece.end)
    ref = f"ingest/{_key(context, part, function)}"
    if remember and (found := _recall(context, ref, directory)) is not None:
        context.say(f"{spec.name}: {piece.name} is known from an earlier run")
        return found
    # Numbers grow with time, so that a remembered piece has the same ones whatever the window it is part of.
    hours = int(piece.start.timestamp()) // 3600 + _HOURS_BEFORE_1970
    staged = staging.stage(
        function.chunks(start=piece.start, end=piece.end), part, directory, number=hours << _ROW_BITS
    )
    if remember:
        staging.save(staged)
        artifact = context.objects.put("piece", directory, {"rows": staged.rows})
        context.objects.set_ref(ref, json.dumps(encode(artifact), sort_keys=True).encode())
    return staged


_HOURS_BEFORE_1970 = 24 * 366 * 1970
_ROW_BITS = 36


def _key(context: StageContext, part: TableSpec, function: Loader) -> str:
    data = context.definition.data.model_dump(mode="json")
    return digest(
        {
            "format": _PIECE_FORMAT, "table": dataclasses.asdict(part) | {"start": str(part.start), "end": str(part.end)},
            "code": code_digest(context.project, [split_function(part.source)[0]]),
            "parameters": {name: data["parameters"][name] for name in sorted(function.parameters)},
        }
    )  # fmt: skip


def _recall(context: StageContext, ref: str, directory: Path) -> Staged | None:
    """The remembered piece, or None if there is none, or it is damaged: then it is forgotten."""
    held = context.objects.ref(ref)
    if held is None:
        return None
    try:
        artifact = decode(Artifact, json.loads(held))
    except ValueError:
        return None
    try:
        if context.objects.holds(artifact):
            return staging.load(context.objects.get(artifact, directory))
    except (CorruptArtifact, KeyError, ValueError):
        shutil.rmtree(directory, ignore_errors=True)
    context.say("a remembered piece is damaged: it is read anew")
    context.objects.discard(artifact)
    return None


def _summary(rows: Written, tables: dict[str, Written]) -> str:
    def table(entry: Written) -> dict[str, object]:
        return {
            "columns": [{"name": name, "type": kind} for name, kind in entry.columns.items()],
            "rows": entry.rows, "duplicates": entry.duplicates, "outside": entry.outside,
            "first": entry.first, "last": entry.last,
            "partitions": {part.name: {"rows": part.rows, "sha256": part.sha256} for part in entry.partitions},
        }  # fmt: skip

    content = {"rows": table(rows), "tables": {name: table(entry) for name, entry in tables.items()}}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
