"""The champion's record."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain import champion
from drivetrain.backends.objects import Objects
from drivetrain.backends.objects.directory import open_directory
from drivetrain.errors import SystemFault
from drivetrain.records import Artifact, Reference

A, B = (Artifact("model", letter * 64, 10, {"rows": 3}) for letter in "ab")
V1, V2 = (Reference("version", f"flights/{number}", {"run_id": "r"}) for number in (1, 2))


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return open_directory(tmp_path / "objects")


def test_there_is_no_champion_and_no_rival_before_the_first_deployment(objects: Objects) -> None:
    assert champion.read(objects, "flights") is None
    assert champion.rival(objects, "flights", A.digest) is None


@pytest.mark.parametrize("replaces", [None, A])
def test_a_champion_is_read_as_it_was_written(objects: Objects, replaces: Artifact | None) -> None:
    written = champion.Champion(B, V2, "run-7", replaces)
    champion.write(objects, written)
    assert champion.read(objects, "flights") == written
    assert champion.read(objects, "other") is None


def test_equal_champions_have_equal_bytes(objects: Objects) -> None:
    champion.write(objects, champion.Champion(B, V2, "run-7", A))
    first = objects.ref("champion/flights")
    champion.write(objects, champion.Champion(B, V2, "run-7", A))
    assert objects.ref("champion/flights") == first


def test_a_candidate_meets_the_champion_and_the_champion_meets_the_model_it_replaced(objects: Objects) -> None:
    champion.write(objects, champion.Champion(B, V2, "run-7", A))
    assert champion.rival(objects, "flights", "c" * 64) == B
    assert champion.rival(objects, "flights", A.digest) == B
    assert champion.rival(objects, "flights", B.digest) == A


def test_a_model_that_follows_itself_keeps_the_one_it_replaced() -> None:
    first = champion.succeed(None, A, V1, "run-1")
    second = champion.succeed(first, B, V2, "run-2")
    again = champion.succeed(second, B, V2, "run-3")
    assert (first.replaces, second.replaces, again.replaces) == (None, A, A)
    assert again.run_id == "run-3"
    assert champion.succeed(again, A, V1, "run-4").replaces == B, "back to the first"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"model": 1}', b"\xff"])
def test_a_damaged_record_is_a_fault_that_names_it(objects: Objects, text: bytes) -> None:
    objects.set_ref("champion/flights", text)
    with pytest.raises(SystemFault, match="champion/flights"):
        champion.read(objects, "flights")
