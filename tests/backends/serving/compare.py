"""Two servers' answers to the same requests, compared: what differs is written as lines of words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.backends.serving.servers import Reply

HEADERS = ("content-type", "allow", "cache-control", "retry-after", "www-authenticate", "location")
"""Headers that a client may act on."""
_ABSENT = object()


def lines(cog: Sequence[Reply], replica: Sequence[Reply]) -> list[str]:
    """What differs, in the order of the requests; empty if nothing does."""
    if len(cog) != len(replica):
        return [f"replies: {len(cog)} -> {len(replica)}"]
    found = []
    for number, (one, other) in enumerate(zip(cog, replica, strict=True), 1):
        before = f"{number}: " if len(cog) > 1 else ""
        found += [before + line for line in _reply_lines(one, other)]
    return found


def _reply_lines(one: Reply, other: Reply) -> Iterator[str]:
    if one.status != other.status:
        yield f"status: {one.status} -> {other.status}"
    for name in HEADERS:
        if one.headers.get(name) != other.headers.get(name):
            yield f"{name}: {one.headers.get(name, 'none')} -> {other.headers.get(name, 'none')}"
    yield from _value_lines("body", content(one), content(other))


def content(reply: Reply) -> Any:
    """The body: events, JSON or text, with what differs from call to call masked."""
    if reply.content_type == "text/event-stream":
        return [[name, masked(data)] for name, data in reply.events()]
    if reply.content_type == "application/json" and reply.body:
        return masked(reply.json())
    return reply.body.decode(errors="replace")


def masked(value: Any, key: str = "", within: str = "") -> Any:
    """The value with ids, times and versions replaced by words that say their form."""
    if isinstance(value, dict):
        return {name: masked(entry, name, key) for name, entry in value.items()}
    if isinstance(value, list):
        return [masked(entry) for entry in value]
    if key == "predict_time" and isinstance(value, float) and value >= 0:
        return "<seconds>"
    if key == "id" and isinstance(value, str) and re.fullmatch(r"pred_[0-9a-f]{16,}", value):
        return "<new id>"
    if key in ("started_at", "completed_at") and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", str(value)):
        return "<time>"
    if within == "version" and isinstance(value, str):
        return "<text>"
    if within == "setup" and key == "logs" and isinstance(value, str):
        return "<text>"
    return value


def _value_lines(path: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from _value_lines(f"{path}.{name}", one.get(name, _ABSENT), other.get(name, _ABSENT))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _value_lines(f"{path}[{number}]", left, right)
    elif one is _ABSENT or other is _ABSENT or json.dumps(one) != json.dumps(other):  # 1 and 1.0 are not the same here
        yield f"{path}: {_shown(one)} -> {_shown(other)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "none"
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 300 else text[:300] + "..."
