"""Cog's own server and the replica are asked the same; whatever differs has to be named, with its reason, in `cog_differences`.

docs/conformance.md is made of what is found here: `DRIVETRAIN_WRITE_DOCS=1 pytest tests/backends/serving/test_conformance_cog.py`
writes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tests.backends.serving import cog_differences, cog_scenarios, compare, kserve_cases
from tests.backends.serving.cog_cases import Case
from tests.backends.serving.cog_runners import RUNNERS
from tests.backends.serving.conformance import Row
from tests.backends.serving.servers import Reply, Server, bundle, running, start

UNTIL = {"broken": ("SETUP_FAILED",), "slow": ("STARTING",), "unhealthy": ("UNHEALTHY",)}
VARIABLES = {"concurrent": {"COG_MAX_CONCURRENCY": "4"}}
DOCUMENT = Path(__file__).parents[3] / "docs" / "conformance.md"
WRITE = "DRIVETRAIN_WRITE_DOCS"

Found = Mapping[str, Sequence[str]]
"""By case, what differs."""


def reference(runner: str) -> str:
    return "predict.py:Predictor" if runner == "older" else "run.py:Runner"


def asked(kind: str, runner: str, place: Path) -> dict[str, list[Reply]]:
    """The answers of one server to every case of the runner."""
    file, _, name = reference(runner).partition(":")
    bundle(place, RUNNERS[runner], file, name, streams=runner == "streaming")
    options = {"variables": VARIABLES.get(runner, {})}
    with running(kind, place, reference(runner), until=UNTIL.get(runner, ("READY",)), **options) as server:
        return {case.name: answers(case, kind, server, place) for case in cog_scenarios.of(runner)}


def answers(case: Case, kind: str, server: Server, place: Path) -> list[Reply]:
    if case.runner not in UNTIL:
        server.wait_for("READY")
    found = case.ask(server)
    if case.alone:  # the next case gets a server of its own
        server.end()
        fresh = start(kind, place, reference(case.runner))
        server.port, server.process = fresh.port, fresh.process
    return found


@cache
def differences(runner: str, place: Path) -> Found:
    """What differs between the two servers, by case."""
    with ThreadPoolExecutor(2) as threads:
        cog = threads.submit(asked, "cog", runner, place / runner / "cog")
        replica = threads.submit(asked, "replica", runner, place / runner / "replica")
        theirs, ours = cog.result(), replica.result()
    return {name: compare.lines(theirs[name], ours[name]) for name in theirs}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_replica_answers_as_cogs_own_server_but_for_what_is_named(runner: str, place: Path) -> None:
    unnamed = [
        f"{case}: {line}"
        for case, lines in differences(runner, place).items()
        for line in lines
        if not rules_for(case, line)
    ]
    assert not unnamed, "\n".join(unnamed)


def rules_for(case: str, line: str) -> list[str]:
    return [rule.name for rule in cog_differences.RULES if rule.names(case, line)]


def all_differences(place: Path) -> dict[str, Found]:
    return {runner: differences(runner, place) for runner in RUNNERS}


def test_every_named_difference_is_there(place: Path) -> None:
    found = {
        name
        for cases in all_differences(place).values()
        for case, lines in cases.items()
        for line in lines
        for name in rules_for(case, line)
    }
    assert [rule.name for rule in cog_differences.RULES if rule.name not in found] == []


def test_the_committed_table_is_what_is_found(place: Path) -> None:
    text = document(place)
    if os.environ.get(WRITE):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, f"{DOCUMENT} is not up to date: run this test with {WRITE}=1"


def document(place: Path) -> str:
    lines = [*HEAD, "## Cog", "", *COG, "| Runner | Request | |", "|---|---|---|"]
    for runner, cases in all_differences(place).items():
        for case, found in cases.items():
            names = dict.fromkeys(name for line in found for name in rules_for(case, line))
            lines.append(f"| {runner} | {case} | {', '.join(names) or ('not named' if found else 'same')} |")
    lines += ["", "### What differs, and why", "", "| Difference | Reason |", "|---|---|"]
    lines += [f"| {rule.name} | {rule.reason} |" for rule in cog_differences.RULES]
    lines += ["", "### What the replica has beyond", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {told} |" for name, told in cog_differences.ALONE]
    for protocol, heading in KSERVE.items():
        lines += ["", f"## {heading}", "", "Compared with KServe's own model server.", "", "| Request | |", "|---|---|"]
        lines += [f"| {row.request} | {verdict(row)} |" for row in kserve_cases.rows(place) if row.protocol == protocol]
    return "\n".join(lines) + "\n"


def verdict(row: Row) -> str:
    """ "same", or both statuses and the reason."""
    if row.verdict == "same":
        return "same"
    theirs, ours = row.theirs.split(" ")[0], row.ours.split(" ")[0]
    return row.note if theirs == ours else f"{theirs} there, {ours} here: {row.note}"


KSERVE = {"V1": "V1", "V2 REST": "V2 over REST", "V2 gRPC": "V2 over gRPC"}
HEAD = (
    "# Conformance",
    "",
    "The replica answers Cog's HTTP API, KServe's V1 and the Open Inference Protocol (V2) over REST and gRPC. Tests ask it and the",
    "protocols' own servers the same, and compare status, body and headers. This page is written by those tests: a difference that it",
    "does not name fails them.",
    "",
)
COG = (
    "Compared with `python -m cog.server.http`. Ids, times and versions are compared by form alone.",
    "",
)
