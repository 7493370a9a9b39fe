"""Chunks from parquet and CSV files, on this machine or on S3."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from drivetrain.errors import DataError
from drivetrain.tables import TableSpec, s3
from drivetrain.tables.chunks import ROWS, check_names

_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

_NULLS = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None")
"""What pandas takes for no value."""

_MEMORY = "64MB"
"""What DuckDB may use for the buffers of a CSV file, which it keeps up to this limit; a buffer takes four times its size."""

_BUFFER = 8 << 20
"""Bytes of a CSV file that are read at a time, more than its longest line."""


@dataclass(frozen=True, slots=True)
class _Csv:
    """A CSV file on this machine, and how it is to be read."""

    path: Path
    shown: str
    delimiter: str
    names: tuple[str, ...]


def chunks(spec: TableSpec, project: Path, scratch: Path) -> Iterator[pa.RecordBatch]:
    """The rows of all files that the table's source names, files in the order of their names.

    CSV columns get the type that holds all of their values over all files: bool, int64, double or text. Raises
    `DataError` if no file is found, or one is not what its name says; `Unavailable` if the S3 server does not answer.
    """
    filesystem, paths = _find(spec, project)
    shown = [path if spec.source.startswith("s3://") else _relative(path, project) for path in paths]
    unknown = [name for name in shown if not name.lower().endswith(_PARQUET + _CSV)]
    if unknown:
        raise DataError(
            f"{unknown[0]} is neither parquet nor CSV by its name",
            hint=f"names end with {', '.join(_PARQUET + _CSV)}", where=spec.where,
        )  # fmt: skip
    tables = [
        _open_csv(_local(filesystem, path, scratch, spec), name, spec)
        for path, name in zip(paths, shown, strict=True) if name.lower().endswith(_CSV)
    ]  # fmt: skip
    kinds = _csv_types(tables, spec)
    csvs = {table.shown: table for table in tables}
    for path, name in zip(paths, shown, strict=True):
        yield from _read_csv(csvs[name], kinds, spec) if name in csvs else _read_parquet(filesystem, path, name, spec)


def _relative(path: str, project: Path) -> str:
    return str(Path(path).relative_to(project)) if Path(path).is_relative_to(project) else path


def _find(spec: TableSpec, project: Path) -> tuple[pafs.FileSystem, list[str]]:
    if spec.source.startswith("s3://"):
        filesystem = s3.filesystem(spec.source)
        return filesystem, s3.find(filesystem, spec)
    exact = project / spec.source
    if exact.is_dir():
        raise DataError(
            "the source is a directory", hint=f"name its files: {spec.source.rstrip('/')}/*.parquet", where=spec.where
        )
    pattern = spec.source if Path(spec.source).is_absolute() else f"{glob.escape(str(project))}/{spec.source}"
    found = [exact] if exact.is_file() else [Path(path) for path in glob.glob(pattern, recursive=True)]
    paths = sorted(str(path) for path in found if path.is_file())
    if not paths:
        matched = re.search(r"[*?\[]", spec.source)
        raise DataError(
            "no file matches" if matched else "there is no such file",
            hint=f"paths are relative to {project.name}, the project; {_neighbours(exact, project)}", where=spec.where,
        )  # fmt: skip
    return pafs.LocalFileSystem(), paths


def _neighbours(path: Path, project: Path) -> str:
    if not path.parent.is_dir():
        return f"{_relative(str(path.parent), project)} is no directory"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.name.lower().endswith(_PARQUET + _CSV))
    return f"beside it: {', '.join(names[:8])}" if names else "no parquet or CSV file is beside it"


def _local(filesystem: pafs.FileSystem, path: str, scratch: Path, spec: TableSpec) -> Path:
    """The file itself, or a copy of it: a CSV is read twice, once for its types."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    scratch.mkdir(parents=True, exist_ok=True)
    copy = scratch / f"{len(list(scratch.iterdir())):06d}-{PurePosixPath(path).name}"
    with s3.translated(spec), filesystem.open_input_stream(path, compression=None) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return copy


def _read_parquet(filesystem: pafs.FileSystem, path: str, shown: str, spec: TableSpec) -> Iterator[pa.RecordBatch]:
    try:
        with filesystem.open_input_file(path) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=ROWS)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if "AWS Error" in str(error):
            raise s3.fault(error, spec) from error
        raise DataError(f"{shown} cannot be read as parquet: {str(error).splitlines()[0]}", where=spec.where) from error


