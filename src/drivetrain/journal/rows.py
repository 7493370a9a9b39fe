"""What is read from the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivetrain.records import Scalar


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. Times are seconds since 1970, `ended` None while it goes on (or was killed)."""

    id: str
    lifecycle: str
    state: str
    exit_code: int | None
    started: float
    ended: float | None
    pid: int
    facts: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt at a stage. `outputs` is the encoded record, None unless the state is done, cached or refused."""

    run_id: str
    stage: str
    attempt: int
    state: str
    key: str
    started: float
    ended: float | None
    peak_memory: int
    outputs: Mapping[str, Any] | None
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the loop decided, and what became of it.

    `at` is when it was decided and `changed` when its state last changed, in seconds since 1970. `numbers` are those that it was decided
    by: the signal's value, its threshold, costs. `run_id` is the run that a retraining is done in, known before the run begins;
    `revision` the one it is about.

    States: `waiting` for approval; `acting`; `training` and then `rollout`, of a retraining; `scaled`, as long as the bounds are
    changed. It has ended when it is `done`, `promoted`, `failed`, `refused` by a gate, `unchanged` (the same model again),
    `rolled_back`, `rejected` by somebody, or `held`: the trigger fired, and a rule said not now.
    """

    id: str
    at: float
    trigger: str
    action: str
    state: str
    reason: str
    numbers: Mapping[str, Scalar]
    run_id: str | None
    revision: str | None
    changed: float
