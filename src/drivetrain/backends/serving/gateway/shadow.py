"""Copies of predictions for a revision that is tried out: its answers are captured and counted, and then dropped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from time import perf_counter

from drivetrain.backends.serving.gateway.contracts import Recorder
from drivetrain.backends.serving.gateway.endings import has_failed
from drivetrain.backends.serving.gateway.forward import Forward, Outbound, Shared
from drivetrain.backends.serving.gateway.requests import Read
from drivetrain.backends.serving.gateway.service import Service
from drivetrain.backends.serving.http.messages import Headers, Request, Response, Stream

_MOST = 64
"""Copies under way; beyond it they are dropped."""


class Nobody:
    """An `Exchange` whose client does not wait for the answer."""

    gone = False

    def __init__(self, request: Request) -> None:
        self.request = request

    def reply(self, response: Response) -> None:
        """Nothing."""

    def stream(self, status: int, headers: Headers, content_type: bytes) -> Stream:
        """Copies are never asked for piece by piece."""
        raise RuntimeError("a copy is not streamed")

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Nothing: there is no client to go."""


class Shadow:
    """Sends the copies."""

    def __init__(self, service: Service, shared: Shared, recorder: Recorder | None) -> None:
        self._service = service
        self._shared = shared
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._under_way = 0

    def copy(self, request: Request, out: Outbound, read: Read, event: str | None) -> None:
        """Sends the request to the shadow too, after whatever else is to be done now.

        What would call somebody back is not copied: they would be called twice.
        """
        revision = self._service.shadow
        if revision is None:
            return
        if not revision.ready:
            revision.pool.wake()
        if not revision.ready or self._under_way >= _MOST or read.asynchronous or b'"webhook"' in out.body:
            revision.pool.numbers.shadow["dropped"] += 1
            return
        self._under_way += 1
        headers = [header for header in out.headers if header[0] != b"accept"]
        mine = Outbound(out.method, out.target, headers, out.body, out.deadline)
        forward = Forward(self._shared, revision.pool, Nobody(request), mine, self._finish)
        forward.patient = False
        if event is not None and self._recorder is not None:
            content_type = read.content_type.decode("latin-1")
            at = time.time() if read.at is None else read.at
            if self._recorder.request(event, revision.name, request.path, content_type, out.body, at):
                forward.event, forward.at = event, read.at
        self._loop.call_soon(forward.start)

    def _finish(self, forward: Forward, response: Response) -> None:
        self._under_way -= 1
        counts = forward.pool.numbers.shadow
        if response.status == 503:
            counts["dropped"] += 1
        else:
            counts["failed" if response.status >= 500 or has_failed(response.body) else "sent"] += 1
        if forward.event is not None and self._recorder is not None:
            took = perf_counter() - forward.started
            content_type = response.content_type.decode("latin-1")
            self._recorder.response(
                forward.event, forward.pool.revision, forward.exchange.request.path, content_type, response.body,
                time.time() if forward.at is None else forward.at, response.status, took,
            )  # fmt: skip
