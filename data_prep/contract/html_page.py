"""The HTML pages of the project: one frame and style, tables, text made safe, numbers for people.

A page is one file that needs no network and, but for extras, no script. The same arguments give the same bytes.
"""

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1d2530; --soft: #5d6878; --line: #d9dee6; --page: #f6f7f9;
  --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7ed; --soft: #9aa5b5; --line: #343c48; --page: #14181e;
  --card: #1c222b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.15rem; }
p { margin: .4rem 0; }
.soft, figcaption, th { color: var(--soft); }
figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: .75rem; }
figure { margin: 0; padding: .8rem .9rem; }
figcaption { font-size: .85rem; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; }
"""
"""What all pages look like; a page adds rules of its own."""

# What would act on the page around it instead of being seen: control characters, zero-width ones, directions.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def html_page(title: str, body: str, *, style: str, script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: ready HTML.
        style: rules besides ``STYLE``.
        script: for extras; the page must be complete without it.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; script-src 'unsafe-inline'" if script else "")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}{f"<script>{script}</script>" if script else ""}</body>
</html>
"""


def escaped(value: object) -> str:
    """Any text, however nasty, as HTML that shows it and does nothing else; fit for attributes as well."""
    return escape(_UNSEEN.sub(lambda unseen: f"<U+{ord(unseen[0]):04X}>", str(value)))


def html_table(head: Sequence[str], lines: Sequence[Sequence[int | str]], *, align_numbers: bool = True) -> str:
    """A table of ready HTML cells.

    Args:
        head: a title for each column.
        lines: the cells; there is at least one line.
        align_numbers: put integers, shares and "-" at the right.
    """

    def cell(tag: str, content: int | str, like: int | str) -> str:
        is_number = isinstance(like, int) or like.endswith("%") or like == "-"
        right = ' class="number"' if align_numbers and is_number else ""
        return f"<{tag}{right}>{f'{content:,}' if isinstance(content, int) else content}</{tag}>"

    titles = "".join(cell("th", title, like) for title, like in zip(head, lines[0], strict=True))
    body = "".join(f"<tr>{''.join(cell('td', value, value) for value in line)}</tr>\n" for line in lines)
    return f'<div class="scroll"><table>\n<tr>{titles}</tr>\n{body}</table></div>\n'


def percentage(part: int, whole: int) -> str:
    """A share, such as "12.50%"; "-" of nothing."""
    return f"{part / whole:.2%}" if whole else "-"


def byte_size(count: int) -> str:
    """Bytes in the unit that suits them: 12 bytes, 3.4 MB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def number(value: float) -> str:
    """A short form: 12.3k, 4.5M, 0.00012."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 45 s, 3.5 min, 2.25 h."""
    for size, suffix in ((3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {suffix}"
    return f"{seconds:.3g} s"
