"""A blob sent into a repository of a registry: mounted where another repository has it, else in pieces, and on from where it was cut off.

A registry that keeps what had arrived of a request that broke off (the distribution specification allows both) is asked how far it
came, and gets the rest. One that forgets it (Docker's registry before version 3 does) gets the blob from the start; what was whole stays
there in both cases.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode, urljoin

from drivetrain.backends.images import PIECE, Blob
from drivetrain.backends.images.connection import Answer, Body, Connection
from drivetrain.errors import CorruptArtifact, StageError, SystemFault, Unavailable

CHUNK = 64 << 20
"""Bytes of one request. A blob that is larger takes several, between which a broken connection costs nothing."""
WAITS = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
"""Seconds between attempts, eight together: as long as a registry takes to start again."""
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Moved:
    """What it took to have the blob there, in bytes."""

    sent: int = 0
    mounted: int = 0


class Stopped(Exception):
    """Another blob of the same push failed, so that this one is not wanted any more."""


def patiently(action: Callable[[], Result], stop: threading.Event | None = None) -> Result:
    """What `action` gives, tried again while the registry is `Unavailable`."""
    for wait in WAITS:
        try:
            return action()
        except Unavailable:
            if stop is None:
                time.sleep(wait)
            elif stop.wait(wait):
                raise Stopped from None
    return action()


def send(
    connection: Connection, repository: str, blob: Blob, mount_from: Sequence[str], stop: threading.Event
) -> Moved:
    """Has the blob in the repository when it returns.

    Raises `Unavailable`, `SystemFault`, `CorruptArtifact` if the file is not what its digest says, `StageError` if the blob is not here
    either, and `Stopped`.
    """
    upload = _Upload(connection, repository, blob, mount_from, stop)
    return patiently(upload.attempt, stop)


class _Upload:
    """One blob on its way; `attempt` goes on where the one before broke off."""

    def __init__(
        self, connection: Connection, repository: str, blob: Blob, mount_from: Sequence[str], stop: threading.Event
    ) -> None:
        self._connection = connection
        self._repository = repository
        self._blob = blob
        self._mount_from = mount_from
        self._stop = stop
        self._sent = 0
        self._place: str | None = None
        """Address of the upload that the registry has open."""
        self._offset = 0
        """Bytes that it has of it."""

    def attempt(self) -> Moved:
        if self._place is None or not self._can_go_on():
            if self._is_there():
                return Moved(self._sent)
            if self._begin():
                return Moved(self._sent, self._blob.size)
        while self._blob.size - self._offset > CHUNK:
            self._piece()
        self._close()
        return Moved(self._sent)

    def _is_there(self) -> bool:
        where = f"/v2/{self._repository}/blobs/{self._blob.digest}"
        return self._ask("HEAD", where, (200, 404)).status_code == 200

    def _begin(self) -> bool:
        """Opens an upload; True if that was not needed, since the blob was in another repository."""
        path = f"/v2/{self._repository}/blobs/uploads/"
        for number, origin in enumerate(self._mount_from, 1):
            asked = urlencode({"mount": self._blob.digest, "from": origin})
            answer = self._ask("POST", f"{path}?{asked}", (201, 202))
            if answer.status_code == 201:
                return True
            self._continue_at(answer.headers, 0)
            if number < len(self._mount_from):
                self._ask("DELETE", str(self._place), (204, 404, 405))
        if self._blob.path is None:
            raise StageError(f"the layer {self._blob.digest} lies in another registry, and not here")
        if not self._mount_from:
            self._continue_at(self._ask("POST", path, (202,)).headers, 0)
        return False

    def _can_go_on(self) -> bool:
        """Asks the registry how far it came; False if it has forgotten the upload."""
        answer = self._ask("GET", str(self._place), (204, 400, 404, 405))
        there = _RANGE.fullmatch(answer.headers.get("Range", ""))
        if answer.status_code != 204 or there is None:
            self._place = None
            return False
        # `0-0` is both nothing and one byte; to send one byte again would not do.
        last = int(there[1])
        if last == 0 or last >= self._blob.size:
            self._place = None
            return False
        self._continue_at(answer.headers, last + 1)
        return True

    def _piece(self) -> None:
        last = self._offset + CHUNK - 1
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{self._offset}-{last}"}
        answer = self._ask("PATCH", str(self._place), (202, 404, 416), headers, self._body(CHUNK))
        if answer.status_code != 202:
            raise Unavailable(f"the registry {self._connection.host} has lost an upload")
        self._continue_at(answer.headers, last + 1)

    def _close(self) -> None:
        """The rest of the bytes, and the digest that all of them must have."""
        place = str(self._place)
        url = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': self._blob.digest})}"
        rest = self._blob.size - self._offset
        headers = {"Content-Type": "application/octet-stream"}
        if rest and self._offset:
            headers["Content-Range"] = f"{self._offset}-{self._blob.size - 1}"
        answer = self._ask("PUT", url, (201, 204, 400, 404, 416), headers, self._body(rest))
        if answer.status_code in (201, 204):
            return
        self._place = None
        if answer.status_code == 400 and b"DIGEST_INVALID" in answer.content:
            raise CorruptArtifact(
                f"{self._blob.path} is not what its digest says", digest=self._blob.digest, hint="build the image again"
            )
        raise Unavailable(f"the registry {self._connection.host} does not take an upload: {answer.text.strip()}")

    def _continue_at(self, headers: Mapping[str, str], offset: int) -> None:
        if "Location" not in headers:
            raise SystemFault(f"the registry {self._connection.host} does not say where to send a blob")
        self._place = urljoin(f"{self._connection.address}/", headers["Location"])
        self._offset = offset

    def _body(self, length: int) -> Body | bytes:
        # An empty body has a length too; an iterable of none would be sent without.
        return _FilePart(self._blob, self._offset, length, self._count) if length else b""

    def _count(self, sent: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._sent += sent

    def _ask(
        self,
        method: str,
        where: str,
        expected: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body | bytes | None = None,
    ) -> Answer:
        if self._stop.is_set():
            raise Stopped
        return self._connection.send(method, where, self._repository, expected, headers=headers, body=body)


class _FilePart:
    """Part of a file as a request's body, a piece at a time."""

    def __init__(self, blob: Blob, offset: int, length: int, count: Callable[[int], None]) -> None:
        self._blob = blob
        self._offset = offset
        self._length = length
        self._count = count

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        path = self._blob.path
        assert isinstance(path, Path)
        left = self._length
        with path.open("rb", buffering=0) as file:
            file.seek(self._offset)
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise CorruptArtifact(f"{path} is shorter than it was", digest=self._blob.digest)
                left -= len(piece)
                yield piece
                self._count(len(piece))
