"""What a target tells at `/metrics`, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from drivetrain.errors import Unavailable

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:\{(.*)\})?[ \t]*([^\s{}_]+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")
_LARGEST = 16 * 1024**2


class Reading(NamedTuple):
    """One sample of a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


def scrape(
    url: str, within: float, *, labels: Mapping[str, str] | None = None, certificate: str | None = None
) -> list[Reading]:
    """Everything that the target at `url` tells, with `labels` added to those of its own, as Prometheus adds a target's.

    `within` is the longest wait, in seconds; `certificate` the file of the certificate that the target has to show, whatever its
    host is called. Raises `Unavailable` if it does not answer, or not in this format.
    """
    context = None
    if certificate is not None:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
    try:
        with urllib.request.urlopen(url, timeout=within, context=context) as answer:
            text = answer.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError("more than 16 MiB")
        return [Reading(name, {**own, **(labels or {})}, value) for name, own, value in read(text.decode())]
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"its metrics cannot be read: {error}", where=url) from error


def read(text: str) -> Iterator[Reading]:
    """The samples of a text, in its order. Times given in it are left out. Raises `ValueError` at a line that is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _SAMPLE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"line {number} is no sample: {line[:200]!r}")
        name, inner, value = found.groups()
        yield Reading(name, _labels(inner or "", number), _value(value, number))


def _labels(inner: str, number: int) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(inner.rstrip()):
        label = _LABEL.match(inner, place)
        if label is None:
            raise ValueError(f"line {number} has labels that cannot be read: {inner[:200]!r}")
        found[label[1]] = _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], label[2])
        place = label.end()
    return found


def _value(text: str, number: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"line {number} has no number as its value: {text[:200]!r}") from None
