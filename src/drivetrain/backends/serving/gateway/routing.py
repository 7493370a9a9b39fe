"""Which revision answers a request: a weighted split, exact over each period of it, or one that a header's value sticks to.

Pure: the same routes and the same requests give the same revisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

WHOLE = 100
"""What the weights of a service add up to."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The weights in percent, the revision that gets a copy of each prediction, and the header whose value keeps its revision.

    Raises `ValueError` for weights that are negative or do not add up to 100. No weights at all: nothing is deployed yet.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    shadow: str | None = None
    sticky: str | None = None

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("a weight is negative")
        total = sum(self.weights.values())
        if self.weights and total != WHOLE:
            raise ValueError(f"the weights add up to {total}, not {WHOLE}")
        if self.shadow is not None and self.weights.get(self.shadow):
            raise ValueError(f"revision {self.shadow} cannot be the shadow: it answers {self.weights[self.shadow]} %")

    @property
    def primary(self) -> str | None:
        """The revision with the largest weight, the first of equals by name."""
        answering = [revision for revision, weight in sorted(self.weights.items()) if weight]
        return max(answering, key=self.weights.__getitem__, default=None)

    @property
    def used(self) -> frozenset[str]:
        """The revisions that get requests, the shadow included."""
        answering = {revision for revision, weight in self.weights.items() if weight}
        return frozenset(answering | ({self.shadow} if self.shadow else set()))


class Router:
    """Picks a revision for each request. In each 100 requests that are not sticky, each revision answers exactly its weight."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self._turns = turns(routes.weights)
        self._next = 0
        self._weighted = [
            (name.encode(), float(weight), name) for name, weight in sorted(routes.weights.items()) if weight
        ]

    def pick(self, key: bytes | None = None) -> str | None:
        """The revision for a request; `key` is the value of the sticky header, None where there is none of either."""
        if not self._turns:
            return None
        if key is not None:
            return self._stuck(key)
        place = self._next
        self._next = place + 1 if place + 1 < len(self._turns) else 0
        return self._turns[place]

    def _stuck(self, key: bytes) -> str:
        """Weighted rendezvous hashing: a revision whose weight grows takes values from others, and only such a one does."""
        if len(self._weighted) == 1:
            return self._weighted[0][2]
        return max(self._weighted, key=lambda entry: _score(key, entry[0], entry[1]))[2]


def turns(weights: Mapping[str, int]) -> tuple[str, ...]:
    """One period of a smooth weighted round robin: each revision as often as its weight says, spread evenly."""
    shares = {name: weight for name, weight in sorted(weights.items()) if weight}
    if not shares:
        return ()
    divisor = math.gcd(*shares.values())
    total = sum(shares.values())
    credit = dict.fromkeys(shares, 0)
    found = []
    for _ in range(total // divisor):
        for name, weight in shares.items():
            credit[name] += weight
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= total
        found.append(chosen)
    return tuple(found)


def _score(key: bytes, revision: bytes, weight: float) -> float:
    digest = blake2b(revision + b"\0" + key, digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2**64
    # Above 1 - 2**-53 the quotient rounds to one, whose logarithm is zero.
    return weight / max(-math.log(uniform), 1e-18)
