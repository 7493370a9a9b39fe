"""What comes of a request: an answer, or an error that says whether the request may be sent again.

ClientError           sent: whether the server may have seen the request
├── ConnectFailed     it was not sent
├── ConnectionLost    the connection ended before the answer was complete
├── TimedOut          no (whole) answer in time
└── BadAnswer         what came was not HTTP, or too large
"""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.backends.serving.http.messages import Headers
from drivetrain.errors import ServingError


@dataclass(slots=True)
class ClientResponse:
    """One answer, read whole. Names of headers are in lower case."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header of that name (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value.strip()
        return None


class ClientError(ServingError):
    """There is no answer. Unless `sent`, another try is safe whatever the request does."""

    def __init__(self, message: str, *, sent: bool, where: str = "") -> None:
        super().__init__(message, where=where)
        self.sent = sent


class ConnectFailed(ClientError):
    """There was no connection to be had: nothing was sent."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message, sent=False, where=where)


class ConnectionLost(ClientError):
    """The connection ended before the answer was complete.

    `reused` and not `answered`: the connection had been used before, and no byte of an answer came; most often the server closed
    it for being idle while the request was under way, and has not run it. `answered`: a part of the answer had come.
    """

    def __init__(self, message: str, *, sent: bool, reused: bool, answered: bool, where: str = "") -> None:
        super().__init__(message, sent=sent, where=where)
        self.reused = reused
        self.answered = answered


class TimedOut(ClientError):
    """There was no answer in time. Not `sent`: no connection became free."""


class BadAnswer(ClientError):
    """What came is not an HTTP/1.1 answer, or is larger than may be."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message, sent=True, where=where)
