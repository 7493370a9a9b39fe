"""One request on its way to a replica and back: sent, sent again where that is safe, given up when its time or its client is gone.

Callbacks, no task: a task for each request costs more than everything else here. Answers that are streamed have one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from drivetrain.backends.serving.gateway.pool import Pool
from drivetrain.backends.serving.gateway.upstreams import Holders, Upstream
from drivetrain.backends.serving.http.link import Call
from drivetrain.backends.serving.http.messages import Exchange, Headers, Response
from drivetrain.backends.serving.http.outcomes import ClientError, ClientResponse, ConnectFailed, TimedOut
from drivetrain.backends.serving.http.wire import HOP_BY_HOP

NOT_RUN = b"x-drivetrain-not-run"
TIMEOUT = b"x-request-timeout-ms"
_OWN = HOP_BY_HOP | {b"content-length", b"content-type", b"date", b"x-request-id", b"x-drivetrain-revision", NOT_RUN}
_UNTAKEN = 50
"""Tries to have a replica take a request; one that does not rests, longer each time, so that they last for ten seconds."""
_BROKEN_OFF = 3
"""Tries for a request that may be run twice."""
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_AT_CAPACITY = b"t capacity"
"""What Cog's own server says in its 409 when it has not taken a prediction."""


@dataclass(slots=True)
class Outbound:
    """What is sent to a replica. `target` is path and query, percent-encoded; `deadline` is of the event loop's clock."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    deadline: float
    prediction: str | None = None
    """The id in the path of a PUT: where it goes is remembered."""


@dataclass(slots=True)
class Shared:
    """What all requests of a gateway need. `patience` is the longest that a prediction may take, in seconds."""

    clock: Callable[[], float]
    holders: Holders
    patience: float
    relay: Callable[[Forward, Upstream, float], None]
    """Sends a request whose answer comes piece by piece."""


class Forward:
    """A `Waiter`. `done` gets it back with its answer, which has gone to the client already if it was `streamed`."""

    __slots__ = (
        "_call", "_done", "_shared", "_tries", "_upstream", "at", "deadline", "event", "exchange", "marks", "out",
        "over", "patient", "pool", "preferred", "sent_at", "spent", "started", "streamed", "streams",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        pool: Pool,
        exchange: Exchange,
        out: Outbound,
        done: Callable[[Forward, Response], None],
    ) -> None:
        self.exchange = exchange
        self.out = out
        self.pool = pool
        self.started = perf_counter()
        self.marks: list[tuple[bytes, bytes]] = []
        """Headers that its answer gets."""
        self.event: str | None = None
        """The id under which its answer is captured."""
        self.at: float | None = None
        """The time that it says it is of, in seconds since the epoch. None: now."""
        self.streamed = False
        """Whether a part of the answer has gone to the client already."""
        self.deadline = out.deadline
        self.preferred: Upstream | None = None
        self.patient = True
        """Whether it waits where no replica is free."""
        self.spent = 0.0
        """Seconds that it has been with replicas."""
        self.sent_at = 0.0
        self.over = False
        self.streams = False
        """Whether the caller wants the answer piece by piece."""
        self._shared = shared
        self._done = done
        self._upstream: Upstream | None = None
        self._call: Call | None = None
        self._tries = 0

    def start(self) -> None:
        """Looks for a replica."""
        self.pool.load.enter(self._shared.clock())
        self.exchange.on_disconnect(self.abandon)
        self.pool.submit(self)

    def send(self, upstream: Upstream) -> None:
        """Goes to that replica, with what is left of its time."""
        left = self.deadline - self._shared.clock()
        if left <= 0:
            self.refuse(504, "the deadline has passed before a replica could take the request")
            return
        self._upstream = upstream
        upstream.sent()
        out = self.out
        if out.prediction is not None:
            self._shared.holders.put(out.prediction, upstream)
        self.sent_at = perf_counter()
        if self.streams:
            self._shared.relay(self, upstream, left)
            return
        self._call = upstream.client.send(
            out.method, out.target, [*out.headers, (TIMEOUT, b"%d" % math.ceil(left * 1000))], out.body, self._answered, left
        )  # fmt: skip

    def refuse(self, status: int, reason: str, retry_after: float | None = None) -> None:
        """Ends with the gateway's own answer."""
        self.finish(own_answer(status, reason, retry_after))

    def move(self, pool: Pool) -> None:
        """Goes to another revision: the one that it was for is out of traffic."""
        now = self._shared.clock()
        self.pool.load.leave(now)
        self.pool, self.preferred = pool, None
        pool.load.enter(now)
        pool.submit(self)

    def abandon(self) -> None:
        """Its client has gone."""
        if self.over:
            return
        self.over = True
        if self._call is not None:
            self._call.cancel()
        if self._upstream is not None:
            self._upstream.abandoned()
            self._upstream = None
        else:
            self.pool.forget(self)
        self.pool.load.leave(self._shared.clock())
        self.pool.numbers.outcomes["abandoned"] += 1
        self.pool.pump()

    def finish(self, response: Response) -> None:
        """It has its answer."""
        if self.over:
            return
        self.over = True
        self.pool.load.leave(self._shared.clock())
        self._done(self, response)

    def answered(self, upstream: Upstream) -> None:
        """The replica has answered: it is free."""
        self._came_back()
        upstream.succeeded()

    def not_taken(self, upstream: Upstream, status: int, reason: str) -> None:
        """The replica has not run it: another may, or this one later."""
        self._came_back()
        upstream.busy(self._shared.clock(), learn=status == 409)
        self._try_again("busy", _UNTAKEN, 503, f"no replica takes the request: {reason}")

    def failed(self, upstream: Upstream, error: ClientError) -> None:
        """The replica has not answered, or not to the end."""
        self._came_back()
        now = self._shared.clock()
        if isinstance(error, ConnectFailed):
            upstream.unreachable(now)
            self._try_again("connection", _UNTAKEN, 503, f"no replica can be reached: {error.message}")
            return
        if isinstance(error, TimedOut):
            if self.spent < self._shared.patience * 0.99:
                upstream.abandoned()
            else:
                upstream.failed(now)
            self.refuse(504, "the deadline has passed before the replica answered")
        else:
            upstream.failed(now)
            if self.out.method in _SAFE and not self.streamed:
                self._try_again("connection", _BROKEN_OFF, 502, f"no replica answers: {error.message}")
                return
            self.refuse(502, f"the replica broke off; whether the prediction was run is not known: {error.message}")
        self.pool.pump()

    def _came_back(self) -> None:
        self.spent += perf_counter() - self.sent_at
        self._upstream = self._call = None

    def _try_again(self, why: str, most: int, status: int, reason: str) -> None:
        self._tries += 1
        if self._tries >= most:
            self.refuse(status, reason, 1.0)
        else:
            self.pool.numbers.retries[why] += 1
            self.pool.resubmit(self)
        self.pool.pump()

    def _answered(self, outcome: ClientResponse | ClientError) -> None:
        upstream = self._upstream
        if upstream is None:
            return
        if isinstance(outcome, ClientError):
            self.failed(upstream, outcome)
            return
        if (outcome.status == 503 or outcome.status == 409) and (reason := refused(outcome)) is not None:
            self.not_taken(upstream, outcome.status, reason)
            return
        self.answered(upstream)
        content_type, headers = passed_on(outcome.headers)
        self.finish(Response(outcome.status, outcome.body, headers, content_type))
        if self.pool.waiting:
            self.pool.pump()


def own_answer(status: int, reason: str, retry_after: float | None = None) -> Response:
    """An answer of the gateway's own, under the names that Cog's callers (`detail`) and KServe's (`error`) look for.

    Its 503 is always to a request that was not run.
    """
    text = json_text(reason)
    headers = [(b"retry-after", b"%d" % math.ceil(retry_after))] if retry_after is not None else []
    if status == 503:
        headers.append((NOT_RUN, b"1"))
    return Response(status, b'{"error":%b,"detail":%b}' % (text, text), headers)


def json_text(text: str) -> bytes:
    """The text as JSON."""
    return json.dumps(text).encode()


def refused(answer: ClientResponse) -> str | None:
    """Why a replica did not run the request, if it says that it did not."""
    if answer.header(NOT_RUN) is not None or (answer.status == 409 and _AT_CAPACITY in answer.body):
        return answer.body[:200].decode(errors="replace")
    return None


def passed_on(headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Content type and other headers of a replica's answer, without those that the gateway writes itself."""
    content_type = b""
    kept = []
    for header in headers:
        if header[0] not in _OWN:
            kept.append(header)
        elif header[0] == b"content-type":
            content_type = header[1]
    return content_type, kept
