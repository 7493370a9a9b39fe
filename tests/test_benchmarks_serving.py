"""The serving benchmarks' own parts: what wrk says, arrivals at random instants, who counts as the best, growth of memory."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import entrants, judged, load, own, pictures, races
from benchmarks.serving.load import Load, LoadFailed
from benchmarks.serving.races import Result
from benchmarks.serving.servers import Address, NotUp, running

WRK = """Running 2s test @ http://127.0.0.1:9/predictions
  1 threads and 8 connections
  Latency Distribution
     50%  705.00us
     75%    1.00ms
     90%    1.10ms
     99%   28.50ms
  16000 requests in 2.00s, 3.30MB read
{more}Requests/sec:   8000.00
Transfer/sec:      1.60MB
"""


class Slow(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if json.loads(body).get("bad") else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/predict"
        server.shutdown()
        thread.join()


def test_what_wrk_says_is_read_in_seconds_and_refused_requests_do_not_count_as_answered() -> None:
    assert load._read(WRK.format(more=""), 2.0) == Load(8000.0, 0.000705, 0.0285, 0)
    more = "  Socket errors: connect 0, read 1, write 0, timeout 2\n  Non-2xx or 3xx responses: 4000\n"
    assert load._read(WRK.format(more=more), 2.0) == Load(6000.0, 0.000705, 0.0285, 4003)
    with pytest.raises(LoadFailed):
        load._read("unable to connect", 2.0)


def test_requests_come_at_the_asked_rate_whatever_the_answers_and_each_is_counted(url: str) -> None:
    for body, status in ((b"{}", 200), (b'{"bad": 1}', 500)):
        samples = load.open_loop(Address(url, body), 100.0, 2.0, connections=8, seed=3)
        assert 140 < len(samples) < 270
        assert {found for _, _, found in samples} == {status}
        assert all(latency > 0 for _, latency, _ in samples)


def test_a_lost_connection_is_no_answer() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.handle_request).start()
        address = Address(f"http://127.0.0.1:{server.server_address[1]}/", b"not json")
        samples = load.open_loop(address, 20.0, 0.5, connections=1)
    assert {status for _, _, status in samples} == {0}


def test_the_best_peer_is_the_quickest_of_those_that_answer_everything() -> None:
    def result(name: str, rate: float, bad: int = 0) -> Result:
        return Result(name, {8: [Load(rate, 1 / rate, 2 / rate, bad)] * 3})

    results = [result(entrants.OURS, 9000), result("Cog", 8000, bad=1), result("KServe", 3000), result("MLflow", 500)]
    assert races.best(results, 8, "rate") == (3000, "KServe")
    assert races.best(results, 8, "p50") == (1 / 3000, "KServe")
    assert races.best(results, 64, "rate") is None
    target = judged._rate(results[0], results, 8, 1.5, "c=8")
    assert (target.verdict, target.bound_name, round(target.ratio or 0, 6)) == ("holds", "KServe", 3.0)
    assert judged._rate(results[3], results, 8, 1.5, "c=8").verdict == "misses"
    assert judged._all_answered("echo", results[1], 8).verdict == "misses"
    assert judged._all_answered("echo", results[0], 8).verdict == "holds"
    assert "Cog refused 3 requests at c=8" in judged._refusals(results)[0]


def test_growth_of_memory_is_told_in_bytes_an_hour_after_warming_up(tmp_path: Path) -> None:
    def minute(memory: int) -> own.Minute:
        return own.Minute(100.0, 0.001, 0.002, 0, memory)

    flat = [minute(m) for m in (50, 90, 100, 100, 100, 100, 100)]
    leaking = [minute(m) for m in (50, 90, 100, 110, 120, 130, 140)]
    assert (own.slope(flat), round(own.slope(leaking))) == (0.0, 600)
    pictures.soak(tmp_path / "soak.png", leaking)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_does_not_come_up_is_told_with_what_it_said_last(tmp_path: Path) -> None:
    address = Address("http://127.0.0.1:9/", b"{}")
    with (
        pytest.raises(NotUp, match=r"ended with 3: no such model"),
        running(["/bin/sh", "-c", "echo no such model; exit 3"], tmp_path / "server", {}, address),
    ):
        raise AssertionError("it came up")
