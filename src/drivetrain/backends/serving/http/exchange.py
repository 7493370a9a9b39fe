"""One request on a server's connection, and the answer to it: whole, or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from drivetrain.backends.serving.http.messages import Headers, Request, Response

if TYPE_CHECKING:
    from drivetrain.backends.serving.http.connection import Connection

log = logging.getLogger(__name__)


class Turn:
    """An `Exchange`: the request whose turn it is on its connection."""

    __slots__ = ("_callbacks", "_connection", "answered", "finished", "keep_alive", "old", "request")

    def __init__(self, connection: Connection, request: Request, keep_alive: bool, old: bool) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.old = old
        """HTTP/1.0: no chunks, and `keep-alive` has to be said."""
        self.answered = False
        self.finished = False
        self._connection = connection
        self._callbacks: list[Callable[[], object]] | None = None

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected; what is replied then is dropped."""
        return self._connection.lost

    def reply(self, response: Response) -> None:
        """Answers. A second call is an error (`RuntimeError`)."""
        if self.answered:
            raise RuntimeError(f"{self.request.method} {self.request.path} has its answer already")
        self._connection.answer(self, response)

    def stream(self, status: int, headers: Headers, content_type: bytes) -> Pieces:
        """Starts an answer that is written piece by piece."""
        if self.answered:
            raise RuntimeError(f"{self.request.method} {self.request.path} has its answer already")
        silent, chunked = self._connection.begin(self, status, headers, content_type)
        return Pieces(self, self._connection, silent, chunked)

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Has `callback` called if the client goes before it has its answer."""
        if self._connection.lost and not self.finished:
            self._connection.loop.call_soon(callback)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def abandoned(self) -> None:
        """The client has gone without its answer."""
        for callback in self._callbacks or ():
            try:
                callback()
            except Exception:  # the others are still to be told
                log.exception("%s %s: told of a lost client", self.request.method, self.request.path)


class Pieces:
    """A `Stream`: the body of an answer, written piece by piece."""

    __slots__ = ("_chunked", "_connection", "_ended", "_silent", "_turn")

    def __init__(self, turn: Turn, connection: Connection, silent: bool, chunked: bool) -> None:
        self._turn = turn
        self._connection = connection
        self._silent = silent
        self._chunked = chunked
        self._ended = False

    async def write(self, chunk: bytes) -> None:
        """Sends a piece; waits while the client reads slower than this writes. Raises `ConnectionError` if it has gone."""
        if self._ended:
            raise RuntimeError("the answer is complete")
        if self._connection.closing:
            raise ConnectionResetError("the client has gone")
        if chunk and not self._silent:  # an empty chunk would end the answer
            self._connection.put(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
        await self._connection.drained()

    def end(self) -> None:
        """The answer is complete."""
        if self._ended:
            return
        self._ended = True
        if not self._connection.closing:
            self._connection.end(self._turn, b"0\r\n\r\n" if self._chunked and not self._silent else b"")

    def abort(self) -> None:
        """Cuts the connection, so that the client does not take half of an answer for the whole."""
        self._ended = True
        self._connection.abort()
