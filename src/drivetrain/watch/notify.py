"""Decisions told to addresses, in the order in which they were written down: at least once each, and to each address by itself."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from drivetrain.engines import triggers
from drivetrain.journal import Decision, Journal

LATEST = 86400.0
"""Seconds after which what could not be told is not told any more."""
_WITHIN = 5.0
_REST = 60.0
"""Seconds for which an address that did not take a message is left alone."""
_PORTION = 20
"""Messages to one address at a look."""


class Notifier:
    """Sends to `addresses` what the journal has. `steady` is a clock in seconds that never goes back."""

    def __init__(
        self, journal: Journal, service: str, addresses: Sequence[str], steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._journal = journal
        self._service = service
        self._addresses = addresses
        self._steady = steady
        self._until = dict.fromkeys(addresses, float("-inf"))
        for address in addresses:
            if journal.loop_value(_kept(address)) is None:
                # What was decided before anybody wanted to know is not told.
                journal.keep_loop_value(_kept(address), str(journal.newest_step()))

    def tell(self, now: float) -> list[str]:
        """Sends what is new; says in words what could not be sent, each time that an address begins to refuse."""
        return [said for address in self._addresses if (said := self._tell(address, now))]

    def _tell(self, address: str, now: float) -> str:
        if self._steady() < self._until[address]:
            return ""
        resting = self._until[address] > float("-inf")
        kept = int(self._journal.loop_value(_kept(address)) or 0)
        for place, decision in self._journal.steps_after(kept, _PORTION):
            if now - decision.changed < LATEST:
                problem = _post(address, message(decision, self._service))
                if problem:
                    self._until[address] = self._steady() + _REST
                    # The address may hold a secret; its host does not.
                    return "" if resting else f"{urlsplit(address).hostname} does not take decisions: {problem}"
            self._journal.keep_loop_value(_kept(address), str(place))
        self._until[address] = float("-inf")
        return ""


def _kept(address: str) -> str:
    """Under which name the journal has how far the address was told; the address itself may hold a secret."""
    return f"told.{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def message(decision: Decision, service: str) -> dict[str, Any]:
    """What is sent: `text` as chats show it, and the decision itself."""
    text = f"{service}: {decision.trigger}: {decision.action} {decision.state}: {decision.reason}"
    return {"text": text, "service": service, **asdict(decision), "ended": decision.state not in triggers.OPEN}


def _post(address: str, document: Mapping[str, Any]) -> str:
    """Why it was not taken; empty if it was."""
    place = urlsplit(address)
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    if place.scheme == "https":
        tls = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            place.hostname or "", place.port, timeout=_WITHIN, context=tls
        )
    else:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_WITHIN)
    try:
        connection.request("POST", target, json.dumps(document), {"Content-Type": "application/json"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if status < 300 else f"HTTP status {status}"
