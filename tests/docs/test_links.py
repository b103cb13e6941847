"""Links, anchors and paths that the pages name lead somewhere."""

import os
import re

import pytest

from docs.generate_reference import PAGES
from tests.docs.pages import ROOT, anchors_of, links_of, text_of, written_pages

_PATH = re.compile(r"`((?:pipeline|data_prep|cluster|configs|tests|benchmarks|examples|docs)/[\w./-]*)`")


@pytest.mark.parametrize("page", written_pages())
def test_every_link_and_anchor_of_the_page_resolves(page: str) -> None:
    assert [link for link in links_of(page) if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: str, link: str) -> bool:
    target, _, anchor = link.partition("#")
    path = os.path.relpath((ROOT / page).parent / target, ROOT) if target else page
    is_generated = path.removeprefix("docs/") in PAGES
    if not is_generated and not (ROOT / path).exists():
        return False
    return not anchor or anchor in anchors_of(path)


@pytest.mark.parametrize("page", written_pages())
def test_every_path_that_the_page_names_exists(page: str) -> None:
    assert [path for path in _PATH.findall(text_of(page)) if not (ROOT / path).exists()] == []


def test_architecture_names_every_room() -> None:
    named = set(_PATH.findall(text_of("ARCHITECTURE.md")))
    rooms = [
        f"{folder.relative_to(ROOT)}/"
        for package in ("data_prep", "pipeline")
        for folder in sorted((ROOT / package).iterdir())
        if (folder / "__init__.py").exists()
    ]
    assert [room for room in rooms if room not in named] == []