def _open_csv(path: Path, shown: str, spec: TableSpec) -> _Csv:
    """Reads the header. Raises `DataError` if there is none, or its columns are not those that are needed."""
    try:
        with _opened(path) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            line = text.readline()
            delimiter = next((mark for mark in ",;\t|" if mark in line), ",")
            names = next(csv.reader(itertools.chain([line], text), delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise _not_utf8(path, shown, spec) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{shown} cannot be read: {error}", where=spec.where) from error
    if not names:
        raise DataError(f"{shown} is empty", hint="a CSV file begins with the names of its columns", where=spec.where)
    blank = [str(number) for number, name in enumerate(names, 1) if not name]
    if blank:
        raise DataError(f"{shown}: column {', '.join(blank)} has no name", where=spec.where)
    check_names(names, spec)
    return _Csv(path, shown, delimiter, tuple(names))


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _csv_types(tables: list[_Csv], spec: TableSpec) -> dict[str, str]:
    """DuckDB's type for each column, over all files; text where files disagree, since every value is text."""
    found: dict[str, set[str]] = {}
    for table in tables:
        for name, kind in _types_of(table, spec).items():
            found.setdefault(name, set()).add(kind)
    kinds = {}
    for name, each in found.items():
        each.discard("")
        # A column without a value is double, as pandas has it.
        kinds[name] = next(iter(each)) if len(each) == 1 else "DOUBLE" if each <= {"BIGINT", "DOUBLE"} else "VARCHAR"
    return kinds


def _types_of(table: _Csv, spec: TableSpec) -> dict[str, str]:
    """The types over every line of one file; an empty string for a column that has no value."""
    names = [f"c{number}" for number in range(len(table.names))]
    listed = ", ".join(f"'{name}'" for name in names)
    # The time stays text: DuckDB would read it without regard to data.timezone.
    query = (
        f"FROM {_scan(table)}, sample_size=-1, names=[{listed}], "
        "auto_type_candidates=['BOOLEAN', 'BIGINT', 'DOUBLE', 'VARCHAR'])"
    )
    with _connect() as connection:
        try:
            types = [str(kind) for kind in connection.sql(query).types]
        except duckdb.Error as error:
            # The reader says which line is wrong, where the search for types does not.
            for _ in _scanned(table, dict.fromkeys(table.names, "VARCHAR"), spec):
                pass
            raise _csv_error(error, table, spec) from error
        texts = [name for name, kind in zip(names, types, strict=True) if kind == "VARCHAR"]
        if texts:
            columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
            counts = ", ".join(f"count({name})" for name in texts)
            count = f"SELECT {counts} FROM {_scan(table)}, auto_detect=false, columns={{{columns}}})"
            try:
                values = connection.sql(count).fetchall()[0]
            except duckdb.Error as error:
                raise _csv_error(error, table, spec) from error
            empty = {name for name, number in zip(texts, values, strict=True) if not number}
            types = ["" if name in empty else kind for name, kind in zip(names, types, strict=True)]
    return dict(zip(table.names, types, strict=True))


def _read_csv(table: _Csv, kinds: dict[str, str], spec: TableSpec) -> Iterator[pa.RecordBatch]:
    return _scanned(table, {name: kinds[name] for name in table.names}, spec)


def _scanned(table: _Csv, kinds: dict[str, str], spec: TableSpec) -> Iterator[pa.RecordBatch]:
    columns = ", ".join(f"'{name.replace(chr(39), chr(39) * 2)}': '{kind}'" for name, kind in kinds.items())
    query = f"FROM {_scan(table)}, auto_detect=false, columns={{{columns}}})"
    with _connect() as connection:
        try:
            yield from connection.sql(query).to_arrow_reader(ROWS)
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            raise _csv_error(error, table, spec) from error


def _connect() -> duckdb.DuckDBPyConnection:
    # One thread: the order of the rows decides which of equal ones is the last.
    settings = {"threads": 1, "memory_limit": _MEMORY}
    return duckdb.connect(":memory:", config=settings)


def _scan(table: _Csv) -> str:
    path = re.sub(r"([*?\[])", r"[\1]", str(table.path)).replace("'", "''")
    nulls = ", ".join(f"'{text}'" for text in _NULLS)
    return (
        f"read_csv('{path}', delim='{table.delimiter}', quote='\"', escape='\"', header=true, skip=0, comment='', "
        f"buffer_size={_BUFFER}, nullstr=[{nulls}]"
    )


def _csv_error(error: Exception, table: _Csv, spec: TableSpec) -> DataError:
    message = str(error)
    if "utf-8" in message.lower() or "unicode" in message.lower():
        return _not_utf8(table.path, table.shown, spec)
    line = re.search(r"CSV Error on Line: (\d+)", message)
    counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    place = f"{table.shown}, line {line[1]}" if line else table.shown
    if counts:
        return DataError(
            f"{place}: {counts[2]} values where the header names {counts[1]} columns",
            hint="mend that line; a value with the delimiter in it is written in double quotes", where=spec.where,
        )  # fmt: skip
    said = [
        text for text in message.splitlines() if text.strip() and not re.match(r".*(CSV Error on|Original Line)", text)
    ]
    return DataError(f"{place} cannot be read as CSV: {said[0] if said else message}", where=spec.where)


def _not_utf8(path: Path, shown: str, spec: TableSpec) -> DataError:
    decoder, offset, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    place = ""
    with _opened(path) as raw:
        while True:
            block, kept = raw.read(1 << 20), len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = error.start - kept
                line += block.count(b"\n", 0, max(good, 0))
                place = f" at byte {offset + good:,}, line {line:,}"
                break
            if not block:
                break
            offset, line = offset + len(block), line + block.count(b"\n")
    return DataError(
        f"{shown} is not UTF-8{place}",
        hint="convert it, such as `iconv -f LATIN1 -t UTF-8`, or give parquet", where=spec.where,
    )  # fmt: skip
