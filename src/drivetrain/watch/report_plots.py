"""The report's pictures as SVG, to stand within a page: text stays text, no two share an id, each is legible on a phone."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from drivetrain.engines.drift import Shares
from drivetrain.stages import plots
from drivetrain.watch.report_page import Picture
from drivetrain.watch.report_service import Latency
from drivetrain.watch.rollout import Point
from drivetrain.watch.window_state import Measured, Moved, WindowReport

MOST_FEATURES = 40
"""Rows of the map of drift."""
_BLUE, _ORANGE, _GREY, _RED = "#2563a8", "#d97706", "#9aa5b1", "#c0352b"
_SIZE = (4.6, 2.5)
"""Inches: two such pictures stand beside each other on a page, one on a phone."""
_MOST_BINS = 12
_DAY = 86_400.0
"""matplotlib counts days since 1970."""


@contextmanager
def _drawing() -> Iterator[None]:
    # A name may hold any sign: none is a formula, and one that the font lacks is the reader's font's business.
    style = {**plots.STYLE, "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def of_model(
    truth: np.ndarray, prediction: np.ndarray, classes: Sequence[object] | None, label: str
) -> Sequence[Picture]:
    """The plots of the stage evaluate. `truth` and `prediction` as the gate's metrics take them."""
    with _drawing(), tempfile.TemporaryDirectory(prefix="drivetrain-") as place:
        directory = Path(place)
        if classes is None:
            plots.regression(directory, truth, prediction, label, "svg")
        else:
            plots.classification(directory, truth, prediction, classes, None, "svg")
        files = {
            name: directory / f"{name}.svg" for name in ("roc", "calibration", "confusion", "predicted", "residuals")
        }
        return [
            Picture(_inline(file.read_text(encoding="utf-8"), name), f"{name} on the hold-out")
            for name, file in files.items()
            if file.is_file()
        ]


# drift


def drift_map(windows: Sequence[WindowReport], names: Sequence[str], distance: str) -> Picture:
    """Distances, features by windows; what is beyond chance has a dot."""
    found = [{moved.feature: moved for moved in window.drift if moved.distance == distance} for window in windows]
    edges = sorted({window.start for window in windows} | {window.end for window in windows})
    values = np.full((len(names), len(edges) - 1), np.nan)
    with _drawing():
        figure, axes = plots.canvas(f"{distance} of each window; a dot: beyond chance", 9.4, 1.2 + 0.23 * len(names))
        for window, one in zip(windows, found, strict=True):
            for row, name in enumerate(names):
                if name in one:
                    values[row, edges.index(window.start)] = one[name].value
        mesh = axes.pcolormesh(
            np.array(edges) / _DAY, np.arange(len(names) + 1), np.clip(values, 0, 0.5),
            cmap="OrRd", vmin=0, vmax=0.5, edgecolors="white", linewidth=0.6,
        )  # fmt: skip
        for row, name in enumerate(names):
            pairs = zip(windows, found, strict=True)
            beyond = [(window, one[name].value) for window, one in pairs if name in one and one[name].significant]
            ink = ["white" if value > 0.25 else "#1f2830" for _, value in beyond]
            axes.scatter(_middles([window for window, _ in beyond]), np.full(len(beyond), row + 0.5), 5, ink)
        axes.set_yticks(np.arange(len(names)) + 0.5, [_cut(name) for name in names])
        axes.invert_yaxis()
        axes.grid(False)
        figure.colorbar(mesh, ax=axes, label="0.5 and more are one colour", pad=0.01)
        _dates(axes, windows)
        return _picture(figure, "drift", f"{distance} of {len(names)} features over {len(windows)} windows")


def shares(number: int, name: str, bins: Shares) -> Picture:
    """The shares of a feature's bins: what was trained on beside a window of live traffic. `number` tells pictures apart."""
    labels, reference, live = _fewer(bins)
    places = np.arange(len(labels))
    with _drawing():
        figure, axes = plots.canvas(_cut(name, 40), *_SIZE)
        axes.bar(places - 0.2, 100 * reference, width=0.4, color=_GREY, label="trained on")
        axes.bar(places + 0.2, 100 * live, width=0.4, color=_BLUE, label="live")
        axes.set_xticks(places, [_cut(label, 16) for label in labels], rotation=35, ha="right", fontsize=7)
        axes.set(ylabel="% of values", ylim=(0, 125 * max([0.01, *reference, *live])))
        _legend(axes)
        return _picture(figure, f"shares{number}", f"bins of {name}, live and as trained on")


