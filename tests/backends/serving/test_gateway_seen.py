"""What the gateway writes down of its requests, and the features that it adds to them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.settings import Capturing, LookingUp
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.errors import DataError, Unavailable
from drivetrain.watch.answers import outcome_of
from tests.backends.serving.gateways import (
    TOKEN,
    configure,
    fakes,
    ready,
    running,
    succeed,
    wait_until,
)

BEARER = {"authorization": f"Bearer {TOKEN}"}


def test_a_failed_prediction_is_counted_as_failed_though_cog_answers_200(tmp_path: Path) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.reply(Response(200, b'{"status": "failed", "error": "no such carrier"}'))

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict(x=1).status == 200
        metrics = gateway.metrics()
        assert metrics['drivetrain_gateway_requests_total{revision="one",outcome="failed"}'] == 1
        assert metrics['drivetrain_gateway_requests_total{revision="one",outcome="succeeded"}'] == 0


def test_metrics_of_the_replicas_get_their_labels(tmp_path: Path) -> None:
    with (
        fakes(succeed, succeed) as (old, new),
        running(tmp_path, upstreams={"old": old.url, "new": new.url}) as gateway,
    ):
        old.metrics = new.metrics = (
            "# HELP predictions_total Predictions.\n# TYPE predictions_total counter\n"
            'predictions_total{outcome="succeeded"} 3\npredictions_total 4 1700000000\n'
            "# HELP seconds How long.\n# TYPE seconds histogram\n"
            'seconds_bucket{le="+Inf"} 2\nseconds_count 2\nseconds_sum 0.5\n'
        )
        ready(gateway, "old", "new")
        text = gateway.request("GET", "/metrics").body.decode()
        lines = text.splitlines()
        for fake, revision in ((old, "old"), (new, "new")):
            mark = f'revision="{revision}",replica="{fake.url}"'
            assert f'predictions_total{{{mark},outcome="succeeded"}} 3' in lines
            assert f"predictions_total{{{mark}}} 4 1700000000" in lines
            assert f'seconds_bucket{{{mark},le="+Inf"}} 2' in lines
        assert lines.count("# TYPE seconds histogram") == 1
        # Every sample stands with its family, and every line is one that Prometheus' own parser takes.
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert len(families["seconds"].samples) == 6
        assert families["drivetrain_gateway_requests"].type == "counter"


def test_what_was_asked_and_answered_is_captured_under_the_predictions_id(tmp_path: Path) -> None:
    capturing = Capturing(directory=str(tmp_path / "log"))
    with fakes(succeed, succeed) as (old, new):
        upstreams = {"old": old.url, "new": new.url}
        with running(tmp_path, upstreams=upstreams, capturing=capturing) as gateway:
            ready(gateway, "old", "new")
            gateway.route(old=100, shadow="new")
            gateway.request("POST", "/predictions", {"id": "mine", "input": {"x": 1}})
            gateway.request("PUT", "/predictions/put", {"input": {"x": 2}})
            gateway.request("POST", "/v1/models/echo:predict", {"instances": []}, {"x-request-id": "header"})
            made = gateway.predict(x=3).headers["x-request-id"]
            assert gateway.request("POST", "/feedback", {"id": "mine", "label": 1}, BEARER).status == 202
            for mistaken in (
                {"label": 1},
                {"id": "mine", "lable": True},
                {"id": "", "label": 1},
                {"id": 7, "label": 1},
                [],
                b'{"id": "mine", "label": ' + b"[" * 100_000,
            ):
                refused = gateway.request("POST", "/feedback", mistaken, BEARER)
                assert (refused.status, "and its `label`" in refused.json()["error"]) == (422, True)
            wait_until(lambda: len(new.requests) == 4)
            assert gateway.end() == 0
    events = [event for _, event in captured.read(tmp_path / "log")]
    asked = [(event.id, event.revision) for event in events if event.type.endswith(".request")]
    answered = [(event.id, event.revision) for event in events if event.type.endswith(".response")]
    expected = [(event, revision) for event in ("mine", "put", "header", made) for revision in ("old", "new")]
    assert sorted(asked) == sorted(answered) == sorted(expected)
    assert [event.id for event in events if event.type == "drivetrain.feedback"] == ["mine"]


def test_the_time_of_a_request_is_believed_of_who_has_the_token_and_of_nobody_else(tmp_path: Path) -> None:
    capturing = Capturing(directory=str(tmp_path / "log"))
    then, began = 1364774400.25, time.time()
    with fakes(succeed, succeed) as (old, new):
        upstreams = {"old": old.url, "new": new.url}
        with running(tmp_path, upstreams=upstreams, capturing=capturing) as gateway:
            ready(gateway, "old", "new")
            gateway.route(old=100, shadow="new")
            said = {"x-drivetrain-time": str(then)}

            def asked(event: str, headers: Mapping[str, str]) -> int:
                return gateway.request("POST", "/predictions", {"id": event, "input": {"x": 1}}, headers).status

            assert asked("believed", BEARER | said) == 200
            assert asked("nobody", said) == 200
            assert asked("stranger", said | {"authorization": "Bearer other"}) == 200
            assert asked("silent", BEARER) == 200
            for nonsense in ("noon", "nan", "-1", "1e300"):
                assert asked("refused", BEARER | {"x-drivetrain-time": nonsense}) == 400
                assert asked("ignored", {"x-drivetrain-time": nonsense}) == 200
            for body in ({"id": "then", "label": 1, "time": then + 5}, {"id": "now", "label": 1}):
                assert gateway.request("POST", "/feedback", body, BEARER).status == 202
            for nonsense in ("noon", True, -1, 1e300):
                body = {"id": "refused", "label": 1, "time": nonsense}
                assert gateway.request("POST", "/feedback", body, BEARER).status == 422
            wait_until(lambda: len(new.requests) == 8)
            assert gateway.end() == 0
        assert not any(request.header(b"x-drivetrain-time") for fake in (old, new) for request in fake.requests)
    events = [event for _, event in captured.read(tmp_path / "log")]
    assert [event.at for event in events if event.id == "believed"] == [then] * 4  # asked and answered, twice
    assert [event.at for event in events if event.id == "then"] == [then + 5]
    others = [event for event in events if event.id not in ("believed", "then")]
    assert {event.id for event in others} == {"nobody", "stranger", "silent", "ignored", "now"}
    assert all(began <= event.at <= time.time() for event in others)


class Features:
    """Online features that are computed from their key; the entity 13 is not answered for, and text is no key."""

    keys = entity_keys = ("carrier",)
    features = ("delay", "flights")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.base = options["base"]

    async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        if any(entity["carrier"] == 13 for entity in entities):
            raise Unavailable("the store does not answer")
        if any(isinstance(entity["carrier"], str) for entity in entities):
            raise DataError("it has to be a number", where="carrier")
        return [{"delay": self.base + entity["carrier"], "flights": None} for entity in entities]

    async def prepare(self) -> None:
        pass

    async def close(self) -> None:
        pass


def test_online_features_are_put_into_the_request_before_it_is_split_and_captured(tmp_path: Path) -> None:
    lookup = LookingUp(f"{__name__}:Features", {"base": 100}, defaults={"flights": 7})
    capturing = Capturing(directory=str(tmp_path / "log"))
    with fakes(succeed, succeed) as (old, new):
        upstreams = {"old": old.url, "new": new.url}
        with running(tmp_path, upstreams=upstreams, lookup=lookup, capturing=capturing) as gateway:
            ready(gateway, "old", "new")
            gateway.route(old=100, shadow="new")
            answer = gateway.predict(carrier=5)
            assert (answer.status, answer.headers["x-drivetrain-missing-features"]) == (200, "flights")
            filled = {"carrier": 5, "delay": 105, "flights": 7}
            wait_until(lambda: new.requests)
            for fake in (old, new):
                assert json.loads(fake.requests[0].body)["input"] == filled
            failed = gateway.predict(carrier=13)
            assert (failed.status, len(old.requests)) == (503, 1)
            assert "x-request-id" in failed.headers
            metrics = gateway.metrics()
            assert metrics["drivetrain_gateway_lookup_seconds_count"] == 2
            assert metrics["drivetrain_gateway_lookup_failures_total"] == 1
            assert metrics['drivetrain_gateway_features_missing_total{feature="flights"}'] == 1
            assert gateway.end() == 0
    asked = [event for _, event in captured.read(tmp_path / "log") if event.type.endswith(".request")]
    assert [json.loads(event.body)["input"] for event in asked] == [filled, filled, {"carrier": 13}]


def test_what_the_look_up_answers_is_counted_and_captured_as_an_answer_of_its_revision(tmp_path: Path) -> None:
    lookup = LookingUp(f"{__name__}:Features", {"base": 100})
    capturing = Capturing(directory=str(tmp_path / "log"))
    with fakes(succeed, succeed) as (old, new):
        upstreams = {"old": old.url, "new": new.url}
        with running(tmp_path, upstreams=upstreams, lookup=lookup, capturing=capturing) as gateway:
            ready(gateway, "old", "new")
            gateway.route(old=50, new=50)
            down = [gateway.predict(carrier=13) for _ in range(4)]
            assert [answer.status for answer in down] == [503] * 4
            assert Counter(answer.headers["x-drivetrain-revision"] for answer in down) == {"old": 2, "new": 2}
            assert all("x-request-id" in answer.headers for answer in down)
            wrong = [gateway.predict(carrier="DL") for _ in range(2)]
            assert [answer.status for answer in wrong] == [422] * 2
            metrics = gateway.metrics()
            for revision in upstreams:
                counted = f'drivetrain_gateway_requests_total{{revision="{revision}",outcome='
                assert metrics[f'{counted}"overloaded"}}'] == 2
                assert metrics[f'{counted}"refused"}}'] == 1
                assert metrics[f'drivetrain_gateway_request_seconds_count{{revision="{revision}"}}'] == 3
                assert metrics[f'drivetrain_gateway_in_flight{{revision="{revision}"}}'] == 0
            assert old.requests == new.requests == []
            assert gateway.end() == 0
    events = [event for _, event in captured.read(tmp_path / "log")]
    assert Counter((event.revision, event.status) for event in events if event.type.endswith(".response")) == {
        ("old", 503): 2, ("new", 503): 2, ("old", 422): 1, ("new", 422): 1
    }  # fmt: skip


def test_a_stream_that_ends_with_a_failure_is_counted_and_captured_as_failed_however_long_it_is(tmp_path: Path) -> None:
    def tell(exchange: Exchange, chunks: int) -> None:
        async def write() -> None:
            stream = exchange.stream(200, (), b"text/event-stream")
            for number in range(chunks):
                await stream.write(b'event: output\ndata: {"chunk":"%b","index":%d}\n\n' % (b"x" * 10_000, number))
            await stream.write(b'event: completed\ndata: {"error":"no such carrier","status":"failed"}\n\n')
            stream.end()

        tasks.append(asyncio.get_running_loop().create_task(write()))

    def answer(exchange: Exchange) -> None:
        tell(exchange, json.loads(exchange.request.body)["input"]["chunks"])

    tasks: list[Any] = []
    capturing = Capturing(directory=str(tmp_path / "log"))
    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}, capturing=capturing) as gateway:
        ready(gateway, "one")
        for chunks in (1, 300):
            found = gateway.predict({"accept": "text/event-stream"}, chunks=chunks)
            assert found.status == 200
            assert found.body.count(b"event: output") == chunks
        sample = 'drivetrain_gateway_requests_total{revision="one",outcome="%s"}'
        wait_until(lambda: gateway.metrics()[sample % "failed"] == 2)
        assert gateway.metrics()[sample % "succeeded"] == 0
        assert gateway.end() == 0
    answers = [event for _, event in captured.read(tmp_path / "log") if event.type.endswith(".response")]
    assert [outcome_of(event) for event in answers] == ["failed", "failed"]
    assert 1024**2 < len(answers[1].body) < 1024**2 + 100_000


def test_a_prediction_that_is_to_end_later_is_counted_as_accepted(tmp_path: Path) -> None:
    def promise(exchange: Exchange) -> None:
        exchange.reply(Response(202, b'{"id":"p","status":"starting"}'))

    with fakes(promise) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict({"prefer": "respond-async"}, x=1).status == 202
        metrics = gateway.metrics()
        assert metrics['drivetrain_gateway_requests_total{revision="one",outcome="accepted"}'] == 1
        assert metrics['drivetrain_gateway_requests_total{revision="one",outcome="succeeded"}'] == 0


def test_no_credentials_get_into_the_capture_log(tmp_path: Path) -> None:
    capturing = Capturing(directory=str(tmp_path / "log"))
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}, capturing=capturing) as gateway:
        ready(gateway, "one")
        assert gateway.predict(BEARER, x=1).status == 200
        body = {"input": {"x": 2}}
        assert gateway.request("POST", f"/predictions?key={TOKEN}", body, BEARER).status == 200
        assert gateway.request("POST", "/feedback", {"id": "7", "label": 1}, BEARER).status == 202
        assert gateway.end() == 0
    events = [event for _, event in captured.read(tmp_path / "log")]
    assert len(events) == 5
    assert not [file for file in (tmp_path / "log").iterdir() if TOKEN.encode() in file.read_bytes()]
    assert TOKEN not in gateway.text()


def test_a_full_disk_under_the_capture_log_costs_events_that_are_counted_and_no_prediction(
    tmp_path: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(b"b" * 900_000)
    capturing = Capturing(directory=str(small_disk / "log"), segment=200_000)
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}, capturing=capturing) as gateway:
        ready(gateway, "one")

        def counted(outcome: str) -> float:
            return gateway.metrics()[f'drivetrain_gateway_captured_events_total{{outcome="{outcome}"}}']

        def asked(number: int) -> int:
            return sum(gateway.predict(text="d" * 2000).status == 200 for _ in range(number))

        total = asked(100)
        assert total == 100
        wait_until(lambda: counted("written") + counted("lost") == 2 * total)
        assert counted("lost") > 0
        (small_disk / "ballast").unlink()
        before = counted("written")

        def written_again() -> bool:
            nonlocal total
            total += asked(1)
            return counted("written") > before

        recovered = wait_until(written_again)
        wait_until(lambda: counted("written") + counted("lost") == 2 * total)
        assert gateway.end() == 0
    print(f"room again: events are kept after {recovered:.2f} s")
    assert len(fake.requests) == total


def test_a_look_up_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    file = configure(tmp_path, lookup=LookingUp("nowhere:nothing", {}))
    command = [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the look-up nowhere:nothing cannot be opened" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_feedback_is_refused_where_nothing_is_captured(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        refused = gateway.request("POST", "/feedback", {"id": "x", "label": 1}, BEARER)
        assert refused.status == 409
        assert "`monitoring.capture.keep`" in refused.json()["hint"]
