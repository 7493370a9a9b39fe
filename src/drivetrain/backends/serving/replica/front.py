"""What the routes of all protocols share: calls handed to the worker, deadlines, and answers with what belongs to them."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import msgspec

from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.replica.calls import Answer, Call, Progress, Wire
from drivetrain.backends.serving.replica.metrics import Metrics
from drivetrain.backends.serving.replica.pool import Full, NotReady, Pool

LATER = (b"retry-after", b"1")
NOT_RUN = (b"x-drivetrain-not-run", b"1")
"""The call was not run, and may be sent again."""
TIMEOUT = b"x-request-timeout-ms"

_STATES = {
    "UNHEALTHY": "The model's process has ended; it is being started again.",
    "DEFUNCT": "The model's process has ended too often; it is not started again.",
    "STOPPING": "The replica is ending.",
}
_OUTCOMES = {499: "canceled", 500: "failed", 503: "rejected", 504: "expired"}


def reply_json(exchange: Exchange, status: int, value: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Answers with JSON."""
    exchange.reply(Response(status, msgspec.json.encode(value), headers))


def outcome_of(answer: Answer) -> str:
    """What the answer is counted as: Cog's API says 200 of a prediction that failed, too."""
    if answer.status == 200:
        if not answer.meta:
            return "succeeded"
        return next((kind for mark, kind in _MARKS if mark in answer.meta), "succeeded")
    return _OUTCOMES.get(answer.status, "refused")


_MARKS = ((b'"failed"', "failed"), (b'"canceled"', "canceled"))


def headers_of(answer: Answer) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that belong to an answer that is no success."""
    marks = (NOT_RUN,) if b'"not_run"' in answer.meta else ()
    return (LATER, *marks) if answer.status == 503 else marks


class BadTimeout(ValueError):
    """The header with the caller's patience is no number."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one protocol names itself in the metrics, and what it says when nothing can be run."""

    wire: Wire
    word: str
    refusal: Callable[[str], object]
    not_ready: str


@dataclass(slots=True)
class Front:
    """The replica's parts, as the routes need them. `shut_down` begins an orderly end."""

    name: str
    pool: Pool
    metrics: Metrics
    token: str
    shut_down: Callable[[], None]

    @property
    def live(self) -> bool:
        """Whether predictions are answered, or may be again: the worker has not been given up."""
        return self.pool.state not in ("SETUP_FAILED", "DEFUNCT")

    def submit(
        self,
        exchange: Exchange,
        protocol: Protocol,
        headers: Mapping[bytes, bytes],
        body: bytes,
        meta: bytes,
        done: Callable[[Answer], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Hands a call to the worker; gives its ticket, or 0 if it was answered here: nothing can be run now."""
        try:
            deadline = deadline_of(headers, exchange.request.arrived) if TIMEOUT in headers else None
            return self.pool.submit(Call(protocol.wire, body, meta, deadline), done, progress)
        except BadTimeout as error:
            reply_json(exchange, 400, protocol.refusal(str(error)))
            outcome = "refused"
        except NotReady as error:
            words = _STATES.get(str(error), protocol.not_ready)
            reply_json(exchange, 503, protocol.refusal(words), (LATER, NOT_RUN))
            outcome = "rejected"
        except Full as error:
            reply_json(exchange, 503, protocol.refusal(f"At capacity: {error}"), (LATER, NOT_RUN))
            outcome = "rejected"
        self.metrics.ended(protocol.word, outcome, 0.0)
        return 0

    def ended(self, word: str, exchange: Exchange, answer: Answer, began: float) -> None:
        """Answers, and counts. `began` is when the request was here, in seconds of `time.monotonic()`."""
        status = answer.status
        exchange.reply(Response(status, answer.body, headers_of(answer) if status >= 500 else ()))
        self.metrics.ended(word, outcome_of(answer), monotonic() - began)

    def permitted(self, exchange: Exchange) -> bool:
        """Whether the caller may change something; answers 401 if not."""
        if not self.token:
            return True
        said = exchange.request.header(b"authorization") or b""
        if hmac.compare_digest(said, b"Bearer " + self.token.encode()):
            return True
        reply_json(exchange, 401, {"error": "a bearer token is needed"}, ((b"www-authenticate", b"Bearer"),))
        return False


def deadline_of(headers: Mapping[bytes, bytes], arrived: float) -> float:
    """When the caller's patience ends, which the header `X-Request-Timeout-Ms` tells. Raises `BadTimeout`.

    The event loop's time, which requests carry, is that of `time.monotonic()`, to the millisecond.
    """
    try:
        return arrived + int(headers[TIMEOUT]) / 1000.0
    except (ValueError, OverflowError) as error:
        raise BadTimeout("the header X-Request-Timeout-Ms has to be a whole number of milliseconds") from error
