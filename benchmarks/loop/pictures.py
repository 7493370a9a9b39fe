"""The races as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.loop.bench import OURS
from benchmarks.measures import Measurement
from benchmarks.picture import OURS as OUR_COLOUR
from benchmarks.picture import PEER as PEER_COLOUR

_OTHER_PEER = "#d8c3a5"


def reports(path: Path, measured: Sequence[Measurement]) -> None:
    """Writes a PNG: seconds for the report on a million rows of 20 features, on a logarithmic scale, quickest on top."""
    entries = sorted((entry for entry in measured if entry.samples), key=lambda entry: -(entry.median or 0.0))
    figure = Figure(figsize=(7.5, 0.5 + 0.42 * len(entries)), layout="constrained")
    panel = figure.subplots()
    for place, entry in enumerate(entries):
        middle = entry.median or 0.0
        panel.barh(place, middle, color=OUR_COLOUR if entry.name == OURS else PEER_COLOUR)
        panel.text(middle, place, f"  {middle:.2f} s", va="center", fontsize=8)
    panel.set_yticks(range(len(entries)), [f"{entry.name}: {entry.quantity}" for entry in entries], fontsize=8)
    panel.set_xscale("log")
    panel.set_xlabel("seconds for 1,000,000 rows x 20 features", fontsize=8)
    panel.margins(x=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def powers(path: Path, alarms: Mapping[str, float], stated: float, found: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a PNG: false alarms of each tool as it comes, and what each finds of every shift at equal false alarms."""
    colours = [OUR_COLOUR, PEER_COLOUR, _OTHER_PEER]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.4))
    for place, share in enumerate(alarms.values()):
        left.bar(place, share * 100.0, color=colours[place])
        left.text(place, share * 100.0, f"{share:.2%}", ha="center", va="bottom", fontsize=8)
    left.axhline(stated * 100.0, color="#444444", linewidth=0.8, linestyle="--")
    left.set_xticks(range(len(alarms)), list(alarms), fontsize=8)
    left.set_yscale("log")
    left.set_ylabel("% of windows without drift that alarm", fontsize=8)
    left.set_title("False alarms, as each comes (dashed: stated)", fontsize=9)
    shifts = list(next(iter(found.values())))
    width = 0.8 / len(found)
    for number, (name, shares) in enumerate(found.items()):
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(shifts))]
        right.barh(places, [shares[shift] * 100.0 for shift in shifts], width, color=colours[number], label=name)
    right.set_yticks(range(len(shifts)), shifts, fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("% of windows that alarm", fontsize=8)
    right.set_title("Shifts found, at equal rates of false alarms", fontsize=9)
    figure.legend(loc="outside lower right", ncols=len(found), frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
