"""Order, closure and keys of the graph of steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain import lifecycle
from drivetrain.engines import graph
from drivetrain.records import Artifact, Reference, Verdict


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, dict[str, str]]:
    size = draw(st.integers(1, 8))
    edges: dict[str, dict[str, str]] = {}
    for number in range(size):
        chosen = draw(st.sets(st.integers(0, number - 1))) if number else set()
        edges[f"s{number}"] = {f"i{source}": f"s{source}.out" for source in chosen}
    names = draw(st.permutations(sorted(edges)))
    return {name: edges[name] for name in names}


@given(graphs())
def test_every_step_comes_after_its_inputs(edges: dict[str, dict[str, str]]) -> None:
    order = graph.order(edges)
    assert sorted(order) == sorted(edges)
    for step, inputs in edges.items():
        assert all(order.index(parent) < order.index(step) for parent in graph.parents(inputs))


@given(graphs(), st.data())
def test_upstream_and_downstream_are_converse(edges: dict[str, dict[str, str]], data: st.DataObject) -> None:
    one, other = data.draw(st.sampled_from(sorted(edges))), data.draw(st.sampled_from(sorted(edges)))
    assert (one in graph.upstream(edges, [other])) == (other in graph.downstream(edges, [one]))


def test_cycles_and_unknown_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="cycle: "):
        graph.order({"a": {"x": "b.out"}, "b": {"x": "a.out"}})
    with pytest.raises(ValueError, match="which is no step"):
        graph.order({"a": {"x": "c.out"}})


def test_the_table_of_stages_is_in_an_order_that_can_be_carried_out() -> None:
    edges = {row.name: row.inputs for row in lifecycle.STAGES}
    seen: set[str] = set()
    for name, inputs in edges.items():
        assert graph.parents(inputs) <= seen
        seen.add(name)
    graph.order(edges)


def test_a_key_counts_digests_and_verdicts_but_no_references_or_metadata() -> None:
    def key(digest: str = "d", rows: int = 1, run: str = "r", passed: bool = True) -> str:
        return graph.cache_key(
            "f",
            {"a": Artifact("k", digest, 1, {"rows": rows}), "r": Reference("run", run), "v": Verdict(passed, "why")},
        )

    assert key() == key(rows=2) == key(run="other")
    assert len({key(), key(digest="e"), key(passed=False)}) == 3


def test_a_fingerprint_counts_everything_it_is_given() -> None:
    base = ("train", 1, {"depth": 4}, "code", "lock")
    others = [
        ("x", *base[1:]),
        (base[0], 2, *base[2:]),
        (*base[:2], {"depth": 5}, *base[3:]),
        (*base[:3], "c", "lock"),
        (*base[:4], "l"),
    ]
    assert len({graph.fingerprint(*entry) for entry in [base, *others]}) == 6
