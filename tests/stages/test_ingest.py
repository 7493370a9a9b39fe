from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.parts import Data
from drivetrain.errors import DataError, StageError
from drivetrain.records import Artifact
from drivetrain.stages import StageContext, ingest


@dataclass
class Project:
    """A project with its store; every `ingest` is a run of the stage with an empty working directory."""

    root: Path
    said: list[str] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.objects = open_directory(self.root / ".drivetrain" / "objects")

    def write(self, code: str) -> None:
        (self.root / "data.py").write_text("import pandas as pd\nimport pyarrow as pa\n\n" + textwrap.dedent(code))

    def ingest(self, **data: Any) -> Artifact:
        self.runs += 1
        work = self.root / ".drivetrain" / "work" / str(self.runs)
        work.mkdir(parents=True)
        self.said.clear()
        sys.modules.pop("data", None)  # every run of a stage has a process of its own
        definition: Any = SimpleNamespace(data=Data.model_validate({"source": "data.py:load", "label": "y"} | data))
        context = StageContext(
            run_id="a-run", project=self.root, state=self.root / ".drivetrain", work=work, objects=self.objects,
            definition=definition, fingerprints={}, say=self.said.append,
        )  # fmt: skip
        return ingest.run(context, ingest.Inputs()).snapshot

    def summary(self, snapshot: Artifact) -> dict[str, Any]:
        return json.loads(self.objects.read(snapshot, "snapshot.json"))  # type: ignore[no-any-return]

    def table(self, snapshot: Artifact, name: str = "rows") -> pa.Table:
        files = [file for file in sorted(self.objects.files(snapshot)) if file.startswith(f"{name}/")]
        return pa.concat_tables([pq.read_table(io.BytesIO(self.objects.read(snapshot, file))) for file in files])

    def refused(self, **data: Any) -> str:
        with pytest.raises((DataError, StageError)) as caught:
            self.ingest(**data)
        return f"{caught.value} ({caught.value.hint})"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Project(tmp_path / "project")
    sys.modules.pop("data", None)


CALLS = """
    import datetime, json, pathlib

    def load(start, end, step=1):
        with (pathlib.Path(__file__).parent / "calls").open("a") as file:
            print(start and start.isoformat(), end and end.isoformat(), file=file)
        times = pd.date_range("2013-01-01", "2013-12-31", freq=f"{step}D", tz="UTC")
        frame = pd.DataFrame({"t": times, "k": range(len(times)), "y": 1})
        frame = frame if start is None else frame[frame.t >= start]
        return frame if end is None else frame[frame.t < end]
"""


def calls(project: Project) -> list[str]:
    """The calls since the last question, as `FROM TO` in days."""
    file = project.root / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [" ".join(word[:10] for word in line.split()) for line in lines]


def test_a_snapshot_holds_partitions_and_says_what_is_in_them(project: Project) -> None:
    (project.root / "rows.csv").write_text(
        "t,k,y\n2013-02-01T00:00:00Z,b,1\n2013-01-31T23:59:59Z,a,\n2013-02-01T00:00:00Z,a,0\n2014-01-01,z,1\n"
    )
    snapshot = project.ingest(source="rows.csv", timestamp="t", key=["k", "t"], window={"end": "2014-01-01"})
    assert snapshot.kind == "snapshot"
    assert dict(snapshot.metadata) == {
        "rows": 3, "duplicates": 0, "columns": 3, "first": "2013-01-31T23:59:59Z", "last": "2013-02-01T00:00:00Z",
        "tables": 0,
    }  # fmt: skip
    assert set(project.objects.files(snapshot)) == {"rows/2013-01.parquet", "rows/2013-02.parquet", "snapshot.json"}
    sha = hashlib.sha256(project.objects.read(snapshot, "rows/2013-02.parquet")).hexdigest()
    summary = project.summary(snapshot)
    partitions = summary["rows"].pop("partitions")
    assert partitions["2013-02"] == {"rows": 2, "sha256": sha}
    assert summary == {
        "rows": {
            "columns": [
                {"name": "t", "type": "timestamp[us, tz=UTC]"}, {"name": "k", "type": "string"},
                {"name": "y", "type": "int64"},
            ],
            "rows": 3, "duplicates": 0, "outside": 1, "first": "2013-01-31T23:59:59Z", "last": "2013-02-01T00:00:00Z",
        },
        "tables": {},
    }  # fmt: skip
    table = project.table(snapshot)
    assert table["k"].to_pylist() == ["a", "a", "b"]
    assert table["y"].to_pylist() == [None, 0, 1]
    assert table.schema.metadata is None
    assert project.said == ["rows: 2013-01, 1 rows", "rows: 2013-02, 2 rows"]


