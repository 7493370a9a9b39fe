"""The races as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.picture import OURS as OUR_COLOUR
from benchmarks.picture import PEER as PEER_COLOUR
from benchmarks.serving.entrants import OURS
from benchmarks.serving.own import Minute
from benchmarks.serving.races import Result

_REFUSES = "#e8c4c0"


def bars(path: Path, title: str, results: Sequence[Result], connections: Sequence[int]) -> None:
    """Writes a PNG: requests a second at each number of connections, quickest on top; pale red where a server refused some."""
    figure = Figure(figsize=(4.4 * len(connections), 3.0), layout="constrained")
    panels = figure.subplots(1, len(connections), squeeze=False)[0]
    for panel, count in zip(panels, connections, strict=True):
        entries = [(result.median(count, "rate") or 0.0, result) for result in results if result.loads.get(count)]
        entries.sort(key=lambda entry: entry[0])
        for place, (rate, result) in enumerate(entries):
            peer = PEER_COLOUR if result.answers_everything(count) else _REFUSES
            panel.barh(place, rate, color=OUR_COLOUR if result.name == OURS else peer)
            p99 = (result.median(count, "p99") or 0.0) * 1e3
            panel.text(rate, place, f"  {rate:,.0f}/s, p99 {_short(p99)} ms", va="center", fontsize=8)
        panel.set_yticks(range(len(entries)), [result.name for _, result in entries])
        panel.set_title(f"{title}, {count} connection{'s' if count > 1 else ''}", fontsize=9)
        panel.set_xlabel("requests a second", fontsize=8)
        panel.margins(x=0.45)
        panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _short(value: float) -> str:
    """Two digits or three, and no powers of ten."""
    return f"{value:,.2f}" if value < 1 else f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def soak(path: Path, minutes: Sequence[Minute]) -> None:
    """Writes a PNG: latencies and memory, minute by minute."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = range(1, len(minutes) + 1)
    left.plot(numbers, [minute.p99 * 1e3 for minute in minutes], color=OUR_COLOUR, label="p99")
    left.plot(numbers, [minute.p50 * 1e3 for minute in minutes], color=PEER_COLOUR, label="p50")
    left.set_ylabel("milliseconds")
    left.legend(frameon=False)
    right.plot(numbers, [minute.memory / 1e6 for minute in minutes], color=OUR_COLOUR)
    right.set_ylabel("megabytes resident, gateway and replica")
    for panel in (left, right):
        panel.set_xlabel("minute")
        panel.set_ylim(0, 1.1 * panel.dataLim.y1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("flights through its gateway at 70 % of the rate that saturates it", fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
