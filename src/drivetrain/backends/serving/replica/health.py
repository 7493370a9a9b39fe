"""How the replica is: Cog's `/health-check`, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from drivetrain.backends.serving.http.messages import Exchange
from drivetrain.backends.serving.replica.calls import Signature
from drivetrain.backends.serving.replica.front import reply_json
from drivetrain.backends.serving.replica.pool import Pool

_asking: set[asyncio.Task[None]] = set()


def answer(pool: Pool, exchange: Exchange) -> None:
    """Cog's answer. A runner with a `healthcheck` of its own is asked; a process that has no such runner answers at once."""
    if pool.checks and pool.state in ("READY", "BUSY"):
        task = asyncio.get_running_loop().create_task(_ask(pool, exchange))
        _asking.add(task)  # the loop itself would forget it
        task.add_done_callback(_asking.discard)
    else:
        reply_json(exchange, 200, told(pool, ""))


async def _ask(pool: Pool, exchange: Exchange) -> None:
    reply_json(exchange, 200, told(pool, await pool.healthcheck()))


def told(pool: Pool, wrong: str) -> dict[str, Any]:
    """State, setup and versions; `wrong` is what the runner's own check has found."""
    setup: dict[str, Any] = {"started_at": _iso(pool.setup.started), "status": pool.setup.status}
    if pool.setup.completed is not None:
        setup["completed_at"] = _iso(pool.setup.completed)
    if pool.setup.logs:
        setup["logs"] = pool.setup.logs
    found = {"status": "UNHEALTHY" if wrong else pool.state, "setup": setup, "version": versions()}
    return found | ({"user_healthcheck_error": wrong} if wrong else {})


@cache
def versions() -> Mapping[str, str]:
    """What answers here, under Cog's names. `coglet` is the version whose behaviour this has."""
    return {
        "coglet": version("coglet"),
        "python_sdk": version("cog"),
        "python": platform.python_version(),
        "drivetrain": version("drivetrain"),
    }


@cache
def version(distribution: str) -> str:
    """The installed version; empty if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def document(signature: Signature) -> Mapping[str, Any]:
    """The runner's OpenAPI document. Where it streams, the document says so, as `cog build` has it."""
    schema = dict(signature.schema)
    if signature.streams and "/predictions" in schema.get("paths", {}):
        paths = dict(schema["paths"])
        post = paths["/predictions"]["post"] | {"x-cog-streaming": True}
        schema["paths"] = paths | {"/predictions": paths["/predictions"] | {"post": post}}
    return schema


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