def test_rows_without_times_are_one_partition_with_the_last_of_each_key(project: Project) -> None:
    (project.root / "rows.csv").write_text("k,y\n2,a\n1,b\n2,c\n")
    snapshot = project.ingest(source="rows.csv", key=["k"])
    assert list(project.objects.files(snapshot)) == ["rows/all.parquet", "snapshot.json"]
    assert project.table(snapshot).to_pylist() == [{"k": 1, "y": "b"}, {"k": 2, "y": "c"}]
    assert snapshot.metadata["first"] is None
    assert snapshot.metadata["duplicates"] == 1


def test_of_rows_with_equal_keys_the_latest_stays_and_of_those_the_one_read_last(project: Project) -> None:
    project.write("""
        def load():
            yield pd.DataFrame({"t": ["2013-03-01", "2013-01-01", "2013-02-01"], "k": ["a", "b", "c"], "y": [1, 2, 3]})
            yield pd.DataFrame({"t": ["2013-01-05", "2013-04-01", "2013-02-01"], "k": ["a", "b", "c"], "y": [4, 5, 6]})
    """)
    snapshot = project.ingest(timestamp="t", key=["k"])
    assert project.table(snapshot).select(["k", "y"]).to_pylist() == [
        {"k": "c", "y": 6}, {"k": "a", "y": 1}, {"k": "b", "y": 5},
    ]  # fmt: skip
    assert snapshot.metadata["duplicates"] == 3


def test_without_a_key_rows_that_are_equal_throughout_are_removed(project: Project) -> None:
    project.write("""
        def load():
            yield pd.DataFrame({"a": [1.0, None, 1.0, -0.0], "l": [[1], None, [1], [2]], "y": [1, 2, 1, 3]})
            yield pd.DataFrame({"a": [None, 0.0, 1.0], "l": [None, [2], [3]], "y": [2, 3, 1]})
    """)
    snapshot = project.ingest()
    assert project.table(snapshot).to_pylist() == [
        {"a": 0.0, "l": [2], "y": 3}, {"a": 1.0, "l": [1], "y": 1}, {"a": 1.0, "l": [3], "y": 1},
        {"a": None, "l": None, "y": 2},
    ]  # fmt: skip


def test_columns_of_every_storable_type_come_through(project: Project) -> None:
    project.write("""
        import datetime as dt, decimal
        def load():
            day, noon = dt.date(2013, 1, 1), dt.datetime(2013, 1, 1, 12)
            return pa.table({
                "y": [True], "i": pa.array([1], pa.int8()), "u": pa.array([2**64 - 1], pa.uint64()),
                "f": pa.array([1.5], pa.float32()), "d": [decimal.Decimal("1.50")], "b": [b"x"], "day": [day],
                "naive": pa.array([noon], pa.timestamp("ns")), "aware": pa.array([noon], pa.timestamp("s", "Asia/Tokyo")),
                "clock": [dt.time(1, 2)], "list": [["x", None]], "struct": [{"p": 1, "q": [2]}], "nothing": pa.nulls(1),
                'quoted "name"': ["x"], "select": [1],
            })
    """)
    snapshot = project.ingest()
    types = {entry["name"]: entry["type"] for entry in project.summary(snapshot)["rows"]["columns"]}
    assert types == {
        "y": "bool", "i": "int8", "u": "uint64", "f": "float", "d": "decimal128(3, 2)", "b": "binary",
        "day": "date32[day]", "naive": "timestamp[us]", "aware": "timestamp[us, tz=UTC]", "clock": "time64[us]",
        "list": "list<item: string>", "struct": "struct<p: int64, q: list<item: int64>>", "nothing": "double",
        'quoted "name"': "string", "select": "int64",
    }  # fmt: skip
    table = project.table(snapshot)
    assert [str(kind) for kind in table.schema.types][:10] == list(types.values())[:10]
    row = table.to_pylist()[0]
    assert row["struct"] == {"p": 1, "q": [2]}
    assert row["list"] == ["x", None]
    assert row["u"] == 2**64 - 1


