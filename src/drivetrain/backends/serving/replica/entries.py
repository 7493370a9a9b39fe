"""What a pool keeps of its calls, and what it tells of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drivetrain.backends.serving.replica.calls import Answer, Call, Progress

_LOGS = 1024 * 1024

Done = Callable[[Answer], None]
Follow = Callable[[Progress], None]


class NotReady(Exception):
    """No call can be taken now; says in which state the worker is."""


class Full(Exception):
    """As many calls wait as may."""


@dataclass(slots=True)
class Setup:
    """How the runner's setup went: times in seconds since the epoch, `completed` None while it goes on."""

    started: float
    completed: float | None = None
    status: str = "starting"
    logs: str = ""

    def printed(self, text: str) -> None:
        """Keeps what it printed, as far as it is of a size that can be told."""
        if len(self.logs) < _LOGS:
            self.logs += text

    def ended(self, status: str, words: str = "") -> None:
        """It has "succeeded" or "failed"; in the latter case, the words say why."""
        self.completed, self.status = time.time(), status
        if words:
            self.logs += f"Setup failed: {words}\n"


@dataclass(slots=True)
class Entry:
    """A call that was taken and is not answered."""

    number: int
    call: Call
    done: Done
    progress: Follow | None
    submitted: float
    attempts: int = 0

    def tell(self, callback: Callable[[Any], None], what: Answer | Progress) -> None:
        """Hands an answer on, or progress."""
        try:
            callback(what)
        except Exception as error:  # noqa: BLE001 - a mistake in one answer's way out must not cost the others that came with it
            context = {"message": f"what call {self.number} gave could not be handed on", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


@dataclass(slots=True)
class Checkup:
    """The question how the runner finds itself, asked once for all who want to know while it is open."""

    _answer: asyncio.Future[str] | None = None

    async def result(self, ask: Callable[[], object], within: float) -> str:
        """The answer. `ask` is called unless it has been asked already."""
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            ask()
        try:
            return await asyncio.wait_for(asyncio.shield(self._answer), within)
        except TimeoutError:
            return f"Healthcheck failed: user-defined healthcheck timed out after {within:g} seconds"

    def answered(self, words: str) -> None:
        """The answer is there."""
        if self._answer is not None:
            self._answer.set_result(words)
            self._answer = None


def loss(reason: str, limit: float, overran: bool, ended_for_another: bool) -> tuple[str, int]:
    """What a call that had begun when its worker ended is told, and with which status."""
    if overran:
        return f"the prediction took longer than {limit:g} s; its worker was ended", 504
    if ended_for_another:
        return "the worker was ended while this prediction was being run, since another one took too long", 500
    return f"the worker died while this prediction was being run: {reason}", 500


async def at_most(event: asyncio.Event, seconds: float) -> bool:
    """Waits for the event, but not longer; whether it has come."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
