"""Alertmanager's webhook (version 4): what it says, and which alerts fire by all that it has said."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from drivetrain.engines.rules import Alert

MOST = 2000
"""Alerts of one message that are looked at."""
SILENCE = 5 * 3600.0
"""Seconds after which an alert that fired, and was told of no more, counts as over: Alertmanager tells it again each 4 hours if nobody
says otherwise."""
_LONGEST = 256


class _Told(msgspec.Struct, gc=False):
    """One alert of a message. Whatever else it has is passed over."""

    status: str
    labels: dict[str, str]
    startsAt: str
    fingerprint: str
    annotations: dict[str, str] = {}


class _Message(msgspec.Struct, gc=False):
    version: str
    alerts: list[_Told]


class _Kept(msgspec.Struct, gc=False):
    """What is kept of an alert."""

    trigger: str
    labels: dict[str, str]
    value: float | None = None


_message = msgspec.json.Decoder(_Message).decode
_kept = msgspec.json.Decoder(_Kept).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Read:
    """What a message says: fingerprint, when it began, status and what is kept of each alert that is about a trigger; how many are about
    something else."""

    alerts: list[tuple[str, str, str, str]]
    unknown: int


def read(body: bytes, service: str, triggers: Collection[str]) -> Read:
    """The alerts of a message that are about these triggers of the service. Raises `ValueError`, in words, for what is no such message."""
    try:
        message = _message(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this is no message of Alertmanager's webhook: {error}") from error
    if message.version != "4":
        raise ValueError(f"the version of the message is {message.version[:20]!r}; 4 is understood")
    found: list[tuple[str, str, str, str]] = []
    for told in message.alerts[:MOST]:
        if told.status not in ("firing", "resolved") or _instant(told.startsAt) is None:
            raise ValueError("an alert is `firing` or `resolved`, and `startsAt` an instant")
        if not 0 < len(told.fingerprint) <= _LONGEST:
            raise ValueError(f"a fingerprint has 1 to {_LONGEST} characters")
        name = told.labels.get("alertname", "")
        if name in triggers and told.labels.get("service", service) == service:
            found.append((told.fingerprint, told.startsAt, told.status, _document(name, told)))
    return Read(found, len(message.alerts) - len(found))


def alerts(rows: Iterable[tuple[str, str, str, str, float, int]], now: float) -> list[Alert]:
    """The alerts that fire, from what the journal has kept of all messages, in any order.

    An alert fires if its newest beginning has been told as firing and not as resolved.
    """
    newest: dict[str, dict[str, tuple[float, str, float]]] = {}
    for fingerprint, starts_at, status, document, last, _ in rows:
        at = _instant(starts_at)
        if at is None:
            continue
        known = newest.get(fingerprint)
        if known is not None and next(iter(known.values()))[0] > at:
            continue
        if known is None or next(iter(known.values()))[0] < at:
            known = newest[fingerprint] = {}
        known[status] = (at, document, last)
    found = []
    for fingerprint, known in newest.items():
        if "firing" in known and "resolved" not in known:
            at, document, last = known["firing"]
            if now - last <= SILENCE:
                kept = _kept(document)
                value = math.nan if kept.value is None else kept.value
                found.append(Alert(kept.trigger, fingerprint, "firing", min(at, now), now, value, kept.labels))
    return found


def _document(name: str, told: _Told) -> str:
    labels = {key[:_LONGEST]: text[:_LONGEST] for key, text in list(told.labels.items())[:32]}
    return _encode(_Kept(name, labels, _number(told.annotations.get("value", "")))).decode()


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _instant(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if found.tzinfo is None else found.timestamp()
