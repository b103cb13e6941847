"""The tables of the benchmarks' page are what was recorded."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", FOLDER / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_recorded(results: ModuleType) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- results: ") == text.count("<!-- end of results -->") >= 10
    assert results.with_tables(text) == text


def test_a_new_measurement_takes_the_place_of_the_old(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "benchmarks" / "results")
    results.FOLDER.parent.mkdir()
    page = "<!-- results: speed table-1 -->\n<!-- end of results -->\n"
    results.record("speed", "table-1", [{"": "old", "rows/s": "1"}])
    results.record("speed", "table-1", [{"": "new", "rows/s": "2"}, {"": "newer", "rows/s": ""}])
    shown = "| | rows/s |\n| --- | --- |\n| new | 2 |\n| newer | |\n"
    assert results.with_tables(page) == page.replace("-->\n<", f"-->\n{shown}<")
    assert results.with_tables(results.with_tables(page)) == results.with_tables(page)
