"""The loop's door: what comes in is written down once, whoever sends how much of it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.events import REQUEST, RESPONSE, Event, binary_headers
from drivetrain.backends.serving.http.client import Client, parse
from drivetrain.journal import Journal
from drivetrain.watch import alerts
from drivetrain.watch.door import Door, Openings

TOKEN = "the token of the door"
NOW = 1_400_000_000.0
BEGAN = "2014-05-13T16:00:00Z"


class Opened:
    """A door that is open, and a client of it."""

    def __init__(self, place: Path) -> None:
        self.journal = Journal(place / "journal.db")
        self.directory = place / "posted"
        openings = Openings("wine", TOKEN, {"drift", "slow"}, self.journal.path, self.directory, 1024**2 * 64)
        self.door = Door(openings, lambda: NOW)
        self.url = f"http://127.0.0.1:{self.door.open('127.0.0.1', 0)}"

    def ask(
        self, path: str, body: Any = None, token: str | None = TOKEN, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        given = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.url + path, raw, given | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            text, status = error.read(), error.code
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def firing(self, now: float = NOW) -> list[str]:
        return [alert.trigger for alert in alerts.alerts(self.journal.alerts(), now)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    found = Opened(tmp_path)
    yield found
    found.door.close()


def told(
    trigger: str = "drift", status: str = "firing", began: str = BEGAN, fingerprint: str = "", **more: Any
) -> dict[str, Any]:
    labels = {"alertname": trigger, "service": "wine"} | more.pop("labels", {})
    return {
        "status": status, "labels": labels, "annotations": {"value": "0.31"}, "startsAt": began,
        "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://prometheus/graph", "fingerprint": fingerprint or f"of-{trigger}",
    } | more  # fmt: skip


def message(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    """As Alertmanager sends it, with what newer versions add."""
    return {
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "loop", "groupLabels": {},
        "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://alertmanager", "alerts": list(entries),
        "notification_reason": "firing", "routeLabels": {"a": "b"},
    } | more  # fmt: skip


def test_an_alert_fires_until_it_is_told_to_be_resolved(opened: Opened) -> None:
    assert opened.ask("/alerts", message(told(somethingNew=[1])))[0] == 200
    assert opened.door.alerted.is_set()
    (alert,) = alerts.alerts(opened.journal.alerts(), NOW)
    assert (alert.trigger, alert.state, alert.value, alert.labels["service"]) == ("drift", "firing", 0.31, "wine")
    assert alert.since < NOW
    assert opened.ask("/alerts", message(told(status="resolved"), status="resolved"))[0] == 200
    assert opened.firing() == []
    assert opened.ask("/alerts", message(told(began="2014-05-13T16:30:00Z")))[0] == 200
    assert opened.firing() == ["drift"]


def test_an_alert_that_is_told_again_is_counted_and_changes_nothing(opened: Opened) -> None:
    opened.ask("/alerts", message(told()))
    opened.ask("/alerts", message(told(status="resolved")))
    opened.door.alerted.clear()
    for _ in range(3):  # somebody replays what was sent before
        assert opened.ask("/alerts", message(told()))[0] == 200
    assert opened.firing() == []
    assert not opened.door.alerted.is_set()
    assert opened.door.counts["webhooks", "repeated"] == 3
    assert {(row[2], row[5]) for row in opened.journal.alerts()} == {("firing", 4), ("resolved", 1)}


def test_an_alert_of_an_alertmanager_that_has_gone_does_not_fire_for_ever(opened: Opened) -> None:
    opened.ask("/alerts", message(told()))
    assert opened.firing(NOW + alerts.SILENCE) == ["drift"]
    assert opened.firing(NOW + alerts.SILENCE + 1) == []


@pytest.mark.parametrize("token", [None, "", "another", TOKEN + "x"])
def test_a_forged_alert_is_refused_and_counted(opened: Opened, token: str | None) -> None:
    assert opened.ask("/alerts", message(told()), token)[0] == 401
    assert (opened.firing(), opened.door.counts["webhooks", "forged"]) == ([], 1)
    assert opened.ask("/events", b"{}", token)[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"version": "4"}', message(told(), version="3"), message(told(status="on fire")), message(told(began="now")),
        message(told(began="2014-05-13T16:00:00")), message(told(fingerprint="f" * 300)), message(told(labels={"alertname": 7})),
        b'{"version":"4","alerts":[' + b" " * 1024**2 + b"]}",
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_in_words_and_counted(opened: Opened, body: Any) -> None:
    status, answer = opened.ask("/alerts", body)
    assert (status, len(answer["error"]) > 10, opened.door.counts["webhooks", "malformed"]) == (422, True, 1)
    assert opened.journal.alerts() == []


def test_alerts_about_something_else_are_taken_and_not_kept(opened: Opened) -> None:
    other = told(labels={"service": "flights"})
    assert opened.ask("/alerts", message(told("Watchdog"), other, told())) == (200, {"alerts": 1})
    assert (opened.door.counts["webhooks", "unknown"], len(opened.journal.alerts())) == (2, 1)


def test_a_storm_of_ten_thousand_webhooks_is_answered_and_kept_within_bounds(opened: Opened) -> None:
    header = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
    bodies = [json.dumps(message(told(fingerprint=f"f{number % 5000}"))).encode() for number in range(10_000)]

    async def storm() -> list[int]:
        client = Client(parse(opened.url), connections=64)
        answers = await asyncio.gather(*(client.request("POST", "/alerts", header, body, 300) for body in bodies))
        await client.close()
        return [answer.status for answer in answers]

    before = psutil.Process().memory_info().rss
    statuses = asyncio.run(storm())
    grown = psutil.Process().memory_info().rss - before
    assert set(statuses) <= {200, 503}
    counts = opened.door.counts
    assert counts["webhooks", "new"] == 5000
    assert counts["webhooks", "new"] + counts["webhooks", "repeated"] + counts["webhooks", "overloaded"] == 10_000
    assert len(opened.journal.alerts(100_000)) == 5000
    assert set(opened.firing()) == {"drift"}
    assert grown < 200 << 20, "bytes, those of the ten thousand requests of this very process among them"
    # Whoever else asks is answered.
    assert opened.ask("/status")[0] == 200


def test_what_kserves_logger_posts_is_read_back_as_the_gateway_captures_it(opened: Opened) -> None:
    asked = {
        "ce-id": "7",
        "ce-type": REQUEST,
        "ce-source": "wine-predictor-00002-deployment-5d8f-x2v",
        "ce-time": BEGAN,
    }
    body = b'{"instances": [{"alcohol": 12.1}]}'
    assert opened.ask(f"/events?token={TOKEN.replace(' ', '%20')}", body, None, asked)[0] == 202
    answered = asked | {"ce-type": RESPONSE, "ce-annotations": '{"drivetrain.dev/revision": ["wine-2-ab"]}'}
    assert opened.ask("/events", b'{"predictions": [1]}', TOKEN, answered)[0] == 202
    ours = Event("drivetrain.feedback", "7", "wine-2-ab", "", "application/json", b"", NOW)
    label = b'{"id": "7", "label": 1}'
    assert opened.ask("/events", label, TOKEN, dict(binary_headers(ours, NOW)))[0] == 202
    opened.door.close()
    request, response, feedback = [event for _, event in captured.read(opened.directory)]
    assert (request.id, request.revision, request.path) == ("7", "wine-predictor-00002", "/v1/models/wine:predict")
    assert (request.body, request.at) == (body, 1_400_000_000 - 3200)
    assert (response.revision, response.status, response.type) == ("wine-2-ab", 200, RESPONSE)
    assert (feedback.body, feedback.at) == (label, NOW)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ce-id": "1"},
        {"ce-id": "1", "ce-type": "else"},
        {"ce-type": REQUEST},
        *(
            {"ce-id": "1", "ce-type": RESPONSE, "ce-status": status}
            for status in ("inf", "-inf", "nan", "1e400", "9" * 400, "-1", "ok")
        ),
        *({"ce-id": "1", "ce-type": RESPONSE, "ce-took": took} for took in ("inf", "nan", "1e400", "-0.1", "soon")),
    ],
)
def test_what_is_no_event_is_refused_and_counted(opened: Opened, headers: dict[str, str]) -> None:
    assert opened.ask("/events", b"{}", TOKEN, headers)[0] == 422
    assert opened.door.counts["posted", "malformed"] == 1


@pytest.mark.parametrize(
    "annotations", ["[" * 10_000, '{"a/revision": {}}', '{"a/revision": []}', '{"a/revision": 1}', "7"]
)
def test_annotations_that_name_no_revision_are_passed_over(opened: Opened, annotations: str) -> None:
    headers = {"ce-id": "1", "ce-type": RESPONSE, "ce-source": "wine-2-ab", "ce-annotations": annotations}
    assert opened.ask("/events", b"{}", TOKEN, headers)[0] == 202
    opened.door.close()
    assert [event.revision for _, event in captured.read(opened.directory)] == ["wine-2-ab"]


def test_metrics_and_status_are_shown_as_the_loop_has_set_them(opened: Opened) -> None:
    opened.door.metrics, opened.door.status = "a 1.0\n", {"looked": NOW}
    assert opened.ask("/metrics", token=None) == (200, "a 1.0\n")
    assert opened.ask("/status", token=None) == (200, {"looked": NOW})
    assert opened.ask("/nothing", token=None)[0] == 404


instants = st.sampled_from(["2014-05-13T16:00:00Z", "2014-05-13T17:00:00+01:00", "2014-05-13T16:30:00Z"])


@given(st.lists(st.tuples(st.sampled_from("fg"), instants, st.sampled_from(["firing", "resolved"]))), st.randoms())
def test_which_alerts_fire_does_not_depend_on_the_order_in_which_they_were_told(
    said: list[tuple[str, str, str]], chance: Any
) -> None:
    rows = [(mark, began, status, '{"trigger":"drift","labels":{}}', NOW, 1) for mark, began, status in said]
    found = {alert.fingerprint for alert in alerts.alerts(rows, NOW)}
    chance.shuffle(rows)
    assert {alert.fingerprint for alert in alerts.alerts(rows, NOW)} == found
