"""The monitor's metrics: names, what they mean, and their values from closed windows and counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from drivetrain.watch.samples import Described, Sample
from drivetrain.watch.window_state import WindowReport

_OF = ("revision", "role")

DESCRIBED: Mapping[str, Described] = {
    "drivetrain_monitor_drift": Described(
        "gauge",
        "How far a feature, or the prediction, is from the training rows: psi, js or ks; for missing and unseen the share.",
        (*_OF, "feature", "distance"),
    ),
    "drivetrain_monitor_drift_significant": Described(
        "gauge", "The same where it is beyond chance, else 0.", (*_OF, "feature", "distance")
    ),
    "drivetrain_monitor_quality": Described(
        "gauge",
        "The metric over the predictions whose labels became known in the window; of a slice, or of all where that is empty.",
        (*_OF, "metric", "slice"),
    ),
    "drivetrain_monitor_quality_low": Described("gauge", "Lower end of its 95 % interval.", (*_OF, "metric", "slice")),
    "drivetrain_monitor_quality_high": Described("gauge", "Upper end of its 95 % interval.", (*_OF, "metric", "slice")),
    "drivetrain_monitor_quality_estimate": Described(
        "gauge",
        "What the metric probably is, from the model's own probabilities, before labels come.",
        (*_OF, "metric"),
    ),
    "drivetrain_monitor_data_quality": Described("gauge", "Share of the rows that meet every live check.", _OF),
    "drivetrain_monitor_window_rows": Described("gauge", "Rows of the newest closed window.", _OF),
    "drivetrain_monitor_window_requests": Described(
        "gauge", "Requests of the newest closed window by what became of them.", (*_OF, "outcome")
    ),
    "drivetrain_monitor_window_labels": Described("gauge", "Labelled rows of the newest closed window.", _OF),
    "drivetrain_monitor_window_end_seconds": Described(
        "gauge", "When the newest closed window ended, in seconds since 1970.", _OF
    ),
    "drivetrain_monitor_staleness_seconds": Described(
        "gauge", "Age of the newest row that the model was made from.", _OF
    ),
    "drivetrain_monitor_new_rows": Described("gauge", "Rows whose labels became known since then.", _OF),
    "drivetrain_monitor_watermark_seconds": Described(
        "gauge", "Windows that end before this time, in seconds since 1970, are closed."
    ),
    "drivetrain_monitor_events_total": Described(
        "counter", "Events by kind and by what became of them.", ("kind", "outcome")
    ),
    "drivetrain_monitor_late_total": Described("counter", "Events that came after their window was closed.", ("kind",)),
    "drivetrain_monitor_duplicates_total": Described("counter", "Events that had come before.", ("kind",)),
}
"""Every metric of the monitor; all of them have the label `service` besides."""


def role(revision: str, champion: str | None, candidate: str | None) -> str:
    """`champion`, `candidate` or `former`."""
    if revision == champion:
        return "champion"
    return "candidate" if revision == candidate else "former"


def of_counters(counters: Mapping[tuple[str, str], int]) -> Iterable[Sample]:
    """Events by kind and outcome."""
    for (kind, outcome), count in sorted(counters.items()):
        yield Sample("drivetrain_monitor_events_total", {"kind": kind, "outcome": outcome}, count)
    for kind in ("label", "request", "response"):
        for outcome, name in (("late", "late"), ("repeated", "duplicates")):
            yield Sample(f"drivetrain_monitor_{name}_total", {"kind": kind}, counters.get((kind, outcome), 0))


def of_reports(reports: Sequence[WindowReport], champion: str | None, candidate: str | None) -> Iterable[Sample]:
    """Of each revision the newest that its windows have told; `reports` are in the order of time."""
    of_revision: dict[str, list[WindowReport]] = {}
    for report in reports:
        of_revision.setdefault(report.revision, []).append(report)
    for revision, windows in of_revision.items():
        about = {"revision": revision, "role": role(revision, champion, candidate)}
        for name, labels, value in _told(windows[::-1]):
            yield Sample(f"drivetrain_monitor_{name}", {**about, **labels}, value)


def _told(windows: Sequence[WindowReport]) -> Iterable[tuple[str, Mapping[str, str], float]]:
    """`windows` are the newest first."""
    newest = windows[0]
    yield "window_rows", {}, newest.rows
    for outcome, count in newest.outcomes.items():
        yield "window_requests", {"outcome": outcome}, count
    yield "window_labels", {}, newest.labels
    yield "window_end_seconds", {}, newest.end
    for moved in next((window.drift for window in windows if window.drift), ()):
        labels = {"feature": moved.feature, "distance": moved.distance}
        yield "drift", labels, moved.value
        yield "drift_significant", labels, moved.value if moved.significant else 0.0
    told = next((window for window in windows if window.quality is not None), None)
    if told is not None and told.quality is not None:
        for name, found in (("", told.quality), *told.slices.items()):
            labels = {"metric": told.metric, "slice": name}
            yield "quality", labels, found.value
            yield "quality_low", labels, found.low
            yield "quality_high", labels, found.high
    for window in windows:
        if window.estimate is not None:
            yield "quality_estimate", {"metric": window.metric}, window.estimate.value
            break
    passing = next((window.passing for window in windows if window.passing is not None), None)
    if passing is not None:
        yield "data_quality", {}, passing
