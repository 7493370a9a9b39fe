from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from drivetrain.errors import DataError
from drivetrain.tables import TableSpec
from drivetrain.tables.chunks import ROWS, Types, held_types, plain, unified

Spec = Callable[..., TableSpec]


def one(chunk: pd.DataFrame | pa.Table, spec: TableSpec) -> pa.Table:
    (table,) = plain(chunk, spec)
    return table


def test_nan_becomes_null_and_negative_zero_becomes_zero(spec: Spec) -> None:
    table = one(pa.table({"x": pa.array([float("nan"), -0.0, None])}), spec())
    assert table["x"].to_pylist() == [None, 0.0, None]
    assert np.copysign(1.0, table["x"][1].as_py()) == 1.0


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        (pa.array(["a"]).dictionary_encode(), pa.string()),
        (pa.array(["a"], pa.large_string()), pa.string()),
        (pa.array([b"a"], pa.large_binary()), pa.binary()),
        (pa.array([datetime(2013, 1, 1)], pa.timestamp("ns")), pa.timestamp("us")),
        (pa.array([datetime(2013, 1, 1)], pa.timestamp("ns", tz="Asia/Tokyo")), pa.timestamp("us", tz="UTC")),
        (pa.array([date(2013, 1, 1)], pa.date64()), pa.date32()),
        (pa.array([[1.5]], pa.large_list(pa.float32())), pa.list_(pa.float32())),
        (pa.array([Decimal("1.5")]), pa.decimal128(2, 1)),
        (pa.array([{"a": 1}]), pa.struct([("a", pa.int64())])),
        (pa.array([3], pa.int8()), pa.int8()),
        (pa.array([True]), pa.bool_()),
    ],
)
def test_columns_are_stored_under_plain_types(spec: Spec, column: pa.Array, stored: pa.DataType) -> None:
    table = one(pa.table({"x": column}), spec())
    assert table.schema.field("x").type == stored
    assert table["x"].null_count == 0


def test_columns_that_cannot_be_stored_are_all_named(spec: Spec) -> None:
    frame = pd.DataFrame({"gap": pd.to_timedelta([1], unit="s"), "span": pd.interval_range(0, 1), "x": [1]})
    with pytest.raises(DataError) as caught:
        one(frame, spec())
    assert "'gap' has type duration" in str(caught.value)
    assert "'span'" in str(caught.value)


def test_object_columns_of_several_types_are_all_named_with_their_types(spec: Spec) -> None:
    zoned, bare = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 1)
    frame = pd.DataFrame({"a": [1, "x"], "b": ["x", b"x"], "c": [True, 2], "d": pd.Series([zoned, bare], dtype=object)})
    with pytest.raises(DataError) as caught:
        one(frame, spec())
    assert "column 'a' holds values of several types: int, str" in str(caught.value)
    assert "column 'b' holds values of several types: bytes, str" in str(caught.value)
    assert "column 'c' holds values of several types: bool, int" in str(caught.value)
    assert "column 'd' holds values of several types: time with a zone, time without a zone" in str(caught.value)


def test_objects_of_one_type_with_gaps_are_stored(spec: Spec) -> None:
    frame = pd.DataFrame({"a": ["x", None], "b": pd.Series([1, 2.5], dtype=object), "c": [np.nan, "y"]})
    assert one(frame, spec()).to_pylist() == [{"a": "x", "b": 1.0, "c": None}, {"a": None, "b": 2.5, "c": "y"}]


def test_the_time_column_may_mix_dates_text_and_times(spec: Spec) -> None:
    mixed = [date(2013, 1, 1), "2013-01-02", datetime(2013, 1, 3, tzinfo=UTC), pd.NaT]
    table = one(pd.DataFrame({"t": pd.Series(mixed, dtype=object)}), spec(timestamp="t"))
    assert table["t"].to_pylist() == ["2013-01-01", "2013-01-02", "2013-01-03T00:00:00+00:00", None]


def test_a_named_index_is_a_column_and_a_nameless_one_is_dropped(spec: Spec) -> None:
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="k"))
    assert one(frame, spec(key=("k",))).column_names == ["k", "x"]
    assert one(frame.reset_index(drop=True), spec()).column_names == ["x"]
    assert one(pa.table({"x": [1], "__index_level_0__": [7]}), spec()).column_names == ["x"]


def test_missing_columns_are_all_named_with_what_was_meant(spec: Spec) -> None:
    asked = spec(timestamp="time", key=("origin", "flight"), needed=(("label", "late"),))
    with pytest.raises(DataError) as caught:
        one(pd.DataFrame({"Time": [1], "flght": [2], "zz": [0]}), asked)
    assert "timestamp column 'time' is missing (did you mean 'Time'?)" in str(caught.value)
    assert "key column 'flight' is missing (did you mean 'flght'?)" in str(caught.value)
    assert "label column 'late' is missing" in str(caught.value)
    assert caught.value.hint == "the columns are Time, flght, zz"


def test_columns_of_one_name_are_refused_in_frames_and_tables(spec: Spec) -> None:
    frame = pd.DataFrame([[1, 2]], columns=["x", "x"])
    with pytest.raises(DataError, match="column 'x' is there 2 times"):
        one(frame, spec())
    with pytest.raises(DataError, match="column 'x' is there 2 times"):
        one(pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]), spec())
    with pytest.raises(DataError, match="'X' and 'x' differ in upper and lower case alone"):
        one(pd.DataFrame({"X": [1], "x": [2]}), spec())


def test_a_large_chunk_comes_in_parts(spec: Spec) -> None:
    parts = list(plain(pd.DataFrame({"x": np.arange(ROWS + 1)}), spec()))
    assert [part.num_rows for part in parts] == [ROWS, 1]


def test_a_frame_without_columns_gives_nothing(spec: Spec) -> None:
    assert list(plain(pd.DataFrame(), spec(timestamp="t"))) == []


@pytest.mark.parametrize(
    ("one_type", "other", "both"),
    [
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.int64(), pa.float64()),
        (pa.null(), pa.string(), pa.string()),
        (pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.float64())),
        (pa.int64(), pa.string(), None),
        (pa.int64(), pa.bool_(), None),
        (pa.uint64(), pa.int64(), None),
        (pa.string(), pa.binary(), None),
    ],
)
def test_types_are_unified_where_no_value_is_lost(
    one_type: pa.DataType, other: pa.DataType, both: pa.DataType | None
) -> None:
    assert unified(one_type, other) == both
    assert unified(other, one_type) == both


def test_a_column_without_values_has_no_say_in_its_type(spec: Spec) -> None:
    types = Types(spec())
    for column in (pa.array([None], pa.float64()), pa.array(["x"]), pa.array([None], pa.int64())):
        table = pa.table({"a": column, "b": pa.nulls(1), "c": pa.nulls(1, pa.bool_())})
        types.observe(held_types(table), table.schema)
    assert types.schema == pa.schema([("a", pa.string()), ("b", pa.float64()), ("c", pa.bool_())])


def test_types_that_do_not_fit_together_are_all_named(spec: Spec) -> None:
    types = Types(spec())
    types.observe(pa.schema([("a", pa.int64()), ("b", pa.string())]), [])
    with pytest.raises(DataError) as caught:
        types.observe(pa.schema([("a", pa.string()), ("b", pa.bool_())]), [])
    assert "column 'a' is int64 in some chunks and string in others" in str(caught.value)
    assert "column 'b' is string in some chunks and bool in others" in str(caught.value)
