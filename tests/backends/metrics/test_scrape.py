"""Prometheus' text format is read as its own client writes it, and as our gateway does."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.metrics.scrape import read, scrape
from drivetrain.backends.serving.gateway.metrics import Metrics
from drivetrain.errors import Unavailable

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.tuples(TEXTS, TEXTS), st.floats(), max_size=5))
def test_whatever_prometheus_client_writes_is_read_as_it_was(values: dict[tuple[str, str], float]) -> None:
    registry = prometheus_client.CollectorRegistry()
    gauge = prometheus_client.Gauge("level", 'A "help" with \\ and {braces} = 1', ["one", "two"], registry=registry)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    text = prometheus_client.generate_latest(registry).decode()
    found = {(labels["one"], labels["two"]): value for _, labels, value in read(text)}
    assert found.keys() == values.keys()
    assert all(found[key] == value or (math.isnan(found[key]) and math.isnan(value)) for key, value in values.items())


def test_a_histogram_of_the_gateway_is_read() -> None:
    metrics = Metrics()
    metrics.of("flights-1").count(200, 0.003)
    found = {(reading.name, reading.labels.get("le")): reading.value for reading in read("\n".join(metrics.text()))}
    assert found["drivetrain_gateway_request_seconds_bucket", "0.0025"] == 0
    assert found["drivetrain_gateway_request_seconds_bucket", "+Inf"] == 1
    assert found["drivetrain_gateway_request_seconds_sum", None] == 0.003


def test_spaces_and_times_and_a_last_comma_are_allowed() -> None:
    text = ' a{ b = "c" , } 1 1700000000000\n\n# TYPE d gauge\nd +Inf\ne{} NaN\nf 2e3 -5\n'
    [a, d, e, f] = read(text)
    assert a == ("a", {"b": "c"}, 1.0)
    assert d == ("d", {}, math.inf)
    assert math.isnan(e.value)
    assert f.value == 2000.0


@pytest.mark.parametrize(
    "line", ["a", "a b", "a{b} 1", 'a{b="c} 1', 'a{b="c" d="e"} 1', "1a 1", "a 1 2 3", "a 1_0", "<html>", "a{b='c'} 1"]
)
def test_a_line_that_is_no_sample_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 "):
        list(read(f"x 1\n{line}"))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert all(isinstance(reading.value, float) for reading in read(text))
    except ValueError as error:
        assert str(error).startswith("line ")  # noqa: PT017


@pytest.fixture
def served() -> Iterator[tuple[str, list[bytes]]]:
    answers: list[bytes] = [b'level{service="own"} 1\n']

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[0])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_labels_of_the_target_are_added(served: tuple[str, list[bytes]]) -> None:
    assert scrape(served[0], 5.0, labels={"service": "flights"}) == [("level", {"service": "flights"}, 1.0)]


def test_a_target_that_is_gone_or_tells_something_else_is_unavailable(served: tuple[str, list[bytes]]) -> None:
    address, answers = served
    for answer in (b"<html>", b"\xff 1", b"a 1\n" * 5_000_000):
        answers[0] = answer
        with pytest.raises(Unavailable, match="its metrics cannot be read"):
            scrape(address, 5.0)
    with pytest.raises(Unavailable, match="its metrics cannot be read"):
        scrape("http://127.0.0.1:9/metrics", 5.0)
