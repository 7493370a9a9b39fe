"""What each retraining policy would have done in a range of time, by training really at every instant that it chose.

Each model is trained as the stage train does it, on the rows whose labels were known then, in a process of its own; what it says of all
later rows is kept under `.drivetrain/replay/models`, so that policies share models and a second rehearsal trains nothing.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from drivetrain import project as projects
from drivetrain import usercode, wiring
from drivetrain.engines import drift, metrics
from drivetrain.engines.policies import (
    DAY,
    Calendar,
    CostRule,
    Cusum,
    EveryAlarm,
    Loss,
    Never,
    Outcome,
    Policy,
    Span,
    balance,
    simulate,
)
from drivetrain.engines.quality import Kind, Scores, loss
from drivetrain.engines.reference import Reference, reference_of
from drivetrain.engines.sketches import Window
from drivetrain.engines.triggers import Worth
from drivetrain.errors import UsageError
from drivetrain.project import Project
from drivetrain.records import Artifact, digest
from drivetrain.stages import frame
from drivetrain.stages.train import call_arguments, seed_everything

_MICRO = 1_000_000
_FOUR_WEEKS = 28 * DAY
_USUAL_LEVEL = 0.25
"""A PSI that counts as drift where the definition has no trigger on drift."""
_Z95 = 3.919927969080108
"""Width of a 95 % interval in standard errors."""


@dataclass(frozen=True, slots=True)
class Row:
    """A policy's line of the table. `metric` is the mean over the windows, weighted by predictions, and `gain` by how much it is
    better than that of never retraining. `spent` on trainings and rollouts and `saved` in all are None without `loop.worth`."""

    policy: str
    trainings: Sequence[float]
    metric: float
    gain: float
    spent: float | None
    saved: float | None


def rehearse(
    project: Project, artifact: Artifact, start: float, end: float, length: float, say: Callable[[str], None]
) -> Sequence[Row]:
    """The table, for the range from `start` up to `end` (seconds since 1970), in windows of `length` seconds, at whose ends a policy may
    retrain. `artifact` is a frame of the rows from the first to train on to the last of the range; `say` is told of each training.

    Raises `UsageError` if the range holds no window, and what training raises.
    """
    definition = project.definition
    canary, worth = definition.serving.canary, definition.loop.worth
    takes = canary.shadow.total_seconds() + len(canary.steps) * canary.step_time.total_seconds()
    policies: list[Policy] = [Never(), Calendar(_FOUR_WEEKS, "every 4 weeks"), EveryAlarm(), Cusum()]
    costs = None if worth is None else Worth(worth.training + worth.rollout)
    if worth is not None and costs is not None:
        policies.append(CostRule(costs, worth.per_prediction))
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        place = wiring.project_objects(project).get(artifact, Path(directory) / "frame")
        with _Past(project, artifact, place, np.arange(start, end + 1.0, length), say) as past:
            delay = definition.data.label_delay.total_seconds()
            found = [simulate(one, past, trained=start, label_delay=delay, rollout=takes) for one in policies]
    never = found[0]
    better = 1.0 if metrics.metric(definition.evaluate.metric).greater_is_better else -1.0

    def row(outcome: Outcome) -> Row:
        value = 1.0 - outcome.loss if better > 0 else outcome.loss
        money = None
        if worth is not None and costs is not None:
            money = balance(outcome, never, costs, worth.per_prediction)
        return Row(
            outcome.policy, outcome.trainings, value, never.loss - outcome.loss,
            money.spent if money else None, money.saved if money else None,
        )  # fmt: skip

    return [row(outcome) for outcome in found]


@dataclass(frozen=True, slots=True)
class _Model:
    """What a model says of the rows after its training (NaN before), and its loss on its hold-out."""

    predictions: np.ndarray
    classes: list[object] | None
    reference: float


class _Past:
    """A `policies.World` of the rows of a frame."""

    def __init__(
        self, project: Project, artifact: Artifact, place: Path, edges: np.ndarray, say: Callable[[str], None]
    ) -> None:
        self._project, self._artifact, self._place, self._say = project, artifact, place, say
        self._frame = frame.read(place)
        if self._frame.times is None:
            raise UsageError("rows without times have no past", hint="name their column in data.timestamp")
        self._times = self._frame.times / _MICRO
        self._metric = project.definition.evaluate.metric
        self._places = np.searchsorted(self._times, edges)
        counts = np.diff(self._places)
        self._spans = [Span(*pair, int(count)) for pair, count in zip(pairwise(edges.tolist()), counts, strict=True)]
        if not self._spans:
            raise UsageError("the range is shorter than a window", hint="--step, a week without it, at least")
        self._models: dict[float, _Model] = {}
        self._references: dict[float, Reference] = {}
        self._losses: dict[tuple[float, int], Loss] = {}
        self._alarms: dict[tuple[float, int], bool] = {}
        self._drift = [t for t in project.definition.triggers if t.signal == "drift" and t.feature != "prediction"]
        context = multiprocessing.get_context("spawn")
        self._worker = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)

    def __enter__(self) -> _Past:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    @property
    def spans(self) -> Sequence[Span]:
        return self._spans

    def reference(self, trained: float) -> float:
        return self._model(trained).reference

    def loss(self, trained: float, place: int) -> Loss:
        key = (trained, place)
        if key not in self._losses:
            model = self._model(trained)
            rows = slice(self._places[place], self._places[place + 1])
            labels = self._frame.rows[self._frame.label].to_numpy()[rows]
            scores = _scores(self._metric, model.classes, model.predictions[rows], labels)
            value = scores.value()
            self._losses[key] = Loss(loss(self._metric, value.value), (value.high - value.low) / _Z95)
        return self._losses[key]

    def alarm(self, trained: float, place: int) -> bool:
        key = (trained, place)
        if key not in self._alarms:
            self._alarms[key] = self._differs(trained, place)
        return self._alarms[key]

    def _differs(self, trained: float, place: int) -> bool:
        monitoring = self._project.definition.monitoring
        names = [name for name in monitoring.features or self._frame.features if name in self._frame.features]
        if trained not in self._references:
            first, cut = _known(self._project, self._frame, trained)
            self._references[trained] = reference_of(self._columns(names, slice(first, cut)))
        reference = self._references[trained]
        rows = slice(self._places[place], self._places[place + 1])
        window = Window(reference)
        window.add(self._columns(names, rows), rows.stop - rows.start)
        length = self._spans[place].end - self._spans[place].start
        alpha = drift.corrected_alpha(monitoring.false_alarms, len(names), length)
        found = [one for one in drift.compare(reference, window, monitoring.drift, alpha) if one.significant]
        found = [one for one in found if one.distance == monitoring.drift]
        levels = [(trigger.feature, trigger.level) for trigger in self._drift] or [(None, _USUAL_LEVEL)]
        return any(one.value > level and feature in (None, one.feature) for one in found for feature, level in levels)

    def _columns(self, names: Sequence[str], rows: slice) -> dict[str, np.ndarray]:
        return {name: self._frame.rows[name].to_numpy()[rows] for name in names}

    def _model(self, trained: float) -> _Model:
        if trained not in self._models:
            file = self._project.state / "replay" / "models" / f"{self._key(trained)}.npz"
            if not file.is_file():
                self._say(f"training as of {datetime.fromtimestamp(trained, UTC):%Y-%m-%d %H:%M}")
                self._worker.submit(_train, self._project.root, self._place, trained, file).result()
            with np.load(file) as kept:
                classes = json.loads(str(kept["classes"]))
                self._models[trained] = _Model(kept["predictions"], classes, float(kept["reference"]))
        return self._models[trained]

    def _key(self, trained: float) -> str:
        dumped, definition = self._project.dumped, self._project.definition
        parts = {
            "frame": self._artifact.digest, "at": trained, "lock": self._project.lock_digest,
            "code": usercode.code_digest(self._project.root, definition.user_files("train")),
            "train": dumped["train"], "holdout": dumped["evaluate"]["holdout"], "metric": self._metric,
            "delay": dumped["data"]["label_delay"], "length": dumped["data"]["window"]["length"],
        }  # fmt: skip
        return digest(parts)[:32]


def _known(project: Project, read: frame.Frame, trained: float) -> tuple[int, int]:
    """The first row that is trained on, and the first after those whose labels were known at that instant."""
    assert read.times is not None
    data = project.definition.data
    known = trained - data.label_delay.total_seconds()
    first = -np.inf if data.window.length is None else trained - data.window.length.total_seconds()
    return (
        int(np.searchsorted(read.times, first * _MICRO)) if np.isfinite(first) else 0,
        int(np.searchsorted(read.times, known * _MICRO, side="right")),
    )


def _scores(metric: str, classes: Sequence[object] | None, predictions: np.ndarray, labels: np.ndarray) -> Scores:
    kind: Kind = "regression" if classes is None else "binary" if len(classes) == 2 else "multiclass"
    scores = Scores(metric, kind, len(classes or ()) or 2)
    if len(labels):
        scores.add(predictions, labels if classes is None else metrics.positions(labels, classes))
    return scores


# in the process that trains


def _begin() -> None:
    """What the user's code prints is not to get among the results."""
    os.dup2(2, 1)


