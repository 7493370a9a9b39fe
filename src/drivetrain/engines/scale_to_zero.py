"""What is done with a decision: bounds, the first scale, and the way to zero and back, as Knative's KPA reconciler does it.

A revision is Activating until enough replicas are ready, Active while it is wanted, and Inactive once nothing is. Its last replica
goes only after it has been Active for a stable window, and then Inactive long enough for the activator to have taken over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

ACTIVATION_BUFFER = 30.0
_LOOK_AGAIN = 3.0


class Phase(Enum):
    """Where a revision stands."""

    ACTIVATING = "activating"
    ACTIVE = "active"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Knative's settings of the same names, with its defaults; times in seconds. A `max_scale` of 0 is no bound."""

    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    scale_to_zero: bool = True
    stable_window: float = 60.0
    grace: float = 30.0
    retention: float = 0.0
    progress_deadline: float = 600.0


@dataclass(frozen=True, slots=True)
class Status:
    """The phase and since when; `initialized` once the initial scale has been reached for the first time."""

    phase: Phase
    since: float
    initialized: bool = False


@dataclass(frozen=True, slots=True)
class Activator:
    """Whether what holds requests for sleeping revisions is in the path (`proxying`), for how many seconds, and whether a probe found
    it there (`answers`); `always` if it never leaves (a target burst capacity of -1)."""

    proxying: bool = False
    proxy_for: float = 0.0
    answers: bool = True
    always: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: `scale` is the number wanted (None: not known yet), `act` whether to have that many. `again` is in how many
    seconds to look again without being asked, `probe` whether the activator has to be asked first. `reason` is for a log."""

    scale: int | None
    act: bool
    reason: str
    again: float | None = None
    probe: bool = False


def apply(
    want: int | None, status: Status, bounds: Bounds, now: float, activator: Activator, *, reachable: bool = True
) -> Step:
    """What follows from a decision (None: there was none yet)."""
    if want is None and status.phase is not Phase.ACTIVATING:
        return Step(None, False, "no metrics yet")
    asked = -1 if want is None else want
    least = _least(status, bounds, reachable=reachable)
    scale, reason = asked, "load"
    if asked < least:
        scale, reason = least, "min scale" if least <= bounds.min_scale else "initial scale"
    elif bounds.max_scale and asked > bounds.max_scale:
        scale, reason = bounds.max_scale, "max scale"
    if scale != 0:
        return Step(scale, True, reason)
    if not bounds.scale_to_zero:
        return Step(1, True, "scale to zero is off")
    return _toward_zero(status, bounds, now, activator, reachable=reachable)


def _least(status: Status, bounds: Bounds, *, reachable: bool) -> int:
    if not reachable:
        return 0
    if bounds.initial_scale > 1 and not status.initialized:
        return max(bounds.min_scale, bounds.initial_scale)
    return bounds.min_scale


def _toward_zero(status: Status, bounds: Bounds, now: float, activator: Activator, *, reachable: bool) -> Step:
    lasted = now - status.since
    if status.phase is Phase.ACTIVATING:
        timeout = bounds.progress_deadline + ACTIVATION_BUFFER
        if lasted > timeout:
            return Step(0, True, "activation timed out")
        return Step(None, False, "activating", again=timeout)
    if status.phase is Phase.ACTIVE:
        if lasted < bounds.stable_window:
            return Step(1, True, "active for less than the window", again=bounds.stable_window - lasted)
        return Step(0, False, "idle", again=_LOOK_AGAIN if activator.proxying else None)
    if not (activator.always or activator.answers):
        return Step(0, False, "the activator is not in the path", probe=True)
    return _last_replica(lasted, bounds, activator, retention=bounds.retention if reachable else 0.0)


def _last_replica(inactive_for: float, bounds: Bounds, activator: Activator, *, retention: float) -> Step:
    if inactive_for >= max(bounds.grace, retention):
        return Step(0, True, "inactive for the grace period")
    if inactive_for < retention:
        return Step(0, False, "last replica retained", again=retention - inactive_for)
    if activator.proxy_for >= bounds.grace:
        return Step(0, True, "activator in the path for the grace period")
    return Step(0, False, "grace period", again=bounds.grace - activator.proxy_for)


def advance(
    status: Status, scale: int | None, ready: int, bounds: Bounds, now: float, *, reachable: bool = True
) -> Status:
    """The status after a step: `scale` is the step's, `ready` how many replicas answer."""
    least = bounds.min_scale if reachable else 0
    enough = max(least, 1 if status.initialized else bounds.initial_scale)
    initialized = status.initialized or ready >= enough
    if scale == 0 or enough == 0 or (status.phase is Phase.INACTIVE and scale is None):
        phase = Phase.INACTIVE
    else:
        phase = Phase.ACTIVE if ready >= enough else Phase.ACTIVATING
    if phase is status.phase:
        return status if initialized == status.initialized else replace(status, initialized=initialized)
    return Status(phase, now, initialized)
