"""What a runner can do to its worker, and must not: each through a real worker process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivetrain.backends.serving.replica import downloads, guarded
from drivetrain.backends.serving.replica.calls import Call, Wire
from drivetrain.backends.serving.replica.pool import Pool
from tests.backends.serving.pools import WITHIN, Asked, ask, carried_out, started, until

Bundle = Callable[[str], Path]

DODGY = """
import os
from typing import Any
import cog
from cog import BaseRunner

class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

class Runner(BaseRunner):
    def run(self, how: str) -> Any:
        if how == "surrogate":
            raise ValueError("no file \\udcff")
        if how == "printed":
            print("no file \\udcff")
        if how == "output":
            return "\\udcff"
        if how == "mute":
            raise Mute
        if how == "bytes":
            return {"a": [b"abc"]}
        if how == "bytearray":
            return bytearray(b"abc")
        if how == "view":
            return memoryview(b"abc")
        if how == "context":
            return dict(cog.current_scope().context)
        if how == "secrets":
            return [os.environ.get(name) for name in ("DRIVETRAIN_TOKEN", "WEBHOOK_AUTH_TOKEN", "MODEL_KEY")]
        return os.getpid()
"""


def call(pool: Pool, wire: Wire, body: object) -> Asked:
    asked = Asked(pool)
    asked.ticket = pool.submit(Call(wire, json.dumps(body).encode()), asked.done)
    return asked


def test_words_that_cannot_be_sent_do_not_end_the_worker(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle(DODGY)) as pool:
            worker = await ask(pool, {"how": ""}).output()
            failed = await ask(pool, {"how": "surrogate"}).body()
            assert (failed["status"], failed["error"]) == ("failed", "ValueError: no file ?")
            printed = await ask(pool, {"how": "printed"}).body()
            assert (printed["status"], printed["logs"]) == ("succeeded", "no file ?\n")
            assert (await ask(pool, {"how": "output"}).body())["status"] == "failed"
            assert (await ask(pool, {"how": "mute"}).body())["error"].startswith("Mute: ")
            for how in ("surrogate", "mute", "output"):
                row = {"name": "how", "shape": [1], "datatype": "BYTES", "data": [how]}
                for wire, body in ((Wire.V1, {"instances": [how]}), (Wire.V2, {"inputs": [row]})):
                    assert (await call(pool, wire, body).answer()).status == 500
            assert await ask(pool, {"how": ""}).output() == worker

    carried_out(scenario())


@pytest.mark.parametrize("how", ["bytes", "bytearray", "view"])
def test_bytes_have_no_json_form_as_in_cogs_own_server(bundle: Bundle, how: str) -> None:
    async def scenario() -> None:
        async with started(bundle(DODGY)) as pool:
            body = await ask(pool, {"how": how}).body()
            assert body["status"] == "failed"
            assert "is not JSON serializable" in body["error"]
            assert (await call(pool, Wire.V1, {"instances": [how]}).answer()).status == 500

    carried_out(scenario())


BATCHED = """
import cog
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, how: str) -> dict:
        return self.batch([{"how": how}])[0]

    def batch(self, inputs: list) -> list:
        return [dict(cog.current_scope().context) for one in inputs]
"""


@pytest.mark.parametrize(
    "runner", [DODGY, DODGY.replace("def run", "async def run"), BATCHED], ids=["serial", "async", "batch"]
)
def test_the_context_of_a_request_reaches_its_own_prediction_and_no_other(bundle: Bundle, runner: str) -> None:
    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            bodies = [{"input": {"how": "context"}, "context": {"tenant": f"t{n}"}} for n in range(3)]
            bodies.append({"input": {"how": "context"}})
            asked = [call(pool, Wire.COG, body) for body in bodies]
            assert [await one.output() for one in asked] == [{"tenant": "t0"}, {"tenant": "t1"}, {"tenant": "t2"}, {}]

    carried_out(scenario())


def test_the_fronts_secrets_are_not_the_models(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRIVETRAIN_TOKEN", "WEBHOOK_AUTH_TOKEN", "MODEL_KEY"):
        monkeypatch.setenv(name, "secret")

    async def scenario() -> None:
        async with started(bundle(DODGY)) as pool:
            assert await ask(pool, {"how": "secrets"}).output() == [None, None, "secret"]

    carried_out(scenario())


def test_what_failed_is_in_the_log_with_its_place_and_in_the_answer_without(
    bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with started(bundle("failing")) as pool:
            body = await ask(pool, {"x": 1}).body()
            assert body["error"] == "ValueError: no such carrier"
            assert "Traceback" not in json.dumps(body)

    carried_out(scenario())
    log = capfd.readouterr()
    assert "looking at 1" in log.out
    assert 'run.py", line' in log.err


def test_what_was_printed_before_a_crash_is_in_the_log(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    runner = """
import os, signal
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self) -> int:
        print("about to crash")
        os.kill(os.getpid(), signal.SIGKILL)
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            assert (await ask(pool, {}).answer()).status == 500

    carried_out(scenario())
    assert "about to crash" in capfd.readouterr().out