def _fewer(bins: Shares) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Of many categories those that weigh most, and the rest as one."""
    reference, live = np.array(bins.reference), np.array(bins.live)
    if len(bins.labels) <= _MOST_BINS:
        return bins.labels, reference, live
    weight = np.maximum(reference, live)
    kept = np.sort(np.argsort(-weight[:-1], kind="stable")[: _MOST_BINS - 1])
    rest = [max(0.0, side.sum() - side[kept].sum()) for side in (reference, live)]
    return (
        [*(bins.labels[place] for place in kept), "all others"],
        np.append(reference[kept], rest[0]),
        np.append(live[kept], rest[1]),
    )


def distance(number: int, name: str, told: Sequence[tuple[WindowReport, Moved]]) -> Picture:
    """A feature's distance from window to window, with the level from which on it is beyond chance."""
    windows = [window for window, _ in told]
    at = _middles(windows)
    values = np.array([moved.value for _, moved in told])
    critical = np.array([np.nan if moved.critical is None else moved.critical for _, moved in told])
    beyond = np.array([moved.significant for _, moved in told], dtype=bool)
    with _drawing():
        figure, axes = plots.canvas(f"{_cut(name, 32)}: {told[-1][1].distance}", *_SIZE)
        axes.plot(at, values, color=_BLUE, linewidth=1.4, marker="o", markersize=3)
        axes.plot(at[beyond], values[beyond], "o", color=_RED, markersize=4.5, label="beyond chance")
        axes.plot(at, critical, color=_ORANGE, linewidth=1.2, linestyle="--", label="critical level")
        axes.set_ylim(bottom=0, top=1.12 * max([0.01, *values, *critical[np.isfinite(critical)]]))
        _legend(axes)
        _dates(axes, windows)
        return _picture(figure, f"distance{number}", f"{told[-1][1].distance} of {name} over time")


# quality


def quality(windows: Sequence[WindowReport], metric: str, holdout: float | None) -> Picture | None:
    """The live metric with its interval, its estimate before labels come, and what it was on the hold-out; None where nothing is known."""
    told = [(window, window.quality) for window in windows if window.quality is not None]
    guessed = [(window, window.estimate) for window in windows if window.estimate is not None]
    if not told and not guessed:
        return None
    with _drawing():
        figure, axes = plots.canvas(f"{metric} of each window", *_SIZE)
        if guessed:
            _band(axes, guessed, _GREY, "estimate, before labels", marker="s", markerfacecolor="white", linestyle=":")
        if told:
            _band(axes, told, _BLUE, "measured by labels", marker="o")
        if holdout is not None:
            axes.axhline(holdout, color=_ORANGE, linewidth=1.2, linestyle="--", label="on the hold-out")
        _legend(axes)
        _dates(axes, windows)
        return _picture(figure, "quality", f"{metric} over time, measured and estimated")


def _band(axes: Axes, found: Sequence[tuple[WindowReport, Measured]], color: str, label: str, **line: Any) -> None:
    at = _middles([window for window, _ in found])
    ends = [np.array([getattr(value, end) for _, value in found]) for end in ("low", "high")]
    axes.vlines(at, *ends, color=color, linewidth=1.0, alpha=0.7)
    axes.plot(at, [value.value for _, value in found], color=color, label=label, linewidth=1.2, markersize=3.5, **line)


def passing(windows: Sequence[WindowReport]) -> Picture | None:
    """The share of live rows that meet every check; None where that is not known."""
    found = [(window, window.passing) for window in windows if window.passing is not None]
    if not found:
        return None
    with _drawing():
        figure, axes = plots.canvas("Rows that meet every check, %", *_SIZE)
        shares_ = [100 * share for _, share in found]
        axes.plot(_middles([window for window, _ in found]), shares_, color=_BLUE, marker="o", markersize=3.5)
        axes.set_ylim(max(-3.0, min(95.0, min(shares_) - 3.0)), 100.5)
        _dates(axes, windows)
        return _picture(figure, "passing", "share of rows that meet every check over time")


# the service


def rows(windows: Sequence[WindowReport]) -> Picture:
    """Rows and labels of each window."""
    with _drawing():
        figure, axes = plots.canvas("Rows and labels of each window", *_SIZE)
        at = _middles(windows)
        axes.plot(at, [window.rows for window in windows], color=_BLUE, marker="o", markersize=3.5, label="rows")
        axes.plot(at, [window.labels for window in windows], color=_ORANGE, marker="s", markersize=3, label="labels")
        axes.set_ylim(bottom=0)
        _legend(axes)
        _dates(axes, windows)
        return _picture(figure, "rows", "rows and labels of each window")


