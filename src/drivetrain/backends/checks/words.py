"""Expectations and their results in words: what was wanted, and what was found.

Pure functions over an expectation's type (`expect_column_values_to_be_between`), its arguments and the `result` part of
Great Expectations' JSON form. Types that are not known here, such as a user's own, are worded from their names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Expectations of bounds on one number: type -> the number's name.
_BOUNDED = {
    "expect_column_values_to_be_between": "",
    "expect_column_value_lengths_to_be_between": "length",
    "expect_column_mean_to_be_between": "mean",
    "expect_column_median_to_be_between": "median",
    "expect_column_min_to_be_between": "minimum",
    "expect_column_max_to_be_between": "maximum",
    "expect_column_sum_to_be_between": "sum",
    "expect_column_stdev_to_be_between": "standard deviation",
    "expect_column_unique_value_count_to_be_between": "number of distinct values",
    "expect_column_proportion_of_unique_values_to_be_between": "share of distinct values",
    "expect_column_proportion_of_non_null_values_to_be_between": "share of values that are not null",
    "expect_table_row_count_to_be_between": "row count",
    "expect_table_column_count_to_be_between": "column count",
}

# type -> (what is wanted, what the offending rows are); `{name}` stands for an argument.
_WORDED = {
    "expect_column_to_exist": ("exists", ""),
    "expect_column_values_to_not_be_null": ("not null", "null"),
    "expect_column_values_to_be_null": ("null", "not null"),
    "expect_column_values_to_be_unique": ("unique", "repeated"),
    "expect_column_values_to_be_increasing": ("increasing", "out of order"),
    "expect_column_values_to_be_decreasing": ("decreasing", "out of order"),
    "expect_column_values_to_be_in_set": ("in {value_set}", "not in the set"),
    "expect_column_values_to_not_be_in_set": ("not in {value_set}", "in the set"),
    "expect_column_values_to_match_regex": ("matches `{regex}`", "not matching"),
    "expect_column_values_to_not_match_regex": ("does not match `{regex}`", "matching"),
    "expect_column_value_lengths_to_equal": ("length {value}", "of another length"),
    "expect_column_values_to_be_of_type": ("of type {type_}", "of another type"),
    "expect_column_values_to_be_in_type_list": ("of a type in {type_list}", "of another type"),
    "expect_column_distinct_values_to_be_in_set": ("only values in {value_set}", ""),
    "expect_column_distinct_values_to_contain_set": ("contains {value_set}", ""),
    "expect_column_distinct_values_to_equal_set": ("values are {value_set}", ""),
    "expect_column_most_common_value_to_be_in_set": ("most common value in {value_set}", ""),
    "expect_column_pair_values_to_be_equal": ("columns `{column_A}` and `{column_B}` equal", "not equal"),
    "expect_compound_columns_to_be_unique": ("columns {column_list} unique together", "repeated"),
    "expect_table_row_count_to_equal": ("row count {value}", ""),
    "expect_table_column_count_to_equal": ("column count {value}", ""),
    "expect_table_columns_to_match_set": ("columns are {column_set}", ""),
    "expect_table_columns_to_match_ordered_list": ("columns are, in order, {column_list}", ""),
}

# Arguments that are worded for every type alike, or that only steer the library.
_COMMON = {
    "column",
    "mostly",
    "row_condition",
    "condition_parser",
    "ignore_row_if",
    "batch_id",
    "strict_min",
    "strict_max",
}


def wanted(kind: str, arguments: Mapping[str, Any]) -> str:
    """What is expected, to be read after the column's name: "between 0 and 5", "not null"."""
    if kind in _BOUNDED:
        text = f"{_BOUNDED[kind]} {bounds(arguments)}".strip()
    elif kind == "expect_column_quantile_values_to_be_between":
        ranges = arguments.get("quantile_ranges") or {}
        pairs = zip(ranges.get("quantiles", ()), ranges.get("value_ranges", ()), strict=False)
        text = ", ".join(f"quantile {show(at)} {_range(*edges)}" for at, edges in pairs)
    elif kind == "expect_column_pair_values_a_to_be_greater_than_b":
        sign = "at least" if arguments.get("or_equal") else "greater than"
        text = f"column `{arguments.get('column_A')}` {sign} `{arguments.get('column_B')}`"
    elif kind in _WORDED:
        text = _WORDED[kind][0].format_map({name: show(value) for name, value in arguments.items()})
    else:
        text = _from_name(kind, arguments)
    mostly, condition = arguments.get("mostly"), arguments.get("row_condition")
    if isinstance(mostly, int | float) and mostly < 1:
        text += f" in at least {show(round(mostly * 100, 6))} % of the rows"
    if condition:
        text += f" where `{condition}`"
    return text


def bounds(arguments: Mapping[str, Any]) -> str:
    """`min_value` and `max_value` in words: "between 0 and 5", "at least 0", "above 0" (strict)."""
    low, high = arguments.get("min_value"), arguments.get("max_value")
    strict = bool(arguments.get("strict_min")), bool(arguments.get("strict_max"))
    if low is not None and high is not None and strict == (False, False):
        return _range(low, high)
    least = "" if low is None else f"{'above' if strict[0] else 'at least'} {show(low)}"
    most = "" if high is None else f"{'below' if strict[1] else 'at most'} {show(high)}"
    return " and ".join(filter(None, (least, most))) or "of any size"


