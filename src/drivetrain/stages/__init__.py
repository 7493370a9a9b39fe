"""The stages: one small module each, with `Inputs`, and `run(context, inputs, *, needs) -> Outputs`.

A stage reads only its inputs and the parts of the definition that the table in `lifecycle.py` names for it, writes only
through `context.objects`, is safe to run twice, and knows neither the answers behind its needs nor the other stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drivetrain.backends.objects import Objects
from drivetrain.definition.definition import Definition

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StageContext:
    """What every stage is given."""

    run_id: str
    project: Path
    """The user's project, read only."""
    state: Path
    """The project's `.drivetrain`: for what outlives the run (online store, registry), never for outputs."""
    work: Path
    """An empty directory, deleted when the stage ends."""
    objects: Objects
    definition: Definition
    """Only the parts that the stage's row in the table names can be read; any other raises `AttributeError`."""
    fingerprints: dict[str, str]
    """Digests for lineage: `definition`, `code` (of the stage's own files), `lock`, `commit`."""
    say: Say
    """Tells the user what is being done, in a few words; shown live and kept in the journal."""
    candidate: bool = False
    """Whether what is deployed comes up beside the champion, and gets no traffic yet."""
