"""The race `publish` as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measures import Measurement
from benchmarks.packaging.bench import NAIVE
from benchmarks.picture import OURS as OUR_COLOUR
from benchmarks.picture import PEER as PEER_COLOUR
from benchmarks.setting import OURS

_COLOURS = {OURS: OUR_COLOUR, NAIVE: PEER_COLOUR}


def published(path: Path, measured: Sequence[Measurement], cases: Sequence[str]) -> None:
    """Writes a PNG: seconds of each case on the left, megabytes on the right, at the medians; whiskers go from the least sample to the
    most."""
    figure = Figure(figsize=(10.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, measured, cases, cases)
    _bars(right, measured, [f"{case}, moved" for case in cases], cases)
    left.set_xlabel("seconds from the change to the image in the registry", fontsize=9)
    right.set_xlabel("megabytes that the registry took in", fontsize=9)
    for panel in (left, right):
        panel.invert_yaxis()
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(panel: Axes, measured: Sequence[Measurement], quantities: Sequence[str], cases: Sequence[str]) -> None:
    height = 0.8 / len(_COLOURS)
    for number, (name, colour) in enumerate(_COLOURS.items()):
        known = {entry.quantity: entry for entry in measured if entry.name == name and entry.samples}
        for place, quantity in enumerate(quantities):
            entry = known[quantity]
            middle, least, most = entry.median or 0.0, min(entry.samples), max(entry.samples)
            at, whiskers = place - 0.4 + (number + 0.5) * height, [[middle - least], [most - middle]]
            label = name if place == 0 else None
            panel.barh(at, middle, height, color=colour, xerr=whiskers, ecolor="#444444", capsize=2, label=label)
            panel.text(
                most, at, f"  {middle:.{1 if middle >= 1 else 2}f} {entry.unit.strip()}", va="center", fontsize=8
            )
    panel.set_yticks(range(len(cases)), cases, fontsize=9)
