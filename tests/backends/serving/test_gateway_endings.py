"""What is kept of a stream of events: its beginning and its end, however it is cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.endings import Kept, has_failed

OUTPUT = b'event: output\ndata: {"chunk":"a"}\n\n'
FAILED = b'event: completed\ndata: {"error":"event: completed","output":["%b"],"status":"failed"}\n\n'


def kept(stream: bytes, most: int, cuts: list[int]) -> bytes:
    found = Kept(most)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in itertools.pairwise(places):
        found.add(stream[start:end])
    return found.body()


@given(
    st.integers(0, 6),
    st.integers(0, 60),
    st.integers(1, 300),
    st.lists(st.integers(1, 400), max_size=30),
    st.booleans(),
)
def test_the_last_event_is_kept_whole_and_the_beginning_as_it_was(
    outputs: int, size: int, most: int, cuts: list[int], several: bool
) -> None:
    last = FAILED % (b"x" * size)
    begin = OUTPUT * outputs + (b'event: completed\ndata: {"status":"succeeded"}\n\n' if several else b"")
    body = kept(begin + last, most, cuts)
    assert body.endswith(last)
    assert has_failed(body)
    before = body.removesuffix(last)
    assert before == begin or begin.startswith(before.removesuffix(b"\n\n"))


@given(st.integers(0, 300), st.integers(1, 300), st.lists(st.integers(1, 400), max_size=30))
def test_a_stream_that_is_not_ended_is_kept_up_to_its_bound(size: int, most: int, cuts: list[int]) -> None:
    stream = b"y" * size
    body = kept(stream, most, cuts)
    assert len(body) <= len(stream) + 2
    assert body.replace(b"\n\n", b"") == stream[: len(body.replace(b"\n\n", b""))]
    assert not has_failed(body)


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_what_is_kept_of_a_long_stream_is_no_longer_than_bound_piece_and_last_event(size: int) -> None:
    found = Kept(100_000)
    for _ in range(size // 1000):
        found.add(b"z" * 1000)
    found.add(FAILED % b"")
    assert len(found.body()) < 102_000
    assert has_failed(found.body())
