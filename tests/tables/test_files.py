from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.errors import DataError, DrivetrainError, SystemFault, Unavailable
from drivetrain.tables import TableSpec, files

Spec = Callable[..., TableSpec]


def read(spec: TableSpec, project: Path) -> pa.Table:
    batches = list(files.chunks(spec, project, project / "scratch"))
    return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="permissive")


def refused(spec: TableSpec, project: Path) -> DrivetrainError:
    with pytest.raises(DrivetrainError) as caught:
        read(spec, project)
    return caught.value


def test_csv_columns_get_the_type_that_holds_all_their_values(spec: Spec, tmp_path: Path) -> None:
    late = "\n".join(["1,1,true,007,a,,5"] * 50_000 + ['2,1.5,false,12,"b,""c""",,NA'])
    (tmp_path / "a.csv").write_text(f"whole,part,flag,code,text,none,gap\n{late}\n")
    table = read(spec("a.csv"), tmp_path)
    assert table.num_rows == 50_001
    assert [str(kind) for kind in table.schema.types] == [
        "int64", "double", "bool", "string", "string", "double", "int64",
    ]  # fmt: skip
    assert table.slice(50_000).to_pylist() == [
        {"whole": 2, "part": 1.5, "flag": False, "code": "12", "text": 'b,"c"', "none": None, "gap": None}
    ]


def test_columns_of_several_csv_files_get_one_type(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b,c\n01,1,\n")
    (tmp_path / "2.csv").write_text("a,b,c\n2,2.5,x\n")
    table = read(spec("*.csv"), tmp_path)
    assert table.to_pylist() == [{"a": "01", "b": 1.0, "c": None}, {"a": "2", "b": 2.5, "c": "x"}]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_delimiters_byte_order_marks_and_compression_are_read(spec: Spec, tmp_path: Path, mark: str) -> None:
    content = f"\ufeffa{mark}b\r\n1{mark}x\r\n".encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    assert read(spec("a.csv.gz"), tmp_path).to_pylist() == [{"a": 1, "b": "x"}]


def test_names_with_glob_signs_and_quotes_name_files(spec: Spec, tmp_path: Path) -> None:
    project = tmp_path / "it's [mine]"
    (project / "data").mkdir(parents=True)
    (project / "data" / "a[1]'s.csv").write_text("a'b,c\n1,2\n")
    assert read(spec("data/a[1]'s.csv"), project).to_pylist() == [{"a'b": 1, "c": 2}]
    assert read(spec("data/*.csv"), project).num_rows == 1


def test_parquet_files_are_read_in_the_order_of_their_names(spec: Spec, tmp_path: Path) -> None:
    for name, value in (("b", 2), ("a", 1), ("sub/c", 3)):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [value]}), path)
    assert read(spec("*.parquet"), tmp_path)["x"].to_pylist() == [1, 2]
    assert read(spec("**/*.parquet"), tmp_path)["x"].to_pylist() == [1, 2, 3]


def test_a_missing_file_is_named_with_what_is_beside_it(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "flights.csv").write_text("a\n1\n")
    error = refused(spec("flight.csv"), tmp_path)
    assert str(error) == "rows (flight.csv): there is no such file"
    assert "beside it: flights.csv" in error.hint
    assert "no file matches" in str(refused(spec("x*.csv"), tmp_path))
    assert "data is no directory" in refused(spec("data/x.csv"), tmp_path).hint


