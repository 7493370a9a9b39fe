"""The controller: decisions as a state machine in the journal. Written down first, then acted upon, then written down how it went.

Every action can be done again, so that a controller that was killed at any instant goes on from what the journal says: a run is named
before it begins, a rollback says where to before it goes there, a rollout keeps how far it has come.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from drivetrain.engines import triggers
from drivetrain.engines.triggers import Past, Policy, Situation, Verdict, Worth
from drivetrain.errors import DrivetrainError, UsageError
from drivetrain.journal import Decision, Journal
from drivetrain.records import Scalar
from drivetrain.watch.explain import spelled
from drivetrain.watch.retraining import Trained

PATIENCE = 600.0
"""Seconds for which an action that does not succeed is tried again."""
UNANSWERED = triggers.WEEK
"""Seconds after which a decision that nobody has approved is dropped."""
_KEPT = 2000
"""Decisions that are looked back at, besides all that have not ended."""
_TOLD_AGAIN = 86400.0
_NOT_YET = "not done yet: "
_BEGUN = {"retrain": "training", "rollback": "acting", "scale": "acting", "notify": "done"}
"""State in which an action begins. To notify is nothing but to decide: each decision is told."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A trigger that fires: since when (seconds since 1970), in words, and its numbers (`value`, `threshold`)."""

    trigger: str
    since: float
    words: str
    numbers: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found. `staying` is what staying with the champion has cost since the last retraining; `maintenance` when the open
    window ends; `set_back` the last instant to which the clock was set back. Times in seconds since 1970."""

    now: float
    firing: Sequence[Firing] = ()
    staying: float | None = None
    maintenance: float | None = None
    set_back: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How a rollout goes: `state` is `rollout` while it does, then `promoted` or `rolled_back`."""

    state: str
    reason: str
    numbers: Mapping[str, Scalar]


class Acts(Protocol):
    """What the controller can have done. Each may be called again after it was cut off; each raises `DrivetrainError` if it cannot be
    done, `UsageError` if trying again is of no use."""

    def train(self, run_id: str, as_of: float) -> Trained | None:
        """Begins the retraining, or sees how it is; None while it is at work."""
        ...

    def trained(self, run_id: str) -> str | None:
        """The candidate that a retraining has brought up; None if it gave the champion's model again."""
        ...

    def roll_out(self, candidate: str, now: float) -> Progress:
        """Advances the candidate's rollout, which promotes it or takes it back."""
        ...

    def take_back(self, candidate: str, reason: str, now: float) -> None:
        """Ends the candidate's rollout; the champion has the whole traffic again."""
        ...

    def former(self) -> str:
        """The revision that a rollback goes back to."""
        ...

    def roll_back(self, revision: str) -> None:
        """Has the revision serve, as the champion."""
        ...

    def scale(self, trigger: str | None) -> None:
        """Sets the bounds that the trigger names; without one those of the service itself."""
        ...


