"""Expectations on live rows, against Great Expectations on the same rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivetrain.engines.live_checks import LiveChecks

FLIGHTS = Path(__file__).parents[2] / "examples/flights/checks/training.json"


def expectation(kind, column, **arguments):
    return {"type": f"expect_column_{kind}", "kwargs": {"column": column, **arguments}}


def checks_of(*expectations, served=("n", "t")):
    return LiveChecks.of({"name": "live", "expectations": list(expectations)}, served)


def broken(check, values, column="n"):
    """Which of the values break the one check."""
    found = checks_of(check)
    assert found.left_out == ()
    return found.failing({column: values}, len(values)).rows.tolist()


def objects(*values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


PARITY = [
    expectation("values_to_not_be_null", "n"),
    expectation("values_to_not_be_null", "n", mostly=0.8),
    expectation("values_to_be_null", "t"),
    expectation("values_to_be_between", "n", min_value=0, max_value=10),
    expectation("values_to_be_between", "n", min_value=0, strict_min=True),
    expectation("values_to_be_between", "n", max_value=10, strict_max=True, mostly=0.5),
    expectation("values_to_be_in_set", "t", value_set=["JFK", "EWR"]),
    expectation("values_to_be_in_set", "n", value_set=[0, 3, 10]),
    expectation("values_to_not_be_in_set", "t", value_set=["LGA", "x"]),
    expectation("values_to_not_be_in_set", "n", value_set=[3]),
    expectation("value_lengths_to_equal", "t", value=3),
    expectation("value_lengths_to_be_between", "t", min_value=2, max_value=3),
    expectation("values_to_match_regex", "t", regex="[A-Z]{3}$"),
    expectation("values_to_not_match_regex", "t", regex="^J"),
    expectation("values_to_match_regex_list", "t", regex_list=["^J", "R$"]),
    expectation("values_to_match_regex_list", "t", regex_list=["^J", "K$"], match_on="all"),
    expectation("values_to_not_match_regex_list", "t", regex_list=["^J", "R$"]),
    expectation("values_to_be_of_type", "t", type_="str"),
    expectation("values_to_be_in_type_list", "t", type_list=["str", "int"]),
]


def test_every_check_finds_the_rows_that_great_expectations_finds(tmp_path):
    from drivetrain.backends.checks.great_expectations import open_checks

    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "n": random.choice([0.0, 3.0, 7.5, 10.0, -1.0, 1e308, np.nan], 200),
            "t": random.choice(objects("JFK", "EWR", "LGA", "x", "JFKX", None), 200),
        }
    )
    (tmp_path / "suite.json").write_text(json.dumps({"name": "live", "expectations": PARITY}))
    library = open_checks()
    found = library.run(library.load(tmp_path, "suite.json", "t"), frame, 1000)
    ours = checks_of(*PARITY)
    assert ours.left_out == ()
    failing = ours.failing({name: frame[name].to_numpy() for name in frame}, len(frame))
    rows = np.zeros(len(frame), dtype=bool)
    for line, verdict in zip(found.lines, ours.verdicts(failing.seen, failing.broken), strict=True):
        what = f"{verdict.check.expectation} {dict(verdict.check.arguments)}"
        assert (line.unexpected, line.passed) == (verdict.broken, verdict.passed), what
        alone = LiveChecks([verdict.check], []).failing({name: frame[name].to_numpy() for name in frame}, len(frame))
        if not line.passed:
            assert np.flatnonzero(alone.rows).tolist() == list(line.rows), what
        rows |= alone.rows
    assert (rows == failing.rows).all()
    # A validation result names the expectations as the suite does.
    assert LiveChecks.of(json.loads(json.dumps(found.document)), ("n", "t")).checks[3].column == "n"


def test_of_the_flights_suite_what_speaks_of_rows_and_served_columns_is_held():
    served = ["from_airport", "to_airport", "airline", "hour", "distance", "temp", "wind_speed", "carrier_late_7d"]
    checks = LiveChecks.of(json.loads(FLIGHTS.read_text()), [*served, "route_late_7d"])
    assert [check.column for check in checks.checks] == [*served, "route_late_7d", "temp"]
    assert {(out.expectation, out.column): out.reason for out in checks.left_out} == {
        ("expect_table_row_count_to_be_between", ""): "speaks of the table, not of a row",
        ("expect_column_values_to_be_unique", "flight_id"): "speaks of the table, not of a row",
        ("expect_column_values_to_not_be_null", "asked"): "the column is not served",
        ("expect_column_values_to_be_in_set", "late"): "the column is not served",
        ("expect_column_mean_to_be_between", "late"): "speaks of the table, not of a row",
    }


def test_mostly_counts_over_the_window_and_not_in_a_batch():
    checks = checks_of(expectation("values_to_not_be_null", "n", mostly=0.95))
    bad, good = (checks.failing({"n": np.full(rows, value)}, rows) for rows, value in ((10, np.nan), (190, 1.0)))
    assert not checks.verdicts(bad.seen, bad.broken)[0].passed
    verdict = checks.verdicts(bad.seen + good.seen, bad.broken + good.broken)[0]
    assert (verdict.seen, verdict.broken, verdict.share, verdict.passed) == (200, 10, 0.95, True)


def test_a_column_that_is_not_sent_is_missing_in_every_row():
    checks = checks_of(expectation("values_to_not_be_null", "t"), expectation("values_to_be_between", "n", min_value=0))
    found = checks.failing({}, 4)
    assert found.rows.tolist() == [True] * 4
    assert (found.seen.tolist(), found.broken.tolist()) == ([4, 0], [4, 0])
    assert checks.verdicts(found.seen, found.broken)[1].share == 1.0


def test_whatever_json_can_hold_is_judged_and_never_raises():
    poison = objects(
        5, 5.0, True, "5", "x" * 10_000_000, float("nan"), None, 1e308, -(10**4000), [1], {"a": 1}, float("inf")
    )
    missing = [False] * 5 + [True, True] + [False] * 5
    between = broken(expectation("values_to_be_between", "n", min_value=0, max_value=10), poison)
    assert between == [False, False, False, True, True, False, False, True, True, True, True, True]
    one_of = broken(expectation("values_to_be_in_set", "n", value_set=[5]), poison)
    assert one_of == [False, False, True, True, True, False, False, True, True, True, True, True]
    digits = broken(expectation("values_to_match_regex", "n", regex="^[0-9]$"), poison)
    assert digits == [False, False, True, False, True, False, False, True, True, True, True, True]
    assert broken(expectation("values_to_be_null", "n"), poison) == [not each for each in missing]


def test_types_are_those_that_json_can_tell_apart():
    values = objects(5, 5.0, 5.5, True, "5", [5], None)
    for type_, good in {
        "int64": [True, True, False, False, False, False, True],
        "float64": [True, True, True, False, False, False, True],
        "str": [False, False, False, False, True, False, True],
        "bool": [False, False, False, True, False, False, True],
    }.items():
        assert broken(expectation("values_to_be_of_type", "n", type_=type_), values) == [not each for each in good]
    numbers = np.array([0.0, 1.0, 0.5])
    assert broken(expectation("values_to_be_of_type", "n", type_="bool"), numbers) == [False, False, True]
    assert broken(expectation("values_to_be_of_type", "n", type_="Int64"), numbers) == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"type": "expect_column_values_to_be_of_type", "type_": "datetime64"}, "the type datetime64 cannot be told"),
        ({"type": "expect_column_values_to_be_between", "min_value": "2013-01-01"}, "its bounds are no numbers"),
        ({"type": "expect_column_values_to_match_regex", "regex": "("}, "its arguments cannot be read"),
        ({"type": "expect_column_values_to_be_in_set"}, "its arguments cannot be read"),
        (
            {"type": "expect_column_values_to_be_in_set", "value_set": [1], "row_condition": "t > 1"},
            "under a condition",
        ),
        ({"type": "expect_column_values_to_be_between", "min_value": {"$PARAMETER": "least"}}, "its bounds are no"),
        ({"type": "expect_column_values_to_be_json_parseable"}, "is not evaluated live"),
        ({"type": "expect_column_quantile_values_to_be_between"}, "speaks of the table"),
        ({"type": "expect_column_value_z_scores_to_be_less_than"}, "speaks of the table"),
        ({"type": "expect_column_pair_values_to_be_equal", "column_A": "n", "column_B": "t"}, "compares columns"),
    ],
)
def test_what_is_not_held_says_why(arguments, reason):
    kind = arguments.pop("type")
    found = checks_of({"type": kind, "kwargs": {"column": "n", **arguments}})
    assert found.checks == ()
    assert reason in found.left_out[0].reason


def test_parameters_of_the_suite_are_put_in():
    suite = {"expectations": [expectation("values_to_be_between", "n", min_value={"$PARAMETER": "least"})]}
    checks = LiveChecks.of(suite | {"suite_parameters": {"least": 3}}, ["n"])
    assert checks.failing({"n": np.array([2, 3])}, 2).rows.tolist() == [True, False]
