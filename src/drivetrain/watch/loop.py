"""The loop, put together: what is watched, the rules, the controller, and whoever is told."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from drivetrain import deployment, wiring
from drivetrain.backends.serving import Serving
from drivetrain.definition.loop import Trigger
from drivetrain.engines import quality, triggers
from drivetrain.engines.rules import Alert, Evaluator, Rule
from drivetrain.engines.triggers import Policy, Worth
from drivetrain.errors import ServingError, SystemFault, UsageError
from drivetrain.journal import Decision
from drivetrain.project import Project
from drivetrain.records import EvaluateOutputs, decode
from drivetrain.watch import alerts as webhook
from drivetrain.watch import conditions, door, explain, gauges, loop_metrics, schedule
from drivetrain.watch.actions import Actions
from drivetrain.watch.controller import Controller, Firing, Seen
from drivetrain.watch.explain import Explained
from drivetrain.watch.history import History
from drivetrain.watch.monitor import Monitor, open_monitor, open_source
from drivetrain.watch.notify import Notifier
from drivetrain.watch.samples import Described, Sample, exposition
from drivetrain.watch.signals import Signals, due

__all__ = ["Decision", "Looked", "Loop", "open_loop"]

_log = logging.getLogger(__name__)

STEP_BACK = 1.0
"""Seconds by which a clock may go back unnoticed."""
LEAP = 60.0
"""Seconds by which a clock may run ahead of the time that passed."""
_KEEP = 60.0
"""Seconds from one time that all series are written down to the next, at most: it takes longer than all else in a look."""
_POISON: Mapping[str, str] = {
    "unreadable": "requests hold none of the model's features",
    "too_large": "requests are larger than what is looked into",
    "unreadable_answer": "answers hold no prediction, or not one for each row",
}
_OBJECTIVE = Policy("", "notify", cooldown=86400.0, weekly_cap=7)
"""Within which bounds is told that an objective's error budget burns."""
_SHOWN = 20
_TOLD = 1000
_ALERTS = 10_000
"""All that the journal remembers."""

METRICS: Mapping[str, Described] = {**gauges.DESCRIBED, **loop_metrics.METRICS, **door.METRICS}
"""What the loop tells at its door."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the last look found. `decisions` are the newest, newest first; `text` is all that was measured, for Prometheus."""

    at: float
    champion: str | None
    candidate: str | None
    triggers: Sequence[Explained]
    """The definition's triggers, then the rules of its objectives."""
    budgets: Mapping[str, float]
    """By objective the share of its error budget that is left."""
    decisions: Sequence[Decision]
    text: str


def open_loop(project: Project, clock: Callable[[], float] = time.time, patient: bool = False) -> Loop:
    """The project's loop, held until it is closed. `clock` gives seconds since 1970; `patient` has a look wait for a retraining that
    it began, as a replay wants it.

    Raises `SystemFault` if another process watches the project.
    """
    return Loop(project, clock, patient)


