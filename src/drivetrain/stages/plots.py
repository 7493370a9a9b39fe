"""Plots of a model on the hold-out, as files whose bytes depend on nothing but what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0", "axes.labelcolor": "#3c4650", "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e8ec", "grid.linewidth": 0.8, "xtick.color": "#5b6670", "ytick.color": "#5b6670",
    "text.color": "#1f2830", "legend.frameon": False, "figure.dpi": 110, "savefig.dpi": 110,
}  # fmt: skip
"""What every plot looks like: `with rc_context(STYLE)`."""
_BLUE, _ORANGE, _GREY = "#2563a8", "#d97706", "#9aa5b1"
_SERIES = (_BLUE, _ORANGE, "#2f8f6b", "#a8325e", "#6d55a3", "#0f8b8d", "#8c6d31", "#5b6670")
_MOST_CLASSES = 12
_BINS = 10


def classification(
    directory: Path,
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[object],
    champion: np.ndarray | None,
    form: str = "png",
) -> None:
    """`roc`, `calibration` and `confusion`, as PNG or SVG by `form`; the champion's probabilities, if given, in the first as well."""
    with rc_context(STYLE):
        _save(_roc(truth, probabilities, classes, champion), directory / f"roc.{form}")
        _save(_calibration(truth, probabilities, classes), directory / f"calibration.{form}")
        _save(_confusion(truth, probabilities, classes), directory / f"confusion.{form}")


def regression(directory: Path, truth: np.ndarray, predicted: np.ndarray, label: str, form: str = "png") -> None:
    """`predicted`, predicted against actual, and `residuals`, as PNG or SVG by `form`."""
    with rc_context(STYLE):
        _save(_predicted(truth, predicted, label), directory / f"predicted.{form}")
        _save(_residuals(truth, predicted, label), directory / f"residuals.{form}")


def canvas(title: str, width: float = 4.8, height: float = 4.4) -> tuple[Figure, Axes]:
    """An empty figure in `STYLE` (which has to be in force), sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _save(figure: Figure, file: Path) -> None:
    # The library's version, or the time, would otherwise stand in every file.
    metadata = {"Software": None} if file.suffix == ".png" else {"Date": None, "Creator": None}
    figure.savefig(file, format=file.suffix[1:], metadata=metadata)


def roc_points(positive: np.ndarray, scores: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1), at no more than about `most` thresholds."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    hits = np.cumsum(positive[order])[ends]
    misses = ends + 1 - hits
    keep = np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).astype(int))
    rates = (np.r_[0.0, counts[keep]] / max(float(counts[-1]), 1.0) for counts in (misses, hits))
    false, true = rates
    return false, true


def _roc(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[object], champion: np.ndarray | None
) -> Figure:
    figure, axes = canvas("ROC curve on the hold-out")
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle=(0, (2, 3)))
    binary = len(classes) == 2
    if champion is not None and binary:
        axes.plot(
            *roc_points(truth == 1, champion[:, 1]), color=_ORANGE, linewidth=1.4, linestyle="--", label="champion"
        )
    for index in [1] if binary else range(min(len(classes), len(_SERIES))):
        name = "candidate" if binary else str(classes[index])
        color = _BLUE if binary else _SERIES[index]
        axes.plot(*roc_points(truth == index, probabilities[:, index]), color=color, linewidth=2.0, label=name)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


def _calibration(truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[object]) -> Figure:
    if len(classes) == 2:
        said, happened, name = probabilities[:, 1], truth == 1, f"probability of {classes[1]}"
    else:
        chosen = probabilities.argmax(axis=1)
        said, happened, name = probabilities.max(axis=1), truth == chosen, "probability of the likeliest class"
    figure, axes = canvas("Calibration on the hold-out")
    # Bins of equal counts: every point rests on as many rows as the next.
    groups = [group for group in np.array_split(np.argsort(said, kind="stable"), _BINS) if len(group)]
    x, y = (np.array([values[group].mean() for group in groups]) for values in (said, happened))
    error = 1.96 * np.sqrt(np.clip(y * (1 - y), 1e-12, None) / np.array([len(group) for group in groups]))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle=(0, (2, 3)))
    axes.errorbar(x, y, yerr=error, color=_BLUE, linewidth=1.8, marker="o", markersize=4.5, elinewidth=1.0, capsize=0)
    counts, edges = np.histogram(said, bins=40, range=(0.0, 1.0))
    axes.bar(
        edges[:-1], 0.16 * counts / max(counts.max(), 1), width=np.diff(edges), align="edge", color=_BLUE, alpha=0.16
    )
    axes.set(xlabel=name, ylabel="share that came true", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    return figure


def _confusion(truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[object]) -> Figure:
    said = (probabilities[:, 1] >= 0.5).astype(int) if len(classes) == 2 else probabilities.argmax(axis=1)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (truth, said), 1)
    frequent = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:_MOST_CLASSES])
    names = [str(classes[index])[:16] for index in frequent]
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(frequent, frequent)]
    size = max(4.4, 0.55 * len(frequent) + 1.6)
    figure, axes = canvas("Confusion on the hold-out", size, size)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.55 else "#1f2830"
        count = counts[frequent[row], frequent[column]]
        text = f"{share:.1%}\n{count:,}" if len(frequent) <= 5 else f"{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=10 if len(frequent) <= 5 else 7.5)
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) <= 5 else 60)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual")
    axes.tick_params(length=0)
    return figure


def _predicted(truth: np.ndarray, predicted: np.ndarray, label: str) -> Figure:
    figure, axes = canvas("Predicted and actual on the hold-out")
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    if len(truth) > 2000:
        axes.hexbin(truth, predicted, gridsize=55, mincnt=1, bins="log", cmap="Blues", linewidths=0.1)
    else:
        axes.scatter(truth, predicted, s=12, color=_BLUE, alpha=0.45, linewidths=0)
    axes.plot(ends, ends, color=_ORANGE, linewidth=1.2, linestyle="--")
    axes.set(xlabel=f"actual {label}", ylabel=f"predicted {label}")
    return figure


def _residuals(truth: np.ndarray, predicted: np.ndarray, label: str) -> Figure:
    figure, axes = canvas("Residuals on the hold-out")
    residuals = truth - predicted
    low, high = np.quantile(residuals, [0.005, 0.995])
    shown = residuals[(residuals >= low) & (residuals <= high)]
    axes.hist(shown, bins=60, color=_BLUE, alpha=0.85)
    axes.axvline(0.0, color=_GREY, linewidth=1.0)
    axes.axvline(
        float(residuals.mean()), color=_ORANGE, linewidth=1.4, linestyle="--", label=f"mean {residuals.mean():.3g}"
    )
    axes.set(xlabel=f"actual less predicted {label} (the middle 99 %)", ylabel="rows")
    axes.legend(loc="upper right")
    return figure
