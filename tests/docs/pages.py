"""The project's pages as tests see them: links, headings and fenced blocks."""

import dataclasses
import re
from functools import cache
from pathlib import Path

from docs.generate_reference import PAGES

ROOT = Path(__file__).parents[2]
OUTSIDE = (*sorted(path.name for path in ROOT.glob("*.md")), "benchmarks/README.md")
"""Pages that stand outside docs/."""

_FENCE = re.compile(r"^( *)```\{?\.?(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    language: str
    """What stands behind the fence."""
    text: str
    """Its lines."""


def written_pages() -> list[str]:
    """Every page that somebody wrote, by its path in the repository."""
    inside = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return [*OUTSIDE, *inside]


@cache
def text_of(page: str) -> str:
    """A page's Markdown, written or generated.

    Raises:
        KeyError: there is no such page.
    """
    path = ROOT / page
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return PAGES[page.removeprefix("docs/")]()


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks in their order."""
    return [Block(language=match[2], text=match[3]) for match in _FENCE.finditer(text_of(page))]


def links_of(page: str) -> list[str]:
    """Targets of all links and images that do not leave the repository."""
    found = _LINK.findall(_FENCE.sub("", text_of(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(page: str) -> set[str]:
    """What may stand behind # in a link to the page."""
    text = _FENCE.sub("", text_of(page))
    headings, names = (re.findall(mark, text, re.MULTILINE) for mark in (r"^#+ +(.+?)$", r"^::: ([\w.]+)$"))
    return {*names} | {re.sub(r"[ -]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
