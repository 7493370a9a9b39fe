"""Sorting with little memory: more is taken only when less does not do, and the bytes are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from drivetrain.errors import SystemFault
from drivetrain.tables import TableSpec, snapshot, staging


@pytest.fixture
def write(tmp_path: Path, spec: Callable[..., TableSpec]) -> Callable[[str], snapshot.Written]:
    table = pa.table({"k": list(range(200_000))[::-1], "text": [f"{number:040d}" for number in range(200_000)]})
    asked = spec(timestamp=None, key=("k",), needed=())
    piece = staging.stage(iter([table]), asked, tmp_path / "staged")

    def write(name: str) -> snapshot.Written:
        (tmp_path / f"{name}-scratch").mkdir()
        return snapshot.write([piece], asked, "month", tmp_path / name, tmp_path / f"{name}-scratch", lambda *_: None)

    return write


def test_what_cannot_be_sorted_in_little_memory_gets_more_and_comes_out_the_same(
    write: Callable[[str], snapshot.Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = write("usual")
    monkeypatch.setattr(snapshot, "MEMORY", "1MB")
    assert write("little") == usual


def test_what_cannot_be_sorted_at_all_is_told(
    write: Callable[[str], snapshot.Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MEMORY", "1MB")
    monkeypatch.setattr(snapshot, "MORE_MEMORY", ("2MB",))
    with pytest.raises(SystemFault, match="sorting failed"):
        write("never")