class Loop:
    """Looks, decides, acts. Killed at any instant, it goes on from the journal when it is opened again."""

    def __init__(self, project: Project, clock: Callable[[], float], patient: bool) -> None:
        definition, home = project.definition, project.state / "loop"
        self.project = project
        self.clock = clock
        self.looked: Looked | None = None
        self.told: Callable[[], list[Sample]] = list
        """What else is shown with the metrics: the door's own counts."""
        self._lock = _locked(home / "lock")
        self._steady = (clock(), time.monotonic()) if clock is time.time else None
        self._rules: dict[str, Rule] = {rule.name: rule for rule in conditions.rules(definition)}
        self._triggers: dict[str, Trigger] = {trigger.name: trigger for trigger in definition.triggers}
        self._signals = Signals(definition, list(self._rules.values()), project.root, home)
        if (lost := self._signals.recall()) is not None:
            self._say("signals", f"{lost} cannot be read: what is measured over a time begins anew", clock())
        self._keep_every = min([_KEEP, *(trigger.window.total_seconds() / 2 for trigger in definition.triggers)])
        self._signals_kept = -math.inf
        state = json.loads(project.journal.loop_value("rules") or "{}")
        self._evaluator = Evaluator.from_json(list(self._rules.values()), state)
        self._serving: Serving = wiring.serving(project.state)
        self._monitor: Monitor = open_monitor(project)
        self._history = History(self._monitor)
        self._source = open_source(project)
        bounds = {trigger.name: trigger.scale for trigger in definition.triggers if trigger.scale is not None}
        part = definition.loop
        worth = None if part.worth is None else Worth(part.worth.training + part.worth.rollout)
        self._controller = Controller(
            project.journal, list(_policies(definition.triggers, self._rules)),
            Actions(project, self._source, bounds, patient=patient), backoff=part.backoff.total_seconds(), worth=worth,
        )  # fmt: skip
        self._notifier = Notifier(project.journal, definition.name, part.notify)

    def tick(self) -> list[Decision]:
        """One look: reads what is new, evaluates the rules, decides and acts, advances the rollout.

        Returns the decisions that are new, or whose state changed, as they are now; each stands in the journal.
        """
        now = self.clock()
        set_back = self._see_clock(now)
        self._restore()
        self._catch_up(now)
        samples, found = self._measure(now)
        self.project.journal.keep_loop_value("rules", json.dumps(self._evaluator.to_json()))
        self._keep_signals(now)
        seen = self._seen(samples, found, now, set_back)
        changed = self._controller.step(seen)
        for said in self._notifier.tell(now):
            self._say("notify", said, now)
        self._show(samples, found, seen)
        return changed

    def rehearse(self) -> Looked:
        """A look that decides and does nothing: what would be done about each trigger, and why. What is new is read."""
        now = self.clock()
        self._catch_up(now)
        samples, found = self._measure(now)
        return self._show(samples, found, self._seen(samples, found, now, self._set_back()))

    def close(self) -> None:
        """Lets go of the project."""
        if not self._lock.closed:
            try:
                self._signals.keep()
            finally:
                self._monitor.close()
                self._lock.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_signals(self, now: float) -> None:
        """Has the next process know them though this one may be killed: what fires by them fires on."""
        if not 0 <= now - self._signals_kept < self._keep_every:
            self._signals_kept = now
            try:
                self._signals.keep()
            except SystemFault as error:  # what fires now is acted upon nevertheless
                self._say("signals", str(error), now)

    # the clock

    def _see_clock(self, now: float) -> float | None:
        """Notes if the clock was set; the last instant to which it was set back."""
        journal = self.project.journal
        last = float(journal.loop_value("looked") or "-inf")
        if now < last - STEP_BACK:
            journal.keep_loop_value("set_back", repr(now))
            self._history.forget()
            self._say("clock", f"the clock was set back by {explain.spelled(last - now)}; rests go on from now", now)
        elif self._steady is not None:
            leap = (now - self._steady[0]) - (time.monotonic() - self._steady[1])
            if leap > LEAP:
                self._hold_longer(leap)
                self._say(
                    "clock", f"the clock leapt ahead by {explain.spelled(leap)}; what has to hold holds later", now
                )
        if self._steady is not None:
            self._steady = (now, time.monotonic())
        journal.keep_loop_value("looked", repr(now))
        return self._set_back()

    def _set_back(self) -> float | None:
        found = self.project.journal.loop_value("set_back")
        return None if found is None else float(found)

    def _hold_longer(self, leap: float) -> None:
        """Time in which nobody looked (a machine that slept, a clock that was set) does not count as holding."""
        state = self._evaluator.to_json()
        for active in state.values():
            for alert in active:
                if alert["state"] == "pending":
                    alert["since"] += leap
        self._evaluator = Evaluator.from_json(list(self._rules.values()), state)

    # what is looked at

    def _restore(self) -> None:
        """Has a service answer again whose gateway has died; one that was stopped on purpose stays stopped."""
        try:
            if self._serving.restore(self.project.definition.name) is not None:
                self._say("restored", "the gateway had died; it serves again, as it did before", self.clock())
        except ServingError as error:
            self._say("restored", f"the gateway has died, and does not come back: {error}", self.clock())

    def _catch_up(self, now: float) -> None:
        """Reads what is new. What could not be looked into is said of each window that has closed."""
        for window in self._monitor.catch_up(self._source, now).closed:
            for outcome, words in _POISON.items():
                if count := window.outcomes.get(outcome):
                    ended = f"the window of {window.revision} that ended {explain.instant(window.end)}"
                    self._say(outcome, f"{ended}: {count:,} {words}", now)

    def _measure(self, now: float) -> tuple[list[Sample], dict[str, Alert]]:
        """The monitor's samples, and the alert of each rule or trigger that is pending or fires."""
        definition = self.project.definition
        samples = self._monitor.samples(now, self._champion(), self._candidate())
        samples += due(definition, self._handled(now), now)
        endpoint = self._serving.find(definition.name)
        self._signals.look(endpoint.url if endpoint else None, samples, now)
        found: dict[str, Alert] = {}
        evaluated = self._evaluator.evaluate(self._signals.series, now)
        if definition.loop.evaluator == "prometheus":
            evaluated = []
        for alert in [*evaluated, *webhook.alerts(self.project.journal.alerts(_ALERTS), now)]:
            known = found.get(alert.trigger)
            if alert.state != "resolved" and (known is None or _is_nearer(alert, known)):
                found[alert.trigger] = alert
        return samples, found

    def _seen(self, samples: Sequence[Sample], found: Mapping[str, Alert], now: float, set_back: float | None) -> Seen:
        part = self.project.definition.loop
        firing = [self._firing(alert, samples) for alert in found.values() if alert.state == "firing"]
        return Seen(
            now,
            firing if self._champion() is not None else (),
            staying=self._staying(now) if part.worth is not None and firing else None,
            maintenance=schedule.open_window(part.maintenance, now),
            set_back=set_back,
        )

    def _firing(self, alert: Alert, samples: Sequence[Sample]) -> Firing:
        trigger = self._triggers.get(alert.trigger)
        value = None if math.isnan(alert.value) else alert.value
        if trigger is None:
            rule = self._rules[alert.trigger]
            return Firing(
                alert.trigger, alert.since, rule.annotations["summary"], {"value": value, "threshold": rule.level}
            )
        words = explain.measured(trigger, value, samples)
        return Firing(alert.trigger, alert.since, words, explain.numbers(trigger, value))

    def _champion(self) -> str | None:
        try:
            return deployment.leading(self.project).revision
        except UsageError:
            return None

    def _candidate(self) -> str | None:
        return next((row.revision for row in self.project.journal.decisions_in(["rollout"])), None)

    def _handled(self, now: float) -> dict[str, float]:
        """When each trigger was acted upon last; if never, when it was first looked at."""
        journal, found = self.project.journal, dict[str, float]()
        for row in journal.decisions(_TOLD, held=False):
            found.setdefault(row.trigger, row.at)
        for name, trigger in self._triggers.items():
            if trigger.cron is not None and name not in found:
                kept = journal.loop_value(f"since.{name}")
                if kept is None:
                    journal.keep_loop_value(f"since.{name}", kept := repr(now))
                found[name] = float(kept)
        # What lies ahead was done before the clock was set back.
        set_back = self._set_back()
        return {name: min(at, now if set_back is None else set_back) if at > now else at for name, at in found.items()}

    def _staying(self, now: float) -> float | None:
        """What staying with the champion has cost since the last retraining; None while nothing is known of its quality."""
        worth, journal = self.project.definition.loop.worth, self.project.journal
        leading = deployment.leading(self.project)
        attempt = journal.latest(leading.run_id).get("evaluate")
        if worth is None or attempt is None or attempt.outputs is None:
            return None
        judged = decode(EvaluateOutputs, attempt.outputs).report.metadata
        metric, reference = str(judged["metric"]), float(str(judged["value"]))
        ended = triggers.FRUITLESS | {"promoted"}
        retrained = (
            row.at for row in journal.decisions(_TOLD, held=False) if row.action == "retrain" and row.state in ended
        )
        since = next((at for at in retrained if at <= now), 0.0)
        served = self._history.served(leading.revision, since, metric)
        if not served:
            return None
        return triggers.cost_of_staying(served, quality.loss(metric, reference), worth.per_prediction)

    # what is shown

    def _show(self, samples: Sequence[Sample], found: Mapping[str, Alert], seen: Seen) -> Looked:
        journal, definition = self.project.journal, self.project.definition
        verdicts = {verdict.trigger: verdict for verdict in self._controller.verdicts(seen)}
        explained = explain.explain(
            self._triggers.values(),
            self._rules,
            self._signals.series,
            samples,
            found,
            verdicts,
            self._told_last,
            seen.now,
        )
        left = self._signals.budgets.left(seen.now)
        objectives = [rule for name, rule in self._rules.items() if name not in self._triggers]
        explained += explain.explain_objectives(objectives, self._signals.series, found, verdicts, left, seen.now)
        decisions = journal.decisions(_TOLD)
        rollout = next((row for row in decisions if row.state == "rollout"), None)
        percent = int(float(str(rollout.numbers.get("percent") or 0))) if rollout is not None else 0
        own = loop_metrics.loop_samples(
            definition.name, self._rules, found.values(), decisions, percent, left, seen.now
        )
        text = exposition([*samples, *own, *self.told()], METRICS)
        self.looked = Looked(
            seen.now, self._champion(), rollout.revision if rollout else None, explained, left, decisions[:_SHOWN], text
        )
        return self.looked

    def _told_last(self, signals: Collection[str]) -> list[Sample]:
        champion = self._champion()
        return [] if champion is None else self._history.told_last(champion, signals)

    def _say(self, kind: str, text: str, now: float) -> None:
        """Writes down what is no decision, and yet to be known."""
        _log.warning("%s", text)
        self.project.journal.say("loop", kind, text, now)


