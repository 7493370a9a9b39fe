"""A rollout as a process of its own, to be killed: `rolling_out.py STATE CANDIDATE PLAN`."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain.backends.serving.gateway.settings import Capturing, Settings
from drivetrain.backends.serving.local import LocalServing
from drivetrain.engines.canary import Plan
from drivetrain.errors import ServingError
from drivetrain.journal import Journal
from drivetrain.watch.rollout import Rollout, RolloutState
from drivetrain.watch.sources import Log
from drivetrain.watch.traffic import LocalTraffic, Records

NAME, RUNNER = "echo", "run.py:Runner"


class Place:
    """A service below a state directory; which revision is the champion stands in a file there."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.serving = LocalServing(state, ready_within=60.0)
        self.journal = Journal(state / "journal.db")
        self.log = Log(state / "serving" / f"{NAME}.capture", "gateway")

    @property
    def champion(self) -> str:
        return (self.state / "champion").read_text()

    def bundle(self, revision: str) -> Path:
        return self.state / "made" / revision

    def settings(self) -> Settings:
        home = self.state / "serving"
        home.mkdir(parents=True, exist_ok=True)
        (home / "token").write_text("a-token")
        capturing = Capturing(directory=str(home / f"{NAME}.capture"))
        return Settings(NAME, str(home), "127.0.0.1", 0, str(home / "token"), ready_within=60.0, capturing=capturing)

    def deploy(self, revision: str, promote: bool) -> None:
        self.serving.deploy(self.settings(), revision, self.bundle(revision), RUNNER, promote=promote)

    def promote(self, revision: str) -> None:
        self.deploy(revision, promote=True)
        scratch = self.state / "champion.new"
        scratch.write_text(revision)
        scratch.replace(self.state / "champion")

    def revive(self) -> None:
        if self.serving.find(NAME) is None:
            self.deploy(self.champion, promote=False)

    def traffic(self, candidate: str) -> LocalTraffic:
        records = Records(
            champion=lambda: self.champion,
            revive=self.revive,
            stand_by=lambda: self.deploy(candidate, promote=False),
            promote=lambda: self.promote(candidate),
            dismiss=lambda: None,
        )
        return LocalTraffic(self.serving, NAME, candidate, records)

    def rollout(self, candidate: str, plan: Plan) -> Rollout:
        return Rollout(plan, candidate, self.traffic(candidate), self.log, self.journal)

    def carry_out(self, candidate: str, plan: Plan, within: float = 60.0) -> RolloutState:
        """Looks until it has ended."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with suppress(ServingError):
                state = self.rollout(candidate, plan).advance(time.time())
                if state.ended:
                    return state
            time.sleep(0.05)
        raise TimeoutError(f"{candidate} is undecided: {self.journal.rollout(candidate)}")


def plan_of(given: dict[str, Any]) -> Plan:
    return Plan(**{**given, "steps": tuple(given["steps"])})


if __name__ == "__main__":
    print("begun", flush=True)
    Place(Path(sys.argv[1])).carry_out(sys.argv[2], plan_of(json.loads(sys.argv[3])))