class Controller:
    """Decides, and carries its decisions through. One at a time for a project."""

    def __init__(
        self, journal: Journal, policies: Sequence[Policy], acts: Acts, *, backoff: float, worth: Worth | None = None
    ) -> None:
        self._journal = journal
        self._policies = {policy.trigger: policy for policy in policies}
        self._acts = acts
        self._backoff = backoff
        self._worth = worth

    def step(self, seen: Seen) -> list[Decision]:
        """Carries on what is under way, then decides about what fires. Returns every decision that is new or has changed, as it is now."""
        changed: dict[str, Decision] = {}
        for decision in self._journal.decisions_in(triggers.OPEN):
            self._carry_on(decision, seen, changed)
        firing = {found.trigger: found for found in seen.firing}
        for verdict in self.verdicts(seen):
            opened = self._open(verdict, firing[verdict.trigger], seen)
            if opened is not None:
                changed[opened.id] = opened
                self._carry_on(opened, seen, changed)
        return list(changed.values())

    def verdicts(self, seen: Seen) -> list[Verdict]:
        """What would be done about each trigger that fires; nothing is."""
        firing = [self._policies[found.trigger] for found in seen.firing if found.trigger in self._policies]
        situation = Situation(
            seen.now,
            self._past(seen),
            self._backoff,
            maintenance=seen.maintenance,
            worth=self._worth,
            staying=seen.staying,
        )
        return triggers.decide(firing, situation)

    # new decisions

    def _open(self, verdict: Verdict, found: Firing, seen: Seen) -> Decision | None:
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seen.now))}-{verdict.trigger}"
        numbers = dict(found.numbers) | {"since": found.since}
        if self._worth is not None and verdict.action == "retrain":
            numbers |= {"staying": seen.staying, "cost": self._worth.cost}
        reason, run_id = found.words, None
        if verdict.outcome == "hold":
            if verdict.rule in ("open", "busy") or self._was_told(verdict, found, seen):
                return None
            name, state, reason = f"{name}-{verdict.rule}", "held", f"{found.words}; not now: {verdict.reason}"
            numbers |= {"rule": verdict.rule, "until": verdict.until}
        elif verdict.outcome == "ask":
            state, reason = "waiting", f"{found.words}; `drivetrain watch --approve {name}` has it done"
        else:
            state = _BEGUN[verdict.action]
        if verdict.action == "retrain" and verdict.outcome != "hold":
            run_id = name
        now = seen.now
        made = Decision(name, now, verdict.trigger, verdict.action, state, reason, numbers, run_id, None, now)
        return made if self._journal.open_decision(made) else None

    def _was_told(self, verdict: Verdict, found: Firing, seen: Seen) -> bool:
        """Whether it is known why this trigger is not acted upon: the same rule held it within a day, or it was acted upon since it fires,
        and now rests."""
        for decision in self._journal.decisions(_KEPT):
            if decision.trigger != verdict.trigger:
                continue
            if decision.state != "held":
                return verdict.rule == "cooldown" and decision.at >= found.since
            if decision.numbers.get("rule") == verdict.rule:
                return 0 <= seen.now - decision.at < _TOLD_AGAIN
        return False

    # what is under way

    def _carry_on(self, decision: Decision, seen: Seen, changed: dict[str, Decision]) -> None:
        """Takes a decision as far as it goes now."""
        while decision.state in triggers.OPEN:
            try:
                following = self._next(self._unfailed(decision, seen), seen, changed)
            except UsageError as error:
                following = self._now(decision, seen, "failed", str(error))
            except DrivetrainError as error:
                following = self._not_yet(decision, seen, error)
            if following == decision:
                return
            self._journal.change_decision(following)
            changed[decision.id] = following
            if following.state == decision.state:
                return
            decision = following

    def _next(self, decision: Decision, seen: Seen, changed: dict[str, Decision]) -> Decision:
        if decision.state == "waiting":
            return self._answered(decision, seen)
        if decision.action == "retrain":
            return self._retrain(decision, seen)
        if decision.action == "rollback":
            return self._roll_back(decision, seen, changed)
        return self._scale(decision, seen)

    def _answered(self, decision: Decision, seen: Seen) -> Decision:
        approved = self._journal.approval(decision.id)
        if approved is None:
            if seen.now - decision.at > UNANSWERED:
                return self._now(decision, seen, "rejected", "nobody has approved it within a week")
            return decision
        if not approved:
            return self._now(decision, seen, "rejected", "somebody has rejected it")
        busy = triggers.blocking(decision.action, triggers.under_way(self._past(seen))) is not None
        if busy or (seen.maintenance is not None and decision.action != "notify"):
            return decision  # its turn comes
        return self._now(decision, seen, _BEGUN[decision.action], "somebody has approved it")

    def _retrain(self, decision: Decision, seen: Seen) -> Decision:
        assert decision.run_id is not None, "written down with the decision"
        if decision.state == "training":
            ended = self._acts.train(decision.run_id, decision.at)
            if ended is None:
                return decision
            if ended.state != "done":
                return self._now(decision, seen, ended.state, f"{ended.reason}; {self._rest(seen)}")
            candidate = self._acts.trained(decision.run_id)
            if candidate is None:
                return self._now(decision, seen, "unchanged", f"it gave the champion's model again; {self._rest(seen)}")
            return self._now(decision, seen, "rollout", f"{candidate} stands beside the champion", revision=candidate)
        assert decision.revision is not None, "written down when the rollout began"
        progress = self._acts.roll_out(decision.revision, seen.now)
        reason = progress.reason if progress.state != "rolled_back" else f"{progress.reason}; {self._rest(seen)}"
        if (progress.state, reason) == (decision.state, decision.reason):
            return decision
        return self._now(decision, seen, progress.state, reason, numbers=progress.numbers)

    def _rest(self, seen: Seen) -> str:
        """How long nothing is retrained, now that one more retraining has come to nothing."""
        fruitless, _ = triggers.fruitless_retrainings(self._past(seen), seen.now)
        rest = triggers.rest(fruitless + 1, self._backoff)
        return f"the champion stays, and nothing is retrained for {spelled(rest)}"

    def _roll_back(self, decision: Decision, seen: Seen, changed: dict[str, Decision]) -> Decision:
        # What is gone back from, or to, is kept first: looked up again after it has happened it would be something else.
        suspect = decision.numbers.get("candidate")
        if suspect is None and decision.revision is None:
            # While two revisions serve, the newer one is the first to be suspected.
            rollout = next(iter(self._journal.decisions_in(["rollout"])), None)
            if rollout is not None:
                suspect = rollout.revision
                decision = self._now(decision, seen, "acting", decision.reason, numbers={"candidate": suspect})
            else:
                decision = self._now(decision, seen, "acting", decision.reason, revision=self._acts.former())
            self._journal.change_decision(decision)
            changed[decision.id] = decision
        if suspect is None:
            assert decision.revision is not None
            self._acts.roll_back(decision.revision)
            return self._now(decision, seen, "done", f"{decision.reason}; {decision.revision} serves again")
        why = f"{decision.trigger} fired: {decision.reason}"
        self._acts.take_back(str(suspect), why, seen.now)
        for rollout in self._journal.decisions_in(["rollout"]):
            if rollout.revision == suspect:
                ended = self._now(rollout, seen, "rolled_back", f"{why}; {self._rest(seen)}")
                self._journal.change_decision(ended)
                changed[ended.id] = ended
        return self._now(decision, seen, "done", f"{decision.reason}; the candidate {suspect} was taken back")

    def _scale(self, decision: Decision, seen: Seen) -> Decision:
        if decision.state == "acting":
            self._acts.scale(decision.trigger)
            return self._now(decision, seen, "scaled", decision.reason)
        if any(found.trigger == decision.trigger for found in seen.firing):
            self._acts.scale(decision.trigger)  # a gateway that was started anew meanwhile has its own bounds
            return decision
        others = [other for other in self._journal.decisions_in(["scaled"]) if other.id != decision.id]
        self._acts.scale(others[-1].trigger if others else None)
        return self._now(decision, seen, "done", "it fires no more; the former bounds are back")

    def _unfailed(self, decision: Decision, seen: Seen) -> Decision:
        """The decision as it was before it could not be done. If that is what comes of the next try, the failures are over: another one,
        later, has its own time."""
        if "failing_since" not in decision.numbers:
            return decision
        numbers = {name: value for name, value in decision.numbers.items() if name != "failing_since"}
        reasons = [reason for _, _, reason in self._journal.decision_steps(decision.id)]
        reason = next((reason for reason in reversed(reasons) if not reason.startswith(_NOT_YET)), decision.reason)
        return replace(decision, numbers=numbers, reason=reason, changed=seen.now)

    def _not_yet(self, decision: Decision, seen: Seen, error: DrivetrainError) -> Decision:
        """What could not be done now is tried again for a while; a rollout has its own limit of time."""
        decision = self._journal.decision(decision.id) or decision  # it may have come a step further before it failed
        since = decision.numbers.get("failing_since")
        if not isinstance(since, float) or since > seen.now:
            numbers = {"failing_since": float(seen.now)}
            return self._now(decision, seen, decision.state, f"{_NOT_YET}{error}", numbers=numbers)
        if decision.state != "rollout" and seen.now - since > PATIENCE:
            return self._now(decision, seen, "failed", str(error))
        return decision

    def _now(
        self,
        decision: Decision,
        seen: Seen,
        state: str,
        reason: str,
        *,
        revision: str | None = None,
        numbers: Mapping[str, Scalar] | None = None,
    ) -> Decision:
        return replace(
            decision,
            state=state,
            reason=reason,
            revision=revision or decision.revision,
            numbers={**decision.numbers, **(numbers or {})},
            changed=seen.now,
        )

    def _past(self, seen: Seen) -> list[Past]:
        """What the rules look back at."""
        known = {row.id: row for row in self._journal.decisions(_KEPT, held=False)}
        known |= {row.id: row for row in self._journal.decisions_in(triggers.OPEN)}
        return [_past(row, seen) for row in known.values()]


def _past(decision: Decision, seen: Seen) -> Past:
    """The decision as the rules see it. One that was made before the clock was set back counts as of that moment: a rest does not last
    until the clock has caught up with it."""

    def seen_at(at: float) -> float:
        return at if at <= seen.now else min(at, seen.now if seen.set_back is None else seen.set_back)

    return Past(decision.trigger, decision.action, decision.state, seen_at(decision.at), seen_at(decision.changed))
