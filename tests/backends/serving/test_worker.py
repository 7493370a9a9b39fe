"""What a runner is given, and what becomes of what it gives: each through a real worker process."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.replica import downloads, frames, scope
from drivetrain.backends.serving.replica.calls import Answer, Call, Wire
from drivetrain.backends.serving.replica.channel import Reader
from drivetrain.backends.serving.replica.outputs import jsonable
from drivetrain.backends.serving.replica.scope import Metrics, Scope
from tests.backends.serving.pools import ask, carried_out, started, until

Bundle = Callable[[str], Path]
HELLO = "data:text/plain;base64,aGVsbG8="

ACTING = """
import dataclasses, datetime, enum, io, os, pathlib, sys, tempfile, threading, time
from typing import Any, Optional
import numpy as np
import cog
from cog import BaseModel, BaseRunner, Input, Path, Secret

class Colour(enum.Enum):
    RED = "red"

class Told(BaseModel):
    text: str
    size: int

def file(ending):
    handle, path = tempfile.mkstemp(suffix=ending)
    os.write(handle, b"hey")
    os.close(handle)
    return Path(path)

class Runner(BaseRunner):
    def run(
        self,
        what: str,
        many: list[int] = Input(default=[1]),
        document: Optional[Path] = None,
        documents: list[Path] = Input(default=[]),
        word: Optional[Secret] = None,
        note: Optional[str] = Input(default=None),
    ) -> Any:
        if what == "inputs":
            many.append(9)
            self.last = document
            return {
                "many": many,
                "document": None if document is None else [type(document).__name__, document.read_text(), document.suffix],
                "documents": [each.read_text() for each in documents],
                "word": [str(word), word.get_secret_value()] if word else None,
                "note": note,
            }
        if what == "left":
            return self.last.exists()
        if what == "print":
            print("one", end=" ")
            print("two")
            thread = threading.Thread(target=lambda: print("from a thread"))
            thread.start()
            thread.join()
            print("to the error stream", file=sys.stderr)
        if what == "metrics":
            self.record_metric("speed.tokens", 3)
            cog.current_scope().record_metric("speed.tokens", 4, mode="incr")
            self.scope.metrics["gone"] = 1
            del self.scope.metrics["gone"]
            self.record_metric("all", "a", mode="append")
        if what == "exit":
            sys.exit(3)
        if what == "raise":
            print("before")
            raise ValueError("no such carrier")
        if what == "arrays":
            return {"a": np.float32(1.5), "b": np.arange(3), "c": {2}, "d": Colour.RED, "e": datetime.datetime(2020, 1, 1), "f": (1,)}
        if what == "model":
            return Told(text="x", size=1)
        if what == "path":
            return file(".txt")
        if what == "paths":
            return {"each": [file(".json"), io.BytesIO(b"abc")]}
        if what == "generator":
            return (number * 2 for number in range(3))
        return what
"""


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("acting")
    (place / "run.py").write_text(ACTING)
    return place


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web server: `/file.txt` is good, `/large` says that it is too large, `/endless` does not end."""

    stopped = threading.Event()

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path != "/missing" else 404)
            if self.path == "/large":
                self.send_header("Content-Length", "1000000")
            self.end_headers()
            pieces = 1000 if self.path == "/endless" else 1
            try:
                for _ in range(pieces):
                    self.wfile.write(b"from afar")
                    stopped.wait(0.0 if pieces == 1 else 0.01)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_inputs_become_what_the_runner_declares_and_files_are_gone_afterwards(acting: Path, site: str) -> None:
    async def scenario() -> None:
        async with started(acting) as pool:
            inputs = {"what": "inputs", "document": HELLO, "documents": [HELLO, f"{site}/file.txt"], "word": "secret"}
            assert await ask(pool, inputs).output() == {
                "many": [1, 9],
                "document": ["Path", "hello", ".txt"],
                "documents": ["hello", "from afar"],
                "word": ["**********", "secret"],
                "note": None,
            }
            assert await ask(pool, {"what": "left"}).output() is False
            # a default is the same for every call, whatever a runner does with it
            assert (await ask(pool, {"what": "inputs"}).output())["many"] == [1, 9]

    carried_out(scenario())


def test_a_file_that_cannot_be_had_fails_the_prediction_with_the_reason(acting: Path, site: str) -> None:
    async def scenario() -> None:
        async with started(acting) as pool:
            for address, words in ((f"{site}/missing", "404"), ("http://127.0.0.1:1/x", "refused")):
                body = await ask(pool, {"what": "inputs", "document": address}).body()
                assert body["status"] == "failed"
                assert words in body["error"]

    carried_out(scenario())


