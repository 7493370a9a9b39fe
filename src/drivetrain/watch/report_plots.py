"""The report's pictures as SVG, to stand within a page: text stays text, and no two share an id."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from drivetrain.engines.drift import Shares
from drivetrain.stages import plots
from drivetrain.watch.rollout import Point
from drivetrain.watch.window_state import Measured, WindowReport

_CHAMPION, _CANDIDATE, _GREY, _BAD = "#2563a8", "#d97706", "#9aa5b1", "#a8325e"
_MOST_FEATURES = 40
_DAY = 86_400.0
"""matplotlib counts days since 1970."""


@contextmanager
def _drawing() -> Iterator[None]:
    with rc_context({**plots.STYLE, "svg.fonttype": "none", "svg.hashsalt": "report"}):
        yield


def of_model(
    truth: np.ndarray, prediction: np.ndarray, classes: Sequence[object] | None, label: str
) -> Mapping[str, str]:
    """The plots of the stage evaluate, by their names. `truth` and `prediction` as the gate's metrics take them."""
    with _drawing(), tempfile.TemporaryDirectory(prefix="drivetrain-") as place:
        directory = Path(place)
        if classes is None:
            plots.regression(directory, truth, prediction, label, "svg")
        else:
            plots.classification(directory, truth, prediction, classes, None, "svg")
        return {file.stem: _inline(file.read_text(), file.stem) for file in sorted(directory.glob("*.svg"))}


def drift(windows: Sequence[WindowReport], distance: str) -> str:
    """A map of distances, features by windows; what is significant has a dot. Empty without windows."""
    found = [{moved.feature: moved for moved in window.drift if moved.distance == distance} for window in windows]
    names = sorted({name for one in found for name in one}, key=lambda name: (name != "prediction", name))[
        :_MOST_FEATURES
    ]
    if not names:
        return ""
    values = np.array([[one[name].value if name in one else np.nan for one in found] for name in names])
    with _drawing():
        height = 1.2 + 0.24 * len(names)
        figure, axes = plots.canvas(f"Drift: {distance} of each window, a dot where it is beyond chance", 9.2, height)
        edges = np.append([window.start for window in windows], windows[-1].end) / _DAY
        mesh = axes.pcolormesh(
            edges, np.arange(len(names) + 1), np.clip(values, 0, 1),
            cmap="OrRd", vmin=0, vmax=1, edgecolors="white", linewidth=0.6,
        )  # fmt: skip
        for row, name in enumerate(names):
            pairs = zip(windows, found, strict=True)
            at = _middles([window for window, one in pairs if name in one and one[name].significant])
            axes.plot(at, np.full(len(at), row + 0.5), ".", color="#1f2830", markersize=2.5)
        axes.set_yticks(np.arange(len(names)) + 0.5, names)
        axes.invert_yaxis()
        axes.grid(False)
        figure.colorbar(mesh, ax=axes, label=f"{distance} (1 and more)", pad=0.01)
        _dates(axes)
        return _svg(figure, "drift")


