"""A pool with its worker process, for the tests of both."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from drivetrain.backends.serving.replica.calls import Answer, Call, Progress, ReplicaSettings, Wire
from drivetrain.backends.serving.replica.pool import Pool
from drivetrain.backends.serving.replica.restarts import Restarts

WITHIN = 40.0


def carried_out(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs a scenario to its end, which must come within two minutes, on the event loop that a replica has."""
    uvloop.run(asyncio.wait_for(scenario, 120.0))


@asynccontextmanager
async def started(
    bundle: Path, restarts: Restarts | None = None, ready: bool = True, **settings: Any
) -> AsyncIterator[Pool]:
    """A pool whose runner is `run.py:Runner` in the bundle; stopped at the end."""
    pool = Pool(
        ReplicaSettings(**{"name": "model", "bundle": str(bundle), "runner": "run.py:Runner"} | settings), restarts
    )
    pool.start()
    try:
        if ready:
            assert await pool.wait_ready(), pool.setup.logs
        yield pool
    finally:
        await pool.stop(grace=0.0)


@dataclass
class Asked:
    """A call and what came of it. A second answer fails the test that looks at the first."""

    pool: Pool
    ticket: int = 0
    answers: list[Answer] = field(default_factory=list)
    progress: list[tuple[str, str]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.came.set()

    def follow(self, progress: Progress) -> None:
        self.progress.append((progress.kind, progress.body.decode()))

    async def answer(self) -> Answer:
        await asyncio.wait_for(self.came.wait(), WITHIN)
        assert len(self.answers) == 1
        return self.answers[0]

    async def body(self) -> dict[str, Any]:
        return json.loads((await self.answer()).body)

    async def output(self) -> Any:
        body = await self.body()
        assert body.get("status") == "succeeded", body
        return body["output"]


def ask(pool: Pool, inputs: Mapping[str, Any], deadline: float | None = None, follow: bool = False) -> Asked:
    """Submits a call in Cog's protocol; `deadline` in seconds from now."""
    asked = Asked(pool)
    at = None if deadline is None else time.monotonic() + deadline
    call = Call(Wire.COG, json.dumps({"input": inputs}).encode(), deadline=at)
    asked.ticket = pool.submit(call, asked.done, asked.follow if follow else None)
    return asked


async def until(condition: Callable[[], object], within: float = WITHIN) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)