def test_outputs_are_json_by_cogs_rules(acting: Path) -> None:
    async def scenario() -> None:
        async with started(acting) as pool:
            expected = {"a": 1.5, "b": [0, 1, 2], "c": [2], "d": "red", "e": "2020-01-01T00:00:00", "f": [1]}
            assert await ask(pool, {"what": "arrays"}).output() == expected
            assert await ask(pool, {"what": "model"}).output() == {"text": "x", "size": 1}
            assert await ask(pool, {"what": "path"}).output() == "data:text/plain;base64,aGV5"
            files = ["data:application/json;base64,aGV5", "data:application/octet-stream;base64,YWJj"]
            assert await ask(pool, {"what": "paths"}).output() == {"each": files}
            assert await ask(pool, {"what": "generator"}).output() == [0, 2, 4]
            assert await ask(pool, {"what": "plain"}).output() == "plain"

    carried_out(scenario())


def test_what_a_prediction_prints_and_records_is_its_own(acting: Path) -> None:
    async def scenario() -> None:
        async with started(acting) as pool:
            quiet, loud, metrics = (
                ask(pool, {"what": "x"}),
                ask(pool, {"what": "print"}),
                ask(pool, {"what": "metrics"}),
            )
            again = ask(pool, {"what": "x"})
            assert (await quiet.body())["logs"] == "" == (await again.body())["logs"]
            lines = (await loud.body())["logs"].splitlines()
            assert lines == ["one two", "from a thread", "to the error stream"]
            recorded = (await metrics.body())["metrics"]
            assert recorded["speed"] == {"tokens": 7}
            assert recorded["all"] == ["a"]
            assert "gone" not in recorded
            assert "speed" not in (await again.body())["metrics"]

    carried_out(scenario())


def test_a_runner_that_raises_or_exits_fails_that_prediction_alone_and_its_lines_are_kept(acting: Path) -> None:
    async def scenario() -> None:
        async with started(acting) as pool:
            body = await ask(pool, {"what": "raise"}).body()
            assert body["status"] == "failed"
            assert "ValueError: no such carrier" in body["error"]
            assert body["logs"] == "before\n"
            assert "SystemExit: 3" in (await ask(pool, {"what": "exit"}).body())["error"]
            assert await ask(pool, {"what": "fine"}).output() == "fine"
            assert pool.deaths == 0

    carried_out(scenario())


HELD_STREAM = """
import pathlib, time
from cog import BaseRunner, ConcatenateIterator

class Runner(BaseRunner):
    def run(self, text: str) -> ConcatenateIterator[str]:
        for word in text.split():
            yield word + " "
            while not pathlib.Path("go").exists():
                time.sleep(0.005)
"""


