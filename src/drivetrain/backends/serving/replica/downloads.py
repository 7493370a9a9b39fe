"""Inputs that are files: a data URI or an address becomes a temporary file, within a limit of size and time."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import os
import re
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import cache
from http.client import HTTPException, HTTPResponse

from drivetrain.backends.serving.replica.calls import INPUTS
from drivetrain.backends.serving.replica.guarded import GuardedHttp, GuardedHttps

SIZE = 1024**3
TIME = 60.0
_CHUNK = 256 * 1024
_DATA = re.compile(r"data:(?P<kind>[^,;]*)(?P<options>(;[^,;]*)*),", re.ASCII)
_LONGEST = 200


class NotFetched(ValueError):
    """The file that an input names could not be had; says which and why."""


def fetch(source: str, size: int = SIZE, within: float = TIME) -> str:
    """The path of a new temporary file with what the data URI or address holds. The caller removes it.

    Raises `NotFetched` for anything but `data:`, `http:` and `https:` (a path would name a file of this machine), for one that is larger
    than `size` bytes, for one that has not come whole `within` seconds, and for one at a link-local address.
    """
    scheme = source.partition(":")[0].lower()
    if scheme == "data":
        kind, content = decode(source, size)
        return _write("file" + (mimetypes.guess_extension(kind) or ""), iter((content,)), size, source)
    if scheme in ("http", "https"):
        return _download(source, size, within)
    raise NotFetched(f"'{source[:100]}' is no address of a file: 'data', 'http', or 'https' is supported")


def decode(source: str, size: int = SIZE) -> tuple[str, bytes]:
    """Media type and content of a data URI. Raises `NotFetched`."""
    head = _DATA.match(source)
    if head is None:
        raise NotFetched("a data URI has the form 'data:TYPE;base64,CONTENT'")
    text = source[head.end() :]
    if len(text) > size * 4 // 3 + 4:
        raise NotFetched(f"the data URI holds more than {size} bytes")
    try:
        if "base64" in head["options"].lower().split(";"):
            content = base64.b64decode(urllib.parse.unquote(text) if "%" in text else text, validate=True)
        else:
            content = urllib.parse.unquote_to_bytes(text)
    except binascii.Error as error:
        raise NotFetched(f"the data URI is no base64: {error}") from error
    return head["kind"] or "text/plain", content


def _download(source: str, size: int, within: float) -> str:
    request = urllib.request.Request(source)
    if agent := os.environ.get("COG_USER_AGENT"):
        request.add_header("User-Agent", agent)
    deadline = time.monotonic() + within
    try:
        with _opener().open(request, timeout=min(within, 10.0)) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            if announced > size:
                raise NotFetched(f"{source} has {announced} bytes, more than the {size} that are taken")
            return _write(_name(source), _pieces(response, source, deadline, within), size, source)
    except (OSError, HTTPException) as error:
        if time.monotonic() > deadline:
            raise _too_slow(source, within) from error
        raise NotFetched(f"{source} could not be fetched: {error}") from error


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https alone, also where a redirect leads elsewhere."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Http(),
        _Https(),
    ):
        opener.add_handler(handler)
    return opener


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(GuardedHttp, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(GuardedHttps, req)


def _pieces(response: object, source: str, deadline: float, within: float) -> Iterator[bytes]:
    read = response.read1  # type: ignore[attr-defined]
    while piece := read(_CHUNK):
        if time.monotonic() > deadline:
            raise _too_slow(source, within)
        yield piece


def _too_slow(source: str, within: float) -> NotFetched:
    return NotFetched(f"{source} did not come whole within {within:g} s")


def _write(name: str, pieces: Iterator[bytes], size: int, source: str) -> str:
    place = os.environ.get(INPUTS)
    if place is not None:
        os.makedirs(place, mode=0o700, exist_ok=True)
    descriptor, path = tempfile.mkstemp(suffix=name, dir=place)
    total = 0
    try:
        with open(descriptor, "wb") as file:
            for piece in pieces:
                total += len(piece)
                if total > size:
                    raise NotFetched(f"{source[:100]} has more than the {size} bytes that are taken")
                file.write(piece)
    except BaseException:
        os.unlink(path)
        raise
    return path


def _name(source: str) -> str:
    """The file's own name at the end of the temporary one, so that its ending tells its type."""
    base = urllib.parse.unquote_plus(os.path.basename(urllib.parse.urlparse(source).path))
    base = base.replace("\0", "_").replace("/", "_")
    stem, ending = os.path.splitext(base)
    kept = stem.encode()[: _LONGEST - len(ending.encode())].decode(errors="ignore")
    return f"{kept}{ending}" if len(ending.encode()) < _LONGEST else kept