def found(kind: str, arguments: Mapping[str, Any], result: Mapping[str, Any], passed: bool) -> str:
    """What was found: "12 of 8,030 below 0 (0.15 %), such as -3", "mean 3.2, wanted between 0 and 1"."""
    if "element_count" in result:
        return _rows_found(kind, arguments, result)
    if kind == "expect_column_to_exist":
        return "" if passed else f"column `{arguments.get('column')}` does not exist"
    if kind == "expect_column_quantile_values_to_be_between":
        return _quantiles_found(arguments, result)
    mismatched = (result.get("details") or {}).get("mismatched")
    if isinstance(mismatched, Mapping):
        return _sets_found(mismatched.get("missing"), mismatched.get("unexpected"))
    if "partial_missing_list" in result or "partial_unexpected_list" in result:
        return _sets_found(result.get("partial_missing_list"), result.get("partial_unexpected_list"))
    if "observed_value" not in result:
        return ""
    observed, name = result["observed_value"], _BOUNDED.get(kind, "") or "found"
    text = f"{name}: no values" if observed is None else f"{name} {show(observed)}"
    return text if passed or kind not in _BOUNDED else f"{text}, wanted {bounds(arguments)}"


def not_evaluated(message: str, columns: Sequence[str]) -> str:
    """Why an expectation could not be evaluated, from the library's message."""
    text = message.strip().split("\n", 1)[0].removeprefix("Error: ")[:300]
    missing = re.search(r'The column "(.+?)" in BatchData does not exist', text)
    if missing:
        near = difflib.get_close_matches(missing[1], columns, 1)
        return f"column `{missing[1]}` does not exist" + (f"; did you mean `{near[0]}`?" if near else "")
    if "Invalid comparison between dtype=datetime64" in text or "Cannot compare" in text:
        zoned = "UTC" in text or "Timestamp" in text
        wish = "with its zone, such as 2013-04-01T00:00:00Z" if zoned else "without a zone, such as 2013-04-01T00:00:00"
        return f"{text}; write the time {wish}"
    return f"could not be evaluated: {text}"


def show(value: Any) -> str:
    """A value as a reader writes it: 8,030 for 8030, -3.2 for -3.20000001, {a, b, ... 7 in all} for a long list."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) <= 8:
            return "{" + ", ".join(map(show, value)) + "}"
        return "{" + ", ".join(map(show, value[:6])) + f", ... {len(value)} in all}}"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def percent(value: float) -> str:
    """A percentage with two digits: "0.15 %", "<0.01 %"."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{text} %" if text != "0" or value == 0 else "<0.01 %"


def _range(low: Any, high: Any) -> str:
    if low is None or high is None:
        return bounds({"min_value": low, "max_value": high})
    return f"between {show(low)} and {show(high)}"


def _from_name(kind: str, arguments: Mapping[str, Any]) -> str:
    text = re.sub(r"^expect_(table_|column_)?", "", kind).removesuffix("_expectation").replace("_", " ")
    rest = ", ".join(f"{name} {show(value)}" for name, value in arguments.items() if name not in _COMMON)
    rest = rest if len(rest) <= 90 else rest[:87] + "..."
    return f"{text} ({rest})" if rest else text


def _rows_found(kind: str, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    looked_at = result["element_count"] - (result.get("missing_count") or 0)
    wrong = result.get("unexpected_count") or 0
    if not wrong:
        return f"all {show(looked_at)}" if looked_at else "no values"
    share = result.get("unexpected_percent")
    text = f"{show(wrong)} of {show(looked_at)} {_offence(kind, arguments)}"
    text += "" if share is None else f" ({percent(share)})"
    values = (entry.get("value") for entry in result.get("partial_unexpected_counts") or ())
    examples = [value for value in values if value is not None]
    return text + (f", such as {', '.join(map(show, examples[:3]))}" if examples else "")


def _offence(kind: str, arguments: Mapping[str, Any]) -> str:
    if kind not in ("expect_column_values_to_be_between", "expect_column_value_lengths_to_be_between"):
        return _WORDED.get(kind, ("", ""))[1] or "unexpected"
    low, high = arguments.get("min_value"), arguments.get("max_value")
    name = "length " if "lengths" in kind else ""
    if low is not None and high is not None:
        return f"{name}outside {show(low)} to {show(high)}"
    if high is None:
        return f"{name}{'not above' if arguments.get('strict_min') else 'below'} {show(low)}"
    return f"{name}{'not below' if arguments.get('strict_max') else 'above'} {show(high)}"


def _quantiles_found(arguments: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    observed = result.get("observed_value") or {}
    verdicts = (result.get("details") or {}).get("success_details") or ()
    edges = (arguments.get("quantile_ranges") or {}).get("value_ranges") or ()
    parts = []
    for at, value, holds, edge in zip(
        observed.get("quantiles", ()), observed.get("values", ()), verdicts, edges, strict=False
    ):
        seen = "no values" if value is None else show(value)
        parts.append(f"quantile {show(at)}: {seen}" + ("" if holds else f", wanted {_range(*edge)}"))
    return "; ".join(parts)


def _sets_found(missing: Sequence[Any] | None, unexpected: Sequence[Any] | None) -> str:
    parts = [
        f"missing: {show(missing)}" if missing else "",
        f"not expected: {show(unexpected)}" if unexpected else "",
    ]
    return "; ".join(filter(None, parts))
