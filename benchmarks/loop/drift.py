"""How fast windows take values in, how large they are, and how long a report takes; beside Evidently, NannyML, and KLL sketches."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.loop import made, pictures
from benchmarks.loop.bench import DATASKETCHES, EVIDENTLY, NANNYML, OURS, Bench
from benchmarks.measures import Findings, Measurement, at_most, faster_than
from drivetrain.engines.drift import compare, corrected_alpha, shares
from drivetrain.engines.reference import Reference, reference_of
from drivetrain.engines.sketches import Window

_BATCH = 10_000
_REPORT = "report, reference included"
_COMPARISON = "report, reference made before"


def race(bench: Bench) -> Findings:
    """Ingestion, size, and the report on a million rows of 20 features."""
    known, live = made.report_rows(1), made.report_rows(2)
    number = _ingestion(bench, "a number", known, live, made.NUMBERS)
    word = _ingestion(bench, "a word", known, live, made.WORDS)
    reference = reference_of(known)
    window = Window(reference)
    window.add(live, made.REPORT_ROWS)
    size = Measurement(OURS, "a feature of a window of 1e6 rows", (len(window.to_bytes()) / len(live),), " bytes")
    whole, comparison = _reports(bench, known, live)
    bench.say("  Evidently, NannyML, KLL")
    evidently, nannyml = _reports_of_evidently(bench), _reports_of_nannyml(bench)
    peers = [*evidently, *nannyml]
    targets = [
        at_most("drift", "30 million numbers a second and core: at most 33.3 ns each", number, 1e3 / 30.0),
        at_most("drift", "a window takes at most 20 KB a feature", size, 20_000.0),
        *(
            faster_than("drift", f"1e6 rows x 20 features, {whole.quantity}: 10x as fast as {peer.name}, {peer.quantity}",
                        whole, peer, 10.0)
            for peer in (*evidently, nannyml[0])
        ),
    ]  # fmt: skip
    pictures.reports(bench.pictures / "bench-loop-drift.png", [whole, comparison, *peers])
    sketches, notes = _sketches(bench, number)
    if comparison.median and nannyml[1].median:
        notes.append(
            f"with the reference made before: {nannyml[1].median / comparison.median:.1f}x as fast as NannyML's `calculate`"
        )
    return Findings(targets, [number, word, size, *sketches, whole, comparison, *peers], notes)


def _ingestion(bench: Bench, what: str, known: made.Columns, live: made.Columns, names: Sequence[str]) -> Measurement:
    reference = reference_of({name: known[name] for name in names})
    batches = [
        {name: live[name][start : start + _BATCH] for name in names} for start in range(0, made.REPORT_ROWS, _BATCH)
    ]
    samples = [_ingest(reference, batches) for _ in range(bench.rounds + 1)]
    return Measurement(OURS, f"{what}, in batches of {_BATCH:,} rows", tuple(samples[1:]), " ns")


def _ingest(reference: Reference, batches: Sequence[made.Columns]) -> float:
    """Nanoseconds of this process for each value: what a core does, whatever else the machine does."""
    window = Window(reference)
    started = time.process_time()
    for batch in batches:
        window.add(batch, _BATCH)
    return (time.process_time() - started) / (window.rows * len(batches[0])) * 1e9


def _reports(bench: Bench, known: made.Columns, live: made.Columns) -> tuple[Measurement, Measurement]:
    """Seconds of this process for drift, missing and unseen values of all features with the shares that a plot shows; with and without
    the reference, which training makes once."""
    whole: list[float] = []
    comparison: list[float] = []
    for _ in range(bench.rounds + 1):
        started = time.process_time()
        reference = reference_of(known)
        made_after = time.process_time()
        window = Window(reference)
        window.add(live, made.REPORT_ROWS)
        entries = compare(reference, window, "psi", corrected_alpha(0.05, len(live), 3600.0))
        plots = [shares(reference, window, name) for name in live]
        whole.append(time.process_time() - started)
        comparison.append(time.process_time() - made_after)
        if (len(entries), len(plots)) != (3 * len(live), len(live)):
            raise RuntimeError("the report is not whole")
    return Measurement(OURS, _REPORT, tuple(whole[1:])), Measurement(OURS, _COMPARISON, tuple(comparison[1:]))


def _rounds(bench: Bench) -> str:
    """A report of Evidently's takes more than a minute."""
    return str(min(bench.rounds, 2))


def _reports_of_evidently(bench: Bench) -> list[Measurement]:
    found, error = bench.ask(EVIDENTLY, "report", _rounds(bench))
    return [
        Measurement(EVIDENTLY.name, name, tuple(found[name]) if found else (), error=error)
        for name in ("defaults", "PSI")
    ]


def _reports_of_nannyml(bench: Bench) -> list[Measurement]:
    found, error = bench.ask(NANNYML, "report", _rounds(bench))
    fit, calculate = (found["fit"], found["calculate"]) if found else ((), ())
    both = tuple(one + other for one, other in zip(fit, calculate, strict=True))
    return [
        Measurement(NANNYML.name, "fit and calculate", both, error=error),
        Measurement(NANNYML.name, "calculate", tuple(calculate), error=error),
    ]


def _sketches(bench: Bench, ours: Measurement) -> tuple[list[Measurement], list[str]]:
    """What KLL sketches would take in the place of cells."""
    measured: list[Measurement] = []
    notes: list[str] = []
    for k in (200, 800):
        found, error = bench.ask(DATASKETCHES, str(k), str(_BATCH), str(5_000_000))
        name = f"{DATASKETCHES.name}, k={k}"
        per_value = (found["per_value"] * 1e9,) if found else ()
        measured.append(Measurement(name, "a number, in batches of 10,000 rows", per_value, " ns", error))
        if found:
            notes.append(f"{name}: {found['bytes'] / 1e3:.1f} KB, wrong by up to {found['error']:.2%} of the rows, and not the "
                         "same twice; cells are exact at their edges")  # fmt: skip
    rate = 1e3 / (ours.median or float("inf"))
    return measured, [f"{rate:.0f} million numbers a second and core", *notes]
