"""The loop, put together: what is watched, the rules, the controller, and the rollout that is under way."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from drivetrain.journal import Decision
from drivetrain.project import Project

__all__ = ["Decision", "Loop", "open_loop"]


def open_loop(project: Project, clock: Callable[[], float], patient: bool = False) -> Loop:
    """The project's loop, held until it is closed. `clock` gives seconds since 1970; `patient` has a look wait for a retraining that
    it began, as a replay wants it.

    Raises `SystemFault` if another process watches the project.
    """
    return Loop(project, clock, patient)


class Loop:
    """Looks, decides, acts. Killed at any instant, it goes on from the journal when it is opened again."""

    def __init__(self, project: Project, clock: Callable[[], float], patient: bool) -> None:
        self.project = project
        self.clock = clock
        self.patient = patient

    def tick(self) -> list[Decision]:
        """One look: reads what is new, evaluates the rules, decides and acts, advances the rollout.

        Returns the decisions that are new, or whose state changed, as they are now; each stands in the journal.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of the project."""

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
