"""Answers that come piece by piece (server-sent events), passed on as they come; a slow reader holds the replica back."""

from __future__ import annotations

import asyncio
import math

from drivetrain.backends.serving.gateway.endings import Kept
from drivetrain.backends.serving.gateway.forward import TIMEOUT, Forward, passed_on, refused
from drivetrain.backends.serving.gateway.upstreams import Upstream
from drivetrain.backends.serving.http.messages import Response
from drivetrain.backends.serving.http.outcomes import ClientError, ClientResponse, TimedOut
from drivetrain.backends.serving.http.streamed import StreamedAnswer

EVENTS = b"text/event-stream"
"""The media type that a caller accepts who wants to read along."""
_KEPT = 1024**2
"""Bytes of a streamed answer that are kept for the capture log, besides its last event."""


class Relays:
    """Streams under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, forward: Forward, upstream: Upstream, left: float) -> None:
        """Sends the request, and passes on what comes."""
        task = asyncio.get_running_loop().create_task(_relay(forward, upstream, left))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        forward.exchange.on_disconnect(task.cancel)


async def _relay(forward: Forward, upstream: Upstream, left: float) -> None:
    out = forward.out
    headers = [*out.headers, (TIMEOUT, b"%d" % math.ceil(left * 1000))]
    try:
        async with (
            asyncio.timeout(left),
            upstream.client.stream(out.method, out.target, headers, out.body, left) as answer,
        ):
            if answer.status in (409, 503):
                await _pass_whole(forward, upstream, answer)
            else:
                await _pass_on(forward, upstream, answer)
    except TimeoutError:
        forward.failed(upstream, TimedOut("the answer was not complete in time", sent=True))
    except ClientError as error:
        forward.failed(upstream, error)
    except ConnectionError:  # the client has gone in the middle of a piece
        forward.abandon()
    forward.pool.pump()


async def _pass_whole(forward: Forward, upstream: Upstream, answer: StreamedAnswer) -> None:
    """An answer that may say that the request was not run."""
    body = b"".join([piece async for piece in answer])
    whole = ClientResponse(answer.status, answer.headers, body)
    if (reason := refused(whole)) is not None:
        forward.not_taken(upstream, whole.status, reason)
        return
    forward.answered(upstream)
    content_type, headers = passed_on(whole.headers)
    forward.finish(Response(whole.status, body, headers, content_type))


async def _pass_on(forward: Forward, upstream: Upstream, answer: StreamedAnswer) -> None:
    content_type, headers = passed_on(answer.headers)
    stream = forward.exchange.stream(answer.status, [*headers, *forward.marks, forward.pool.mark], content_type)
    forward.streamed = True
    kept = Kept(_KEPT)
    try:
        async for piece in answer:
            await stream.write(piece)
            kept.add(piece)
    except (ClientError, asyncio.CancelledError):  # the latter: out of time
        stream.abort()
        raise
    stream.end()
    forward.answered(upstream)
    forward.finish(Response(answer.status, kept.body(), headers, content_type))
