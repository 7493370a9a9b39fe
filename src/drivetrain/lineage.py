"""From a prediction, model version or run back to everything it was made of, as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from drivetrain import lifecycle
from drivetrain.errors import UsageError
from drivetrain.journal import AttemptRow, Journal, RunRow
from drivetrain.records import Scalar


@dataclass(frozen=True, slots=True)
class Node:
    """One thing: `kind` is prediction, revision, version, run, stage, an artifact's kind, or a digest of the definition."""

    id: str
    kind: str
    label: str
    detail: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nodes, and edges from what was made to what it was made of."""

    start: str
    nodes: Sequence[Node]
    edges: Sequence[tuple[str, str]]

    def made_of(self, node_id: str) -> list[str]:
        """What the node was made of, directly."""
        return [to for source, to in self.edges if source == node_id]


def trace(journal: Journal, name: str, subject: str) -> Lineage:
    """The lineage of `subject`: a model version (`flights/3`, `3`), a run, a prediction's id, or an image by its digest.

    Raises `UsageError` if it is none of these.
    """
    prediction = journal.prediction(subject)
    if prediction is not None:
        revision, run_id, time = prediction
        walk = _Walk(_run(journal, run_id), journal)
        top = walk.add(Node(f"prediction:{subject}", "prediction", subject, {"time": time, "revision": revision}))
        walk.link(top, walk.output("deploy", "revision") or walk.run_node())
        return walk.finish(top)
    run = _of_image(journal, subject.rpartition("@")[2]) if "sha256:" in subject else None
    if run is not None:
        walk = _Walk(run, journal)
        packaged = walk.output("package", "image")
        if packaged is not None:
            return walk.finish(packaged)
    run = _of_version(journal, subject if "/" in subject else f"{name}/{subject}")
    if run is not None:
        walk = _Walk(run, journal)
        registered = walk.output("register", "version")
        if registered is not None:
            return walk.finish(registered)
    found = journal.run(subject)
    if found is None:
        raise UsageError(
            f"{subject} is no model version, run or prediction of this project, nor an image of it",
            hint="`drivetrain runs` lists runs and versions; a prediction's id is in its answer",
        )
    walk = _Walk(found, journal)
    top = walk.run_node()
    for outputs in walk.made.values():
        for field_name in outputs.outputs or {}:
            walk.link(top, walk.output(outputs.stage, field_name))
    return walk.finish(top)


def _run(journal: Journal, run_id: str) -> RunRow:
    found = journal.run(run_id)
    if found is None:
        raise UsageError(f"the run {run_id} is not in the journal")
    return found


def _of_version(journal: Journal, version: str) -> RunRow | None:
    """The first run that made the version: later ones took it from the cache."""
    for row in reversed(journal.runs()):
        attempt = journal.latest(row.id).get("register")
        if attempt is not None and attempt.outputs is not None and attempt.outputs["version"]["id"] == version:
            return row
    return None


def _of_image(journal: Journal, digest: str) -> RunRow | None:
    """The first run that made the image of that digest."""
    for row in reversed(journal.runs()):
        attempt = journal.latest(row.id).get("package")
        image = attempt.outputs.get("image") if attempt is not None and attempt.outputs is not None else None
        if image is not None and image["id"].endswith(f"@{digest}"):
            return row
    return None


class _Walk:
    """Collects nodes by following each stage's inputs to the stages that made them."""

    def __init__(self, run: RunRow, journal: Journal) -> None:
        self.run = run
        self.made: dict[str, AttemptRow] = {n: a for n, a in journal.latest(run.id).items() if a.outputs is not None}
        self._nodes: dict[str, Node] = {}
        self._edges: dict[tuple[str, str], None] = {}

    def add(self, node: Node) -> str:
        self._nodes.setdefault(node.id, node)
        return node.id

    def link(self, source: str, to: str | None) -> None:
        if to is not None and source != to:
            self._edges[source, to] = None

    def run_node(self) -> str:
        facts = {name: value for name, value in self.run.facts.items() if value not in ("", None)}
        return self.add(Node(f"run:{self.run.id}", "run", self.run.id, {"state": self.run.state, **facts}))

    def output(self, stage: str, name: str) -> str | None:
        """The node of a stage's output, with all that lies behind it; None if the stage did not come so far."""
        attempt = self.made.get(stage)
        if attempt is None or attempt.outputs is None or name not in attempt.outputs:
            return None
        node = _node_of(name, attempt.outputs[name])
        if node is None:
            return self._stage(stage)
        known = node.id in self._nodes
        self.add(node)
        if not known:
            self.link(node.id, self._stage(stage))
        return node.id

    def _stage(self, stage: str) -> str:
        node_id = f"stage:{stage}"
        if node_id in self._nodes:
            return node_id
        attempt = self.made[stage]
        self.add(Node(node_id, "stage", stage, {"key": attempt.key, "state": attempt.state}))
        for source in lifecycle.stage(stage).inputs.values():
            maker, _, field_name = source.partition(".")
            if field_name:
                self.link(node_id, self.output(maker, field_name))
        self.link(node_id, self.run_node())
        return node_id

    def finish(self, start: str) -> Lineage:
        """Only what can be reached from the start, nearest first."""
        edges = list(self._edges)
        reached, todo = [start], [start]
        while todo:
            node = todo.pop(0)
            for source, to in edges:
                if source == node and to not in reached:
                    reached.append(to)
                    todo.append(to)
        kept = [self._nodes[node] for node in reached]
        return Lineage(start, kept, [edge for edge in edges if edge[0] in reached])


def _node_of(name: str, value: Any) -> Node | None:
    if isinstance(value, dict) and "digest" in value:
        about = {key: entry for key, entry in value["metadata"].items() if entry is not None}
        return Node(f"artifact:{value['digest']}", value["kind"], name, {"digest": value["digest"], **about})
    if isinstance(value, dict) and "id" in value:
        return Node(f"{value['kind']}:{value['id']}", value["kind"], value["id"], value["detail"])
    return None


def layers(lineage: Lineage) -> list[list[Node]]:
    """The nodes in rows, each below everything that was made of it."""
    sources: dict[str, list[str]] = {node.id: [] for node in lineage.nodes}
    for source, to in lineage.edges:
        sources[to].append(source)
    depth: dict[str, int] = {}
    for node_id in TopologicalSorter(sources).static_order():
        depth[node_id] = max((depth[source] + 1 for source in sources[node_id]), default=0)
    rows: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in lineage.nodes:
        rows[depth[node.id]].append(node)
    return rows
