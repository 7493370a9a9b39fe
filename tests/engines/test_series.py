"""What the store of samples keeps, and for how long."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines import series as series_module
from drivetrain.engines.expressions import rise
from drivetrain.engines.series import LOOKBACK, Matcher, SeriesStore

ONE = {"service": "flights"}
KEY = (("service", "flights"),)


def latest(store: SeriesStore, at: float) -> dict[tuple[tuple[str, str], ...], float]:
    return dict(store.latest("level", (), at))


def test_a_value_counts_for_five_minutes_and_not_a_millisecond_longer() -> None:
    store = SeriesStore({"level": 0.0})
    store.append("level", ONE, 1000.0, 7.0)
    assert latest(store, 999.999) == {}
    assert latest(store, 1000.0 + LOOKBACK) == {KEY: 7.0}
    assert latest(store, 1000.001 + LOOKBACK) == {}


def test_a_series_that_ended_has_no_value_until_it_begins_again() -> None:
    store = SeriesStore({"level": 60.0})
    store.append("level", ONE, 10.0, 1.0)
    store.end("level", ONE, 20.0)
    assert latest(store, 20.0) == {}
    assert latest(store, 19.0) == {KEY: 1.0}
    store.append("level", ONE, 30.0, 2.0)
    assert latest(store, 30.0) == {KEY: 2.0}
    [(_, times, values)] = store.within("level", (), 30.0, 20.0)
    assert (times.tolist(), values.tolist()) == ([10_000, 30_000], [1.0, 2.0])


def test_what_a_target_tells_no_more_ends() -> None:
    store = SeriesStore({"level": 0.0, "other": 0.0})
    store.scraped("gateway", [("level", ONE, 1.0), ("level", {"service": "wine"}, 2.0), ("unread", ONE, 3.0)], 10.0)
    store.scraped("door", [("other", ONE, 5.0)], 10.0)
    store.scraped("gateway", [("level", ONE, 1.5)], 20.0)
    assert latest(store, 20.0) == {KEY: 1.5}
    store.scraped("gateway", [], 30.0)
    assert latest(store, 30.0) == {}
    assert dict(store.latest("other", (), 30.0)) == {KEY: 5.0}


def test_metrics_that_no_rule_reads_are_not_kept() -> None:
    store = SeriesStore({"level": 0.0})
    store.append("unread", ONE, 1.0, 1.0)
    assert len(store) == 0


def test_a_million_new_series_and_a_year_of_samples_stay_bounded() -> None:
    store = SeriesStore({"level": 600.0}, most=100)
    for number in range(2000):
        store.append("level", {"service": str(number)}, 0.0, 1.0)
    assert len(store) == 100
    assert store.dropped == 1900
    for minute in range(20_000):
        store.append("level", {"service": "0"}, minute * 60.0, 1.0)
    assert len(store) == 1
    [(_, times, _)] = store.within("level", (), 1e9, 1e9)
    assert 11 <= len(times) <= 20


def test_a_clock_that_was_set_back_is_followed() -> None:
    store = SeriesStore({"level": 60.0})
    for at in (1000.0, 1010.0, 5_000_000.0):
        store.append("level", ONE, at, at)
    store.append("level", ONE, 1005.0, 3.0)
    store.append("level", ONE, 1015.0, 4.0)
    assert latest(store, 1015.0) == {KEY: 4.0}
    assert latest(store, 5_000_000.0) == {}


@pytest.mark.parametrize(
    ("operator", "value", "matching"),
    [
        ("=", "b", ["b"]), ("!=", "b", ["", "ab"]), ("=~", "b", ["b"]), ("=~", "a?b", ["ab", "b"]), ("!~", ".+", [""]), ("=", "", [""]),
    ],
)  # fmt: skip
def test_a_matcher_sees_the_whole_value_and_a_missing_label_as_empty(
    operator: str, value: str, matching: list[str]
) -> None:
    matcher = Matcher("x", operator, value)  # type: ignore[arg-type]
    found = [text for text in ("", "ab", "b") if matcher.matches({"x": text} if text else {})]
    assert found == matching


def test_a_value_is_quoted_as_promql_has_it() -> None:
    assert Matcher("a", "=", 'b\\"\n').promql == 'a="b\\\\\\"\\n"'


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["level", "other"]),
            st.dictionaries(st.sampled_from("ab"), st.text(st.characters(exclude_categories=["Cs"])), max_size=2),
            st.integers(0, 500),
            st.none() | st.floats(),
        ),
        max_size=30,
    )
)
def test_a_store_that_was_written_down_is_the_same(
    samples: list[tuple[str, dict[str, str], int, float | None]],
) -> None:
    spans = {"level": 600.0, "other": 600.0}
    store = SeriesStore(spans)
    for name, labels, at, value in samples:
        if value is None:
            store.end(name, labels, at)
        else:
            store.append(name, labels, at, value)
    again = SeriesStore.from_bytes(store.to_bytes(), spans)
    for name in spans:
        for at in (0, 250, 500):
            assert repr(list(again.latest(name, (), at))) == repr(list(store.latest(name, (), at)))
        assert repr(list(again.within(name, (), 500, 500))) == repr(list(store.within(name, (), 500, 500)))


def test_what_a_target_told_last_is_known_after_a_restart() -> None:
    store = SeriesStore({"level": 60.0})
    store.scraped("gateway", [("level", ONE, 1.0), ("level", {"service": "wine"}, 2.0)], 10.0)
    store.append("level", {"service": "own"}, 10.0, 3.0)
    again = SeriesStore.from_bytes(store.to_bytes(), {"level": 60.0})
    again.scraped("gateway", [("level", ONE, 1.5)], 20.0)
    assert latest(again, 20.0) == {KEY: 1.5, (("service", "own"),): 3.0}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("+++++++0-")), min_size=900, max_size=1000))
@settings(max_examples=20, deadline=None)
def test_of_a_long_series_the_older_half_gets_thinner_and_what_it_rose_by_stays(steps: list[tuple[int, str]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(series_module, "MOST_SAMPLES", 400)
        store, whole, level = SeriesStore({"level": 1e6}), list[float](), 0.0
        for at, (by, kind) in enumerate(steps):
            if kind == "-" and at % 20 == 0:
                level = 0.0
                store.end("level", ONE, at - 0.5)
            level += by if kind == "+" else 0
            whole.append(level)
            store.append("level", ONE, float(at), level)
        [(_, times, values)] = store.within("level", (), 1e6, 1e6)
    assert len(values) <= 400
    assert values[-200:].tolist() == whole[-200:]
    assert rise(values) == rise(np.array(whole[times[0] // 1000 :]))
    assert times[0] == 0


def test_a_series_that_falls_all_the_time_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "MOST_SAMPLES", 400)
    store = SeriesStore({"level": 1e6})
    for at in range(5000):
        store.append("level", ONE, float(at), -float(at))
    [(_, times, _)] = store.within("level", (), 1e6, 1e6)
    assert 200 < len(times) <= 400


def test_what_no_store_wrote_is_refused() -> None:
    for data in (b"", b"nonsense", zlib.compress(b"nonsense"), zlib.compress(bytes(8))):
        with pytest.raises(ValueError, match="no series"):
            SeriesStore.from_bytes(data, {"level": 1.0})


def test_half_a_store_is_refused() -> None:
    store = SeriesStore({"level": 1.0})
    store.append("level", ONE, 1.0, 1.0)
    whole = zlib.decompress(store.to_bytes())
    for length in range(1, len(whole)):
        with pytest.raises(ValueError, match="no series"):
            SeriesStore.from_bytes(zlib.compress(whole[:length]), {"level": 1.0})
