"""Webhooks: what happens to a prediction is posted to the address that its caller gave, by Cog's rules.

The events `start` and `logs` are sent at most once per `interval` (COG_THROTTLE_RESPONSE_INTERVAL), `output` always, each of them once;
`completed` is sent until it is taken, with growing pauses. Sending happens on threads of its own and never delays a prediction; the
events of one prediction arrive in order. Redirects are not followed, and link-local addresses not posted to.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from drivetrain.backends.serving.replica.guarded import GuardedHttp, GuardedHttps

log = logging.getLogger(__name__)

EVENTS = ("start", "output", "logs", "completed")
RETRIED = frozenset((429, 500, 502, 503, 504))

WAITING = 64 * 1024 * 1024
"""Bytes of one prediction's events, each with all outputs so far, that may wait for a slow receiver; beyond it the oldest are given up."""

State = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds; as Cog's server has them. `token` is sent as bearer token."""

    interval: float = 0.5
    retries: int = 12
    pause: float = 0.1
    timeout: float = 30.0
    token: str = ""

    @classmethod
    def from_environment(cls) -> Rules:
        """What COG_THROTTLE_RESPONSE_INTERVAL and WEBHOOK_AUTH_TOKEN say."""
        token = os.environ.get("WEBHOOK_AUTH_TOKEN", "")
        try:
            return cls(interval=float(os.environ["COG_THROTTLE_RESPONSE_INTERVAL"]), token=token)
        except (KeyError, ValueError):
            return cls(token=token)


@dataclass(slots=True)
class Post:
    """One event on its way."""

    body: bytes
    final: bool


@dataclass(slots=True)
class Webhook:
    """Where one prediction's events go. `told` is to be called with each event."""

    sender: Sender
    url: str
    events: frozenset[str]
    trace: Sequence[tuple[str, str]] = ()
    _last: float = field(default=float("-inf"))
    _waiting: deque[Post] = field(default_factory=deque)
    _size: int = 0
    _busy: bool = False

    def tell(self, event: str, state: State) -> None:
        """Sends the event, unless it is not wanted or comes too soon. `state` makes the body, and is called only if it is sent."""
        if event not in self.events:
            return
        if event in ("start", "logs") and time.monotonic() - self._last < self.sender.rules.interval:
            return
        if event != "completed":
            self._last = time.monotonic()
        post = Post(msgspec.json.encode(state()), event == "completed")
        self._waiting.append(post)
        self._size += len(post.body)
        while self._size > WAITING and len(self._waiting) > 1:
            self._size -= len(self._waiting.popleft().body)
            self.sender.lost += 1
        if not self._busy:
            self._busy = True
            self.sender.keep(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                post = self._waiting.popleft()
                self._size -= len(post.body)
                await self._send(post)
        finally:
            self._busy = False

    async def _send(self, post: Post) -> None:
        sender, rules = self.sender, self.sender.rules
        for attempt in range(rules.retries + 1 if post.final else 1):
            if attempt:
                await asyncio.sleep(rules.pause * 2 ** min(attempt, 10))
            said = await sender.post(self.url, post.body, self.trace)
            if said.taken:
                return
            if not said.again:
                break
        sender.lost += 1
        log.warning("no webhook took an event: %s: %s", self.url, said.reason)


@dataclass(frozen=True, slots=True)
class Said:
    """What the receiver answered."""

    taken: bool
    again: bool
    reason: str


class Sender:
    """Posts the events of all predictions. `lost` counts those that nobody took."""

    def __init__(self, rules: Rules | None = None, threads: int = 8) -> None:
        self.rules = rules or Rules.from_environment()
        self.lost = 0
        self._threads = ThreadPoolExecutor(threads, "webhook")
        self._running: set[asyncio.Task[None]] = set()

    def webhook(self, url: str, events: Sequence[str], trace: Sequence[tuple[str, str]] = ()) -> Webhook | None:
        """Where events of these names go; None for an address that is none, which the log says: the prediction runs all the same."""
        place = urlsplit(url)
        try:
            right = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
        except ValueError:  # a port that is no number
            right = False
        if not right or any(ord(sign) <= 32 or ord(sign) == 127 for sign in url):
            self.lost += 1
            log.warning("a webhook has to be an http or https address, not %r", url[:200])
            return None
        return Webhook(self, url, frozenset(events), tuple(trace))

    def keep(self, sending: Any) -> None:
        """Runs a coroutine to its end."""
        task = asyncio.get_running_loop().create_task(sending)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def post(self, url: str, body: bytes, trace: Sequence[tuple[str, str]]) -> Said:
        """One attempt, on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._post, url, body, trace)

    def _post(self, url: str, body: bytes, trace: Sequence[tuple[str, str]]) -> Said:
        place = urlsplit(url)
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        headers = {"Content-Type": "application/json", "User-Agent": "drivetrain", **dict(trace)}
        if self.rules.token:
            headers["Authorization"] = f"Bearer {self.rules.token}"
        connection = _connection(place.scheme, place.hostname or "", place.port, self.rules.timeout)
        try:
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            response.read(65536)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Said(False, True, f"{type(error).__name__}: {error}")
        finally:
            connection.close()
        return Said(200 <= response.status < 300, response.status in RETRIED, f"HTTP status {response.status}")

    async def close(self, within: float) -> None:
        """Waits until what is on its way has arrived, at most so many seconds."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=max(0.0, within))
            for task in late:
                task.cancel()
            self.lost += len(late)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _connection(scheme: str, host: str, port: int | None, timeout: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return GuardedHttps(host, port, timeout=timeout, context=_authorities())
    return GuardedHttp(host, port, timeout=timeout)


@cache
def _authorities() -> ssl.SSLContext:
    return ssl.create_default_context()
