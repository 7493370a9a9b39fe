"""How a rollout moves traffic, whoever serves: through the gateway on this machine, or by patches of an InferenceService."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from drivetrain import deployment, wiring
from drivetrain.backends.serving import Serving
from drivetrain.deployment import Deployed
from drivetrain.project import Project


class Traffic(Protocol):
    """Moves the traffic of one service between its champion and one candidate.

    Each verb may be called again, also after it was cut off anywhere, and does then what is left to do. At every instant the champion
    serves, until `promote` has the candidate do so. All raise `ServingError` if it could not be done; nothing has changed then.
    """

    def champion(self) -> str:
        """The revision that is on record as the champion."""
        ...

    def revive(self) -> None:
        """Has the service answer again, with the traffic that it had, if it has died."""
        ...

    def shadow(self) -> None:
        """The candidate gets a copy of each request, and its answers are dropped; the champion answers."""
        ...

    def share(self, percent: int) -> None:
        """The candidate answers so many percent, the champion the others."""
        ...

    def promote(self) -> None:
        """The candidate answers everything, and is the champion."""
        ...

    def restore(self) -> None:
        """The champion answers everything; the candidate is ended."""
        ...


@dataclass(frozen=True, slots=True)
class Records:
    """What a rollout changes beside the traffic, each a function that may be called again: who is `champion`; `revive` the service; have
    the candidate `stand_by`; `promote` it; `dismiss` it."""

    champion: Callable[[], str]
    revive: Callable[[], object]
    stand_by: Callable[[], object]
    promote: Callable[[], object]
    dismiss: Callable[[], object]


class LocalTraffic:
    """A `Traffic` over the gateway of the service `name`."""

    def __init__(self, serving: Serving, name: str, candidate: str, records: Records) -> None:
        self._serving = serving
        self._name = name
        self._candidate = candidate
        self._records = records

    def champion(self) -> str:
        """See `Traffic`."""
        return self._records.champion()

    def revive(self) -> None:
        """See `Traffic`."""
        self._records.revive()

    def shadow(self) -> None:
        """See `Traffic`."""
        self._route({self.champion(): 100}, self._candidate)

    def share(self, percent: int) -> None:
        """See `Traffic`."""
        self._route({self._candidate: percent, self.champion(): 100 - percent}, None)

    def promote(self) -> None:
        """See `Traffic`. The gateway brings as many replicas of the candidate up as the champion has, before it gets the whole."""
        self._records.promote()

    def restore(self) -> None:
        """See `Traffic`."""
        if self.champion() != self._candidate:
            self._route({self.champion(): 100}, None)
            # Out of traffic, it is also forgotten as the revision that a rollback would go back to.
            self._serving.withdraw(self._name, self._candidate)
        self._records.dismiss()

    def _route(self, weights: Mapping[str, int], shadow: str | None) -> None:
        now = self._serving.status(self._name)
        if {
            found.revision: found.weight for found in now.revisions if found.weight
        } == weights and now.shadow == shadow:
            return
        named = {*weights, shadow}
        if self._candidate in named and self._candidate not in {found.revision for found in now.revisions}:
            self._records.stand_by()
        self._serving.route(self._name, weights, shadow, now.sticky)


def local_traffic(opened: Project, candidate: Deployed) -> LocalTraffic:
    """The traffic of the project's gateway, with its champion and its registry."""
    records = Records(
        champion=lambda: deployment.leading(opened).revision,
        revive=lambda: deployment.revive(opened),
        stand_by=lambda: deployment.stand_by(opened, candidate),
        promote=lambda: deployment.promote(opened, candidate),
        dismiss=lambda: deployment.dismiss(opened, candidate),
    )
    return LocalTraffic(wiring.serving(opened.state), opened.definition.name, candidate.revision, records)