def test_histories_keep_rows_before_the_window_and_lose_those_after_it(project: Project) -> None:
    (project.root / "rows.csv").write_text("t,y\n2013-02-02,1\n2013-01-01,1\n")
    weather = pd.DataFrame(
        {"at": ["2012-06-01", "2013-02-01", "2013-03-01", "2013-02-01"], "k": ["a", "a", "a", "a"], "w": range(4)}
    )
    weather.to_csv(project.root / "weather.csv", index=False)
    snapshot = project.ingest(
        source="rows.csv", timestamp="t", window={"start": "2013-02-01", "end": "2013-03-01"},
        tables={"weather": {"source": "weather.csv", "timestamp": "at", "key": ["k", "at"]}},
    )  # fmt: skip
    assert project.table(snapshot, "tables/weather")["w"].to_pylist() == [0, 3]
    assert project.table(snapshot).num_rows == 1
    weather_summary = project.summary(snapshot)["tables"]["weather"]
    assert (weather_summary["rows"], weather_summary["outside"], weather_summary["duplicates"]) == (2, 1, 1)
    assert set(weather_summary["partitions"]) == {"2012-06", "2013-02"}
    assert snapshot.metadata["tables"] == 1


def test_histories_from_a_function_keep_what_it_looks_back_to(project: Project) -> None:
    project.write("""
        def load(start, end):
            return pd.DataFrame({"t": [start], "y": [1]})
        def weather(start, end):
            return pd.DataFrame({"t": [start - pd.Timedelta("40D"), start, end], "k": "a"})
    """)
    snapshot = project.ingest(
        timestamp="t", window={"start": "2013-02-01", "end": "2013-04-01"},
        tables={"weather": {"source": "data.py:weather", "timestamp": "t"}},
    )  # fmt: skip
    days = [time.date().isoformat() for time in project.table(snapshot, "tables/weather")["t"].to_pylist()]
    assert days == ["2012-12-23", "2013-01-20", "2013-02-01", "2013-03-01"]


def test_a_history_without_a_timestamp_is_refused(project: Project) -> None:
    said = project.refused(timestamp="t", tables={"weather": {"source": "weather.csv"}})
    assert "data.tables.weather: a history needs a timestamp" in said
    assert "is no name for a table" in project.refused(tables={"../x": {"source": "x.csv", "timestamp": "t"}})


def test_a_function_is_called_for_each_piece_of_the_window(project: Project) -> None:
    project.write(CALLS)
    snapshot = project.ingest(timestamp="t", window={"start": "2013-01-15", "end": "2013-03-02"})
    assert calls(project) == ["2013-01-15 2013-02-01", "2013-02-01 2013-03-01", "2013-03-01 2013-03-02"]
    assert snapshot.metadata["rows"] == 46


@pytest.mark.parametrize(
    ("window", "call"),
    [({}, "None None"), ({"start": "2013-01-15"}, "2013-01-15 None"), ({"end": "2013-03-02"}, "None 2013-03-02")],
)
def test_an_open_window_is_one_call_with_none_for_its_open_end(
    project: Project, window: dict[str, str], call: str
) -> None:
    project.write(CALLS)
    project.ingest(timestamp="t", window=window)
    assert calls(project) == [call]


def test_a_longer_window_calls_for_its_new_pieces_alone_and_gives_the_snapshot_of_a_fresh_project(
    project: Project, tmp_path: Path
) -> None:
    project.write(CALLS)
    data: dict[str, Any] = {"timestamp": "t", "key": ["k"], "parameters": {"step": 1}}
    project.ingest(**data, window={"start": "2013-02-01", "end": "2013-04-01"})
    assert len(calls(project)) == 2
    longer = project.ingest(**data, window={"start": "2013-01-01", "end": "2013-05-01"})
    assert calls(project) == ["2013-01-01 2013-02-01", "2013-04-01 2013-05-01"]
    assert "rows: 2013-02 is known from an earlier run" in project.said
    other = Project(tmp_path / "other")
    other.write(CALLS)
    assert other.ingest(**data, window={"start": "2013-01-01", "end": "2013-05-01"}).digest == longer.digest
    calls(other)


def test_changed_code_parameters_or_settings_call_for_every_piece_again(project: Project) -> None:
    project.write(CALLS)
    data: dict[str, Any] = {"timestamp": "t", "window": {"start": "2013-01-01", "end": "2013-03-01"}}
    project.ingest(**data)
    calls(project)
    project.ingest(**data)
    assert calls(project) == []
    project.ingest(**data, parameters={"step": 2})
    assert len(calls(project)) == 2
    project.ingest(**data, key=["k"])
    assert len(calls(project)) == 2
    project.write(CALLS + "\n    # changed\n")
    project.ingest(**data)
    assert len(calls(project)) == 2