def test_a_directory_and_an_unknown_kind_of_file_are_refused(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert refused(spec("data"), tmp_path).hint == "name its files: data/*.parquet"
    assert "a.xlsx is neither parquet nor CSV" in str(refused(spec("a.xlsx"), tmp_path))


def test_a_csv_that_is_not_utf8_is_refused_with_its_byte_and_line(spec: Spec, tmp_path: Path) -> None:
    head = b"a,b\n" + b"1,x\n" * 100_000
    for content, place in (
        (head + b"2,M\xfcnchen\n", f"byte {len(head) + 3:,}, line 100,002"),
        (b"a,M\xfcnchen\n1,2\n", "byte 3, line 1"),
        (b"a,b\n1,caf\xc3", "byte 9, line 2"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        error = refused(spec("a.csv"), tmp_path)
        assert f"a.csv is not UTF-8 at {place}" in str(error)
        assert "iconv" in error.hint


@pytest.mark.parametrize(("line", "found"), [("1,2", 2), ("1,2,3,4", 4)])
@pytest.mark.parametrize("before", [5, 60_000])
def test_a_csv_with_a_ragged_line_is_refused_with_its_number(
    spec: Spec, tmp_path: Path, line: str, found: int, before: int
) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n" + "1,2,3\n" * before + f"{line}\n1,2,3\n")
    error = refused(spec("a.csv"), tmp_path)
    assert str(error) == (f"rows (a.csv): a.csv, line {before + 2}: {found} values where the header names 3 columns")


def test_an_unterminated_quote_is_refused(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1,"x\n2,y\n')
    assert "a.csv" in str(refused(spec("a.csv"), tmp_path))


def test_csv_headers_are_checked_before_any_row_is_read(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (tmp_path / "blank.csv").write_text("a,,b\n1,2,3\n")
    assert "empty.csv is empty" in str(refused(spec("empty.csv"), tmp_path))
    assert "column 'a' is there 2 times" in str(refused(spec("twice.csv"), tmp_path))
    assert "column 2 has no name" in str(refused(spec("blank.csv"), tmp_path))
    assert "did you mean 'b'?" in str(refused(spec("twice.csv", key=("bb",)), tmp_path))


def test_damaged_files_are_refused(spec: Spec, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": list(range(10_000))}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:500], b"not parquet", b"", whole[:100] + b"\xff" * 2000 + whole[2100:]):
        (tmp_path / "a.parquet").write_bytes(content)
        error = refused(spec("a.parquet"), tmp_path)
        assert isinstance(error, DataError)
        assert "a.parquet cannot be read as parquet" in str(error)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:60])
    assert isinstance(refused(spec("a.csv.gz"), tmp_path), DataError)


def test_objects_on_s3_are_read_by_name_and_by_glob(spec: Spec, tmp_path: Path, s3) -> None:  # type: ignore[no-untyped-def]
    folder = s3.root / "raw" / "some" / "year=2013"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ab.csv.gz").write_bytes(gzip.compress(b"x,y\nab,1\n"))
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": [name] * 3}), folder / f"{name}.parquet")
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(f"x,y\n{name},1\n".encode()))
    base = "s3://raw/some/year=2013"
    assert read(spec(f"{base}/a.parquet"), tmp_path)["x"].to_pylist() == ["a"] * 3
    assert read(spec(f"{base}/*.parquet"), tmp_path)["x"].to_pylist() == ["a"] * 3 + ["b"] * 3
    assert read(spec("s3://raw/**/b.csv.gz"), tmp_path).to_pylist() == [{"x": "b", "y": 1}]
    assert read(spec("s3://raw/**/[b].csv.gz"), tmp_path).to_pylist() == [{"x": "b", "y": 1}]
    assert read(spec(f"{base}/?.csv.gz"), tmp_path)["x"].to_pylist() == ["a", "b"]
    assert "no object matches" in str(refused(spec("s3://raw/some/*.parquet"), tmp_path))
    assert "there is no such object" in str(refused(spec("s3://raw/some/no.parquet"), tmp_path))
    assert isinstance(refused(spec("s3://absent/*.parquet"), tmp_path), DataError)
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "WHEN_REQUIRED"
    shutil.rmtree(s3.root / "raw" / "some")


def test_refused_keys_and_silent_servers_are_told_apart_without_the_keys(
    spec: Spec,
    tmp_path: Path,
    s3,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    (s3.root / "raw" / "a.csv").write_text("a\n1\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    error = refused(spec("s3://raw/*.csv"), tmp_path)
    assert type(error) is SystemFault
    assert "access was refused" in str(error)
    assert "another-secret" not in f"{error} {error.hint}"
    assert "TESTKEY" not in f"{error} {error.hint}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert isinstance(refused(spec("s3://raw/a.csv"), tmp_path), Unavailable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
    assert "AWS_ENDPOINT_URL is no URL" in str(refused(spec("s3://raw/a.csv"), tmp_path))
