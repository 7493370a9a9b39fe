"""KServe's own model server and the replica are asked the same; whatever differs has to be named, with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.serving import kserve_cases


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kserve")


def test_the_replica_answers_as_kserves_model_server_but_for_what_is_named(place: Path) -> None:
    unnamed = [row for row in kserve_cases.rows(place) if row.verdict == "different" and not row.note]
    assert not unnamed, "\n".join(f"{row.protocol} {row.request}:\n  {row.theirs}\n  {row.ours}" for row in unnamed)


def test_every_named_difference_is_one(place: Path) -> None:
    stale = [row for row in kserve_cases.rows(place) if row.verdict == "same" and row.note]
    assert not stale, "\n".join(f"{row.protocol} {row.request}: {row.ours}" for row in stale)


def test_no_bad_request_is_answered_as_a_fault_of_the_server(place: Path) -> None:
    faults = [row for row in kserve_cases.rows(place) if row.ours.startswith(("5", "INTERNAL"))]
    assert {row.request for row in faults} == {"a failed prediction"}
