"""The gateway's own numbers, counted in plain integers: a request pays a few additions, and a scrape pays for the text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator

BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the histograms' buckets, in seconds."""

OUTCOMES = ("succeeded", "accepted", "refused", "failed", "overloaded", "expired", "abandoned")
"""`accepted` has been promised (202): how it ends is never told to the gateway."""

Sample = tuple[tuple[tuple[str, str], ...], float]
"""Labels and value."""


class Histogram:
    """How often something took how long."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: tuple[tuple[str, str], ...] = ()) -> Iterator[str]:
        """Its samples in Prometheus' text format."""
        running = 0
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            running += count
            limit = "+Inf" if bound == float("inf") else repr(bound)
            yield line(f"{name}_bucket", (*labels, ("le", limit)), running)
        yield line(f"{name}_sum", labels, self.total)
        yield line(f"{name}_count", labels, running)


class OfRevision:
    """The numbers of one revision."""

    __slots__ = ("added", "outcomes", "retries", "seconds", "shadow")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.seconds = Histogram()
        self.added = Histogram()
        self.retries = {"busy": 0, "connection": 0}
        self.shadow = {"sent": 0, "failed": 0, "dropped": 0}

    def count(self, status: int, seconds: float) -> None:
        """A request that was answered with that status after so long."""
        self.outcomes[outcome(status)] += 1
        self.seconds.observe(seconds)


class Metrics:
    """The numbers of the whole gateway."""

    def __init__(self) -> None:
        self.revisions: dict[str, OfRevision] = {}
        self.lookup = Histogram()
        self.lookup_failed = 0
        self.missing: dict[str, int] = {}
        self.unrouted = 0

    def of(self, revision: str) -> OfRevision:
        """The numbers of that revision; they go on if it comes back."""
        found = self.revisions.get(revision)
        if found is None:
            found = self.revisions[revision] = OfRevision()
        return found

    def keep(self, revisions: Collection[str]) -> None:
        """Forgets the numbers of all other revisions: a service that is deployed each day must not grow for ever."""
        for gone in self.revisions.keys() - set(revisions):
            del self.revisions[gone]

    def text(self) -> Iterator[str]:
        """Everything that is counted here, in Prometheus' text format."""
        own = sorted(self.revisions.items())
        yield from _counters("requests", "Requests by revision and outcome", "outcome", own, "outcomes")
        yield from _histograms("request_seconds", "From a request's last byte to the whole answer", own, "seconds")
        yield from _histograms("added_seconds", "The part of it that was not spent with a replica", own, "added")
        yield from _counters("retries", "Requests sent once more, and why", "reason", own, "retries")
        yield from _counters("shadow", "Copies of requests sent to a shadow", "outcome", own, "shadow")
        name = _name("lookup_seconds")
        yield from header(name, "histogram", "Look-ups of online features")
        yield from self.lookup.lines(name)
        yield from family("lookup_failures_total", "counter", "Look-ups that failed", [((), self.lookup_failed)])
        missing = [((("feature", name),), float(count)) for name, count in sorted(self.missing.items())]
        yield from family("features_missing_total", "counter", "Features without a value", missing)
        yield from family("unrouted_total", "counter", "Requests while nothing was deployed", [((), self.unrouted)])


def outcome(status: int) -> str:
    """The word that requests with this answer are counted under."""
    if status < 400:
        return "succeeded" if status != 202 else "accepted"
    if status < 500:
        return "refused"
    return {503: "overloaded", 504: "expired"}.get(status, "failed")


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """A metric of the gateway with its samples."""
    yield from header(_name(name), kind, text)
    for labels, value in samples:
        yield line(_name(name), labels, value)


def header(name: str, kind: str, text: str) -> Iterator[str]:
    """What stands above a metric's samples."""
    yield f"# HELP {name} {text}."
    yield f"# TYPE {name} {kind}"


def line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    """One sample."""
    inner = ",".join(f'{key}="{escape(text)}"' for key, text in labels)
    return f"{name}{{{inner}}} {value:.10g}" if inner else f"{name} {value:.10g}"


def escape(text: str) -> str:
    """A label's value as it stands between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _name(name: str) -> str:
    return f"drivetrain_gateway_{name}"


def _counters(name: str, text: str, label: str, own: list[tuple[str, OfRevision]], attribute: str) -> Iterator[str]:
    samples = [
        ((("revision", revision), (label, key)), float(count))
        for revision, numbers in own
        for key, count in getattr(numbers, attribute).items()
    ]
    yield from family(f"{name}_total", "counter", text, samples)


def _histograms(name: str, text: str, own: list[tuple[str, OfRevision]], attribute: str) -> Iterator[str]:
    yield from header(_name(name), "histogram", text)
    for revision, numbers in own:
        yield from getattr(numbers, attribute).lines(_name(name), (("revision", revision),))
