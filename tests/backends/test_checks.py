"""Checks by Great Expectations: suites loaded, frames judged, results worded and written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.checks import CheckLine, CheckResult, Checks, words
from drivetrain.backends.checks.result import format_lines, sentence, table_rows, to_bytes
from drivetrain.errors import DefinitionError, Problem, StageError


@cache
def checks() -> Checks:
    """The one answer. Imported late, since that takes seconds and every xdist worker collects every file."""
    from drivetrain.backends.checks.great_expectations import open_checks

    return open_checks()


def entry(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": kind, "kwargs": kwargs}


@pytest.fixture
def frame() -> pd.DataFrame:
    """Ten rows whose index is not their position."""
    return pd.DataFrame(
        {
            "temp": [1.0, 2.0, -99.0, 4.0, np.nan, 6.0, 77.0, 8.0, 9.0, 10.0],
            "carrier": list("AABBAABBCC"),
            "late": [0, 1] * 5,
            "empty": [None] * 10,
            "time": pd.date_range("2013-01-01", periods=10, tz="UTC"),
        },
        index=[100 - row for row in range(10)],
    )


def judge(tmp_path: Path, frame: pd.DataFrame, *entries: dict[str, Any], keep_rows: int = 1000) -> CheckResult:
    (tmp_path / "suite.json").write_text(json.dumps({"name": "test", "expectations": entries}))
    return checks().run(checks().load(tmp_path, "suite.json", "late"), frame, keep_rows)


def only(result: CheckResult) -> CheckLine:
    (line,) = result.lines
    return line


def test_a_frame_that_holds_passes_with_every_line_in_the_suites_order(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(
        tmp_path,
        frame,
        entry("expect_column_values_to_not_be_null", column="late"),
        entry("expect_table_row_count_to_be_between", min_value=5),
        entry("expect_column_values_to_be_in_set", column="carrier", value_set=["A", "B", "C"]),
        entry("expect_column_values_to_be_between", column="late", min_value=0, max_value=1),
    )
    assert result.passed
    assert result.rows == ()
    assert [(line.column, line.expectation) for line in result.lines] == [
        ("late", "not null"),
        ("", "row count at least 5"),
        ("carrier", "in {A, B, C}"),
        ("late", "between 0 and 1"),
    ]
    assert [line.detail for line in result.lines] == ["all 10", "row count 10", "all 10", "all 10"]


def test_offending_rows_are_positions_whatever_the_index_is(tmp_path: Path, frame: pd.DataFrame) -> None:
    line = only(
        judge(tmp_path, frame, entry("expect_column_values_to_be_between", column="temp", min_value=-40, max_value=50))
    )
    assert not line.passed
    assert line.rows == (2, 6)
    assert (line.unexpected, round(line.percent or 0, 2)) == (2, 22.22)
    assert line.detail == "2 of 9 outside -40 to 50 (22.22 %), such as -99, 77"


def test_rows_of_all_failed_lines_are_given_once_and_ascending(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(
        tmp_path,
        frame,
        entry("expect_column_values_to_be_in_set", column="carrier", value_set=["A", "B"]),
        entry("expect_column_values_to_be_between", column="temp", max_value=8),
    )
    assert [line.rows for line in result.lines] == [(8, 9), (6, 8, 9)]
    assert result.rows == (6, 8, 9)


def test_no_more_rows_are_kept_than_asked_for_but_all_are_counted(tmp_path: Path, frame: pd.DataFrame) -> None:
    line = only(judge(tmp_path, frame, entry("expect_column_values_to_be_null", column="carrier"), keep_rows=3))
    assert line.rows == (0, 1, 2)
    assert line.unexpected == 10
    none = judge(tmp_path, frame, entry("expect_column_values_to_be_null", column="carrier"), keep_rows=0)
    assert (none.passed, none.rows) == (False, ())


def test_rows_within_the_allowed_share_do_not_count_as_offending(tmp_path: Path, frame: pd.DataFrame) -> None:
    line = only(
        judge(tmp_path, frame, entry("expect_column_values_to_be_between", column="temp", min_value=-40, mostly=0.8))
    )
    assert line.passed
    assert line.rows == ()
    assert line.unexpected == 1
    assert line.expectation == "at least -40 in at least 80 % of the rows"


def test_rows_outside_a_condition_are_not_looked_at(tmp_path: Path, frame: pd.DataFrame) -> None:
    line = only(
        judge(
            tmp_path,
            frame,
            entry(
                "expect_column_values_to_be_between",
                column="temp",
                min_value=5,
                row_condition={
                    "type": "comparison",
                    "column": {"name": "carrier"},
                    "operator": "==",
                    "parameter": "B",
                },
            ),
        )
    )
    assert line.rows == (2, 3)
    assert line.expectation == "at least 5 where `carrier == B`"


def test_a_missing_column_fails_and_the_nearest_name_is_offered(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(
        tmp_path,
        frame,
        entry("expect_column_values_to_not_be_null", column="carier"),
        entry("expect_column_to_exist", column="nowhere"),
        entry("expect_column_mean_to_be_between", column="nowhere", min_value=0),
    )
    assert [line.passed for line in result.lines] == [False, False, False]
    assert [line.detail for line in result.lines] == [
        "column `carier` does not exist; did you mean `carrier`?",
        "column `nowhere` does not exist",
        "column `nowhere` does not exist",
    ]


def test_a_column_of_nulls_fails_where_values_are_wanted(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(
        tmp_path,
        frame,
        entry("expect_column_values_to_not_be_null", column="empty"),
        entry("expect_column_mean_to_be_between", column="empty", min_value=0, max_value=1),
        entry(
            "expect_column_quantile_values_to_be_between",
            column="empty",
            quantile_ranges={"quantiles": [0.5], "value_ranges": [[0, 1]]},
        ),
    )
    assert [line.detail for line in result.lines] == [
        "10 of 10 null (100 %)",
        "mean: no values, wanted between 0 and 1",
        "quantile 0.5: no values, wanted between 0 and 1",
    ]
    assert not any(line.passed for line in result.lines)
    json.loads(to_bytes(result))


@pytest.mark.parametrize(("edges", "passed"), [([0, 10], True), ([0, 1], False)])
def test_quantiles_are_judged_and_written_though_their_verdict_is_numpys(
    tmp_path: Path, frame: pd.DataFrame, edges: list[int], passed: bool
) -> None:
    ranges = {"quantiles": [0.5], "value_ranges": [edges]}
    result = judge(
        tmp_path, frame, entry("expect_column_quantile_values_to_be_between", column="temp", quantile_ranges=ranges)
    )
    assert only(result).passed is passed
    assert only(result).detail == "quantile 0.5: 6" + ("" if passed else ", wanted between 0 and 1")
    assert json.loads(to_bytes(result))["success"] is passed


def test_a_value_of_another_type_is_a_failed_line_with_the_librarys_reason(tmp_path: Path, frame: pd.DataFrame) -> None:
    line = only(judge(tmp_path, frame, entry("expect_column_values_to_be_between", column="carrier", min_value=1)))
    assert not line.passed
    assert line.detail.startswith("could not be evaluated: Column values, min_value, and max_value")


@pytest.mark.parametrize("kind", ["expect_column_values_to_be_between", "expect_column_min_to_be_between"])
def test_a_time_without_its_zone_says_how_to_write_it(tmp_path: Path, frame: pd.DataFrame, kind: str) -> None:
    wrong, right = (
        only(judge(tmp_path, frame, entry(kind, column="time", min_value=time)))
        for time in ("2012-12-31", "2012-12-31T00:00:00Z")
    )
    assert not wrong.passed
    assert wrong.detail.endswith("write the time with its zone, such as 2013-04-01T00:00:00Z")
    assert right.passed


def test_an_empty_frame_fails_though_every_column_expectation_holds_of_nothing(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    result = judge(tmp_path, frame.iloc[:0], entry("expect_column_values_to_be_between", column="temp", min_value=0))
    assert [line.passed for line in result.lines] == [True, False]
    assert result.lines[1].expectation == "row count at least 1"
    assert result.lines[1].detail == "row count 0, wanted at least 1"
    assert not result.passed
    assert result.document["success"] is False


def test_an_empty_frame_gets_no_second_row_count_where_the_suite_has_one(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(tmp_path, frame.iloc[:0], entry("expect_table_row_count_to_be_between", min_value=3))
    assert only(result).detail == "row count 0, wanted at least 3"
    allowed = judge(tmp_path, frame.iloc[:0], entry("expect_table_row_count_to_be_between", max_value=3))
    assert [line.passed for line in allowed.lines] == [True, False]


def test_the_built_in_suite_wants_rows_and_labels(tmp_path: Path, frame: pd.DataFrame) -> None:
    built_in = checks().load(tmp_path, "", "late")
    assert checks().run(built_in, frame, 10).passed
    assert [sentence(line) for line in checks().run(built_in, frame, 10).lines] == [
        "row count at least 1",
        "column `late` exists",
        "column `late` not null",
    ]
    unlabelled = frame.astype({"late": float})
    unlabelled.iloc[[0, 7], 2] = np.nan
    assert checks().run(built_in, unlabelled, 10).rows == (0, 7)
    assert not checks().run(built_in, frame.drop(columns="late"), 10).passed
    assert [line.passed for line in checks().run(built_in, frame.iloc[:0], 10).lines] == [False, True, True]


def problems(tmp_path: Path, text: str) -> list[Problem]:
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(DefinitionError) as caught:
        checks().load(tmp_path, "suite.json", "late")
    return caught.value.problems


def test_every_wrong_expectation_is_named_with_its_line_and_what_was_meant(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """{
  "name": "flights",
  "expectations": [
    {"type": "expect_column_to_exist", "kwargs": {"column": "a, ]"}},
    {"type": "expect_column_values_to_be_betwen",
     "kwargs": {"column": "a", "min_value": 0}},
    {"type": "expect_column_values_to_be_between", "kwargs": {"column": "a", "min": 0}},
    {"expectation_type": "expect_column_to_exist", "kwargs": {"column": "a"}},
    {"type": "expect_column_to_exist", "kwargs": {"column": "a"}, "severity": "awful"},
    {"type": "expect_column_to_exist", "kwargs": {"column": "a"}, "column": "b"},
    7
  ]
}
""",
    )
    assert [(problem.line, problem.key) for problem in found] == [
        (5, "expectations[1].type"),
        (7, "expectations[2].kwargs"),
        (8, "expectations[3]"),
        (9, "expectations[4].kwargs"),
        (10, "expectations[5].kwargs"),
        (11, "expectations[6]"),
    ]
    assert all(problem.file == "suite.json" for problem in found)
    assert found[0].hint == "did you mean expect_column_values_to_be_between?"
    assert "min: extra fields not permitted" in found[1].message
    assert "`type`" in found[2].hint
    assert "awful" in found[3].message


@pytest.mark.parametrize(
    ("text", "line", "words_of_it"),
    [
        ('{"name": "x",\n "expectations": [}', 2, "is not JSON"),
        ('{"name": "x"}', 1, "a list of expectations is wanted"),
        ("[]", 1, "a list of expectations is wanted"),
        ('{"name": "x", "expectations": []}', 0, "the suite expects nothing"),
    ],
)
def test_a_file_that_is_no_suite_says_so(tmp_path: Path, text: str, line: int, words_of_it: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert (problem.line, words_of_it in problem.message) == (line, True)


def test_a_missing_suite_is_a_definition_error(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as caught:
        checks().load(tmp_path, "nowhere.json", "late")
    assert caught.value.problems[0].file == "nowhere.json"


def test_suite_parameters_are_put_in_and_missing_ones_are_found_before_the_run(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    suite = {
        "name": "x",
        "expectations": [entry("expect_column_max_to_be_between", column="temp", max_value={"$PARAMETER": "hot"})],
        "suite_parameters": {"hot": 50},
    }
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    assert not checks().run(checks().load(tmp_path, "suite.json", "late"), frame, 10).passed
    (problem,) = problems(tmp_path, json.dumps({**suite, "suite_parameters": {}}))
    assert problem.message == "no value for the suite parameter hot"


FUNCTIONS = '''
import great_expectations as gx
import great_expectations.expectations as gxe


class Warm(gxe.ExpectColumnValuesToBeBetween):
    """A user's own expectation, with its defaults in the class."""

    column: str = "temp"
    min_value: float = -40
    description: str = "warm enough to fly"


