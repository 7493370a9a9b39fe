"""Packets in, requests out; what is not a request, or more than may be, is refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote_to_bytes

import httptools

from drivetrain.backends.serving.http.messages import Limits, Request
from drivetrain.backends.serving.http.wire import lines

IDLE, HEAD, BODY = range(3)
"""Between requests; within a head; within a body."""

CHUNK_OVERHEAD = 8
"""Bytes of chunk heads and trailers for each byte of body, beyond the size of a head, that are borne."""

OFTEN = 256
"""Targets up to this length are remembered taken apart."""

HEEDED = frozenset((b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade"))


class Owner(Protocol):
    """The connection that the packets come from."""

    def requested(self, request: Request, keep_alive: bool, old: bool) -> None:
        """A request is complete; `old` is HTTP/1.0."""
        ...

    def refuse(self, status: int, reason: str) -> None:
        """Nothing more can be read from this client, for this reason."""
        ...

    def expected(self) -> None:
        """The client waits for `100 Continue` before it sends a body."""
        ...


class Reader:
    """Reads the requests of one connection. `deaf` has all that still comes thrown away."""

    __slots__ = (
        "_arrived",
        "_began_here",
        "_body",
        "_framing",
        "_headers",
        "_keep_alive",
        "_length",
        "_most_body",
        "_most_headers",
        "_now",
        "_old",
        "_owner",
        "_packet",
        "_parser",
        "_raw",
        "_resumed",
        "_url",
        "deaf",
        "since",
        "stage",
    )

    def __init__(self, owner: Owner, limits: Limits) -> None:
        self.stage = IDLE
        self.since = 0.0
        """When the stage began."""
        self.deaf = False
        self._owner = owner
        self._most_headers = limits.headers
        self._most_body = limits.body
        self._parser = httptools.HttpRequestParser(self)
        self._now = self._arrived = 0.0
        self._packet = self._raw = self._length = 0
        self._began_here = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._framing: dict[bytes, bytes] = {}
        self._keep_alive = True
        self._old = False
        self._resumed = False  # within the body of a request whose head another parser has read

    @property
    def expecting(self) -> bool:
        """Whether the client waits for `100 Continue`."""
        waits = self.stage == BODY and b"expect" in self._framing and not self._old
        return waits and self._has_body() and not self._body

    def invited(self) -> None:
        """The client has been told to go on."""
        self._framing.pop(b"expect", None)

    def feed(self, data: bytes, now: float) -> None:
        """Reads a packet."""
        if self.deaf:
            return
        self._now = now
        self._packet = len(data)
        self._began_here = 0
        within = self.stage != IDLE
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_plain(data[upgrade.args[0] :], now)
        except httptools.HttpParserError:
            self._refuse(400, "not a valid HTTP/1.1 request")
        if self.stage != IDLE and not self.deaf:
            if not self._began_here:
                self._count(len(data))
            elif self._began_here == 1 and not within:  # all of the packet is of this request
                self._count(len(data) - (self._head_size() if self.stage == BODY else 0))

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._resumed:
            return
        self.stage = HEAD
        self._arrived = self.since = self._now
        self._began_here += 1
        self._raw = self._length = 0
        self._url = b""
        self._headers = []
        self._body = []
        if self._framing:
            self._framing = {}

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        if not self._resumed:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers behind a body are dropped."""
        if self.stage != HEAD:
            return
        name = name.lower()
        self._headers.append((name, value))
        if name in HEEDED:
            self._framing[name] = value

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self.deaf or self._resumed:
            return
        self.stage = BODY
        self.since = self._now
        if self._raw + self._packet > self._most_headers and self._head_size() > self._most_headers:
            self._refuse(431, f"the headers are larger than {self._most_headers} bytes")
            return
        self._raw = 0
        self._keep_alive = self._parser.should_keep_alive()
        framing = self._framing
        self._old = (not self._keep_alive or b"connection" in framing) and self._parser.get_http_version() == "1.0"
        if framing:
            if b"content-length" in framing and int(framing[b"content-length"]) > self._most_body:
                self._refuse(413, f"the body is larger than {self._most_body} bytes")
            elif b"expect" in framing:
                self._heed_expectation()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.deaf:
            return
        self._body.append(piece)
        self._length += len(piece)
        if self._length > self._most_body:
            self._refuse(413, f"the body is larger than {self._most_body} bytes")

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.deaf or (b"upgrade" in self._framing and self._parser.should_upgrade() and self._has_body()):
            return
        self._resumed = False
        self.stage = IDLE
        self.since = self._now
        target = _split_often(self._url) if len(self._url) <= OFTEN else split_target(self._url)
        if target is None:
            self._refuse(400, "the target is neither a path nor an http address")
            return
        body = self._body
        request = Request(
            self._parser.get_method().decode(),
            target[0],
            target[1],
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._arrived,
        )
        if not self._keep_alive:
            self.deaf = True
        self._owner.requested(request, self._keep_alive, self._old)

    def _stay_plain(self, rest: bytes, now: float) -> None:
        # The client would change to another protocol (Java's and curl's offer HTTP/2 so). It is answered in this one. The parser stops
        # behind the head of such a request; its body, if any, is read by another parser that is given the framing alone.
        if self.deaf:
            return
        has_body = self.stage == BODY
        framing = self._framing
        method = self._parser.get_method()
        self._parser = httptools.HttpRequestParser(self)
        if has_body:
            self._resumed = True
            kept = [(name, framing[name]) for name in (b"content-length", b"transfer-encoding") if name in framing]
            try:
                self._parser.feed_data(method + b" / HTTP/1.1\r\n" + lines(kept) + b"\r\n")
            except httptools.HttpParserError:  # the first parser had no interest in how the body is framed
                self._refuse(400, "not a valid HTTP/1.1 request")
        if rest:
            self.feed(rest, now)

    def _has_body(self) -> bool:
        return b"transfer-encoding" in self._framing or int(self._framing.get(b"content-length", b"0")) > 0

    def _heed_expectation(self) -> None:
        if self._framing[b"expect"].strip().lower() != b"100-continue":
            self._refuse(417, "what the header Expect asks for is not known")
        elif self.expecting:
            self._owner.expected()

    def _head_size(self) -> int:
        return len(self._url) + sum([len(name) + len(value) + 4 for name, value in self._headers])

    def _count(self, size: int) -> None:
        # Only what is not complete yet is counted by packets; a packet that holds other requests before this one is not.
        self._raw += size
        if self.stage == HEAD and self._raw > self._most_headers:
            self._refuse(431, f"the headers are larger than {self._most_headers} bytes")
        elif self.stage == BODY and self._raw > self._most_headers + CHUNK_OVERHEAD * self._length:
            self._refuse(413, "the body is mostly overhead")

    def _refuse(self, status: int, reason: str) -> None:
        if not self.deaf:
            self.deaf = True
            self._body = []
            self._owner.refuse(status, reason)


def split_target(url: bytes) -> tuple[str, str] | None:
    """Path (percent-decoded) and query (raw) of a request's target; None for one that has no path."""
    if not url.startswith(b"/") and url != b"*":
        scheme, found, rest = url.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            return None
        start = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        url = rest[start:] if rest[start : start + 1] == b"/" else b"/" + rest[start:]
    path, _, query = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace"), query.decode("latin-1")


_split_often = lru_cache(maxsize=1024)(split_target)
