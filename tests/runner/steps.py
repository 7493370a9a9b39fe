"""Steps that behave well and badly, for the runner's tests; workers import this module by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.runner import WorkerContext
from drivetrain.errors import DefinitionError, Problem, StageError, Unavailable
from drivetrain.records import Artifact, Verdict


@dataclass(frozen=True, slots=True)
class Number:
    value: int


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Made:
    piece: Artifact


def add(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    count(context, payload)
    return Number(1 + sum(inputs.values()))


def count(context: WorkerContext, payload: dict[str, Any]) -> int:
    """How often the step has been called, this time included."""
    calls = Path(payload["calls"]) / context.step
    with calls.open("a") as file:
        file.write("x")
    return calls.stat().st_size


def flaky(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    if count(context, payload) < payload["good_from"]:
        raise Unavailable("the server does not answer", hint="wait")
    return Number(7)


def meet(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    """Ends only if its twin is at work at the same time."""
    here = Path(payload["calls"])
    (here / context.step).touch()
    deadline = time.monotonic() + 60
    while not all((here / name).exists() for name in payload["twins"]):
        if time.monotonic() > deadline:
            raise StageError("the twin never came")
        time.sleep(0.01)
    return Number(int(os.environ["OMP_NUM_THREADS"]))


def misbehave(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    match payload["how"]:
        case "raise":
            raise ValueError("no such thing as " + payload["secret"])
        case "mistaken":
            raise DefinitionError([Problem("checks.json", 3, "a", "is wrong"), Problem("checks.json", 7, "b", "too")])
        case "hang":
            time.sleep(600)
        case "eat":
            hoard = []
            while True:
                hoard.append(bytearray(2**24))
                time.sleep(0.02)  # slowly, for the case that the one who watches is kept waiting
        case "memory":
            raise MemoryError
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(3)
        case "exit":
            sys.exit(5)
    return Number(0)


def talk(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    context.say(f"reading with {payload['secret']}")
    print("printed", payload["secret"])
    sys.stdout.flush()
    os.system("echo from a child")
    print("no newline", end="")
    return Number(1)


def refuse(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Judged:
    count(context, payload)
    return Judged(Verdict(False, "0.61 is below 0.70", 3))


def make(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Made:
    count(context, payload)
    (context.work / "piece.txt").write_text("x" * 1000)
    return Made(open_directory(Path(payload["objects"])).put("piece", context.work / "piece.txt"))


def use(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    count(context, payload)
    return Number(len(open_directory(Path(payload["objects"])).read(inputs["piece"], "piece.txt")))


def never(payload: dict[str, Any], outputs: Any) -> bool:
    return False


def flood(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    """Prints without end, faster than it can be read."""
    block = b"a line of no interest\n" * 3000
    while True:
        os.write(1, block)


def draw_bar(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    """Prints three megabytes without a line's end, secrets in them."""
    for _ in range(300):
        print(f"\r{payload['secret']}" + "." * 10_000, end="")
    return Number(1)


def leave_a_child(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    child = subprocess.Popen(["sleep", "600"])
    return Number(child.pid)


def blame_a_file(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    context.say(f"reading {os.fsdecode(b'caf%c' % 0xE9)}")
    raise ValueError(os.fsdecode(b"caf%c.csv" % 0xE9))


def use_together(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Number:
    """As `use`, but both twins have begun before either reads."""
    here = Path(payload["calls"])
    (here / f"{context.step}-is-here").touch()
    deadline = time.monotonic() + 60
    while not all((here / f"{name}-is-here").exists() for name in payload["twins"]):
        if time.monotonic() > deadline:
            raise StageError("the twin never came")
        time.sleep(0.01)
    return use(context, payload, inputs)