def test_a_damaged_piece_is_called_for_again(project: Project) -> None:
    project.write(CALLS)
    data: dict[str, Any] = {"timestamp": "t", "window": {"start": "2013-01-01", "end": "2013-04-01"}}
    first = project.ingest(**data)
    calls(project)
    blobs = [file for file in (project.root / ".drivetrain" / "objects").rglob("*") if file.is_file()]
    staged = [file for file in blobs if b"__drivetrain_sequence" in file.read_bytes()]
    staged[0].write_bytes(b"PAR1" + staged[0].read_bytes()[4:-9] + b"damaged!!")
    staged[1].unlink()
    assert project.ingest(**data).digest == first.digest
    assert len(calls(project)) == 2
    assert project.said.count("a remembered piece is damaged: it is read anew") == 2
    project.ingest(**data)
    assert calls(project) == []


def test_a_piece_that_is_not_over_is_not_remembered(project: Project) -> None:
    project.write("""
        import pathlib
        def load(start, end):
            with (pathlib.Path(__file__).parent / "calls").open("a") as file:
                print(start.isoformat(), end.isoformat(), file=file)
            return pd.DataFrame({"t": [start], "y": [1]})
    """)
    data: dict[str, Any] = {
        "timestamp": "t",
        "partition": "year",
        "window": {"start": "2201-01-01", "end": "2203-01-01"},
    }
    project.ingest(**data)
    assert len(calls(project)) == 2
    project.ingest(**data)
    assert len(calls(project)) == 2


def test_duplicates_are_removed_across_the_pieces_of_a_window(project: Project) -> None:
    project.write("""
        def load(start, end):
            return pd.DataFrame({"t": [start, start], "k": ["same", start.isoformat()], "y": [start.month, 0]})
    """)
    data: dict[str, Any] = {"timestamp": "t", "key": ["k"], "window": {"start": "2013-01-01", "end": "2013-06-01"}}
    for _ in range(2):
        snapshot = project.ingest(**data)
        assert snapshot.metadata["duplicates"] == 4
        kept = [row for row in project.table(snapshot).to_pylist() if row["k"] == "same"]
        assert [row["y"] for row in kept] == [5]


def test_columns_whose_types_vary_are_unified_or_refused(project: Project) -> None:
    project.write("""
        def load(bad):
            yield pd.DataFrame({"a": [1], "b": [None], "y": [1]})
            yield pd.DataFrame({"a": [1.5], "b": ["x"], "y": [1]})
            yield pd.DataFrame({"a": [7], "b": ["z"], "y": [3], "late": [True]})
            if bad:
                yield pd.DataFrame({"a": ["x"], "b": [5], "y": [1]})
    """)
    snapshot = project.ingest(parameters={"bad": False})
    assert project.table(snapshot).to_pylist() == [
        {"a": 1.0, "b": None, "y": 1, "late": None}, {"a": 1.5, "b": "x", "y": 1, "late": None},
        {"a": 7.0, "b": "z", "y": 3, "late": True},
    ]  # fmt: skip
    said = project.refused(parameters={"bad": True})
    assert "column 'a' is double in some chunks and string in others" in said
    assert "column 'b' is string in some chunks and int64 in others" in said


def test_types_are_unified_across_pieces(project: Project) -> None:
    project.write("""
        def load(start, end):
            value = {1: 1, 2: 2.5, 3: None, 4: "x"}[start.month]
            return pd.DataFrame({"t": [start], "v": [value], "y": [1]})
    """)
    window = {"start": "2013-01-01", "end": "2013-04-01"}
    snapshot = project.ingest(timestamp="t", window=window)
    assert project.table(snapshot)["v"].to_pylist() == [1.0, 2.5, None]
    said = project.refused(timestamp="t", window=window | {"end": "2013-05-01"})
    assert "column 'v' is double in some chunks and string in others" in said


def test_everything_wrong_with_the_rows_is_said_at_once(project: Project) -> None:
    project.write("""
        def load():
            yield pd.DataFrame({"t": ["2013-01-01", None, "soon"], "k": [1, 2, None], "y": 1})
            yield pd.DataFrame({"t": ["2013-01-01", "", "later"], "k": [None, None, 1.0], "y": 1})
    """)
    said = project.refused(timestamp="t", key=["k"])
    assert "column 't' is null in 2 rows" in said
    assert "column 't': 2 values are no times, such as 'soon'" in said
    assert "key column 'k' is null in 3 rows" in said