NEVER = """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float) -> float:
        raise AssertionError("there was nothing to compute")
"""


@pytest.mark.parametrize(
    "runner",
    [
        NEVER,
        NEVER.replace("def run", "async def run"),
        NEVER.replace("x: float", "x: list[float]"),
        NEVER + "\n    def batch(self, inputs: list) -> list:\n        raise AssertionError(inputs)\n",
    ],
    ids=["serial", "async", "list", "batch"],
)
def test_nothing_is_asked_of_the_model_where_there_is_no_row(bundle: Bundle, runner: str) -> None:
    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            none = call(pool, Wire.V1, {"instances": []})
            assert await none.body() == {"predictions": []}
            shape = [0, 2] if "list[" in runner else [0]
            tensor = {"name": "x", "shape": shape, "datatype": "FP64", "data": []}
            rows = call(pool, Wire.V2, {"id": "r", "inputs": [tensor]})
            assert (await rows.body()) == {"model_name": "model", "id": "r", "outputs": []}

    carried_out(scenario())


# -- cancellation


COUNTING = """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, seconds: float) -> float:
        with open("begun", "a") as file:
            file.write("x")
        time.sleep(seconds)
        return seconds
"""
COUNTING_BATCH = (
    COUNTING.replace("def run", "def one")
    + """
    def run(self, seconds: float) -> float:
        return self.one(seconds)

    def batch(self, inputs: list) -> list:
        return [self.one(one["seconds"]) for one in inputs]
"""
)


@pytest.mark.parametrize("runner", [COUNTING, COUNTING_BATCH], ids=["serial", "batch"])
def test_a_canceled_call_of_many_items_computes_none_of_the_others(bundle: Bundle, runner: str) -> None:
    async def scenario() -> None:
        place = bundle(runner)
        async with started(place) as pool:
            asked = call(pool, Wire.V1, {"instances": [{"seconds": 30.0}] * 20})
            await until((place / "begun").exists)
            pool.cancel(asked.ticket)
            assert (await asked.answer()).status == 500
            assert (place / "begun").read_text() == "x"

    carried_out(scenario())


def test_a_coroutine_that_tidies_up_is_canceled_once(bundle: Bundle) -> None:
    runner = """
import asyncio
from cog import BaseRunner

class Runner(BaseRunner):
    tidied = 0

    async def run(self, seconds: float) -> int:
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.sleep(0.2)
            Runner.tidied += 1
        return self.tidied
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            asked = ask(pool, {"seconds": 30})
            await until(lambda: pool.in_flight == 1)
            pool.cancel(asked.ticket)
            assert (await asked.body())["status"] == "canceled"
            assert await ask(pool, {"seconds": 0}).output() == 2

    carried_out(scenario())


def test_a_cancellation_while_a_large_piece_is_sent_leaves_no_half_of_it(bundle: Bundle) -> None:
    runner = """
from cog import BaseRunner, ConcatenateIterator

class Runner(BaseRunner):
    def run(self, size: int, pieces: int) -> ConcatenateIterator[str]:
        for number in range(pieces):
            yield str(number % 10) * size
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            for _ in range(5):
                asked = ask(pool, {"size": 8_000_000, "pieces": 10_000}, follow=True)
                await until(lambda asked=asked: len(asked.progress) > 1)  # type: ignore[misc]
                time.sleep(0.1)  # the front does not read: the worker is in the middle of a piece
                pool.cancel(asked.ticket)
                assert (await asked.body())["status"] == "canceled"
                kinds = [kind for kind, _ in asked.progress]
                assert set(kinds[1:]) == {"output"}
                for number, (_, piece) in enumerate(asked.progress[1:]):
                    assert piece == f'"{str(number % 10) * 8_000_000}"'
                assert await ask(pool, {"size": 2, "pieces": 2}).output() == ["00", "11"]
            assert pool.deaths == 0

    carried_out(scenario())


