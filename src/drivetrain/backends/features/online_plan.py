"""What a look-up has to know of a service: written as JSON where the features are made, read where they are served.

It holds no connection and no path, and so nothing that is secret or of one machine alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivetrain.errors import CorruptArtifact, DefinitionError, Problem, Unavailable

KEY_VERSION = 3
"""Feast's entity key serialization that the stores are written with."""
MODES = ("pandas", "python")


@dataclass(frozen=True, slots=True)
class Key:
    """A join key: `column` is what an entity calls it, `name` what the view does, `type` Feast's value type (`STRING`)."""

    column: str
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature: `name` is the view's own, `column` the service's, `type` Feast's value type (`DOUBLE`)."""

    name: str
    column: str
    type: str


@dataclass(frozen=True, slots=True)
class View:
    """Features that the store holds; a view without keys has one value for everybody."""

    name: str
    keys: tuple[Key, ...]
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Features that are computed when they are asked for.

    `arguments` are the function's inputs, each with the column that it is taken from: a join key, a requested column or a
    feature. The function itself is kept as Feast keeps it: its source, and `pickled` by dill (base64) for what the source
    alone does not define.
    """

    name: str
    mode: str
    singleton: bool
    arguments: Mapping[str, str]
    features: tuple[Feature, ...]
    function: str
    source: str
    pickled: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A service. `requested` are the columns that on-demand views take from the caller, with their types; `features` the
    names of the answer, in its order. A view may hold more than these: what only an on-demand view takes."""

    project: str
    service: str
    views: tuple[View, ...]
    on_demand: tuple[OnDemand, ...]
    requested: Mapping[str, str]
    features: tuple[str, ...]
    key_version: int = KEY_VERSION

    @property
    def entity_keys(self) -> tuple[str, ...]:
        """The join keys, sorted."""
        return tuple(sorted({key.column for view in self.views for key in view.keys}))


def write(plan: Plan, path: Path) -> None:
    """Keeps the plan; a reader sees the former one or this one, never a half."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> Plan:
    """The plan back. Raises `Unavailable` if there is none yet, `CorruptArtifact` if it is no plan, and `DefinitionError` if
    it asks for what can only be looked up by Feast itself."""
    try:
        found = json.loads(path.read_bytes())
        plan = Plan(
            found["project"],
            found["service"],
            tuple(_view(view) for view in found["views"]),
            tuple(_on_demand(view) for view in found["on_demand"]),
            found["requested"],
            tuple(found["features"]),
            found["key_version"],
        )
    except FileNotFoundError as error:
        raise Unavailable("no features have been written yet", hint="drivetrain run", where=str(path)) from error
    except OSError as error:
        raise Unavailable(f"the look-up plan cannot be read: {error}", where=str(path)) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"this is no look-up plan: {type(error).__name__}: {error}"
        raise CorruptArtifact(message, digest="", hint="drivetrain run writes it anew", where=str(path)) from error
    _refuse(plan)
    return plan


def _refuse(plan: Plan) -> None:
    problems = [
        Problem("drivetrain.yaml", 0, "features.service", f"on-demand view {view.name} cannot be served online", hint)
        for view in plan.on_demand
        if view.mode not in MODES
        for hint in [f"its mode is {view.mode}; give it mode pandas or python"]
    ]
    if plan.key_version != KEY_VERSION:
        message = f"entity keys are written in version {plan.key_version}, not {KEY_VERSION}"
        problems.append(Problem("drivetrain.yaml", 0, "features", message, "drivetrain run writes them anew"))
    if problems:
        raise DefinitionError(problems)


def _view(found: Mapping[str, Any]) -> View:
    return View(found["name"], tuple(Key(**key) for key in found["keys"]), _features(found))


def _on_demand(found: Mapping[str, Any]) -> OnDemand:
    return OnDemand(**{**found, "features": _features(found)})


def _features(found: Mapping[str, Any]) -> tuple[Feature, ...]:
    return tuple(Feature(**feature) for feature in found["features"])
