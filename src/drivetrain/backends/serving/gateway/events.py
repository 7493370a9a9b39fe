"""What is captured, as CloudEvents 1.0 in the format of KServe's logger, with the extension attributes revision, path, status, took."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
FEEDBACK = "drivetrain.feedback"

_json = msgspec.json.Encoder().encode
# What the HTTP binding of CloudEvents leaves as it is: printable ASCII without space, double quote and percent sign.
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Event(msgspec.Struct, frozen=True, gc=False):
    """One request, answer or label. Request and answer of a prediction share its `id`.

    `at` is in seconds since the epoch, `took` in seconds; `status` is 0 but for answers. A struct, since the event loop makes
    two of them for each prediction.
    """

    type: str
    id: str
    revision: str
    path: str
    content_type: str
    body: bytes
    at: float
    status: int = 0
    took: float = 0.0
    service: str = ""
    source: str = ""


class _Attributes(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    id: str
    type: str
    specversion: str
    source: str
    time: datetime
    datacontenttype: str
    inferenceservicename: str
    component: str
    revision: str
    path: str
    status: int = 0
    took: str = ""
    """CloudEvents has no type for fractions."""


_decode = msgspec.json.Decoder(_Attributes).decode


def head(event: Event) -> bytes:
    """The attributes as JSON, the id first (`find` looks for it)."""
    attributes = _Attributes(
        event.id,
        event.type,
        "1.0",
        event.source,
        datetime.fromtimestamp(event.at, UTC),
        event.content_type,
        event.service,
        "predictor",
        event.revision,
        event.path,
        event.status,
        f"{event.took:.6f}" if event.type == RESPONSE else "",
    )
    try:
        return _json(attributes)
    except UnicodeEncodeError:
        names = ("id", "content_type", "revision", "path")
        return head(msgspec.structs.replace(event, **{name: _clean(getattr(event, name)) for name in names}))


def id_prefix(event_id: str) -> bytes:
    """What the head of every event of that id starts with."""
    return b'{"id":' + _json(_clean(event_id)) + b',"type":"'


def parse(attributes: bytes, body: bytes) -> Event:
    """The event that `head` was made of. Raises `ValueError` for anything else."""
    try:
        found = _decode(attributes)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no attributes of a captured event: {error}") from error
    return Event(
        type=found.type,
        id=found.id,
        revision=found.revision,
        path=found.path,
        content_type=found.datacontenttype,
        body=body,
        at=found.time.timestamp(),
        status=found.status,
        took=float(found.took or 0),
        service=found.inferenceservicename,
        source=found.source,
    )


def binary_headers(event: Event, now: float) -> list[tuple[str, str]]:
    """The HTTP headers of a binary-mode POST, those of KServe's logger and ours. `now` is when it is sent."""
    headers = [
        ("Ce-Specversion", "1.0"),
        ("Ce-Id", encoded(event.id)),
        ("Ce-Type", event.type),
        ("Ce-Source", encoded(event.source)),
        ("Ce-Time", timestamp(event.at)),
        ("Ce-Recordedtime", timestamp(now)),
        ("Ce-Inferenceservicename", encoded(event.service)),
        ("Ce-Namespace", ""),
        ("Ce-Component", "predictor"),
        ("Ce-Endpoint", ""),
        ("Ce-Metadata", "{}"),
        ("Ce-Revision", encoded(event.revision)),
        ("Ce-Path", encoded(event.path)),
    ]
    if event.type == RESPONSE:
        headers += [("Ce-Status", str(event.status)), ("Ce-Took", f"{event.took:.6f}")]
    if event.content_type:
        headers.append(("Content-Type", encoded(event.content_type, keep=' "%')))
    return headers


def encoded(value: str, keep: str = "") -> str:
    """A header's value: percent-encoded as CloudEvents' HTTP binding says, so that no value can end its line."""
    return quote(value, safe=_PRINTABLE + keep, errors="replace")


def timestamp(at: float) -> str:
    """RFC 3339, in microseconds and UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _clean(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
