"""The metrics of the replicas put under the gateway's own: each sample with the labels `revision` and `replica`.

The text is not parsed into values: a scrape must not hold up the requests of the same process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from drivetrain.backends.serving.gateway.metrics import escape

_SUFFIXES = ("_bucket", "_sum", "_count", "_total", "_created")


@dataclass(slots=True)
class _Family:
    comments: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def merge(scrapes: Iterable[tuple[str, str, str]]) -> list[str]:
    """The lines of several scrapes (revision, replica, text), samples of one metric together as Prometheus wants it."""
    families: dict[str, _Family] = {}
    for revision, replica, text in scrapes:
        labels = f'revision="{escape(revision)}",replica="{escape(replica)}"'
        described: set[str] = set()
        for line in text.splitlines():
            if line.startswith("#"):
                _describe(line, families, described)
            elif line.strip():
                _place(line, labels, families)
    return [line for found in families.values() for line in (*found.comments, *found.samples)]


def _describe(line: str, families: dict[str, _Family], described: set[str]) -> None:
    """Keeps the first HELP and TYPE of each metric."""
    words = line.split(None, 3)
    if len(words) < 3 or words[1] not in ("HELP", "TYPE"):
        return
    found = families.setdefault(words[2], _Family())
    if len(found.samples) == 0 and (key := f"{words[1]} {words[2]}") not in described:
        described.add(key)
        if not any(comment.startswith(f"# {key}") for comment in found.comments):
            found.comments.append(line)


def _place(line: str, labels: str, families: dict[str, _Family]) -> None:
    opening = line.find("{")
    name = line[:opening] if opening >= 0 else line.split(None, 1)[0]
    rest = line[len(name) :]
    if opening >= 0:
        inner = rest[1:]
        labelled = f"{name}{{{labels}{inner}" if inner.startswith("}") else f"{name}{{{labels},{inner}"
    else:
        labelled = f"{name}{{{labels}}}{rest}"
    families.setdefault(_family_of(name, families), _Family()).samples.append(labelled)


def _family_of(name: str, families: dict[str, _Family]) -> str:
    if name in families:
        return name
    for suffix in _SUFFIXES:
        stem = name.removesuffix(suffix)
        if stem != name and stem in families:
            return stem
    return name