def _train(root: Path, place: Path, trained: float, file: Path) -> None:
    """Trains as of an instant and writes what the model says of the later rows."""
    from drivetrain.backends.tracking import stored

    opened = projects.open_project(root, checked=False)
    definition, read = opened.definition, frame.read(place)
    assert read.times is not None
    first, cut = _known(opened, read, trained)
    rows = read.rows.iloc[first:cut].reset_index(drop=True)
    parts = frame.divide(
        frame.Frame(rows, read.label, read.timestamp, read.features, read.times[first:cut]),
        definition.evaluate.holdout, definition.data.label_delay,
    )  # fmt: skip
    features, label = (
        rows.loc[parts.train, list(read.features)].reset_index(drop=True),
        rows.loc[parts.train, read.label],
    )
    part = definition.train
    with contextlib.chdir(root):
        function = usercode.load_function(root, part.function)
        arguments = call_arguments(function, part.parameters, part.seed, part.function)
        seed_everything(part.seed)
        fitted = function(features, label.reset_index(drop=True), **arguments)
        labels, whole = sorted(label.unique().tolist()), features.dropna()
        model = stored.in_memory(
            fitted, (whole if len(whole) else features).head(5), labels if len(labels) <= 100 else None
        )
        held, later = rows[parts.holdout], read.rows.iloc[cut:]
        said = [_column(model.predict(part_rows)) for part_rows in (held, later)]
    predictions = np.full((len(read.rows), *said[1].shape[1:]), np.nan, dtype=np.float32)
    predictions[cut:] = said[1]
    scores = _scores(definition.evaluate.metric, model.classes, said[0], held[read.label].to_numpy())
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp.npz")
    reference = loss(definition.evaluate.metric, scores.value().value)
    np.savez(scratch, predictions=predictions, classes=json.dumps(model.classes), reference=reference)
    scratch.replace(file)


def _column(predicted: np.ndarray) -> np.ndarray:
    """The probability of the second of two classes, else what was predicted."""
    return predicted[:, 1] if predicted.ndim == 2 and predicted.shape[1] == 2 else predicted
