"""The graph of steps: their order, what depends on what, and the key under which a step's result is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from drivetrain.records import digest, identity

Edges = Mapping[str, Mapping[str, str]]
"""Step -> input name -> "step.output" or the name of an external value."""


def parents(inputs: Mapping[str, str]) -> set[str]:
    """The steps that the inputs come from."""
    return {source.partition(".")[0] for source in inputs.values() if "." in source}


def order(edges: Edges) -> list[str]:
    """The steps, each after those it takes inputs from; otherwise as given.

    Raises `ValueError` for a cycle, or for an input from a step that is not there.
    """
    for step, inputs in edges.items():
        if unknown := parents(inputs) - set(edges):
            raise ValueError(f"{step} takes an input from {', '.join(sorted(unknown))}, which is no step")
    try:
        return list(TopologicalSorter({step: sorted(parents(inputs)) for step, inputs in edges.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"the steps form a cycle: {' -> '.join(error.args[1])}") from error


def upstream(edges: Edges, targets: Iterable[str]) -> set[str]:
    """The targets and everything they depend on."""
    found: set[str] = set()
    todo = list(targets)
    while todo:
        step = todo.pop()
        if step not in found:
            found.add(step)
            todo += parents(edges[step])
    return found


def downstream(edges: Edges, sources: Iterable[str]) -> set[str]:
    """The sources and everything that depends on them."""
    found = set(sources)
    for step in order(edges):
        if parents(edges[step]) & found:
            found.add(step)
    return found


def fingerprint(stage: str, version: int, parameters: Any, code: str, lock: str) -> str:
    """The digest of everything but its inputs that a stage's result depends on."""
    return digest({"stage": stage, "version": version, "parameters": parameters, "code": code, "lock": lock})


def cache_key(step_fingerprint: str, inputs: Mapping[str, Any]) -> str:
    """The key of a result: the fingerprint and the inputs' identities (digests; references do not count)."""
    return digest({"step": step_fingerprint, "inputs": {name: identity(value) for name, value in inputs.items()}})
