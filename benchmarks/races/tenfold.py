"""Ten times the flights: time may grow with the data, the memory of ingest may not."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.environments import HERE
from benchmarks.measures import Findings, Measurement, Target
from benchmarks.processes import family
from benchmarks.projects import RunFailed, StageTime, copy_flights, read, run, stages
from benchmarks.setting import OURS, Setting

NAME = "tenfold"
COPIES = 10
WEEK = timedelta(days=7)
GROWTH = 1.25
"""Times that the peak memory of ingest may grow."""
TIMED = ("ingest", "features")


def run_race(setting: Setting) -> Findings:
    """Ingest and features of one period and of ten, from a fresh project each."""
    try:
        once, tenfold = (_stages(setting, copies) for copies in (1, COPIES))
    except (RunFailed, OSError, LookupError) as error:
        return _failed(f"{type(error).__name__}: {error}")
    targets = [
        Target(
            NAME, f"{name} of {COPIES}x the data takes at most {COPIES}x the time",
            tenfold[name].seconds, COPIES * once[name].seconds, f"{COPIES} x {once[name].seconds:.2f} s =",
        )
        for name in TIMED
    ]  # fmt: skip
    before, after = once["ingest"].peak, tenfold["ingest"].peak
    text = f"the memory of ingest grows by at most {GROWTH - 1:.0%}"
    targets.append(Target(NAME, text, float(after), GROWTH * before, f"{GROWTH} x {before / 1e6:.0f} MB =", unit="B"))
    return Findings(targets, [*_measured("1x", once), *_measured(f"{COPIES}x", tenfold)])


def _measured(what: str, found: Mapping[str, StageTime]) -> list[Measurement]:
    times = [Measurement(OURS, f"{name}, {what}", (found[name].seconds,)) for name in TIMED]
    return times + [Measurement(OURS, f"peak of {name}, {what}", (float(found[name].peak),), "B") for name in TIMED]


def _stages(setting: Setting, copies: int) -> dict[str, StageTime]:
    setting.say(f"  {copies}x")
    example = setting.repository / "examples" / "flights"
    first, period = window(read(example))
    windowed = takes_window((example / "data.py").read_text())
    project = copy_flights(
        setting, f"{NAME}-{copies}", lambda definition: _repeat(definition, windowed, first, copies * period)
    )
    (project / "copies.py").write_text(_source(project, first, period, copies))
    with family(NAME) as kin:
        run(setting, kin, project, "--until", "features")
    return {stage.name: stage for stage in stages(project)}


def window(definition: Mapping[str, Any]) -> tuple[datetime, timedelta]:
    """The definition's first instant and the length of its window, made up to whole weeks so that a copy of it, moved by
    that length, has the same days of the week."""
    edges = [datetime.fromisoformat(str(definition["data"]["window"][edge])) for edge in ("start", "end")]
    first, end = (edge if edge.tzinfo else edge.replace(tzinfo=UTC) for edge in edges)
    return first, -((first - end) // WEEK) * WEEK


def _repeat(definition: dict[str, Any], windowed: set[str], first: datetime, length: timedelta) -> None:
    """Takes the tables of the functions `windowed` from `copies.py`, in a window of that length."""
    data = definition["data"]
    data["window"] = {"start": first.isoformat(), "end": (first + length).isoformat()}
    for table in (data, *data.get("tables", {}).values()):
        file, _, function = table["source"].partition(":")
        if file == "data.py" and function in windowed:
            table["source"] = f"copies.py:{function}"


def takes_window(source: str) -> set[str]:
    """The functions of a Python file that take `start`; the tables of the others are the same in every copy."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if "start" in {argument.arg for argument in node.args.args}}


def _source(project: Path, first: datetime, period: timedelta, copies: int) -> str:
    """`copies.py` with these values, and the periodic form of each function that the definition names."""
    source = (HERE / "races" / "copies.py").read_text()
    values = {"FIRST": f'datetime.fromisoformat("{first.isoformat()}")', "PERIOD": f"timedelta(days={period.days})"}
    for name, value in {**values, "COPIES": str(copies)}.items():
        source = re.sub(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
    tables = re.findall(r"copies\.py:(\w+)", (project / "drivetrain.yaml").read_text())
    functions = [
        f"\n\ndef {name}(start=None, end=None, **parameters):\n"
        f"    return periodic(data.{name}, start, end, parameters)\n"
        for name in dict.fromkeys(tables)
    ]
    return source + "".join(functions)


def _failed(error: str) -> Findings:
    texts = [f"{name} of {COPIES}x the data takes at most {COPIES}x the time" for name in TIMED]
    texts.append(f"the memory of ingest grows by at most {GROWTH - 1:.0%}")
    return Findings([Target(NAME, text, None, None, "-", error=error) for text in texts])
