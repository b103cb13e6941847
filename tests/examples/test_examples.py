"""The examples of ``narrowbert.py`` and the scripts of ``examples/`` run as they are written."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import narrowbert

EXAMPLES = Path(__file__).parents[2] / "examples"
# The docstrings' examples in the order of the page: each may use what those before it made.
RUN_DOCSTRINGS = """
import doctest, narrowbert
for test in sorted(doctest.DocTestFinder().find(narrowbert), key=lambda test: test.lineno or 0):
    names = {}
    for example in test.examples:
        if example.want:
            found = repr(eval(example.source, names))
            assert found == example.want.strip(), f"{test.name}: {found}"
        else:
            exec(example.source, names)
"""


def python(folder: Path, *argv: str, expect: int = 0) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Path:
    """The workplace after the examples of ``narrowbert.py``: a run, its export, and a fine-tuned model."""
    python(workplace, "-c", RUN_DOCSTRINGS)
    return workplace


@pytest.mark.slow
def test_examples_of_the_public_functions_give_what_they_say(trained: Path) -> None:
    assert (trained / "runs/mine/DONE").exists()
    assert (trained / "my-results/seed-1/model").is_dir()


def test_every_promised_function_has_an_example() -> None:
    functions = [
        getattr(narrowbert, name) for name in narrowbert.__all__ if inspect.isfunction(getattr(narrowbert, name))
    ]
    own = [function for function in functions if function.__module__ == "narrowbert"]
    assert len(own) >= 9
    for function in own:
        assert ">>> import narrowbert" in (function.__doc__ or ""), function.__name__
    for name in narrowbert.__all__:
        assert getattr(narrowbert, name).__doc__, name


@pytest.mark.slow
def test_importing_it_leaves_transformers_pipeline_usable(trained: Path) -> None:
    code = (
        "import narrowbert\nfrom transformers import pipeline\n"
        "print(len(pipeline('fill-mask', model='my-model')('the [MASK] reads .')))\n"
    )
    assert "5" in python(trained, "-c", code).splitlines()


@pytest.mark.slow
def test_embed_and_search(trained: Path) -> None:
    shown = python(trained, str(EXAMPLES / "embed_and_search.py"), "my-model", "texts.txt", "narrow layers compute")
    assert re.search(r"^1\.000  narrow layers compute$", shown, re.MULTILINE)


@pytest.mark.slow
def test_plain_safetensors(trained: Path) -> None:
    shown = python(trained, str(EXAMPLES / "plain_safetensors.py"), "runs/mine")
    assert "step 4" in shown
    assert re.search(r"word_embeddings\S* \[\d+, 32\]", shown)


@pytest.mark.slow
def test_plain_webdataset(workplace: Path) -> None:
    rows = narrowbert.open_shards(workplace / "shards/mine").split("train").num_rows
    assert f"{rows} rows" in python(workplace, str(EXAMPLES / "plain_webdataset.py"), "shards/mine")


@pytest.mark.slow
def test_own_objective(workplace: Path) -> None:
    python(workplace, str(EXAMPLES / "own_objective.py"), "configs/pretrain/quickstart.yaml", "shards/mine", "runs/own")
    metrics = (workplace / "runs/own/metrics.jsonl").read_text()
    assert "objective/plain_loss" in metrics


@pytest.mark.slow
def test_fill_mask(trained: Path) -> None:
    shown = python(trained, str(EXAMPLES / "fill_mask.py"), "my-model", "the [MASK] reads .")
    assert len(shown.splitlines()) >= 6


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_scripts_say_how_they_are_called(script: str, tmp_path: Path) -> None:
    assert len((EXAMPLES / script).read_text().splitlines()) <= 65
    assert ast.get_docstring(ast.parse((EXAMPLES / script).read_text()))
    assert f"usage: {script}" in python(tmp_path, str(EXAMPLES / script), expect=1)
