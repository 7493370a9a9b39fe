"""How good the answers of a replay were, month by month, beside those that the first model would have given on the same rows."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.dates import DateFormatter, DayLocator, MonthLocator

from drivetrain import wiring
from drivetrain.backends.tracking import Predictor
from drivetrain.engines import metrics
from drivetrain.engines.quality import Interval, Kind, Scores
from drivetrain.journal import Decision
from drivetrain.project import Project
from drivetrain.records import Artifact
from drivetrain.stages import plots
from drivetrain.watch import answers as captured_answers
from drivetrain.watch.replay import Answers
from drivetrain.watch.replay_rows import Rows

_LONG = 62 * 86_400
"""Ranges of more than two months are told month by month, shorter ones day by day."""


@dataclass(frozen=True, slots=True)
class Period:
    """A month or day of a replay: the metric of what was answered (`loop`) and of the first model (`never`: never retrained), both on
    the same rows; `revisions` says who answered how often, `unanswered` are the rows without a usable prediction."""

    name: str
    start: float
    end: float
    loop: Interval
    never: Interval
    unanswered: int
    revisions: Mapping[str, int]


def score(project: Project, rows: Rows, found: Answers, first: Artifact) -> list[Period]:
    """The periods in order. `first` is the model that served when the replay began. Raises `StageError` if it does not load."""
    if not found.at:
        return []
    tracking = wiring.tracking(project.state, project.target)
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        model: Predictor = tracking.load(wiring.project_objects(project).get(first, Path(directory) / "model"))
        predicted = model.predict(rows.features(found.places))
    classes = model.classes
    kind: Kind = "regression" if classes is None else "binary" if len(classes) == 2 else "multiclass"
    never = predicted[:, 1] if kind == "binary" else predicted
    decoder = captured_answers.Answers(classes, project.definition.monitoring.output)
    loop = decoder.decode(found.events, [1] * len(found.events)).values
    loop = loop[:, 0] if loop.shape[1] == 1 else loop
    labels = rows.labels(found.places)
    truth = labels.astype(np.float64) if classes is None else metrics.positions(labels, classes)
    usable = np.isfinite(loop).reshape(len(loop), -1).all(axis=1)
    metric = project.definition.evaluate.metric
    width = 1 if classes is None else len(classes)

    def value(predictions: np.ndarray, mask: np.ndarray) -> Interval:
        scores = Scores(metric, kind, max(width, 2))
        scores.add(predictions[mask], truth[mask])
        return scores.value()

    at = np.array(found.at)
    periods = []
    for name, start, end in _periods(float(at.min()), float(at.max())):
        inside = (at >= start) & (at < end)
        both = inside & usable
        revisions = Counter(event.revision for event, mine in zip(found.events, inside, strict=True) if mine)
        missing = int(inside.sum() - both.sum())
        periods.append(Period(name, start, end, value(loop, both), value(never, both), missing, dict(revisions)))
    return periods


def _periods(first: float, last: float) -> list[tuple[str, float, float]]:
    """Name, start and end of each calendar month or day from the first instant to the last, in UTC."""
    monthly = last - first > _LONG
    moment = datetime.fromtimestamp(first, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    moment = moment.replace(day=1) if monthly else moment
    found = []
    while moment.timestamp() <= last:
        if monthly:
            after = moment.replace(year=moment.year + moment.month // 12, month=moment.month % 12 + 1)
        else:
            after = datetime.fromtimestamp(moment.timestamp() + 86_400, UTC)
        found.append((moment.strftime("%Y-%m" if monthly else "%m-%d"), moment.timestamp(), after.timestamp()))
        moment = after
    return found


_LOOP, _NEVER, _MARK, _BAD = "#2563a8", "#9aa5b1", "#2f8f6b", "#a8325e"
_ENDS = {"promoted": ("promoted", _MARK), "rolled_back": ("rolled back", _BAD), "refused": ("refused", _BAD),
         "failed": ("failed", _BAD)}  # fmt: skip


def plot(periods: Sequence[Period], decisions: Sequence[Decision], metric: str, file: Path) -> None:
    """The metric of both by period with 95 % intervals, and what became of each retraining, as PNG or SVG by the file's name."""
    with rc_context(plots.STYLE):
        figure, axes = plots.canvas("What was answered, and what the first model would have answered", 8.0, 4.2)
        for name, color, label, aside in (
            ("never", _NEVER, "never retrained", 0.48),
            ("loop", _LOOP, "the loop", 0.52),
        ):
            values: list[Interval] = [getattr(period, name) for period in periods]
            # A little apart, so that both intervals can be seen.
            x = [datetime.fromtimestamp(period.start + aside * (period.end - period.start), UTC) for period in periods]
            y = np.array([value.value for value in values])
            error = np.abs(np.array([[value.value - value.low, value.high - value.value] for value in values]).T)
            axes.errorbar(x, y, yerr=error, color=color, label=label, marker="o", markersize=4.5, linewidth=1.8, elinewidth=1)  # type: ignore[arg-type]  # fmt: skip
        shown: set[str] = set()
        for decision in sorted(decisions, key=lambda decision: decision.changed):
            if decision.action == "retrain" and decision.state in _ENDS:
                word, color = _ENDS[decision.state]
                when = datetime.fromtimestamp(decision.changed, UTC)
                label = "" if word in shown else word
                axes.axvline(when, color=color, linewidth=1.1, linestyle=(0, (3, 2)), label=label, zorder=0)  # type: ignore[arg-type]
                shown.add(word)
        monthly = len(periods) > 1 and periods[0].end - periods[0].start > 86_400
        axes.xaxis.set_major_locator(MonthLocator() if monthly else DayLocator(interval=max(1, len(periods) // 8)))
        axes.xaxis.set_major_formatter(DateFormatter("%b %Y" if monthly else "%d %b"))
        axes.set_ylabel(metric)
        figure.legend(loc="outside lower center", ncols=4)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Software": None} if file.suffix == ".png" else {"Date": None})
