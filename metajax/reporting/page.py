"""Write a self-contained HTML page without scripts."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metajax.errors import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --paper: #fff; --line: #d0d7de; --faint: #57606a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #14181d; --line: #3d444d; --faint: #9198a1 }
}
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --line: #bbb; --faint: #444 }
  figure, tr, li { break-inside: avoid }
  h2 { break-after: avoid }
  .wide svg { max-width: 100% !important }
}
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif }
h1, h2 { line-height: 1.2 }
h2 { margin-top: 2.5rem }
p, figcaption, dt { color: var(--faint) }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem }
figure { margin: 0; flex: 1 1 20rem; max-width: 36rem }
svg { max-width: 100%; height: auto }
.wide { max-width: none; overflow-x: auto }
.wide svg { max-width: none }
.scroll { overflow-x: auto; margin-bottom: 1.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right }
td { white-space: nowrap }
.word { text-align: left }
.lists { display: flex; flex-wrap: wrap; gap: 0 2rem }
ol { flex: 1 1 20rem; padding-left: 1.5rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(0, max-content) 1fr; gap: 0 1rem;
  margin: 0 0 1rem }
dd { margin: 0 }
"""


def page(title: str, sections: Mapping[str, str]) -> str:
    """Return an HTML page.

    Args:
        title: the title, as text.
        sections: HTML of each section, by its heading.
    """
    body = "\n".join(
        f"<section>\n<h2>{text(heading)}</h2>\n{content}\n</section>"
        for heading, content in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{text(title)}</h1>
{body}
</body>
</html>
"""


def text(value: Any) -> str:
    """Return a value as escaped text."""
    return html.escape(printable(str(value)))


def note(value: str) -> str:
    """Return a paragraph."""
    return f"<p>{text(value)}</p>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", *, words: int = 1
) -> str:
    """Return a table.

    Args:
        header: the names of the columns.
        rows: the values.
        caption: a text above the table.
        words: number of columns with words, from the left. The other columns have numbers.
    """

    def line(kind: str, values: Sequence[Any]) -> str:
        kinds = [f'{kind} class="word"'] * words + [kind] * (len(values) - words)
        cells = (f"<{kind}>{text(value)}</{kind[:2]}>" for kind, value in zip(kinds, values))
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return (
        (note(caption) if caption else "")
        + f'<div class="scroll"><table>\n<thead>{line("th", header)}</thead>\n'
        + f"<tbody>\n{body}\n</tbody></table></div>"
    )


def figures(drawn: Mapping[str, str], *, wide: bool = False) -> str:
    """Return pictures, side by side if there is enough room.

    Args:
        drawn: SVGs by caption.
        wide: scroll the pictures on a narrow screen instead of shrinking them.
    """
    kind = ' class="wide"' if wide else ""
    shown = "\n".join(
        f"<figure{kind}>{_named(svg, caption)}<figcaption>{text(caption)}</figcaption></figure>"
        for caption, svg in drawn.items()
    )
    return f'<div class="figures">\n{shown}\n</div>'


def _named(svg: str, caption: str) -> str:
    """Add a text for screen readers to a picture."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(caption)}"', 1)


def lists(chains: Iterable[Iterable[tuple[str, Mapping[str, Any]]]]) -> str:
    """Return numbered lists, side by side if there is enough room."""
    return '<div class="lists">\n' + "\n".join(map(_list, chains)) + "\n</div>"


def _list(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return a list of entries with a title and named values."""
    items = "\n".join(
        f"<li>{text(title)}\n<dl>"
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values.items())
        + "</dl></li>"
        for title, values in entries
    )
    return f"<ol>\n{items}\n</ol>"
