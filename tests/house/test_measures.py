"""The house keeps its measures: a stranger finds the way in, and nothing grows unseen."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.config import ModelConfig
from tests.house import measures

ROOT = Path(__file__).parents[2]


def test_no_folder_holds_more_than_twelve_modules() -> None:
    assert {folder: n for folder, n in measures.modules_per_folder(ROOT).items() if n > 12} == {}


def test_no_modules_import_each_other() -> None:
    assert measures.import_cycles(ROOT) == []


def test_no_function_has_more_than_sixty_lines() -> None:
    assert measures.long_functions(ROOT) == []


def test_annotations_say_something() -> None:
    assert measures.untyped_share(ROOT) <= 0.015


def test_prose_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert measures.sentence_mean(ROOT) <= 16


# Not the sizes, which whatever computes with sizes reads; nor names that are ordinary words, such as "norm".
NOT_COUNTED = {"hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings"} | {
    "bias", "norm", "position", "layout",
}  # fmt: skip


@pytest.mark.parametrize("option", sorted({field.name for field in dataclasses.fields(ModelConfig)} - NOT_COUNTED))
def test_an_option_of_the_model_is_written_in_few_files(option: str) -> None:
    # The configuration and the checks of it count as one.
    assert len(set(measures.files_that_write(ROOT, option)) - {"pipeline/config_checks.py"}) <= 5


def test_measures_see_what_they_measure(tmp_path: Path) -> None:
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "one.py").write_text("from pipeline.two import f\n\n\ndef g(x: object) -> int:\n" + "    x = 1\n" * 60)
    (package / "two.py").write_text("def f(y: int) -> int:\n    from pipeline import one\n    return one.g(y)\n")
    page = "# Heading\n\nOne two `three four`. Five\nsix!\n\n- Seven [eight](nine.md).\n\n```\ncode.\n```\n"
    (tmp_path / "README.md").write_text(page)
    assert measures.modules_per_folder(tmp_path) == {"pipeline": 2}
    assert measures.import_cycles(tmp_path) == [["pipeline.one", "pipeline.two"]]
    assert measures.long_functions(tmp_path) == ["pipeline/one.py:4 g 61"]
    assert measures.untyped_share(tmp_path) == 1 / 4
    assert measures.sentence_mean(tmp_path) == (4 + 2 + 2) / 3
    assert measures.files_that_write(tmp_path, "f") == ["pipeline/one.py", "pipeline/two.py"]