def test_missing_columns_are_said_at_once(project: Project) -> None:
    (project.root / "rows.csv").write_text("time,origin,late\n2013-01-01,EWR,1\n")
    said = project.refused(source="rows.csv", timestamp="tme", key=["origins"], label="Late")
    assert "timestamp column 'tme' is missing (did you mean 'time'?)" in said
    assert "key column 'origins' is missing (did you mean 'origin'?)" in said
    assert "label column 'Late' is missing (did you mean 'late'?)" in said
    assert "the columns are time, origin, late" in said


def test_an_empty_window_is_refused_with_the_times_that_there_are(project: Project) -> None:
    (project.root / "rows.csv").write_text("t,y\n2013-01-05,1\n2013-03-01T06:00:00,1\n")
    said = project.refused(source="rows.csv", timestamp="t", window={"start": "2014-01-01", "end": "2014-02-01"})
    assert "none of the 2 rows lies in the window" in said
    assert "the first is of 2013-01-05T00:00:00Z, the last of 2013-03-01T06:00:00Z" in said


def test_no_rows_and_no_labels_are_refused(project: Project) -> None:
    (project.root / "none.csv").write_text("t,y\n")
    (project.root / "blank.csv").write_text("t,y\n2013-01-01,\n2013-01-02,\n")
    project.write("def load(start, end): return pd.DataFrame()\n")
    assert "there are no rows" in project.refused(source="none.csv", timestamp="t")
    assert "there are no rows" in project.refused(timestamp="t", window={"start": "2013-01-01", "end": "2013-03-01"})
    assert "label 'y' is null in all 2 rows" in project.refused(source="blank.csv", timestamp="t")
    (project.root / "void.csv").write_text("k,y\n,\n,\n")
    assert "every column is null in all 2 rows" in project.refused(source="void.csv")


def test_a_window_without_times_is_refused(project: Project) -> None:
    said = project.refused(source="rows.csv", window={"start": "2013-01-01"})
    assert "a window needs times" in said


def test_parameters_are_shared_out_and_a_stray_one_is_refused(project: Project) -> None:
    project.write("""
        def load(a): return pd.DataFrame({"t": ["2013-01-01"], "y": [a]})
        def weather(region): return pd.DataFrame({"t": ["2013-01-01"], "r": [region]})
    """)
    data: dict[str, Any] = {"timestamp": "t", "tables": {"weather": {"source": "data.py:weather", "timestamp": "t"}}}
    snapshot = project.ingest(**data, parameters={"a": 7, "region": "north"})
    assert project.table(snapshot)["y"].to_pylist() == [7]
    assert project.table(snapshot, "tables/weather")["r"].to_pylist() == ["north"]
    said = project.refused(**data, parameters={"a": 7, "region": "north", "regon": "x"})
    assert "no function takes the parameter 'regon' (did you mean 'region'?)" in said


def test_a_function_that_raises_is_a_stage_error_with_its_line(project: Project) -> None:
    project.write("def load(start, end):\n    raise KeyError('tail')\n")
    with pytest.raises(StageError, match=r"raised KeyError at data\.py:5: 'tail'"):
        project.ingest(timestamp="t", window={"start": "2013-01-01", "end": "2013-03-01"})


def test_naive_times_are_taken_in_the_zone_of_the_data(project: Project) -> None:
    (project.root / "rows.csv").write_text("t,y\n2013-01-31 20:00:00,1\n")
    snapshot = project.ingest(source="rows.csv", timestamp="t", timezone="America/New_York")
    assert snapshot.metadata["first"] == "2013-02-01T01:00:00Z"
    assert "name no zone" in project.refused(source="rows.csv", timestamp="t", timezone="reject")
    assert "no time zone" in project.refused(source="rows.csv", timestamp="t", timezone="New York")


