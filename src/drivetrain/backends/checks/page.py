"""The result of checks as one HTML page that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from drivetrain.backends.checks import CheckLine, CheckResult
from drivetrain.backends.checks.words import percent, show

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --back: #f5f7f9; --card: #fff;
  --good: #1a7f4b; --bad: #c0352b; --bad-back: #fdf1f0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #98a3b3; --line: #2f3947; --back: #14191f;
  --card: #1b222b; --good: #4cc38a; --bad: #ff8a7e; --bad-back: #2b1d1f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 36px 0 8px; }
p.sub { color: var(--soft); margin: 0 0 20px; }
.state { display: inline-block; padding: 1px 10px; border-radius: 10px; font-size: 13px; font-weight: 600;
  color: var(--card); background: var(--good); white-space: nowrap; }
.state.bad { background: var(--bad); }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: 8px 12px; border-bottom: 1px solid var(--line); }
th { font-size: 12px; color: var(--soft); font-weight: 600; white-space: nowrap; } tr.bad td { background: var(--bad-back); }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
svg.bar { display: block; margin: 8px 0 0 auto; }
svg .track { fill: var(--line); } svg .part { fill: var(--soft); } tr.bad svg .part { fill: var(--bad); }
td:nth-child(2) code { white-space: nowrap; overflow-wrap: normal; }
h3 { font-size: 14px; margin: 20px 0 6px; } td.row { width: 9em; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
"""


def render(result: CheckResult, title: str) -> str:
    """The page: the verdict, every expectation with what was found, and samples of offending values."""
    failed = [line for line in result.lines if not line.passed]
    state = "refused" if failed else "passed"
    count = len(result.lines)
    summary = (
        f"{len(failed)} of {count} expectations failed" if failed else f"{_plural(count, 'expectation')}, none failed"
    )
    samples = "".join(map(_sample, result.lines, result.document.get("results", ())))
    version = result.document.get("meta", {}).get("great_expectations_version", "")
    suite = result.document.get("suite_name", "")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: {state}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)} <span class="state{" bad" if failed else ""}">{state}</span></h1>
<p class="sub">{summary} &middot; suite <code>{escape(str(suite))}</code> &middot; Great Expectations {escape(str(version))}</p>
<div class="wide">
<table>
<thead><tr><th></th><th>Column</th><th>Expectation</th><th>Found</th><th>Unexpected rows</th></tr></thead>
<tbody>
{"".join(map(_row, result.lines))}</tbody>
</table>
</div>
{f"<h2>Samples of offending values</h2>{samples}" if samples else ""}
</main>
</body>
</html>
"""


def _row(line: CheckLine) -> str:
    state = '<span class="state">ok</span>' if line.passed else '<span class="state bad">failed</span>'
    column = f"<code>{escape(line.column)}</code>" if line.column else "(table)"
    return (
        f"<tr{'' if line.passed else ' class=bad'}><td>{state}</td><td>{column}</td><td>{escape(line.expectation)}</td>"
        f'<td>{escape(line.detail)}</td><td class="number">{_amount(line)}</td></tr>\n'
    )


def _amount(line: CheckLine) -> str:
    if line.unexpected is None:
        return ""
    if line.percent is None or not line.unexpected:
        return show(line.unexpected)
    # At least one pixel, so that a few rows of millions can be seen.
    width = max(1.0, min(100.0, line.percent))
    bar = (
        '<svg class="bar" width="100" height="6" role="img">'
        f'<title>{percent(line.percent)}</title><rect class="track" width="100" height="6" rx="3"/>'
        f'<rect class="part" width="{width:.1f}" height="6" rx="{min(3.0, width / 2):.1f}"/></svg>'
    )
    return f"{show(line.unexpected)} &middot; {percent(line.percent)}{bar}"


def _sample(line: CheckLine, entry: Mapping[str, Any]) -> str:
    found = entry.get("result", {})
    values: Sequence[Any] = found.get("partial_unexpected_list") or ()
    rows: Sequence[Any] = found.get("partial_unexpected_index_list") or ()
    if line.passed or not values or len(rows) != len(values):
        return ""
    name = f"<code>{escape(line.column)}</code> {escape(line.expectation)}" if line.column else escape(line.expectation)
    more = f", first {len(values)} of {show(line.unexpected)}" if (line.unexpected or 0) > len(values) else ""
    if all(value is None for value in values):
        return f"<h3>{name}{more}</h3><p>Null in the rows (from 0) {', '.join(map(show, rows))}</p>"
    cells = "".join(
        f'<tr><td class="row">{show(row)}</td><td><code>{escape(show(value))}</code></td></tr>'
        for row, value in zip(rows, values, strict=True)
    )
    return (
        f"<h3>{name}{more}</h3><table><thead><tr><th>Row (from 0)</th><th>Value</th></tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )


def _plural(count: int, word: str) -> str:
    return f"{show(count)} {word}{'' if count == 1 else 's'}"
