"""A self-contained HTML page: no script, no network, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSSLLib.core.errors import printable
from MedSSLLib.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDE = 600
"""Charts of more pixels are not made smaller on a telephone: they are moved sideways."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { --ink: #1d2329; --soft: #5f6771; --line: #e2e6ea; --page: #f5f6f8; --card: #fff; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa3ad; --line: #2c323a; --page: #121519; --card: #1a1e24; --accent:
  #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; -webkit-print-color-adjust: exact; print-color-adjust:
  exact; }
main { max-width: 1060px; margin: 0 auto; padding: 44px 28px 64px; }
h1 { font-size: 29px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; }
h2 { font-size: 18px; letter-spacing: -.005em; margin: 0 0 12px; }
.kicker { color: var(--accent); font-weight: 650; font-size: 12px; letter-spacing: .09em;
  text-transform: uppercase; margin: 0 0 10px; }
.lead { color: var(--soft); font-size: 16px; margin: 0 0 26px; max-width: 74ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px;
  margin: 18px 0; }
section p { max-width: 84ch; margin: 0 0 12px; }
dl + p, ul + p, ul + .scroll { margin-top: 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin: 18px
0; } .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
} .card b { display: block; font-size: 27px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.card:only-child { max-width: 260px; }
.card span { color: var(--soft); font-size: 13px; display: block; }
.card b + span { color: var(--ink); font-weight: 550; margin-top: 3px; }
/* a shadow on the right as long as there is more of a table: it stays, the cover scrolls away with the table's end */
.scroll { overflow-x: auto; margin-bottom: 18px; background:
  linear-gradient(270deg, var(--card) 12px, transparent) 100% 0/32px 100% no-repeat local,
  linear-gradient(270deg, rgba(127, 127, 127, .45), transparent) 100% 0/16px 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--accent); font-size: 14px; font-weight: 600; padding-bottom: 2px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12.5px; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; }
td small { color: var(--soft); font-size: 12px; font-weight: 400; }
.n small { display: block; white-space: nowrap; }
th.n + th:not(.n), td.n + td:not(.n) { padding-left: 14px; }
tr.total td { font-weight: 620; }
dl { display: grid; grid-template-columns: minmax(140px, 210px) 1fr; gap: 6px 18px; margin: 0; font-size:
14px; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 4px 0 14px; }
figure img { max-width: 100%; height: auto; display: block; }
.zoom { display: block; overflow-x: auto; cursor: zoom-in; }
.zoom input { position: absolute; opacity: 0; }
.zoom input:checked + img { max-width: none; width: auto; cursor: zoom-out; }
.zoom input:focus-visible + img { outline: 2px solid var(--accent); outline-offset: 2px; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 8px; max-width: 84ch; }
.row { display: flex; flex-wrap: wrap; gap: 8px 34px; align-items: flex-end; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); font-weight: 550; font-size: 14px; margin-bottom: 10px; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin:
0;
  overflow-x: auto; font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
