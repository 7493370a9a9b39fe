"""The findings as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.environments import CHAINS, MLFLOW
from benchmarks.measures import Findings, Measurement, Target

OURS = ("drivetrain", "pandas", "pyarrow", "duckdb", "feast", "great-expectations", "mlflow", "scikit-learn", "cog")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the numbers were taken; without it they mean nothing. `load` is the mean of the last minute, before the start."""

    system: str
    processor: str
    cores: int
    memory: int
    python: str
    load: float
    versions: Mapping[str, str]


def this_machine() -> Machine:
    """The machine that runs the benchmarks."""
    versions = {name: _version(name) for name in OURS} | {f"peer {p.name}": p.version for p in (*CHAINS, MLFLOW)}
    return Machine(
        f"{platform.system()} {platform.release()}",
        _processor(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        psutil.virtual_memory().total,
        sys.version.split()[0],
        round(psutil.getloadavg()[0], 2),
        versions,
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def amount(value: float | None, unit: str) -> str:
    """A value with its unit, to three digits: `0.012 s`, `1.4 GB`; a dash for none."""
    if value is None:
        return "-"
    if unit == "s":
        return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    if unit == "B":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    return f"{value:.2f}{unit}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, so that it can be read here and pasted there."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


def targets_table(targets: Sequence[Target]) -> str:
    """A line for every target: what was measured, against what, how many times as good, and the verdict."""
    return table(
        ("race", "target", "measured", "against", "ratio", "needed", "verdict"),
        [
            (
                target.race,
                target.text,
                amount(target.value, target.unit),
                f"{target.bound_name} {amount(target.bound, target.unit)}",
                "-" if target.ratio is None else f"{target.ratio:.2f}x",
                f"{target.needed:g}x",
                target.verdict,
            )
            for target in targets
        ],
    )


def measurements_table(measurements: Sequence[Measurement]) -> str:
    """A line for every entrant and quantity: median, all samples, spread."""
    return table(
        ("who", "what", "median", "least", "most", "samples"),
        [
            (
                entry.name,
                entry.quantity,
                amount(entry.median, entry.unit) if entry.samples else "failed",
                amount(min(entry.samples, default=None), entry.unit),
                amount(max(entry.samples, default=None), entry.unit),
                str(len(entry.samples)),
            )
            for entry in measurements
        ],
    )


def text(findings: Mapping[str, Findings]) -> str:
    """The whole report: each race's measurements and notes, then every target."""
    parts = []
    for name, found in findings.items():
        parts.append(f"## {name}\n\n{measurements_table(found.measurements)}")
        notes = [*found.notes, *errors(found)]
        parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts.append("## Targets\n\n" + targets_table([target for found in findings.values() for target in found.targets]))
    return "\n\n".join(parts) + "\n"


def errors(found: Findings) -> list[str]:
    """A line for every error, each error once: whose it is, and what it says."""
    told = {entry.error: f"{entry.name}, {entry.quantity}" for entry in reversed(found.measurements) if entry.error}
    told |= {target.error: target.text for target in found.targets if target.error and target.error not in told}
    return [f"FAILED {whose}: {error}" for error, whose in reversed(told.items())]


def write_json(path: Path, machine: Machine, findings: Mapping[str, Findings], rounds: int) -> None:
    """Everything that was found, with the machine and every sample. Of races that were not run, what the file holds is kept."""
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    before = json.loads(path.read_text())["races"] if path.is_file() else {}
    content = {
        "taken": taken,
        "rounds": rounds,
        "machine": asdict(machine),
        "races": before
        | {
            name: {
                "taken": taken,
                "targets": [{**asdict(t), "ratio": t.ratio, "verdict": t.verdict} for t in found.targets],
                "measurements": [{**asdict(m), "median": m.median, "spread": m.spread} for m in found.measurements],
                "notes": list(found.notes),
            }
            for name, found in findings.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
