"""The step of the chain: it adds one to a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Number:
    """What a step hands to the next."""

    number: int


def step(context: object, payload: Mapping[str, Any], inputs: Mapping[str, Any]) -> Number:
    """One more than the step before, or 1."""
    return Number(inputs.get("number", 0) + 1)
