"""A revision is scaled by its load: up at once, to zero when nobody calls, and back on the first request. All in virtual time."""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivetrain.backends.serving.gateway.scaling import Scaler
from drivetrain.backends.serving.gateway.settings import Scaling
from drivetrain.engines.scale_to_zero import Phase


class VirtualSelector(selectors.DefaultSelector):
    """Where a real loop would sleep, time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    found = VirtualLoop()
    yield found
    found.close()


class Revision:
    """Replicas that take `start` seconds to come up and each carry any number of requests; `load` is requests in flight."""

    def __init__(self, loop: VirtualLoop, *, wanted: int = 1, start: float = 3.0) -> None:
        self.loop, self.start = loop, start
        self.ready = self._wanted = wanted
        self.load, self.history = 0.0, [(loop.time(), wanted)]

    @property
    def wanted(self) -> int:
        return self._wanted

    def sample(self, now: float) -> tuple[float, float]:
        return self.load, self.load * 10

    def scale(self, wanted: int) -> None:
        self._wanted = wanted
        self.history.append((self.loop.time(), wanted))
        if wanted < self.ready:
            self.ready = wanted
        else:
            self.loop.call_later(self.start, self._up, wanted)

    def _up(self, wanted: int) -> None:
        self.ready = min(wanted, self._wanted)

    def when(self, wanted: int) -> float:
        return next(at for at, count in reversed(self.history) if count == wanted)


def play(loop: VirtualLoop, scaler: Scaler, script: list[tuple[float, Callable[[], None]]], until: float) -> None:
    """Runs the scaler, doing what the script says at each time."""

    async def main() -> None:
        running = asyncio.create_task(scaler.run())
        for at, act in script:
            loop.call_at(at, act)
        await asyncio.sleep(until - loop.time())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    loop.run_until_complete(main())


def loading(revision: Revision, load: float) -> Callable[[], None]:
    return lambda: setattr(revision, "load", load)


def test_load_scales_up_within_two_ticks_and_down_after_the_window(loop: VirtualLoop) -> None:
    revision = Revision(loop)
    scaler = Scaler(Scaling(min=1, max=10, target=10.0), revision, loop.time)
    play(loop, scaler, [(1010.5, loading(revision, 50.0)), (1040.5, loading(revision, 0.0))], 1200.0)
    first_up = next(at for at, count in revision.history if count > 1)
    assert 1010.5 < first_up <= 1014.0
    assert max(count for _, count in revision.history) == 8, "50 requests at 70 % of 10 each"
    assert revision.wanted == 1
    assert revision.when(1) > 1040.0 + 30.0, "the last panic was over a window ago"


def test_nobody_calls_for_window_and_grace_and_it_sleeps_and_one_request_wakes_it_at_once(loop: VirtualLoop) -> None:
    revision = Revision(loop)
    scaler = Scaler(Scaling(min=0, max=4, window=60.0, grace=30.0), revision, loop.time)
    revision.load = 2.0
    play(loop, scaler, [(1100.0, loading(revision, 0.0))], 1300.0)
    asleep = revision.when(0)
    assert 1100.0 + 60.0 + 30.0 <= asleep <= 1100.0 + 60.0 + 30.0 + 4.0
    assert scaler.phase is Phase.INACTIVE

    before = loop.time()
    scaler.poke()
    assert revision.history[-1] == (before, 1)
    revision.load = 1.0
    scaler.poke()
    scaler.poke()
    assert len(revision.history) == 3, "a replica that is on its way is not asked for again"
    play(loop, scaler, [], 1310.0)
    assert revision.ready == 1
    assert scaler.phase is Phase.ACTIVE


def test_a_burst_that_wakes_it_is_scaled_by_itself_not_by_the_long_sleep_before(loop: VirtualLoop) -> None:
    revision = Revision(loop, wanted=0)
    scaler = Scaler(Scaling(min=0, max=20, target=1.0), revision, loop.time)
    play(loop, scaler, [], 1500.0)
    revision.load = 7.0
    scaler.poke()
    play(loop, scaler, [], 1503.0)
    assert revision.wanted == 8, "the mean of 1, 7 and 7 at 70 %; after zeros it would be 4"


def test_requests_for_a_revision_that_does_not_come_up_do_not_add_up(loop: VirtualLoop) -> None:
    class Broken(Revision):
        def scale(self, wanted: int) -> None:
            self.history.append((self.loop.time(), wanted))

    revision = Broken(loop, wanted=0)
    scaler = Scaler(Scaling(min=0, max=20, target=1.0), revision, loop.time)
    for _ in range(50):
        scaler.poke()
    assert {wanted for _, wanted in revision.history} == {0, 2}, "one request at 70 % of one"


def test_a_request_within_the_grace_period_keeps_it_awake(loop: VirtualLoop) -> None:
    revision = Revision(loop)
    scaler = Scaler(Scaling(min=0, max=4, window=6.0, grace=20.0), revision, loop.time)
    touch = [(1020.0, scaler.poke), (1020.0, loading(revision, 1.0)), (1022.0, loading(revision, 0.0))]
    play(loop, scaler, touch, 1040.0)
    assert revision.history == [(1000.0, 1)]
    play(loop, scaler, [], 1070.0)
    assert revision.wanted == 0


def test_min_holds_without_load_and_max_with_it(loop: VirtualLoop) -> None:
    revision = Revision(loop, wanted=2)
    scaler = Scaler(Scaling(min=2, max=3, window=6.0, grace=0.0), revision, loop.time)
    play(loop, scaler, [(1030.0, loading(revision, 500.0))], 1060.0)
    assert [count for _, count in revision.history] == [2, 3]


def test_requests_per_second_can_be_the_metric(loop: VirtualLoop) -> None:
    revision = Revision(loop)
    scaler = Scaler(Scaling(max=50, metric="rps", target=20.0), revision, loop.time)
    revision.load = 14.0
    play(loop, scaler, [], 1010.0)
    assert revision.wanted == 10, "140 a second at 70 % of 20 each"


def test_each_change_is_logged_with_its_reason(loop: VirtualLoop, caplog: pytest.LogCaptureFixture) -> None:
    revision = Revision(loop)
    scaler = Scaler(Scaling(min=0, max=2, window=6.0, grace=2.0), revision, loop.time, name="flights-3")
    revision.load = 100.0
    with caplog.at_level(logging.INFO):
        play(loop, scaler, [(1010.0, loading(revision, 0.0))], 1060.0)
    assert caplog.messages[0] == (
        "flights-3: 1 -> 2 replicas: panic mode, load 100 (stable) and 100 (panic) on 1 ready; held by max scale"
    )
    assert caplog.messages[-1] == "flights-3: 1 -> 0 replicas: inactive for the grace period"