ul { margin: 0; padding-left: 20px; max-width: 80ch; }
li { margin: 3px 0; }
footer { color: var(--soft); font-size: 13px; margin-top: 26px; }
@media screen and (max-width: 560px) {
  main { padding: 24px 12px 40px; }
  h1 { font-size: 24px; }
  section { padding: 16px 14px; }
  .cards { grid-template-columns: 1fr; gap: 10px; }
  .card:only-child { max-width: none; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
  .row { display: block; }
  .zoom img.wide { max-width: none; min-width: 640px; }
  .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--card); }
  th, td { padding: 7px 10px 7px 0; }
}
@media screen and (prefers-color-scheme: dark) { img.chart { filter: brightness(1.3); } }
@media print {
  :root { --ink: #111; --soft: #555; --line: #ddd; --page: #fff; --card: #fff; --accent: #0072b2; }
  @page { margin: 16mm 14mm; }
  body { font-size: 11.5px; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 12px 0; margin: 10px 0; }
  .card, figure, table, tr, pre { break-inside: avoid; }
  h2, caption, summary { break-after: avoid; }
  .cards { grid-template-columns: repeat(4, 1fr); gap: 8px; }
  .card { padding: 10px 12px; }
  .card b { font-size: 21px; }
  .scroll { overflow: visible; }
  .row { display: block; }
  .row figure { display: inline-block; vertical-align: bottom; }
  .row figure:not(:only-child) { max-width: 49%; }
  table, dl { font-size: 11.5px; }
  th, td { padding: 4px 9px 4px 0; }
  details dl { gap: 2px 18px; }
  td small { font-size: 9.5px; }
  summary { display: none; }
  details > * { display: block; }
  details::details-content { content-visibility: visible; display: block; }
}
"""


@dataclass(frozen=True)
class Cell:
    """A table cell: text, a smaller note behind it, and whether it is a number.

    Numbers are set to the right, their notes below them.
    """

    text: str
    note: str = ""
    number: bool = False


@dataclass
class Page:
    """Builds the page top to bottom; every method adds to the section that was opened last."""

    title: str
    lead: str = ""
    kicker: str = "MedSSL"
    _parts: list[str] = field(default_factory=list)
    _open: bool = False

    def cards(self, cards: Iterable[tuple[str, str, str]]) -> None:
        """Headline numbers outside any section: (value, what it is, note)."""
        self._close()
        cells = []
        for value, name, note in cards:
            words = f"<span>{_text(name)}</span><span>{_text(note)}</span>"
            cells.append(f'<div class="card"><b>{_text(value)}</b>{words}</div>')
        self._parts.append(f'<div class="cards">{"".join(cells)}</div>')

    def section(self, title: str, text: str = "") -> None:
        """Open a section."""
        self._close()
        self._parts.append(f"<section><h2>{_text(title)}</h2>")
        self._open = True
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>")

    def bullets(self, items: Iterable[str]) -> None:
        """A list."""
        lines = "".join(f"<li>{_text(item)}</li>" for item in items)
        self._parts.append(f"<ul>{lines}</ul>")

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Names and values; empty values are left out."""
        rows = []
        for name, value in facts.items():
            if value not in ("", None):
                rows.append(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>")
        self._parts.append(f"<dl>{''.join(rows)}</dl>")

    def table(
        self,
        head: Sequence[str],
        rows: Iterable[Sequence[Cell | str]],
        *,
        caption: str = "",
        total: bool = False,
    ) -> None:
        """A table; ``total`` sets the last row apart."""
        lines = [list(map(_as_cell, row)) for row in rows]
        titles = []
        for column, name in enumerate(head):
            numbers = bool(lines) and all(line[column].number for line in lines)
            titles.append(Cell(name, number=numbers))
        body = []
        for number, line in enumerate(lines, 1):
            kind = ' class="total"' if total and number == len(lines) else ""
            body.append(f"<tr{kind}>{_cells(line)}</tr>")
        heading = f"<caption>{_text(caption)}</caption>" if caption else ""
        top = f"<thead><tr>{_cells(titles, 'th')}</tr></thead>"
        self._parts.append(
            f'<div class="scroll"><table>{heading}{top}<tbody>{"".join(body)}</tbody></table></div>'
        )

    def figures(self, *figures: tuple[Figure, str]) -> None:
        """Figures side by side where there is room: (figure, caption).

        They become PNG inside the page.
        """
        parts = [_figure(figure, caption) for figure, caption in figures]
        self._parts.append(f'<div class="row">{"".join(parts)}</div>')

    def code(self, text: str) -> None:
        """Text in a fixed-width face."""
        self._parts.append(f"<pre>{_text(text, lines=True)}</pre>")

    def fold(self, summary: str) -> None:
        """Start a part that is folded away on screen (and printed); it ends at :meth:`unfold`."""
        self._parts.append(f"<details><summary>{_text(summary)}</summary><div>")

    def unfold(self) -> None:
        """End the folded part."""
        self._parts.append("</div></details>")

    def html(self, footer: str = "") -> str:
        """The whole page."""
        self._close()
        lead = f'<p class="lead">{_text(self.lead)}</p>' if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{_text(self.title)}</title><style>{_STYLE}</style></head>\n<body><main>"
            "<header><p "
            f'class="kicker">{_text(self.kicker)}</p><h1>{_text(self.title)}</h1>{lead}</header>\n'
            + "\n".join(self._parts)
            + f"\n<footer>{_text(footer)}</footer></main></body></html>\n"
        )

    def write(self, path: Path | str, footer: str = "") -> Path:
        """Write the page, atomically; returns the path."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self.html(footer), encoding="utf-8", errors="backslashreplace")
        return Path(path)

    def _close(self) -> None:
        if self._open:
            self._parts.append("</section>")
        self._open = False


def number(value: float | None, digits: int = 3, note: str = "") -> Cell:
    """A number as a cell; a dash where it is undefined."""
    return Cell("–" if value is None else f"{value:.{digits}f}", note, number=True)


def _text(value: Any, *, lines: bool = False) -> str:
    """Escaped text; control and bidirectional characters are shown as escapes."""
    text = str(value)
    safe = "\n".join(map(printable, text.split("\n"))) if lines else printable(text)
    return escape(safe, quote=True)


def _as_cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(str(value))


def _cells(row: Sequence[Cell], tag: str = "td") -> str:
    parts = []
    for cell in row:
        side = ' class="n"' if cell.number else ""
        note = f" <small>{_text(cell.note)}</small>" if cell.note else ""
        parts.append(f"<{tag}{side}>{_text(cell.text)}{note}</{tag}>")
    return "".join(parts)


def _figure(figure: Figure, caption: str) -> str:
    from MedSSLLib.reporting.plots import to_png

    width = round(figure.get_size_inches()[0] * 100)
    data = base64.b64encode(to_png(figure, dpi=200)).decode("ascii")
    kinds = [] if any(axes.images for axes in figure.axes) else ["chart"]
    if width > WIDE and kinds:
        kinds.append("wide")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return (
        f'<figure><label class="zoom" title="Full size"><input type="checkbox">'
        f'<img{kind} src="data:image/png;base64,{data}" width="{width}" alt="{_text(caption)}">'
        f"</label><figcaption>{_text(caption)}</figcaption></figure>"
    )
