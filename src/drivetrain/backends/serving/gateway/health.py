"""What a replica says of its health, whichever server it is."""

from __future__ import annotations

import json
from dataclasses import dataclass

from drivetrain.backends.serving.http.client import Client
from drivetrain.backends.serving.http.outcomes import ClientError

ANSWERING = ("READY", "BUSY")
GIVEN_UP = ("SETUP_FAILED", "DEFUNCT")
FAILED = (*GIVEN_UP, "UNHEALTHY")


@dataclass(frozen=True, slots=True)
class Health:
    """`status` in Cog's words; empty if there was no answer. `reason` is what a failed setup said."""

    status: str
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.status in ANSWERING

    @property
    def failed(self) -> bool:
        """It has not come up as it should."""
        return self.status in FAILED

    @property
    def given_up(self) -> bool:
        """It will not become ready by itself, however long one waits."""
        return self.status in GIVEN_UP


SILENT = Health("")


async def ask(client: Client, within: float) -> Health:
    """The replica's health. A server without `/health-check` that answers at all (KServe's) counts as ready."""
    try:
        answer = await client.request("GET", "/health-check", timeout=within)
    except ClientError:
        return SILENT
    try:
        said = json.loads(answer.body)
        status = said["status"]
    except (ValueError, KeyError, TypeError):
        return Health("READY") if answer.status < 500 else Health("STARTING")
    return Health(str(status), _reason(said.get("setup")))


def _reason(setup: object) -> str:
    logs = str(setup.get("logs", "")) if isinstance(setup, dict) else ""
    # Cog's: "worker setup failed: worker setup failed (slot ID): Setup failed: setup failed: RuntimeError: no such file"
    return logs.strip().rpartition("etup failed: ")[2]
