"""A report as HTML: sections of a few kinds of blocks, in one file that needs nothing else: no script, no font, no network.

Whatever is text in a block is escaped by the template; pictures alone are markup already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

Tone = Literal["", "good", "bad", "soft"]


@dataclass(frozen=True, slots=True)
class Badge:
    """A word on a coloured ground."""

    text: str
    tone: Tone = ""


Cell = str | Badge


@dataclass(frozen=True, slots=True)
class Said:
    """A paragraph, with a badge before it where there is one."""

    kind: ClassVar[str] = "said"
    text: str
    badge: Badge | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that a reader looks for first: its name, the number, and what it rests on."""

    name: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Numbers side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values; those that are empty are left out."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; `numbers` are the columns that are set to the right, `unbroken` others that stay on one line. `title` stands above."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    unbroken: frozenset[int] = frozenset()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An `<svg>` or `<img>` element, and what it shows for who does not see it."""

    markup: Markup
    shows: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures beside each other where there is room, each as wide as `size` says of a page. `title` stands above them."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]
    title: str = ""
    size: Literal["third", "half", "whole"] = "half"


Block = Said | Tiles | Facts | Table | Pictures


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading."""

    title: str
    blocks: Sequence[Block]


def render(title: str, badge: Badge, subtitle: str, sections: Sequence[Section], foot: str) -> str:
    """The page. The same blocks give the same text."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(_PAGE).render(
        title=title, badge=badge, subtitle=subtitle, sections=sections, foot=foot, style=Markup(_STYLE)
    )


_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #e1e6ec; --back: #f5f7f9; --good: #1a7f4b; --bad: #c0352b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 48px; }
header { margin: 0 4px 20px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 10px; }
h3 { font-size: 14px; margin: 22px 0 6px; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
header p, footer { color: var(--soft); margin: 0; }
footer { font-size: 13px; padding: 4px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px; margin: 0 0 16px; }
section > :last-child { margin-bottom: 0; }
.badge { display: inline-block; padding: 0 9px; border-radius: 10px; font-size: 12px; line-height: 20px; font-weight: 600;
  background: var(--line); color: var(--ink); white-space: nowrap; vertical-align: 2px; }
.badge.good { background: var(--good); color: #fff; } .badge.bad { background: var(--bad); color: #fff; }
td .badge { line-height: 18px; vertical-align: 0; } .badge.soft { background: var(--back); color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 14px 20px; margin: 0; }
.tiles dt { color: var(--soft); font-size: 13px; } .tiles dd { margin: 0; font-size: 22px; line-height: 1.3; }
.tiles dd.bad { color: var(--bad); } .tiles small { display: block; font-size: 12px; line-height: 1.4; color: var(--soft); }
.facts { display: grid; grid-template-columns: minmax(90px, max-content) 1fr; gap: 3px 18px; margin: 0; font-size: 14px; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; font-size: 13px; min-width: 45%; }
th, td { text-align: left; vertical-align: top; padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; min-width: 3em; max-width: 34em; overflow-wrap: break-word; }
.number { text-align: right; } .number, .unbroken { white-space: nowrap; }
tr:last-child td { border-bottom: 0; } th:last-child, td:last-child { padding-right: 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 14px 24px; margin: 6px 0 12px; }
.pictures.third { grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); }
.pictures.whole { display: block; overflow-x: auto; } .pictures.whole svg { min-width: 620px; }
figure { margin: 0; min-width: 0; }
figure svg, figure img { display: block; width: 100%; height: auto; }
svg text { font-family: "DejaVu Sans", system-ui, sans-serif; }
@media (max-width: 560px) {
  main { padding: 18px 10px 32px; } section { padding: 14px; } h1 { font-size: 20px; }
  th, td { padding-right: 14px; }
}
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 12px 0; margin: 0; }
  tr, figure, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll, .pictures.whole { overflow: visible; }
  .badge { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .pictures { grid-template-columns: 1fr 1fr; } .pictures.third { grid-template-columns: 1fr 1fr 1fr; }
  .pictures.whole svg { min-width: 0; } table { font-size: 9pt; }
}
"""

_PAGE = """\
{% macro badge_of(badge) %}<span class="badge {{ badge.tone }}">{{ badge.text }}</span>{% endmacro %}
{% macro class_of(table, column) %}
{% if column in table.numbers %} class="number"{% elif column in table.unbroken %} class="unbroken"{% endif %}
{% endmacro %}
{% macro cell_of(cell) %}{% if cell is string %}{{ cell }}{% else %}{{ badge_of(cell) }}{% endif %}{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<h1>{{ title }} {{ badge_of(badge) }}</h1>
<p>{{ subtitle }}</p>
</header>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}
{% if block.title is defined and block.title %}
<h3>{{ block.title }}</h3>
{% endif %}
{% if block.kind == "said" %}
<p>{% if block.badge %}{{ badge_of(block.badge) }} {% endif %}{{ block.text }}</p>
{% elif block.kind == "tiles" %}
<dl class="tiles">
{% for tile in block.tiles %}
<div><dt>{{ tile.name }}</dt>
<dd class="{{ tile.tone }}">{{ tile.value }}{% if tile.note %}<small>{{ tile.note }}</small>{% endif %}</dd></div>
{% endfor %}
</dl>
{% elif block.kind == "facts" %}
<dl class="facts">
{% for name, value in block.rows if value %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% elif block.kind == "table" %}
<div class="scroll"><table>
<thead><tr>
{% for name in block.head %}
<th{{ class_of(block, loop.index0) }}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows %}
<tr>
{% for cell in row %}
<td{{ class_of(block, loop.index0) }}>{{ cell_of(cell) }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% else %}
<div class="pictures {{ block.size }}">
{% for picture in block.pictures %}
<figure role="img" aria-label="{{ picture.shows }}">{{ picture.markup }}</figure>
{% endfor %}
</div>
{% endif %}
{% endfor %}
</section>
{% endfor %}
<footer>{{ foot }}</footer>
</main>
</body>
</html>
"""
