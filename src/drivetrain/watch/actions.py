"""What the controller can have done to a project on this machine."""

from __future__ import annotations

from collections.abc import Mapping

from drivetrain import champion, deployment, wiring
from drivetrain.backends.serving import Serving
from drivetrain.definition.loop import Bounds
from drivetrain.errors import UsageError
from drivetrain.project import Project
from drivetrain.records import TrainOutputs, decode
from drivetrain.watch.arms import Brier
from drivetrain.watch.controller import Progress
from drivetrain.watch.retraining import Retrainings, Trained
from drivetrain.watch.rollout import Rollout, open_rollout
from drivetrain.watch.sources import Source
from drivetrain.watch.subject import ProjectSubjects


class Actions:
    """The `Acts` of a project. `bounds` are those that triggers scale to, by their names; a `patient` one waits for its retrainings."""

    def __init__(self, project: Project, source: Source, bounds: Mapping[str, Bounds], *, patient: bool) -> None:
        self._project = project
        self._source = source
        self._bounds = bounds
        self._patient = patient
        self._retrainings = Retrainings(project)
        self._serving: Serving = wiring.serving(project.state)
        self._rollout: tuple[str, Rollout] | None = None

    def train(self, run_id: str, as_of: float) -> Trained | None:
        """See `Acts`."""
        found = self._retrainings.advance(run_id, as_of)
        waited_for = 0
        while found is None and self._patient and self._retrainings.begun(run_id) > waited_for:
            waited_for = self._retrainings.begun(run_id)
            self._retrainings.wait(run_id)
            found = self._retrainings.advance(run_id, as_of)
        return found

    def trained(self, run_id: str) -> str | None:
        """See `Acts`."""
        deployed = deployment.of_run(self._project, run_id)
        leading = champion.read(wiring.project_objects(self._project), self._project.definition.name)
        attempt = self._project.journal.latest(run_id).get("train")
        if leading is None or attempt is None or attempt.outputs is None:
            raise UsageError(f"run {run_id} has trained nothing that could stand beside a champion")
        same = decode(TrainOutputs, attempt.outputs).model.digest == leading.model.digest
        return None if same else deployed.revision

    def roll_out(self, candidate: str, now: float) -> Progress:
        """See `Acts`."""
        found = self._open(candidate).advance(now)
        if found.ended:
            self._rollout = None
        state = found.state if found.ended else "rollout"
        if found.state == "rolled_back":
            self._serving.withdraw(self._project.definition.name, candidate)
        where = "a copy of the traffic" if found.state == "shadow" else f"{found.percent} % of the traffic"
        reason = found.reason if found.ended else f"{candidate} gets {where}"
        return Progress(state, reason, {**found.numbers, "percent": found.percent})

    def take_back(self, candidate: str, reason: str, now: float) -> None:
        """See `Acts`."""
        self._open(candidate).take_back(reason, now)

    def former(self) -> str:
        """See `Acts`."""
        return deployment.former(self._project).revision

    def roll_back(self, revision: str) -> None:
        """See `Acts`."""
        deployment.rollback(self._project, revision)

    def scale(self, trigger: str | None) -> None:
        """See `Acts`."""
        own = self._project.definition.serving.scale
        found = self._bounds.get(trigger) if trigger is not None else None
        wanted = (found.min, found.max) if found is not None else (own.min, own.max)
        name = self._project.definition.name
        if self._serving.status(name).scale != wanted:
            self._serving.scale(name, *wanted)

    def _open(self, candidate: str) -> Rollout:
        """The rollout, kept from look to look: opening it again would read its whole state."""
        if self._rollout is None or self._rollout[0] != candidate:
            self._rollout = (candidate, self._opened(candidate))
        return self._rollout[1]

    def _opened(self, candidate: str) -> Rollout:
        subject = ProjectSubjects(self._project).find(candidate)
        output = self._project.definition.monitoring.output
        losses = None if subject is None else Brier(subject.watched.classes, output)
        return open_rollout(self._project, candidate, self._source, self._project.journal, losses)
