"""`drivetrain lineage`: as a tree, as JSON, or drawn."""

from __future__ import annotations

import html
from dataclasses import asdict
from pathlib import Path

import click

from drivetrain import deployment, project
from drivetrain import lineage as tracing
from drivetrain.cli import output
from drivetrain.lineage import Lineage, Node

_COLOURS = {
    "prediction": "#b45309",
    "revision": "#be185d",
    "model_version": "#7c3aed",
    "run": "#475569",
    "stage": "#e2e8f0",
}
_WIDTH, _HEIGHT, _GAP, _ROW = 250, 46, 28, 78
_DETAILS = ("digest", "key", "rows", "value", "definition", "code", "lock", "commit", "url", "flavour")


@click.command()
@click.argument("subject", metavar="MODEL_VERSION|RUN|PREDICTION_ID|IMAGE")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the graph into this .svg or .html file.",
)
@click.option("--json", "as_json", is_flag=True, help="Nodes and edges as JSON.")
@click.pass_obj
def lineage(where: str, subject: str, output: Path | None, as_json: bool) -> None:
    """Walk from a model version (3 or flights/3), run, prediction or image (its digest) back to its data, features, checks, code and lock
    file."""
    opened = project.open_project(Path(where), checked=False)
    deployment.remember_prediction(opened, subject)
    found = tracing.trace(opened.journal, opened.definition.name, subject)
    if output is not None:
        drawn = draw(found)
        if output.suffix == ".html":
            drawn = f'<!doctype html><meta charset="utf-8"><title>lineage of {html.escape(subject)}</title>{drawn}'
        output.write_text(drawn, encoding="utf-8")
        click.echo(f"wrote {output}", err=True)
    if as_json:
        _print_json(found)
    elif output is None:
        _print_tree(found)


def _print_json(found: Lineage) -> None:
    output.as_json(
        {
            "start": found.start,
            "nodes": [asdict(node) for node in found.nodes],
            "edges": [{"from": source, "to": to} for source, to in found.edges],
        }
    )


def _print_tree(found: Lineage) -> None:
    nodes = {node.id: node for node in found.nodes}
    printed: set[str] = set()

    def walk(node_id: str, indent: str) -> None:
        node = nodes[node_id]
        again = node_id in printed
        printed.add(node_id)
        if node.kind == "run" and node_id != found.start:
            return  # every stage belongs to it: said once, below
        if node.kind != "stage":  # a stage is only the way between its outputs and its inputs
            click.echo(f"{indent}{click.style(node.kind, bold=True)} {_text(node)}" + ("  (above)" if again else ""))
            indent += "  "
        if not again:
            for to in found.made_of(node_id):
                walk(to, indent)

    walk(found.start, "")
    for node in found.nodes:
        if node.kind == "run" and node.id != found.start:
            click.echo(f"all of {click.style('run', bold=True)} {_text(node)}")


def _text(node: Node) -> str:
    details = [f"{name} {_value(node.detail[name])}" for name in _DETAILS if node.detail.get(name) not in (None, "")]
    return "  ".join([node.label, *details])


def _value(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return output.short(text) if len(text) >= 40 else text


def draw(found: Lineage) -> str:
    """The graph as SVG: the stages in the left column, what they made beside them, the newest on top."""
    spots: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(tracing.layers(found)):
        made = [node for node in row if node.kind != "stage"]
        for node in row:
            column = 0 if node.kind == "stage" else 1 + made.index(node)
            spots[node.id] = (_GAP + column * (_WIDTH + _GAP), _GAP + number * _ROW)
    width = max(x for x, _ in spots.values()) + _WIDTH + _GAP
    height = max(y for _, y in spots.values()) + _HEIGHT + _GAP
    # Every stage belongs to the run: one line says so, where the graph ends.
    last = max((node.id for node in found.nodes if node.kind == "stage"), key=lambda node: spots[node][1], default="")
    lines = [
        _line(spots[source], spots[to])
        for source, to in found.edges
        if not to.startswith("run:") or source in (last, found.start)
    ]
    boxes = [_box(node, *spots[node.id]) for node in found.nodes]
    style = "font: 12px system-ui, sans-serif"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" style="{style}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(lines)}{"".join(boxes)}</svg>\n'
    )


def _line(source: tuple[float, float], to: tuple[float, float]) -> str:
    """From the side of a stage to the top of what it took, or from the bottom of what was made to its stage's side."""
    from_stage = source[0] < to[0]
    x1, y1 = (
        (source[0] + _WIDTH, source[1] + _HEIGHT / 2) if from_stage else (source[0] + _WIDTH / 2, source[1] + _HEIGHT)
    )
    x2, y2 = (to[0] + _WIDTH / 2, to[1]) if from_stage or source[0] == to[0] else (to[0] + _WIDTH, to[1] + _HEIGHT / 2)
    bend = f"C{x2:.0f},{y1:.0f} {x2:.0f},{y1:.0f}" if from_stage else f"C{x1:.0f},{y2:.0f} {x1:.0f},{y2:.0f}"
    return f'<path d="M{x1:.0f},{y1:.0f} {bend} {x2:.0f},{y2:.0f}" fill="none" stroke="#94a3b8"/>'


def _box(node: Node, x: float, y: float) -> str:
    fill = _COLOURS.get(node.kind, "#0f766e")
    ink = "#0f172a" if node.kind == "stage" else "white"
    first = node.label if node.kind == "stage" else f"{node.kind.replace('_', ' ')}: {node.label}"
    details = [f"{name} {_value(node.detail[name])}" for name in _DETAILS if node.detail.get(name) not in (None, "")]
    title = "\n".join(f"{name}: {value}" for name, value in node.detail.items())
    return (
        f'<g><title>{html.escape(title)}</title><rect x="{x:.0f}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="7" fill="{fill}"/>'
        f'<text x="{x + 10:.0f}" y="{y + 19}" fill="{ink}" font-weight="600">{html.escape(_cut(first))}</text>'
        f'<text x="{x + 10:.0f}" y="{y + 36}" fill="{ink}" opacity="0.85">{html.escape(_cut("  ".join(details[:2])))}</text></g>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= 32 else text[:31] + "…"
