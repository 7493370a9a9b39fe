"""Work for a request that takes a coroutine: whatever becomes of it, the request gets an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from drivetrain.backends.serving.http.messages import Exchange, Response

log = logging.getLogger(__name__)


class Tasks:
    """Tasks under way, each for one request. A client that goes does not end its task."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Exchange] = {}

    def start(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Carries out the work, which is to answer the request."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = exchange
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Gives up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        exchange = self._tasks.pop(task)
        if task.cancelled():
            exchange.reply(_answer(503, "the gateway is ending"))
        elif (error := task.exception()) is not None:
            log.error("%s %s failed", exchange.request.method, exchange.request.path, exc_info=error)
            exchange.reply(_answer(500, "internal error"))


def _answer(status: int, reason: str) -> Response:
    return Response(status, b'{"error":"%b","detail":"%b"}' % (reason.encode(), reason.encode()))