def test_a_snapshot_is_the_same_from_files_and_functions_in_any_order_of_rows(project: Project) -> None:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"t": pd.date_range("2013-01-01", periods=5000, freq="7min", tz="UTC"), "k": range(5000)})
    frame["x"], frame["y"] = rng.normal(size=5000).round(3), rng.integers(0, 2, 5000)
    frame.to_parquet(project.root / "a.parquet", row_group_size=700)
    mixed = frame.sample(frac=1, random_state=1)
    mixed.iloc[:2000].to_csv(project.root / "b1.csv", index=False)
    mixed.iloc[2000:].to_csv(project.root / "b2.csv.gz", index=False)
    project.write(
        "def load(): return pd.read_parquet('%s').sample(frac=1, random_state=2)" % (project.root / "a.parquet")
    )
    data: dict[str, Any] = {"timestamp": "t", "key": ["k"]}
    digests = {project.ingest(source=source, **data).digest for source in ("a.parquet", "b*.csv*", "data.py:load")}
    assert len(digests) == 1


ROWS = st.lists(
    st.tuples(
        st.integers(0, 5).map(lambda day: pd.Timestamp("2013-01-29", tz="UTC") + pd.Timedelta(days=day)),
        st.sampled_from(["a", "b", "c"]),
        st.none() | st.sampled_from([0.0, -0.0, 1.5, float("inf")]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=25,
)
KEYS = st.sampled_from([[], ["k"], ["k", "t"], ["k", "y"]])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, key=KEYS, cuts=st.sets(st.integers(1, 24), max_size=5), tables=st.booleans())
def test_any_chunking_gives_the_same_snapshot_which_pandas_confirms(
    project: Project, rows: list[tuple[Any, ...]], key: list[str], cuts: set[int], tables: bool
) -> None:
    frame = pd.DataFrame(rows, columns=["t", "k", "x", "y"]).astype({"x": "float64"})
    frame.to_pickle(project.root / "frame.pickle")
    project.write("""
        import pathlib
        def load(cuts, tables):
            frame = pd.read_pickle(pathlib.Path(__file__).parent / "frame.pickle")
            for start, stop in zip([0, *cuts], [*cuts, len(frame)]):
                part = frame.iloc[start:stop]
                yield pa.Table.from_pandas(part) if tables else part
    """)
    whole = project.ingest(timestamp="t", key=key, parameters={"cuts": [], "tables": False})
    limits = sorted(cut for cut in cuts if cut < len(frame))
    chunked = project.ingest(timestamp="t", key=key, parameters={"cuts": limits, "tables": tables})
    assert chunked.digest == whole.digest

    kept = frame.sort_values("t", kind="stable").drop_duplicates(key, keep="last") if key else frame.drop_duplicates()
    order = ["t", *key] if key else ["t", "k", "x", "y"]
    expected = kept.sort_values(list(dict.fromkeys(order)), na_position="last").reset_index(drop=True)
    found = project.table(whole).to_pandas()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert whole.metadata["duplicates"] == len(frame) - len(kept)


MEASURED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.parts import Data
from drivetrain.stages import StageContext, ingest
from drivetrain.tables import snapshot
from tests.memory import peak

snapshot.MEMORY, snapshot.THREADS = "32MB", 1  # so that little data is already much
root, source = Path(sys.argv[1]), sys.argv[2]
work = root / "work" / source.replace(".", "-")
work.mkdir(parents=True)
data = Data(source=source, label="y", timestamp="t", key=["k"])
context = StageContext("r", root, root, work, open_directory(root / "objects"), SimpleNamespace(data=data), {}, print)
print(ingest.run(context, ingest.Inputs()).snapshot.metadata["rows"])
print(peak() >> 20)
"""


@pytest.mark.parametrize(("kind", "fewer", "more"), [("parquet", 500_000, 2_000_000), ("csv", 100_000, 1_000_000)])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, kind: str, fewer: int, more: int) -> None:
    """From where the data fill the room that they are given."""
    peaks = []
    for rows in (fewer, more):
        source = f"{rows}.{kind}"
        _write_rows(tmp_path / source, rows)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path), source], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        *_, count, peak = done.stdout.split()
        assert int(count) == rows
        peaks.append(int(peak))
    assert peaks[1] < 1.15 * peaks[0], peaks


def _write_rows(path: Path, rows: int) -> None:
    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, 50_000):
        micros = 1_356_998_400_000_000 + rng.integers(0, 3 * 10**13, 50_000)
        table = pa.table(
            {
                "t": pa.array(micros).cast(pa.timestamp("us", "UTC")),
                "k": np.arange(start, start + 50_000),
                "y": [1] * 50_000,
            }
            | {f"x{number}": rng.random(50_000, dtype="float32") for number in range(6)}
        )
        kind = pq.ParquetWriter if path.suffix == ".parquet" else pacsv.CSVWriter
        writer = writer or kind(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