def test_a_stream_reports_each_piece_as_it_comes_and_answers_with_all(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(HELD_STREAM)
        async with started(place) as pool:
            assert pool.signature is not None
            assert pool.signature.streams
            asked = ask(pool, {"text": "a b c"}, follow=True)
            await until(lambda: ("output", '"a "') in asked.progress)
            assert not asked.answers
            (place / "go").touch()
            assert await asked.output() == ["a ", "b ", "c "]
            assert asked.progress == [("start", ""), ("output", '"a "'), ("output", '"b "'), ("output", '"c "')]
            (place / "go").unlink()
            canceled = ask(pool, {"text": "a b c d"}, follow=True)
            await until(lambda: pool.in_flight == 1)
            pool.cancel(canceled.ticket)
            assert (await canceled.body())["status"] == "canceled"

    carried_out(scenario())


def test_printed_lines_are_reported_while_the_prediction_runs(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("failing")) as pool:
            asked = ask(pool, {"x": 1}, follow=True)
            assert (await asked.body())["status"] == "failed"
            assert ("log", "looking at 1") in asked.progress or ("log", "looking at 1.0") in asked.progress

    carried_out(scenario())


def test_coroutines_run_at_once_up_to_their_slots_each_with_its_own_lines(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("async")) as pool:
            assert pool.signature is not None
            assert (pool.signature.is_async, pool.signature.slots) == (True, 4)
            asked = [ask(pool, {"seconds": 0.05, "x": x}) for x in range(12)]
            await until(lambda: pool.in_flight == 4)
            assert pool.state == "BUSY"
            for x, one in enumerate(asked):
                body = await one.body()
                assert body["output"]["x"] == x
                assert 1 <= body["output"]["running"] <= 4
                assert body["logs"].startswith(f"x is {x}")
                assert body["metrics"]["x"] == x
            assert max([(await one.output())["running"] for one in asked]) == 4

    carried_out(scenario())


def test_slots_can_be_limited_and_are_refused_for_a_runner_that_has_none(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("async"), max_slots=2) as pool:
            assert pool.signature is not None
            assert pool.signature.slots == 2
        async with started(bundle("echo"), ready=False, max_slots=2) as pool:
            assert not await pool.wait_ready()
            assert "COG_MAX_CONCURRENCY > 1 requires an async run() or predict() method" in pool.setup.logs

    carried_out(scenario())


def test_a_coroutine_is_canceled_or_ended_in_time_and_the_others_go_on(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("async"), timeout=3.0) as pool:
            slow, canceled = ask(pool, {"seconds": 30}), ask(pool, {"seconds": 30})
            await until(lambda: pool.in_flight == 2)
            assert pool.cancel(canceled.ticket)
            assert (await canceled.body())["status"] == "canceled"
            good = [ask(pool, {"seconds": 0, "x": x}) for x in range(20)]
            assert [(await one.output())["x"] for one in good] == list(range(20))
            assert (await slow.answer()).status == 504
            assert pool.deaths == 0

    carried_out(scenario())


def test_a_coroutine_that_blocks_its_loop_is_ended_with_the_worker(bundle: Bundle) -> None:
    runner = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    async def run(self, seconds: float = 0.0) -> float:
        time.sleep(seconds)
        return seconds
"""

    async def scenario() -> None:
        async with started(bundle(runner), timeout=2.0) as pool:
            blocked, waiting = ask(pool, {"seconds": 3600}), ask(pool, {})
            assert (await blocked.answer()).status == 504
            assert await waiting.output() == 0

    carried_out(scenario())


def test_an_async_generator_streams(bundle: Bundle) -> None:
    runner = """
from cog import AsyncConcatenateIterator, BaseRunner

class Runner(BaseRunner):
    async def run(self, text: str) -> AsyncConcatenateIterator[str]:
        for letter in text:
            yield letter
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            asked = ask(pool, {"text": "ab"}, follow=True)
            assert await asked.output() == ["a", "b"]
            assert asked.progress == [("start", ""), ("output", '"a"'), ("output", '"b"')]

    carried_out(scenario())


@pytest.mark.parametrize(
    "source",
    [
        "from cog import BasePredictor\nclass Predictor(BasePredictor):\n    def predict(self, x: int) -> int:\n        return x + 1\n",
        "class Predictor:\n    def predict(self, x: int) -> int:\n        return x + 1\n",
        "def Predictor(x: int) -> int:\n    return x + 1\n",
    ],
    ids=["predictor", "plain class", "function"],
)
def test_older_kinds_of_runners_are_served(tmp_path: Path, source: str) -> None:
    (tmp_path / "predict.py").write_text(source)

    async def scenario() -> None:
        async with started(tmp_path, runner="predict.py:Predictor") as pool:
            assert await ask(pool, {"x": 1}).output() == 2

    carried_out(scenario())


def test_setup_gets_the_weights_that_the_environment_names(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self, weights: str = "") -> None:
        self.weights = weights

    def run(self) -> str:
        return self.weights
"""
    monkeypatch.setenv("COG_WEIGHTS", "https://example.org/weights")

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            assert await ask(pool, {}).output() == "https://example.org/weights"

    carried_out(scenario())


def test_the_users_module_is_run_once_and_finds_its_neighbours(bundle: Bundle) -> None:
    place = bundle(
        "import neighbour, types\nfrom cog import BaseRunner\nprint('imported')\n"
        "class Runner(BaseRunner):\n    def run(self) -> int:\n        return neighbour.NUMBER\n"
    )
    (place / "neighbour.py").write_text("NUMBER = 5")
    (place / "types.py").write_text("raise RuntimeError('stands for the standard library')")

    async def scenario() -> None:
        async with started(place) as pool:
            assert await ask(pool, {}).output() == 5
            assert pool.setup.logs == "imported\n"

    carried_out(scenario())


def test_where_the_time_went_is_told(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("sleeping")) as pool:
            # What else is measured may take a while too where many processes share the machine: the sleep is longer by far.
            first, second = ask(pool, {"seconds": 2.0}), ask(pool, {"seconds": 0.0})
            await first.output()
            await second.output()
            (_, decode, wait, compute, encode, together), (total, _, _, quick, _, _) = pool.recent
            assert compute >= 2.0
            assert total >= 1.5 > quick
            assert (wait, together) == (0, 1)
            assert 0 < decode < 1.0
            assert 0 < encode < 1.0

    carried_out(scenario())


# -- parts without a process


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(bodies: list[bytes], data: st.DataObject) -> None:
    calls = [Call(Wire.V1, body, meta=body[:3], deadline=len(body) or None) for body in bodies]
    stream = b"".join(b"".join(frames.pack_call(number, call, number % 2 == 1)) for number, call in enumerate(calls))
    reader, found = Reader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        reader.feed(stream[:cut])
        stream = stream[cut:]
        found += [frames.unpack_call(frame) for frame in reader.frames()]
    assert found == [(number, call, number % 2 == 1) for number, call in enumerate(calls)]


@given(st.integers(1, 2**63), st.integers(100, 599), st.binary(), st.binary())
def test_an_answers_frame_holds_all_of_it(number: int, status: int, body: bytes, meta: bytes) -> None:
    answer = Answer(status, body, meta)
    frame = b"".join(frames.pack_answer(number, answer, (0.5, 0.25, 1.0, 2.0, 7)))
    assert frames.unpack_answer(memoryview(frame)) == (number, answer, (0.5, 0.25, 1.0, 2.0, 7))


@given(st.binary(max_size=100), st.sampled_from(["", ";charset=utf-8"]))
def test_a_data_uri_gives_its_content(content: bytes, option: str) -> None:
    uri = f"data:text/plain{option};base64,{base64.b64encode(content).decode()}"
    assert downloads.decode(uri) == ("text/plain", content)


@pytest.mark.parametrize("uri", ["data:text/plain;base64,a", "data:text/plain;base64,*", "data:", "data:text/plain"])
def test_a_data_uri_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(downloads.NotFetched):
        downloads.fetch(uri)


@pytest.mark.parametrize("source", ["/etc/hostname", "file:///etc/hostname", "ftp://example.org/x", ""])
def test_a_file_of_this_machine_cannot_be_asked_for(source: str) -> None:
    with pytest.raises(downloads.NotFetched, match="supported"):
        downloads.fetch(source)


def test_a_download_has_limits(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Path(downloads.fetch(f"{site}/file.txt")).read_text() == "from afar"
    for address in ("large", "endless"):
        with pytest.raises(downloads.NotFetched, match="more than"):
            downloads.fetch(f"{site}/{address}", size=20)
    with pytest.raises(downloads.NotFetched, match="more than"):
        downloads.fetch("data:text/plain;base64," + "AAAA" * 1000, size=1000)
    with pytest.raises(downloads.NotFetched, match="within"):
        downloads.fetch(f"{site}/endless", within=0.1)
    assert len(list(tmp_path.iterdir())) == 1  # nothing is left of those that failed


def test_metrics_keep_cogs_rules() -> None:
    metrics = Metrics()
    metrics.record("a.b", 1)
    metrics.record("a.b", 2, "incr")
    metrics.record("a.c", [1])
    metrics.record("a.c", 2, "append")
    metrics["d"] = "x"
    with pytest.raises(TypeError, match="has type int, cannot set to str"):
        metrics.record("a.b", "x")
    metrics.delete("a.b")
    metrics.record("a.b", "x")
    assert metrics.nested() == {"a": {"b": "x", "c": [1, 2]}, "d": "x"}
    for key in (
        "",
        "_a",
        "a_",
        "a__b",
        "a..b",
        ".a",
        "a.",
        "1a",
        "a-b",
        "a.b.c.d.e",
        "a" * 129,
        "predict_time",
        "cog.x",
    ):
        with pytest.raises(ValueError, match=r"metric|reserved"):
            metrics.record(key, 1)
    with pytest.raises(TypeError, match="Unsupported metric value type: object"):
        metrics.record("o", object())
    with pytest.raises(ValueError, match="Invalid metric mode"):
        metrics.record("o", 1, "twice")


def test_outside_of_a_prediction_a_scope_takes_everything_and_keeps_nothing() -> None:
    scope.current().record_metric("x", 1)
    assert scope.current().recorded == {}
    assert Scope().untouched


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)
def test_what_is_json_already_stays_what_it_is(value: object) -> None:
    assert json.dumps(jsonable(value)) == json.dumps(value)
