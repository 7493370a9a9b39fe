"""What a report is about: a run with what it made, and the revision that it brought to serve, if it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from drivetrain import champion, deployment, wiring
from drivetrain.errors import CorruptArtifact, UsageError
from drivetrain.journal import AttemptRow, RunRow
from drivetrain.project import Project
from drivetrain.records import Artifact, DeployOutputs, Record, RegisterOutputs, decode


@dataclass(frozen=True, slots=True)
class Found:
    """The run, the last attempt at each of its stages, and the revision that it deployed. `leads` is whether that is the champion."""

    project: Project
    run: RunRow
    attempts: Mapping[str, AttemptRow]
    revision: str | None
    leads: bool

    def output(self, stage: str, kind: type[Record]) -> Record | None:
        """What a stage gave; None if it did not come so far."""
        attempt = self.attempts.get(stage)
        return None if attempt is None or attempt.outputs is None else decode(kind, attempt.outputs)

    def file(self, artifact: Artifact, name: str) -> bytes | None:
        """A file of an artifact; None where it is not kept any more."""
        try:
            return wiring.project_objects(self.project).read(artifact, name)
        except (CorruptArtifact, KeyError):
            return None

    def json(self, artifact: Artifact, name: str) -> dict[str, Any] | None:
        """The same, decoded."""
        data = self.file(artifact, name)
        found: dict[str, Any] | None = None if data is None else json.loads(data)
        return found


def find(project: Project, subject: str | None) -> Found:
    """A run by its id or the beginning of it, a revision, or a model version; without one what the champion's run made.

    Raises `UsageError` if there is no such thing in this project.
    """
    leading = champion.read(wiring.project_objects(project), project.definition.name)
    if subject is None:
        if leading is None:
            raise UsageError("no model has been promoted yet", hint="name a run: `drivetrain runs` lists them")
        run_id = leading.run_id
    elif (deployed := deployment.of_revision(project, subject)) is not None:
        run_id = deployed.run_id
    else:
        run_id = _of_version(project, subject) or subject
    run = project.journal.run(run_id)
    if run is None:
        raise UsageError(
            f"{subject or run_id} is no run, revision or model version of this project",
            hint="`drivetrain runs` lists them",
        )
    revision = _revision_of(project, run.id)
    # Several runs may have deployed the same revision.
    leads = leading is not None and (
        leading.run_id == run.id or (revision is not None and revision == _revision_of(project, leading.run_id))
    )
    return Found(project, run, project.journal.latest(run.id), revision, leads)


def _revision_of(project: Project, run_id: str) -> str | None:
    attempt = project.journal.latest(run_id).get("deploy")
    return None if attempt is None or attempt.outputs is None else decode(DeployOutputs, attempt.outputs).revision.id


def _of_version(project: Project, version: str) -> str | None:
    wanted = version if "/" in version else f"{project.definition.name}/{version}"
    for row in project.journal.runs():
        attempt = project.journal.latest(row.id).get("register")
        made = None if attempt is None or attempt.outputs is None else decode(RegisterOutputs, attempt.outputs)
        if made is not None and made.version.id == wanted:
            return row.id
    return None


# how values are written


def moment(at: float | None) -> str:
    """Date and time in UTC, to the minute."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def number(value: Any) -> str:
    """Four digits of a fraction, thousands of a count set apart, anything else as it is; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(share: float) -> str:
    """`12.3 %`; what is nearly none or nearly all keeps the digits that say so, none and all need no more."""
    edge = min(share, 1.0 - share)
    return f"{100 * share:.{0 if edge <= 0 else 1 if edge > 0.0005 else 3}f} %"


def span(seconds: float) -> str:
    """`12.3 ms` or `1.2 s`."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def interval(low: float | None, high: float | None) -> str:
    """`95 % interval 0.71 to 0.74`; empty where there is none."""
    return "" if low is None or high is None else f"95 % interval {number(low)} to {number(high)}"
