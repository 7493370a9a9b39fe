"""An answer that is read as it comes, with the server held back while the reader is slower."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from drivetrain.backends.serving.http.link import Call
from drivetrain.backends.serving.http.messages import Headers
from drivetrain.backends.serving.http.outcomes import ClientError

AHEAD = 65536
"""Bytes that may lie here unread; beyond it the connection is not read."""


class StreamedAnswer:
    """Status, headers, and the body's pieces: `async with client.stream(...) as answer: async for piece in answer: ...`.

    Entering waits for the head. Leaving before the end closes the connection. Both waits raise `ClientError`.
    """

    def __init__(self, begin: Callable[[Self], Call]) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._begin = begin
        self._call: Call | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: ClientError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._call = self._begin(self)
        try:
            while not self.status and not self._ended:
                await self._news()
        except asyncio.CancelledError:
            self.close()
            raise
        if not self.status and self._error is not None:
            raise self._error
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces and not self._ended:
            await self._news()
        if self._pieces:
            piece = self._pieces.popleft()
            self._size -= len(piece)
            if not self._pieces and not self._ended and self._call is not None and self._call.link is not None:
                self._call.link.go_on()
            return piece
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def close(self) -> None:
        """Gives up what has not come yet."""
        if not self._ended and self._call is not None:
            self._ended = True
            self._call.cancel()

    # the connection's side

    def head(self, status: int, headers: Headers) -> None:
        """Status and headers are there."""
        self.status, self.headers = status, headers
        self._wake()

    def piece(self, data: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > AHEAD and self._call is not None and self._call.link is not None:
            self._call.link.hold()
        self._wake()

    def end(self, error: ClientError | None) -> None:
        """The body is complete, or will not be."""
        self._ended = True
        self._error = error
        self._wake()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
