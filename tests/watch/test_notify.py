"""Decisions are told to whoever wants to know, in their order, and nobody's silence keeps them from others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drivetrain.journal import Decision, Journal
from drivetrain.watch.notify import LATEST, Notifier

NOW = 1_400_000_000.0


class Chat:
    """An address that takes messages while it is `open`."""

    def __init__(self) -> None:
        self.open = True
        self.messages: list[dict[str, Any]] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if chat.open:
                    chat.messages.append(body)
                self.send_response(200 if chat.open else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/secret?key=1"

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(message["id"], message["state"]) for message in self.messages]


@pytest.fixture
def chats() -> Iterator[list[Chat]]:
    found = [Chat(), Chat()]
    threads = [threading.Thread(target=chat.server.serve_forever, args=[0.01]) for chat in found]
    for thread in threads:
        thread.start()
    yield found
    for chat, thread in zip(found, threads, strict=True):
        chat.server.shutdown()
        thread.join()
        chat.server.server_close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def decide(journal: Journal, name: str, *states: str, at: float = NOW) -> None:
    decision = Decision(name, at, "drift", "retrain", states[0], "0.3 > 0.25", {"value": 0.3}, name, None, at)
    journal.open_decision(decision)
    for state in states[1:]:
        journal.change_decision(replace(decision, state=state))


class Steady:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_step_of_each_decision_is_told_once_and_in_order(journal: Journal, chats: list[Chat]) -> None:
    decide(journal, "before", "done")
    assert Notifier(journal, "wine", [chats[0].url]).tell(NOW) == []
    decide(journal, "one", "training", "rollout", "promoted")
    decide(journal, "two", "done")
    for _ in range(3):
        Notifier(journal, "wine", [chats[0].url]).tell(NOW)
    assert chats[0].told == [("one", "training"), ("one", "rollout"), ("one", "promoted"), ("two", "done")]
    first = chats[0].messages[0]
    assert first["text"] == "wine: drift: retrain training: 0.3 > 0.25"
    assert (first["numbers"], first["ended"], chats[0].messages[2]["ended"]) == ({"value": 0.3}, False, True)


def test_an_address_that_takes_nothing_gets_it_later_and_the_other_at_once(journal: Journal, chats: list[Chat]) -> None:
    steady = Steady()
    notifier = Notifier(journal, "wine", [chat.url for chat in chats], steady)
    chats[0].open = False
    decide(journal, "one", "training", "failed")
    (said,) = notifier.tell(NOW)
    assert said == "127.0.0.1 does not take decisions: HTTP status 503", "and no word of its secret"
    assert (chats[0].told, len(chats[1].told)) == ([], 2)
    assert notifier.tell(NOW) == [], "it is left alone for a while, and not complained of again"
    steady.now += 61
    assert notifier.tell(NOW) == []
    chats[0].open = True
    steady.now += 61
    notifier.tell(NOW)
    assert chats[0].told == chats[1].told


def test_what_could_not_be_told_for_a_day_is_not_told_any_more(journal: Journal, chats: list[Chat]) -> None:
    notifier = Notifier(journal, "wine", [chats[0].url])
    decide(journal, "old", "done", at=NOW)
    decide(journal, "new", "done", at=NOW + LATEST)
    notifier.tell(NOW + LATEST + 1)
    assert chats[0].told == [("new", "done")]
