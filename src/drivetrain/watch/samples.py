"""What is measured, one value at a time, and the text in which Prometheus reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series: a metric's name, its labels, and what it is now."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Described:
    """What a metric is: `kind` is `gauge` or `counter`, `help` one line, `labels` beside `service`."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


def exposition(samples: Iterable[Sample], described: Mapping[str, Described]) -> str:
    """The samples in Prometheus' text format, those of a metric together under its help and type.

    A metric that is not described gets neither. Of two samples with equal names and labels the later one counts.
    """
    families: dict[str, dict[str, float]] = {}
    for sample in samples:
        families.setdefault(sample.name, {})[_labels(sample.labels)] = sample.value
    lines: list[str] = []
    for name, values in families.items():
        about = described.get(name)
        if about is not None:
            lines += [f"# HELP {name} {_escaped(about.help)}", f"# TYPE {name} {about.kind}"]
        lines += [f"{name}{labels} {_number(value)}" for labels, value in values.items()]
    return "\n".join([*lines, ""]) if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_quoted(labels[name])}"' for name in sorted(labels))
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