def latency(found: Latency) -> Picture:
    """Quantiles of the time that answers took."""
    with _drawing():
        figure, axes = plots.canvas("Time that answers took, ms", *_SIZE)
        at = np.array(found.at) / _DAY
        for values, color, label in ((found.p99, _ORANGE, "99 % within"), (found.p50, _BLUE, "half within")):
            axes.plot(at, 1000 * np.array(values), color=color, marker="o", markersize=3, label=label)
        axes.set_ylim(bottom=0)
        _legend(axes)
        _limits(axes, found.start, found.end)
        return _picture(figure, "latency", "median and 99th percentile of the answers' time")


def failing(found: Latency) -> Picture:
    """The share of requests that failed, and of those that were refused."""
    with _drawing():
        figure, axes = plots.canvas("Requests without a prediction, %", *_SIZE)
        at = np.array(found.at) / _DAY
        for values, color, label in ((found.failed, _RED, "failed"), (found.refused, _GREY, "refused as not valid")):
            axes.plot(at, 100 * np.array(values), color=color, marker="o", markersize=3, label=label)
        axes.set_ylim(0, max(1.0, 110 * max([*found.failed, *found.refused])))
        _legend(axes)
        _limits(axes, found.start, found.end)
        return _picture(figure, "failing", "shares of failed and refused requests")


# a rollout

_CURVES = (
    ("failures", "Failed answers, %", "failures_candidate", "failures_champion", 100.0),
    ("latency", "99th percentile of the answers' time, ms", "latency_p99_candidate", "latency_p99_champion", 1000.0),
    ("loss", "Mean loss, once labels have come", "quality_candidate", "quality_champion", 1.0),
)


def canary(points: Sequence[Point]) -> Sequence[Picture]:
    """A rollout's curves: the candidate's share of the traffic, and each comparison that was made, for both arms."""
    if not points:
        return []
    at = np.array([point.at for point in points]) / _DAY
    ends = points[0].at, points[-1].at
    found = []
    with _drawing():
        figure, axes = plots.canvas("The candidate's share of the traffic, %", *_SIZE)
        axes.step(at, [point.percent for point in points], where="post", color=_ORANGE, marker="o", markersize=2.5)
        axes.set_ylim(-3, 103)
        _limits(axes, *ends)
        found.append(_picture(figure, "canary-share", "the candidate's share of the traffic"))
        for name, title, ours, theirs, scale in _CURVES:
            if not any(ours in point.numbers for point in points):
                continue
            figure, axes = plots.canvas(title, *_SIZE)
            for key, color, arm in ((theirs, _BLUE, "champion"), (ours, _ORANGE, "candidate")):
                values = [scale * point.numbers.get(key, np.nan) for point in points]
                axes.plot(at, values, color=color, label=arm, linewidth=1.6, marker="o", markersize=2.5)
            axes.set_ylim(0, 1.25 * max(axes.get_ylim()[1], 0.8 if name == "failures" else 0.0))
            _legend(axes)
            _limits(axes, *ends)
            found.append(_picture(figure, f"canary-{name}", f"{title}, candidate and champion"))
    return found


# how pictures are made


def _middles(windows: Sequence[WindowReport]) -> np.ndarray:
    return np.array([(window.start + window.end) / 2 for window in windows]) / _DAY


def _dates(axes: Axes, windows: Sequence[WindowReport]) -> None:
    _limits(axes, windows[0].start, max(window.end for window in windows))


def _limits(axes: Axes, start: float, end: float) -> None:
    """The axis of time, in UTC, from one instant to the other (seconds since 1970), with a little room."""
    room = 0.02 * (end - start) or 30.0
    axes.set_xlim((start - room) / _DAY, (end + room) / _DAY)
    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=7.5, loc="best", frameon=True, framealpha=0.85, edgecolor="none")


def _cut(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _picture(figure: Figure, name: str, shows: str) -> Picture:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(_inline(text.getvalue(), name), shows)


def _inline(text: str, name: str) -> Markup:
    """The `<svg>` element alone, its ids made its own; it is as wide as the page has room for."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", text)
    head, close, rest = text.partition(">")
    head = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", head)
    return Markup(head + close + re.sub(r"\n\s*", "\n", rest))
