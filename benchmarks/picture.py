"""The chain race as a bar plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measures import Measurement

OURS, PEER = "#1f6f8b", "#b9c2c9"


def draw_chain(path: Path, measurements: Sequence[Measurement], quantities: Sequence[str]) -> None:
    """Writes a PNG: for each quantity a panel, in it a bar an entrant at its median, with whiskers from the least to the
    most sample, quickest first. Entrants without samples are left out."""
    figure = Figure(figsize=(5.2 * len(quantities), 2.8), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)
    for panel, quantity in zip(panels[0], quantities, strict=True):
        entries = [entry for entry in measurements if entry.quantity == quantity and entry.samples]
        entries.sort(key=lambda entry: entry.median or 0.0, reverse=True)
        for place, entry in enumerate(entries):
            middle = entry.median or 0.0
            whiskers = [[middle - min(entry.samples)], [max(entry.samples) - middle]]
            colour = OURS if entry.name == "Drivetrain" else PEER
            panel.barh(place, middle, color=colour, xerr=whiskers, ecolor="#444444", capsize=3)
            panel.text(max(entry.samples), place, f"  {middle:.2f} s", va="center", fontsize=9)
        panel.set_yticks(range(len(entries)), [entry.name for entry in entries])
        panel.set_title(f"No-op chain, {quantity}", fontsize=10)
        panel.set_xlabel("wall time of the whole process, seconds")
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
