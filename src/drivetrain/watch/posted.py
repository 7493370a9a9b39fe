"""CloudEvents that are posted to the loop, as KServe's logger posts them (HTTP binding, binary mode), on their way into a capture log."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote

from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE

_POD = re.compile(r"(.+-\d{5})-deployment-[a-z0-9]+-[a-z0-9]+")
"""A pod of Knative's: its revision, then what tells it from others."""
_ROUTES = ((b'"instances"', "v1"), (b'"predictions"', "v1"), (b'"inputs"', "v2"), (b'"outputs"', "v2"))
_HEAD = 512
_STATUS = re.compile("[0-9]{1,3}")


class Recorder(Protocol):
    """Where events are kept; `gateway.capture.Recorder`."""

    def request(self, event_id: str, revision: str, path: str, content_type: str, body: bytes, at: float) -> bool: ...

    def response(
        self, event_id: str, revision: str, path: str, content_type: str, body: bytes, at: float, status: int, took: float
    ) -> None: ...  # fmt: skip

    def feedback(self, event_id: str, body: bytes, at: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Posted:
    """One event, as its headers tell it."""

    type: str
    id: str
    revision: str
    path: str
    content_type: str
    at: float
    status: int
    took: float


def read(header: Callable[[bytes], bytes | None], body: bytes, service: str, now: float) -> Posted:
    """The event that the headers are about. Raises `ValueError`, in words, if they are about none, or say what cannot be.

    KServe's logger names no revision and no path. The revision is what the pod's name begins with, unless an annotation ending in
    `/revision` is sent along (`logger.metadataAnnotations`); the path is that of the protocol that the body looks like. Of a time that
    cannot be read the event is as of now.
    """

    def told(name: bytes) -> str:
        return unquote((header(b"ce-" + name) or b"").decode("latin-1"))[:1000]

    kind, event = told(b"type"), told(b"id")
    if kind not in (REQUEST, RESPONSE, FEEDBACK) or not event:
        raise ValueError(f"an event has an id, and is of the type {REQUEST}, {RESPONSE} or {FEEDBACK}")
    revision = told(b"revision") or _annotated(told(b"annotations")) or _of_pod(told(b"source"))
    return Posted(
        kind, event, revision, told(b"path") or _path(body, service), (header(b"content-type") or b"").decode("latin-1"),
        _instant(told(b"time"), now), _status(told(b"status")), _seconds(told(b"took")),
    )  # fmt: skip


def keep(posted: Posted, body: bytes, recorder: Recorder) -> None:
    """Puts the event into a log."""
    about = posted.id, posted.revision, posted.path, posted.content_type, body, posted.at
    if posted.type == REQUEST:
        recorder.request(*about)
    elif posted.type == RESPONSE:
        recorder.response(*about, posted.status, posted.took)
    else:
        recorder.feedback(posted.id, body, posted.at)


def _annotated(text: str) -> str:
    try:
        found = json.loads(text)
        return next((str(values[0]) for name, values in found.items() if name.endswith("/revision")), "")
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return ""


def _of_pod(source: str) -> str:
    found = _POD.fullmatch(source)
    return found[1] if found else source


def _path(body: bytes, service: str) -> str:
    """Where such a body is sent to; Cog's own route unless it looks like one of KServe's."""
    protocol = next((protocol for name, protocol in _ROUTES if name in body[:_HEAD]), "cog")
    return {"v1": f"/v1/models/{service}:predict", "v2": f"/v2/models/{service}/infer", "cog": "/predictions"}[protocol]


def _instant(text: str, now: float) -> float:
    try:
        found = datetime.fromisoformat(text)
        return found.timestamp() if found.tzinfo is not None else now
    except (ValueError, OverflowError):
        return now


def _status(text: str) -> int:
    """Such as 200; what KServe's logger posts has none."""
    if not text:
        return 200
    if not _STATUS.fullmatch(text):
        raise ValueError("the status of an event has up to three digits, such as 200")
    return int(text)


def _seconds(text: str) -> float:
    try:
        found = float(text or 0.0)
    except ValueError:
        found = math.nan
    if not 0.0 <= found < math.inf:
        raise ValueError("what an answer took is in seconds, such as 0.01")
    return found
