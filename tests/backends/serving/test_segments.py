"""What was written is read back whole or not at all: whatever the disk, a crash or a flipped bit has done to it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.captured import find, newest, read
from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event, head
from drivetrain.backends.serving.gateway.segments import MARKER, START, Segments, numbers, packed, path_of


def event(number: int, body: bytes = b"{}", kind: str = REQUEST, event_id: str | None = None) -> Event:
    name = f"id-{number}" if event_id is None else event_id
    return Event(kind, name, "flights-1", "/predictions", "application/json", body, 1.7e9 + number, service="flights")


def write(directory: Path, events: list[Event], *, segment: int = 1 << 20, keep: int = 1 << 30) -> None:
    segments = Segments(directory, segment=segment, keep=keep, sync="never")
    records = [packed(head(entry), entry.body) for entry in events]
    assert segments.append(records) == len(events)
    segments.close()


def events_of(directory: Path) -> list[Event]:
    return [found for _, found in read(directory)]


ODD_TEXT = st.text(max_size=20)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            Event,
            type=st.sampled_from([REQUEST, FEEDBACK]),
            id=ODD_TEXT,
            revision=ODD_TEXT,
            path=ODD_TEXT,
            content_type=ODD_TEXT,
            body=st.binary(max_size=300),
            at=st.integers(0, 4_000_000_000).map(float),
            service=ODD_TEXT,
            source=ODD_TEXT,
        ),
        max_size=20,
    ),
    st.integers(200, 2000),
)
def test_any_events_come_back_as_they_were_in_any_number_of_segments(events: list[Event], segment: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), events, segment=segment)
        assert events_of(Path(name)) == events


def test_an_answer_keeps_its_status_and_time_and_microseconds(tmp_path: Path) -> None:
    answer = Event(RESPONSE, "a", "r", "/p", "text/plain", b"x", 1700000000.123456, 503, 0.001234, "flights", "host")
    write(tmp_path, [answer])
    assert events_of(tmp_path) == [answer]


def test_large_bodies_are_not_copied_and_come_back(tmp_path: Path) -> None:
    bodies = [os.urandom(size) for size in (0, 65536, 65537, 3_000_000)]
    write(tmp_path, [event(number, body) for number, body in enumerate(bodies)], segment=8 << 20)
    assert [found.body for found in events_of(tmp_path)] == bodies


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Event]]:
    """A segment of some records, with bodies that look like heads."""
    directory = tmp_path_factory.mktemp("sample")
    events = [event(number, head(event(number)) * (number % 4)) for number in range(12)]
    write(directory, events)
    return path_of(directory, 1).read_bytes(), events


def placed(directory: Path, data: bytes, *, sealed: bool) -> None:
    path_of(directory, 1).write_bytes(data)
    if sealed:
        write(directory, [event(99)])


@settings(max_examples=150, deadline=None)
@given(cut=st.data(), sealed=st.booleans())
def test_a_file_cut_anywhere_gives_a_prefix_of_its_records(
    sample: tuple[bytes, list[Event]], cut: st.DataObject, sealed: bool
) -> None:
    data, events = sample
    with tempfile.TemporaryDirectory() as name:
        placed(Path(name), data[: cut.draw(st.integers(0, len(data)))], sealed=sealed)
        found = events_of(Path(name))
    if sealed:
        assert found.pop() == event(99)
    assert found == events[: len(found)]


def test_a_file_cut_between_records_gives_all_before_the_cut(sample: tuple[bytes, list[Event]], tmp_path: Path) -> None:
    data, events = sample
    marker = data[len(data[: START - 4]) - MARKER : START - 4]
    starts = [found.start() for found in re.finditer(re.escape(marker), data)][1:]
    for count, start in enumerate(starts):
        path_of(tmp_path, 1).write_bytes(data[:start])
        assert events_of(tmp_path) == events[:count]


@settings(max_examples=300, deadline=None)
@given(flip=st.data(), bit=st.integers(0, 7), sealed=st.booleans())
def test_a_flipped_bit_costs_one_record_and_never_gives_a_wrong_one(
    sample: tuple[bytes, list[Event]], flip: st.DataObject, bit: int, sealed: bool
) -> None:
    data, events = sample
    place = flip.draw(st.integers(0, len(data) - 1))
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    with tempfile.TemporaryDirectory() as name:
        placed(Path(name), bytes(damaged), sealed=sealed)
        found = events_of(Path(name))
    if sealed:
        assert found.pop() == event(99)
    if place < START:
        assert found == [], "a file that does not begin as it should is passed over"
    else:
        assert len(found) == len(events) - 1
        assert [entry for entry in events if entry in found] == found


def test_a_body_that_holds_a_copy_of_another_log_is_only_a_body(
    sample: tuple[bytes, list[Event]], tmp_path: Path
) -> None:
    data, _ = sample
    events = [event(1, data), event(2), event(3)]
    write(tmp_path, events)
    path = path_of(tmp_path, 1)
    damaged = bytearray(path.read_bytes())
    damaged[START + MARKER] ^= 0xFF
    path.write_bytes(bytes(damaged))
    assert events_of(tmp_path) == events[1:]


def test_a_reader_goes_on_where_it_was_while_the_log_grows(tmp_path: Path) -> None:
    segments = Segments(tmp_path, segment=2000, keep=1 << 20, sync="never")
    assert list(read(tmp_path)) == []
    seen: list[Event] = []
    written: list[Event] = []
    position: str | None = None
    for round_ in range(30):
        new = [event(round_ * 10 + number, b"x" * 100) for number in range(round_ % 4)]
        segments.append([packed(head(entry), entry.body) for entry in new])
        written += new
        for after, found in read(tmp_path, position):
            seen.append(found)
            position = after
        assert seen == written
    assert len(numbers(tmp_path)) > 3


def test_positions_are_texts_that_order_as_events_do_and_can_be_resumed_from_anywhere(tmp_path: Path) -> None:
    events = [event(number, b"x" * 100) for number in range(20)]
    write(tmp_path, events, segment=1500)
    positions = [position for position, _ in read(tmp_path)]
    assert positions == sorted(positions)
    for place, position in enumerate(positions):
        assert [found for _, found in read(tmp_path, position)] == events[place + 1 :]
    with pytest.raises(ValueError, match="no position"):
        next(read(tmp_path, "yesterday"))


def test_a_reader_of_what_comes_begins_shortly_before_the_newest_event(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    few = [event(number) for number in range(3)]
    write(tmp_path / "few", few)
    assert [found for _, found in read(tmp_path / "few", newest(tmp_path / "few"))] == few
    many = [event(number, b"x" * 5000) for number in range(1000)]
    write(tmp_path / "many", many, segment=1 << 26)
    found = [entry for _, entry in read(tmp_path / "many", newest(tmp_path / "many"))]
    assert 100 < len(found) < 250
    assert found == many[-len(found) :]


def test_a_new_writer_starts_a_new_segment_and_a_torn_tail_stays_behind(tmp_path: Path) -> None:
    write(tmp_path, [event(1), event(2)])
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(b"half a record")
    write(tmp_path, [event(3)])
    assert numbers(tmp_path) == [1, 2]
    assert events_of(tmp_path) == [event(1), event(2), event(3)]


def test_two_writers_in_one_directory_do_not_write_into_one_file(tmp_path: Path) -> None:
    first, second = (Segments(tmp_path, segment=1 << 20, keep=1 << 30, sync="never") for _ in range(2))
    for number in range(4):
        (first, second)[number % 2].append([packed(head(event(number)), b"{}")])
    assert sorted(found.id for found in events_of(tmp_path)) == ["id-0", "id-1", "id-2", "id-3"]


def test_the_oldest_segments_go_and_the_whole_stays_within_its_bound(tmp_path: Path) -> None:
    segments = Segments(tmp_path, segment=4000, keep=20_000, sync="never")
    for number in range(300):
        assert segments.append([packed(head(event(number)), b"y" * 200)]) == 1
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    left = events_of(tmp_path)
    assert left == [event(number, b"y" * 200) for number in range(300 - len(left), 300)]
    assert len(left) > 20


def test_a_reader_whose_segment_is_gone_goes_on_with_the_oldest_that_is_left(tmp_path: Path) -> None:
    write(tmp_path, [event(number) for number in range(20)], segment=1500)
    position = next(read(tmp_path))[0]
    path_of(tmp_path, 1).unlink()
    rest = [found.id for _, found in read(tmp_path, position)]
    assert rest == [f"id-{number}" for number in range(20 - len(rest), 20)]
    assert rest


def test_find_gives_request_answer_and_labels_and_no_body_that_looks_alike(tmp_path: Path) -> None:
    other = head(event(7))
    events = [
        *(event(number, b"z" * 500) for number in range(7)),
        event(7),
        event(7, b"answer", RESPONSE),
        event(70),
        event(8, other),
        *(event(number, other) for number in range(9, 20)),
        event(7, b'{"label":1}', FEEDBACK),
        event(1, b"a quoted id", event_id='q"\\é'),
    ]
    write(tmp_path, events, segment=2000)
    assert [(found.type, found.body) for found in find(tmp_path, "id-7")] == [
        (REQUEST, b"{}"),
        (RESPONSE, b"answer"),
        (FEEDBACK, b'{"label":1}'),
    ]
    assert [found.body for found in find(tmp_path, 'q"\\é')] == [b"a quoted id"]
    assert find(tmp_path, "id-77") == []
    assert find(tmp_path / "none", "id-7") == []


def test_find_sees_what_lies_across_its_chunks(tmp_path: Path) -> None:
    size = 4 << 20
    for shift in (-40, -20, -1, 0, 30):
        directory = tmp_path / str(shift)
        first = event(1)
        filler = size + shift - START - len(b"".join(packed(head(first), b""))) - MARKER
        write(directory, [event(1, b"f" * filler), event(2)], segment=32 << 20)
        assert find(directory, "id-2") == [event(2)]


def test_a_full_disk_takes_what_it_can_and_writing_goes_on_when_there_is_room(small_disk: Path) -> None:
    segments = Segments(small_disk / "log", segment=300_000, keep=1 << 30, sync="always")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * 500_000)
    written: list[Event] = []
    for number in range(200):
        portion = [event(number * 10 + entry, b"d" * 1000) for entry in range(10)]
        done = segments.append([packed(head(entry), entry.body) for entry in portion])
        written += portion[:done]
        assert (segments.fault is None) is (done == 10)
        if segments.fault is not None:
            break
    assert segments.fault is not None
    assert segments.fault.errno == errno.ENOSPC
    assert 300 < len(written) < 600
    assert events_of(small_disk / "log") == written
    ballast.unlink()
    more = [event(9000 + number, b"m" * 1000) for number in range(50)]
    assert segments.append([packed(head(entry), entry.body) for entry in more]) == 50
    assert segments.fault is None
    assert events_of(small_disk / "log") == written + more


def test_a_file_that_may_not_grow_is_left_for_the_next(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from drivetrain.backends.serving.gateway.segments import Segments, packed
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        segments = Segments(Path(sys.argv[1]), segment=1 << 20, keep=1 << 30, sync="never")
        done = sum(segments.append([packed(b'{"n": %d}' % number, b"x" * 900)]) for number in range(30))
        print(done)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert int(found.stdout) == 28, "every file that was full cost the record that met its end"
    assert len(numbers(tmp_path)) == 3