def suite():
    return gx.ExpectationSuite(name="own", expectations=[Warm(), gxe.ExpectColumnToExist(column="late")])


def nothing():
    return None


def raises():
    return gx.ExpectationSuite(name="own", expectations=[gxe.ExpectColumnToExist(colum="late")])
'''


def test_a_function_gives_the_suite_with_expectations_of_the_users_own(tmp_path: Path, frame: pd.DataFrame) -> None:
    (tmp_path / "own_checks.py").write_text(FUNCTIONS)
    suite = checks().load(tmp_path, "own_checks.py:suite", "late")
    result = checks().run(suite, frame, 10)
    assert [(line.expectation, line.column, line.passed, line.rows) for line in result.lines] == [
        ("warm enough to fly", "temp", False, (2,)),
        ("exists", "late", True, ()),
    ]
    assert to_bytes(checks().run(suite, frame, 10)) == to_bytes(result)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "returned NoneType, not a great_expectations"), ("raises", "colum: extra fields not permitted")],
)
def test_a_function_that_gives_no_suite_is_the_users_to_mend(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "bad_checks.py").write_text(FUNCTIONS)
    with pytest.raises(StageError, match=message) as caught:
        checks().load(tmp_path, f"bad_checks.py:{name}", "late")
    assert caught.value.where == f"bad_checks.py:{name}"


SCRIPT = """
import json, sys
from pathlib import Path
import pandas as pd
from drivetrain.backends.checks.great_expectations import open_checks
from drivetrain.backends.checks.result import to_bytes
checks = open_checks()
frame = pd.DataFrame({"a": list("pqrstuvwxyz") * 2, "b": range(22)})
result = checks.run(checks.load(Path(sys.argv[1]), "suite.json", "b"), frame, 5)
sys.stdout.buffer.write(to_bytes(result) + checks.page(result, "t").encode())
"""


def test_result_and_page_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    many = [f"value {number}" for number in range(40)]
    entries = [
        entry("expect_column_distinct_values_to_contain_set", column="a", value_set=many),
        entry("expect_column_most_common_value_to_be_in_set", column="a", value_set=["z"]),
        entry("expect_column_values_to_be_in_set", column="a", value_set=["p", "q"]),
        entry("expect_column_distinct_values_to_be_in_set", column="a", value_set=["p", "q"]),
        entry("expect_column_distinct_values_to_equal_set", column="a", value_set=["p", "1", "2", "3", "4"]),
        entry("expect_table_columns_to_match_set", column_set=["c", "d", "e", "a"]),
        entry("expect_column_values_to_not_be_null", column="nowhere"),
        entry("expect_column_values_to_be_between", column="b", min_value=0, row_condition="zz > 1"),
    ]  # fmt: skip
    (tmp_path / "suite.json").write_text(json.dumps({"name": "x", "expectations": entries}))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    one, two = (
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    )
    first, second = one.communicate()[0], two.communicate()[0]
    assert first == second
    assert b"</html>" in first
    assert str(tmp_path).encode() not in first
    assert b"Traceback" not in first
    assert b".py" not in first


def test_the_document_is_gxs_own_form_without_whole_lists_of_rows(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(tmp_path, frame, entry("expect_column_values_to_be_null", column="carrier"))
    document = json.loads(to_bytes(result))
    (found,) = document["results"]
    assert found["expectation_config"] == {
        "type": "expect_column_values_to_be_null",
        "kwargs": {"column": "carrier"},
        "meta": {},
        "severity": "critical",
    }
    assert found["result"]["partial_unexpected_index_list"] == list(range(10))
    assert not {"unexpected_list", "unexpected_index_list", "unexpected_index_query"} & set(found["result"])
    assert document["statistics"]["unsuccessful_expectations"] == 1


def test_lines_are_read_back_from_the_stored_result_without_the_library(tmp_path: Path, frame: pd.DataFrame) -> None:
    result = judge(tmp_path, frame, entry("expect_column_values_to_not_be_null", column="temp"))
    line = only(result)
    assert table_rows(to_bytes(result)) == [
        CheckLine(line.expectation, line.column, line.passed, line.detail, line.unexpected, line.percent)
    ]
    code = "import sys, drivetrain.backends.checks.result; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("document", [b"{}", b"[]", b'{"meta": {"drivetrain": {"lines": [{"column": "a"}]}}}', b"x"])
def test_what_is_no_result_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match="not a result"):
        table_rows(document)


def test_the_table_is_aligned_and_marks_what_failed() -> None:
    lines = [
        CheckLine("not null", "temp", True, "all 10", 0, 0.0),
        CheckLine("row count at least 5", "", False, "row count 2, wanted at least 5", None, None),
    ]
    assert format_lines(lines).splitlines() == [
        "ok      temp  not null              all 10",
        "FAILED        row count at least 5  row count 2, wanted at least 5",
    ]
    assert format_lines([]) == ""


def test_the_page_stands_alone_and_escapes_what_is_in_the_data(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.iloc[0, 1] = "<script>alert(1)</script>"
    result = judge(
        tmp_path,
        frame,
        entry("expect_column_values_to_be_in_set", column="carrier", value_set=["A", "B", "C"]),
        entry("expect_column_values_to_not_be_null", column="temp"),
    )
    text = checks().page(result, "flights & more")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "flights &amp; more" in text
    assert "2 of 2 expectations failed" in text
    assert "Null in the rows (from 0) 4" in text
    assert "http" not in text
    assert "src=" not in text


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        ("expect_column_values_to_be_between", {"min_value": 0, "strict_min": True}, "above 0"),
        ("expect_column_mean_to_be_between", {"min_value": 0, "max_value": 1, "strict_max": True}, "mean at least 0 and below 1"),
        ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "a", "column_B": "b"}, "column `a` greater than `b`"),
        ("expect_column_values_to_be_dated", {"column": "a", "form": "%Y"}, "values to be dated (form %Y)"),
        ("my_own_expectation", {"column": "a"}, "my own"),
    ],
)  # fmt: skip
def test_expectations_are_worded(kind: str, arguments: dict[str, Any], text: str) -> None:
    assert words.wanted(kind, arguments) == text


@given(st.floats(0, 100))
def test_a_percentage_above_nothing_is_never_shown_as_nothing(value: float) -> None:
    assert (words.percent(value) == "0 %") == (value == 0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes() | st.floats().map(np.float64),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
        max_leaves=8,
    )
)  # fmt: skip
def test_anything_becomes_valid_json(value: Any) -> None:
    from drivetrain.backends.checks.great_expectations import plain

    text = json.dumps(plain(value), allow_nan=False)
    assert plain(json.loads(text)) == json.loads(text)
