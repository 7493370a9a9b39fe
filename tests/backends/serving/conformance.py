"""What two servers answer to the same request, as a row of docs/conformance.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`theirs` is the peer's answer, `ours` the replica's; `verdict` is "same" or "different", and then `note` says why."""

    protocol: str
    request: str
    theirs: str
    ours: str
    verdict: str
    note: str = ""
