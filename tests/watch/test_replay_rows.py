"""Rows of the past as requests: the sample, the ids, the bodies and the labels' times."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.errors import UsageError
from drivetrain.stages.frame import Frame
from drivetrain.watch.replay_rows import Ask, Rows, Shape, Told

NAMES = Shape("names", ("speed", "kind", "extra"))


def frame(times: list[int]) -> Frame:
    rows = pd.DataFrame(
        {
            "at": pd.to_datetime(times, unit="s", utc=True),
            "speed": np.where(np.arange(len(times)) % 3 == 0, np.nan, np.arange(len(times)) / 2),
            "kind": [f"k{number % 2}" for number in range(len(times))],
            "late": np.arange(len(times)) % 2,
        }
    )
    micro = np.array(times, dtype=np.int64) * 1_000_000
    return Frame(rows, "late", "at", ("speed", "kind"), micro)


def test_a_row_is_asked_at_its_time_and_its_label_told_after_the_delay() -> None:
    rows = Rows(frame([100, 200, 300]), NAMES, delay=150.0, share=1.0, seed=0)
    first = rows.events(0, 300, owed_from=0)
    assert [(type(event), event.at) for event in first] == [(Ask, 100), (Ask, 200), (Told, 250)]
    second = rows.events(300, 600, owed_from=0)
    assert [(type(event), event.at) for event in second] == [(Ask, 300), (Told, 350), (Told, 450)]
    told = [event for event in first + second if isinstance(event, Told)]
    assert [event.label for event in told] == [0, 1, 0]
    asked = {event.id: event.place for event in first + second if isinstance(event, Ask)}
    assert [asked[event.id] for event in told] == [0, 1, 2]


def test_labels_of_rows_that_were_never_asked_about_are_not_told() -> None:
    rows = Rows(frame([100, 200]), NAMES, delay=150.0, share=1.0, seed=0)
    assert [event.at for event in rows.events(200, 400, owed_from=200)] == [200, 350]
    assert [event.at for event in rows.events(200, 400, owed_from=float("-inf"))] == [200, 250, 350]


def test_what_is_missing_is_left_out_of_a_body_and_null_in_a_row() -> None:
    rows = Rows(frame([100, 200]), NAMES, delay=0.0, share=1.0, seed=0)
    asks = [event for event in rows.events(0, 300, 0) if isinstance(event, Ask)]
    first, second = (json.loads(body) for body in rows.bodies(asks))
    assert first == {"id": asks[0].id, "input": {"kind": "k0"}}
    assert second["input"] == {"speed": 0.5, "kind": "k1"}
    whole = Rows(frame([100]), Shape("rows", ()), delay=0.0, share=1.0, seed=0)
    (body,) = whole.bodies([event for event in whole.events(0, 300, 0) if isinstance(event, Ask)])
    assert json.loads(body)["input"] == {"rows": [{"speed": None, "kind": "k0"}]}


def test_a_list_has_the_features_in_their_order() -> None:
    rows = Rows(frame([100, 200]), Shape("list", ("values",)), delay=0.0, share=1.0, seed=0)
    asks = [event for event in rows.events(0, 300, 0) if isinstance(event, Ask)]
    assert json.loads(list(rows.bodies(asks))[1])["input"] == {"values": [0.5, "k1"]}


def test_rows_without_times_cannot_be_replayed() -> None:
    bare = Frame(pd.DataFrame({"late": [0]}), "late", None, (), None)
    with pytest.raises(UsageError, match="without times"):
        Rows(bare, NAMES, delay=0.0, share=1.0, seed=0)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60).map(sorted),
    st.integers(0, 50), st.integers(1, 20), st.floats(0.05, 1.0), st.integers(0, 3),
)  # fmt: skip
def test_however_a_range_is_cut_into_steps_the_same_happens_in_the_same_order(
    times: list[int], delay: int, step: int, share: float, seed: int
) -> None:
    rows = Rows(frame(times), NAMES, delay=float(delay), share=share, seed=seed)
    whole = rows.events(0, 120, 0)
    cut = [event for start in range(0, 120, step) for event in rows.events(start, min(start + step, 120), 0)]
    assert sorted(whole, key=repr) == sorted(cut, key=repr)
    assert [event.at for event in cut] == sorted(event.at for event in cut)
    assert len({event.id for event in whole if isinstance(event, Ask)}) == len(rows)
    assert {event.id for event in whole if isinstance(event, Told)} == {
        event.id for event in whole if isinstance(event, Ask)
    }


def test_a_row_has_the_same_id_and_place_in_the_sample_whichever_range_its_frame_has() -> None:
    times = sorted(int(at) for at in np.random.default_rng(0).integers(0, 400, 1000))
    whole = Rows(frame(times), NAMES, delay=0.0, share=0.3, seed=5)
    half = Rows(frame([at for at in times if at >= 200]), NAMES, delay=0.0, share=0.3, seed=5)

    def ids(rows: Rows) -> list[str]:
        return [event.id for event in rows.events(200, 400, 0) if isinstance(event, Ask)]

    assert ids(whole) == ids(half)
    assert 0.2 < len(whole) / 1000 < 0.4


def test_samples_of_different_seeds_have_no_more_in_common_than_chance_gives() -> None:
    times = list(range(4000))
    half = [
        {event.id for event in Rows(frame(times), NAMES, delay=0.0, share=0.5, seed=seed).events(0, 4000, 4000)}
        for seed in (3, 4)
    ]
    assert all(1800 < len(drawn) < 2200 for drawn in half)
    assert 850 < len(half[0] & half[1]) < 1150
