"""Frames over a socket pair, cut out of a stream of bytes and gathered into few sends."""

from __future__ import annotations

import socket
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct

_LENGTH = Struct("<I")
_READ = 256 * 1024
_JOINED = 64 * 1024
"""Pieces up to this size are copied into one buffer; larger ones are sent as they are."""
_PIECES = 64
"""Pieces handed to one `sendmsg` (the system's limit is 1024)."""


class Reader:
    """Cuts frames out of what was received: `feed` bytes in, `frames` out, with what is incomplete kept for later."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Adds what was received."""
        self._buffer += data

    def frames(self) -> Iterator[memoryview]:
        """Each complete frame, whole with its length. A view holds only until the next one is asked for."""
        buffer = self._buffer
        end = len(buffer)
        if end < self._missing:
            return  # a long body is still on its way: nothing to look at yet
        at = 0
        with memoryview(buffer) as whole:
            while end - at >= 4:
                size = 4 + _LENGTH.unpack_from(buffer, at)[0]
                if end - at < size:
                    break
                with whole[at : at + size] as frame:
                    yield frame
                at += size
        del buffer[:at]
        self._missing = 4 + _LENGTH.unpack_from(buffer)[0] if len(buffer) >= 4 else 4


def receive(connection: socket.socket, wait: bool = True) -> bytes | None:
    """What has arrived; empty at the other side's end; None if `wait` is false and nothing has."""
    try:
        return connection.recv(_READ, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def send(connection: socket.socket, pieces: list[bytes]) -> None:
    """Sends all pieces on a blocking socket, and empties the list."""
    if sum(map(len, pieces)) <= _JOINED:
        connection.sendall(b"".join(pieces))
    else:
        for piece in _joined(pieces):
            connection.sendall(piece)
    pieces.clear()


class Link:
    """The front's end: frames go out together once an iteration of the loop, and `received` is called with each that comes in.

    `backlog` is how many bytes are still to be sent. `closed` is called once, when the other side has gone.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        connection: socket.socket,
        received: Callable[[memoryview], None],
        closed: Callable[[], None],
    ) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._socket = connection
        self._received = received
        self._closed = closed
        self._reader = Reader()
        self._out: list[bytes] = []
        self._rest: deque[memoryview] = deque()
        self._open = True
        self.backlog = 0
        loop.add_reader(connection.fileno(), self._readable)

    def write(self, head: bytes, body: bytes) -> None:
        """Sends a frame at the end of this iteration of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(head)
        if body:
            self._out.append(body)
        self.backlog += len(head) + len(body)

    def drain(self) -> None:
        """Takes in all that the other side had sent before it went."""
        while self._open and self._readable():
            pass

    def close(self) -> None:
        """Lets the socket go; `closed` is not called."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._out.clear()
            self._rest.clear()

    def _readable(self) -> bool:
        """Takes in what has arrived; whether there was anything."""
        try:
            data = receive(self._socket, wait=False)
        except OSError:
            data = b""
        if not data:
            if data is not None:
                self._lost()
            return False
        self._reader.feed(data)
        for frame in self._reader.frames():
            self._received(frame)
        return True

    def _flush(self) -> None:
        if not self._open or self._rest:
            return  # `_writable` goes on with what has come since
        out = self._out
        try:
            if self.backlog <= _JOINED:
                data = b"".join(out)
                sent = self._socket.send(data)
                out.clear()
                if sent < len(data):
                    self._rest.append(memoryview(data)[sent:])
            else:
                self._rest.extend(memoryview(piece) for piece in _joined(out))
                out.clear()
                sent = self._drain()
        except BlockingIOError:
            self._rest.extend(memoryview(piece) for piece in _joined(out))
            out.clear()
            sent = 0
        except OSError:
            self._lost()
            return
        self.backlog -= sent
        if self._rest:
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            self.backlog -= self._drain()
        except OSError:
            self._lost()
            return
        if not self._rest:
            self._loop.remove_writer(self._socket.fileno())
            if self._out:
                self._flush()

    def _drain(self) -> int:
        """Sends what the socket takes of the rest; gives how much that was."""
        total = 0
        rest = self._rest
        while rest:
            try:
                sent = self._socket.sendmsg([rest[index] for index in range(min(_PIECES, len(rest)))])
            except BlockingIOError:
                break
            total += sent
            while rest and sent >= len(rest[0]):
                sent -= len(rest.popleft())
            if sent:
                rest[0] = rest[0][sent:]
        return total

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._closed()


def _joined(pieces: list[bytes]) -> list[bytes]:
    """The same bytes in fewer pieces: small neighbours are put together, large ones stay as they are."""
    found: list[bytes] = []
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) > _JOINED:
            if small:
                found.append(b"".join(small))
                small = []
            found.append(piece)
        else:
            small.append(piece)
    if small:
        found.append(b"".join(small))
    return found
