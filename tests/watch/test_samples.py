"""Samples, and Prometheus' text of them."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from drivetrain.watch.samples import Described, Sample, exposition

DESCRIBED = {"seen_total": Described("counter", 'a "count"\nof \\ things', ("kind",)), "size": Described("gauge", "s")}


def read_back(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["size", "seen_total"]), st.text(), st.floats(allow_nan=False)), max_size=20))
def test_the_text_is_read_by_prometheus_own_parser_with_the_same_values(rows):
    samples = [Sample(name, {"kind": label, "service": "s"}, value) for name, label, value in rows]
    expected = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
    assert read_back(exposition(samples, DESCRIBED)) == expected


def test_samples_of_a_metric_stand_together_under_its_help():
    text = exposition(
        [Sample("size", {}, 1), Sample("seen_total", {"kind": "a"}, 2), Sample("size", {"x": "y"}, 3)], DESCRIBED
    )
    assert text.splitlines() == [
        "# HELP size s", "# TYPE size gauge", "size 1.0", 'size{x="y"} 3.0',
        '# HELP seen_total a "count"\\nof \\\\ things', "# TYPE seen_total counter", 'seen_total{kind="a"} 2.0',
    ]  # fmt: skip


def test_no_number_and_infinities_have_prometheus_names():
    text = exposition([Sample("size", {"n": str(v)}, v) for v in (math.nan, math.inf, -math.inf)], {})
    assert [line.split()[-1] for line in text.splitlines()] == ["NaN", "+Inf", "-Inf"]


def test_of_nothing_the_text_is_empty():
    assert exposition([], DESCRIBED) == ""