@pytest.mark.parametrize("run", ["serial", "async"])
def test_lines_that_threads_print_at_once_arrive_whole(bundle: Bundle, run: str) -> None:
    runner = """
import asyncio, threading
from cog import BaseRunner

def talk(name):
    for number in range(60):
        print(f"{name}{number}:" + name * 3000)

class Runner(BaseRunner):
    def run(self) -> int:
        threads = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        talk("d")
        for thread in threads:
            thread.join()
        return 7
"""
    if run == "async":
        runner = runner[: runner.index("    def run")] + (
            "    async def run(self) -> int:\n"
            "        await asyncio.gather(*(asyncio.to_thread(talk, name) for name in 'abcd'))\n"
            "        return 7\n"
        )

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            asked = ask(pool, {}, follow=True)
            assert await asked.output() == 7
            lines = "".join(text for kind, text in asked.progress if kind == "log").replace("\n", "")
            for name in "abcd":
                for number in range(60):
                    whole = lines.count(f"{name}{number}:" + name * 3000)
                    assert whole == 1, f"{name}{number} arrived {whole} times"
            assert await ask(pool, {}, follow=True).output() == 7

    carried_out(scenario())


# -- setup, health, end


def test_a_setup_that_raises_beside_threads_of_its_own_is_told_soon(bundle: Bundle) -> None:
    runner = """
import threading, time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise RuntimeError("model file is missing")

    def run(self) -> int:
        pass
"""

    async def scenario() -> None:
        async with started(bundle(runner), ready=False) as pool:
            assert not await asyncio.wait_for(pool.wait_ready(), WITHIN)
            assert pool.state == "SETUP_FAILED"
            assert "model file is missing" in pool.setup.logs

    carried_out(scenario())


def test_a_healthcheck_leaves_setups_event_loop_as_it_was(bundle: Bundle) -> None:
    runner = """
import asyncio
from cog import BaseRunner

class Runner(BaseRunner):
    async def setup(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def healthcheck(self) -> bool:
        return asyncio.get_running_loop() is self.loop

    def run(self) -> bool:
        return asyncio.get_event_loop() is self.loop
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            assert await pool.healthcheck() == ""
            assert await ask(pool, {}).output() is True

    carried_out(scenario())


def test_a_worker_that_dies_while_the_pool_stops_does_not_hold_up_the_end(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("sleeping")) as pool:
            running, waiting = ask(pool, {"seconds": 600}), ask(pool, {"seconds": 0})
            await until(lambda: pool.in_flight == 1)
            stopping = asyncio.ensure_future(pool.stop(grace=600))
            await asyncio.sleep(0)
            assert pool.pid is not None
            os.kill(pool.pid, signal.SIGKILL)
            await asyncio.wait_for(stopping, WITHIN)
            assert (await running.answer()).status == 500
            assert (await waiting.answer()).status == 503

    carried_out(scenario())


# -- files that inputs name


def test_files_of_a_worker_that_was_killed_are_gone(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    runner = """
import os, signal
from cog import BaseRunner, Path

class Runner(BaseRunner):
    def run(self, file: Path) -> int:
        assert file.read_text() == "hello"
        print(file, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            asked = ask(pool, {"file": "data:text/plain;base64,aGVsbG8="}, follow=True)
            assert (await asked.answer()).status == 500
            (told,) = [text for kind, text in asked.progress if kind == "log" and text.strip()]
            assert told.startswith(str(temporary))
            assert not Path(told.strip()).exists()

    carried_out(scenario())
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0"])
def test_link_local_addresses_may_not_be_asked_for(address: str) -> None:
    class Connected:
        closed = False

        def getpeername(self) -> tuple[str, int]:
            return address, 80

        def close(self) -> None:
            self.closed = True

    connected = Connected()
    with pytest.raises(guarded.LinkLocal, match="may not be asked for"):
        guarded.check(connected)  # type: ignore[arg-type]
    assert connected.closed


def test_a_file_is_not_fetched_from_a_guarded_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise guarded.LinkLocal("169.254.169.254 is a link-local address, which may not be asked for")

    monkeypatch.setattr(guarded, "check", refuse)
    with asyncio.Runner() as runner:
        listening = runner.run(asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(downloads.NotFetched, match="link-local"):
            downloads.fetch(f"http://127.0.0.1:{port}/latest/meta-data")
        listening.close()
