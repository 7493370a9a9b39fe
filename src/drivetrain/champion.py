"""The champion: which model serves, and which one it replaced; held by the reference `champion/NAME`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from drivetrain.backends.objects import Objects
from drivetrain.errors import SystemFault
from drivetrain.records import Artifact, Reference, decode, encode


@dataclass(frozen=True, slots=True)
class Champion:
    """The serving model, its registered version, the run that deployed it, and the model it replaced."""

    model: Artifact
    version: Reference
    run_id: str
    replaces: Artifact | None

    @property
    def name(self) -> str:
        """The registered model's name: a version's id is `NAME/NUMBER`."""
        return self.version.id.rpartition("/")[0]


def read(objects: Objects, name: str) -> Champion | None:
    """The champion of that name, or None if nothing was deployed yet. Raises `SystemFault` if its record is damaged."""
    text = objects.ref(_ref(name))
    if text is None:
        return None
    try:
        return decode(Champion, json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise SystemFault(
            f"the reference {_ref(name)} does not hold a champion: {error}",
            hint="remove that reference from the object store: the next deployment writes it anew",
        ) from error


def write(objects: Objects, champion: Champion) -> None:
    """Makes it the champion of its name."""
    text = json.dumps(encode(champion), sort_keys=True, separators=(",", ":"))
    objects.set_ref(_ref(champion.name), text.encode())


def succeed(former: Champion | None, model: Artifact, version: Reference, run_id: str) -> Champion:
    """The champion that follows `former`. A model that follows itself keeps the one it replaced at first, so that a
    repeated deployment does not lose it."""
    if former is None:
        return Champion(model, version, run_id, None)
    again = former.model.digest == model.digest
    return Champion(model, version, run_id, former.replaces if again else former.model)


def rival(objects: Objects, name: str, candidate: str) -> Artifact | None:
    """The model that a candidate (its digest) is to be compared with: the champion, or if the candidate is the
    champion itself, the one that it replaced. None if there is none."""
    champion = read(objects, name)
    if champion is None:
        return None
    return champion.replaces if champion.model.digest == candidate else champion.model


def _ref(name: str) -> str:
    return f"champion/{name}"