def shares(found: Mapping[str, Shares]) -> str:
    """For each feature the shares of its bins: what was trained on beside a window of live traffic. Empty without any."""
    if not found:
        return ""
    columns = 3
    rows = -(-len(found) // columns)
    with _drawing():
        figure = Figure(figsize=(9.2, 0.4 + 2.3 * rows), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes, (name, bins) in zip(grid, found.items(), strict=False):
            places = np.arange(len(bins.labels))
            axes.bar(places - 0.2, bins.reference, width=0.4, color=_GREY, label="trained on")
            axes.bar(places + 0.2, bins.live, width=0.4, color=_CHAMPION, label="live")
            axes.set_title(name)
            axes.set_xticks(places, [label[:12] for label in bins.labels], rotation=70, fontsize=6)
        for axes in grid[len(found) :]:
            axes.set_visible(False)
        grid[0].legend(fontsize=7)
        return _svg(figure, "shares")


def quality(windows: Sequence[WindowReport], metric: str) -> str:
    """The live metric with its interval, and its estimate before labels come. Empty where neither is known."""
    told = [(window, window.quality) for window in windows if window.quality is not None]
    guessed = [(window, window.estimate) for window in windows if window.estimate is not None]
    if not told and not guessed:
        return ""
    with _drawing():
        figure, axes = plots.canvas(f"{metric} of each window", 9.2, 3.0)
        for found, color, label, style in (
            (guessed, _GREY, "estimated from the probabilities", "s"),
            (told, _CHAMPION, "measured, once labels have come", "o"),
        ):
            if found:
                at = _middles([window for window, _ in found])
                axes.errorbar(at, *_measured([value for _, value in found]), fmt=style, color=color, label=label,
                              markersize=4, linewidth=1.4, elinewidth=0.9)  # fmt: skip
        axes.legend()
        _dates(axes)
        return _svg(figure, "quality")


def _middles(windows: Sequence[WindowReport]) -> np.ndarray:
    return np.array([(window.start + window.end) / 2 for window in windows]) / _DAY


def _measured(values: Sequence[Measured]) -> tuple[np.ndarray, np.ndarray]:
    y = np.array([value.value for value in values])
    return y, np.abs(np.array([[value.value - value.low, value.high - value.value] for value in values]).T)


def passing(windows: Sequence[WindowReport]) -> str:
    """The share of live rows that meet every check. Empty where that is not known."""
    found = [(window, window.passing) for window in windows if window.passing is not None]
    if not found:
        return ""
    with _drawing():
        figure, axes = plots.canvas("Rows that meet every check of the training data", 9.2, 2.4)
        at = _middles([window for window, _ in found])
        axes.plot(at, [share for _, share in found], color=_CHAMPION, marker="o", markersize=4)
        axes.set_ylim(top=1.005)
        _dates(axes)
        return _svg(figure, "passing")


_CURVES = (
    ("failures", "share of failed answers", "failures_candidate", "failures_champion"),
    ("latency", "99th percentile of the answers' time, s", "latency_p99_candidate", "latency_p99_champion"),
    ("loss", "mean loss, once labels have come", "quality_candidate", "quality_champion"),
)


def canary(points: Sequence[Point], name: str) -> str:
    """A rollout's curves over time: share of the traffic, and each comparison for both arms. Empty without points."""
    kept = [curve for curve in _CURVES if any(curve[2] in point.numbers for point in points)]
    if len(points) < 2 or not kept:
        return ""
    at = np.array([point.at for point in points]) / _DAY
    with _drawing():
        figure = Figure(figsize=(9.2, 2.2 + 1.7 * len(kept)), layout="constrained")
        grid = np.atleast_1d(figure.subplots(1 + len(kept), 1, sharex=True))
        grid[0].step(at, [point.percent for point in points], where="post", color=_CANDIDATE)
        grid[0].set(title=f"Rollout of {name}", ylabel="percent")
        for axes, (_, label, ours, theirs) in zip(grid[1:], kept, strict=True):
            for key, color, arm in ((theirs, _CHAMPION, "champion"), (ours, _CANDIDATE, "candidate")):
                axes.plot(
                    at, [point.numbers.get(key, np.nan) for point in points], color=color, label=arm, linewidth=1.6
                )
            axes.set_title(label)
        grid[1].legend()
        _dates(grid[-1])
        return _svg(figure, f"canary-{name}")


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))


def _svg(figure: Figure, name: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """The `<svg>` element alone, its ids made its own, as wide as the page has room for."""
    text = text[text.index("<svg") :]
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}-", text)
    width = re.search(r'<svg[^>]*? width="([\d.]+)pt"', text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", text, count=1)
    wide = float(width[1]) * 4 / 3 if width else 900.0
    return text.replace("<svg", f'<svg role="img" style="width:100%;max-width:{wide:.0f}px;height:auto"', 1)