def document(looked: Looked) -> dict[str, object]:
    """What a look found, as JSON-ready values."""
    return {
        "at": looked.at,
        "champion": looked.champion,
        "candidate": looked.candidate,
        "triggers": [asdict(one) for one in looked.triggers],
        "budgets": dict(looked.budgets),
        "decisions": [asdict(one) for one in looked.decisions],
    }


def _policies(triggers: Sequence[Trigger], rules: Mapping[str, Rule]) -> Iterator[Policy]:
    named = set()
    for trigger in triggers:
        named.add(trigger.name)
        yield Policy(
            trigger.name, trigger.action, trigger.cooldown.total_seconds(), trigger.weekly_cap, trigger.approval
        )
    for name in rules:
        if name not in named:
            yield replace(_OBJECTIVE, trigger=name)


def _is_nearer(alert: Alert, known: Alert) -> bool:
    """Whether of two alerts of one rule this one says more: it fires, or does so for longer."""
    return (alert.state != "firing", alert.since) < (known.state != "firing", known.since)


def _locked(path: Path) -> IO[str]:
    """The file, held by this process until it ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("a+")
    except OSError as error:
        raise SystemFault(f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise SystemFault(
            f"this project is watched already (process {holder})",
            hint="`drivetrain watch --once --dry-run` asks it how things are",
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
