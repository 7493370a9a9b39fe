"""What is watched of one revision: what it was trained on and judged by, from the run that deployed it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from drivetrain import deployment, wiring
from drivetrain.engines.live_checks import LiveChecks
from drivetrain.engines.reference import Numeric, Reference
from drivetrain.engines.sketches import Window
from drivetrain.engines.watched import PREDICTION, Watched, class_names
from drivetrain.errors import CorruptArtifact, DataError
from drivetrain.project import Project
from drivetrain.records import Artifact, EvaluateOutputs, ValidateOutputs, decode
from drivetrain.watch.answers import Answers
from drivetrain.watch.payloads import Requests

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """A revision, with all that its windows are made with. `until` is when the rows end that it was made from (where they have no times:
    when it was judged), in seconds since 1970."""

    revision: str
    run_id: str
    watched: Watched
    checks: LiveChecks
    until: float
    columns: tuple[str, ...]
    """What of a request is looked at: the features, and slicing columns that are sent beside them."""
    requests: Requests = field(repr=False, compare=False)
    answers: Answers = field(repr=False, compare=False)
    empty: Window = field(repr=False, compare=False)

    def answered(self, predictions: np.ndarray) -> np.ndarray:
        """The predictions, shape (rows, width), as the column that the reference calls `prediction`."""
        if self.watched.kind != "multiclass" or self.watched.classes is None:
            return np.asarray(predictions[:, 0])
        known = np.isfinite(predictions).all(axis=1)
        names = class_names(np.where(known[:, None], predictions, 0.0).argmax(axis=1), self.watched.classes)
        names[~known] = None
        return names

    def as_scores(self, predictions: np.ndarray) -> np.ndarray:
        """The predictions as `engines.quality` and `engines.estimate` take them."""
        return predictions if self.watched.kind == "multiclass" else np.asarray(predictions[:, 0])


class Subjects(Protocol):
    """Knows revisions."""

    def find(self, revision: str) -> Subject | None:
        """The revision's subject; None if it is unknown, or cannot be watched."""
        ...

    def look_again(self) -> None:
        """Has revisions that were unknown looked for again."""
        ...


def subject(
    revision: str, run_id: str, watched: Watched, checks: LiveChecks, until: float,
    *, output: str | None = None, only: frozenset[str] = frozenset(),
) -> Subject:  # fmt: skip
    """A subject; `output` is the key of the answer that holds the prediction, `only` the features that are watched (empty: all)."""
    numeric = {name for name, entry in watched.reference.features.items() if isinstance(entry, Numeric)}
    if only:
        kept = {name: entry for name, entry in watched.reference.features.items() if name in only or name == PREDICTION}
        watched = replace(watched, reference=Reference(kept, watched.reference.rows))
    columns = (*watched.features, *(name for name in watched.slices if name not in watched.features))
    numbers = {name: name in numeric and name in watched.features for name in columns}
    return Subject(
        revision, run_id, watched, checks, until, columns,
        Requests(numbers, len(watched.features)), Answers(watched.classes, output), Window(watched.reference),
    )  # fmt: skip


class ProjectSubjects:
    """The revisions of a project, read from its journal and its objects when they are asked for."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._objects = wiring.project_objects(project)
        self._found: dict[str, Subject | None] = {}
        self._complained: set[str] = set()

    def find(self, revision: str) -> Subject | None:
        """See `Subjects`."""
        if revision not in self._found:
            if len(self._found) > 1000:  # names that somebody makes up
                self.look_again()
            self._found[revision] = self._read(revision)
        return self._found[revision]

    def look_again(self) -> None:
        """See `Subjects`."""
        self._found = {name: found for name, found in self._found.items() if found is not None}

    def _read(self, revision: str) -> Subject | None:
        deployed = deployment.of_revision(self._project, revision)
        if deployed is None:
            return None
        attempts = self._project.journal.latest(deployed.run_id)
        evaluated, validated = attempts.get("evaluate"), attempts.get("validate")
        if evaluated is None or evaluated.outputs is None:
            return None
        report = decode(EvaluateOutputs, evaluated.outputs).report
        try:
            watched = Watched.from_json(self._json(report, "reference.json"))
            checks = LiveChecks((), ())
            if validated is not None and validated.outputs is not None:
                document = self._json(decode(ValidateOutputs, validated.outputs).result, "result.json")
                checks = LiveChecks.of(document, watched.features)
        except (DataError, CorruptArtifact, KeyError) as error:
            if revision not in self._complained:  # it is looked for again at each look
                self._complained.add(revision)
                _log.warning("%s cannot be watched: %s", revision, error)
            return None
        part = self._project.definition.monitoring
        until = watched.until if watched.until is not None else evaluated.started
        return subject(
            revision, deployed.run_id, watched, checks, until, output=part.output, only=frozenset(part.features)
        )

    def _json(self, artifact: Artifact, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self._objects.read(artifact, name))
        return found
