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
finder = doctest.DocTestFinder()
elsewhere = [narrowbert.open_shards, narrowbert.verify, narrowbert.as_webdataset]
own = sorted(finder.find(narrowbert), key=lambda test: test.lineno or 0)
for test in [*(test for function in elsewhere for test in finder.find(function)), *own]:
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
    assert len(functions) >= 12
    for function in functions:
        assert ">>> import narrowbert" in (function.__doc__ or ""), function.__name__
    for name in narrowbert.__all__:
        assert getattr(narrowbert, name).__doc__, name


@pytest.mark.slow
def test_embeddings_of_odd_arguments(trained: Path) -> None:
    folder = trained / "my-model"
    assert narrowbert.encode(folder, []).shape == (0, 32)
    for function in (narrowbert.encode, narrowbert.predict):
        with pytest.raises(narrowbert.UserError, match="texts is one string: give a list of texts"):
            function(folder, "the cat sat .")
    with pytest.raises(narrowbert.UserError, match="pooling is max: give cls or mean"):
        narrowbert.encode(folder, ["the cat sat ."], pooling="max")


def test_options_may_be_paths(tmp_path: Path) -> None:
    config = narrowbert.run_config(options={"run_dir": tmp_path / "run", "data.path": [tmp_path / "a", tmp_path / "b"]})
    assert config.run_dir == str(tmp_path / "run")
    assert config.data.path == (str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.slow
def test_importing_it_leaves_transformers_pipeline_usable(trained: Path) -> None:
    code = (
        "import narrowbert\nfrom transformers import pipeline\n"
        "print(len(pipeline('fill-mask', model='my-model')('the [MASK] reads .')))\n"
    )
    assert "5" in python(trained, "-c", code).splitlines()


@pytest.mark.slow
def test_a_run_that_cannot_continue_leaves_its_caller_alive(workplace: Path) -> None:
    code = """
import signal, narrowbert, torch

class NotFinite:
    def weight(self, batch):
        return batch.label_mask.sum()
    def __call__(self, model, batch):
        output = model(batch.input_ids, batch.masked_positions, batch.key_mask, batch.labels, batch.label_mask)
        return narrowbert.ObjectiveSums(loss_sum=output.loss_sum * float("nan"))

def config(name):
    options = {"data.path": "shards/mine", "run_dir": name, "training.max_skipped_steps": 2}
    return narrowbert.run_config("configs/pretrain/quickstart.yaml", options=options)

before = signal.getsignal(signal.SIGTERM)
for name in ("runs/diverged", "runs/after"):
    try:
        narrowbert.train(config(name), NotFinite())
    except narrowbert.UserError as error:
        print("caught:", error)
print("alive:", signal.getsignal(signal.SIGTERM) is before)
"""
    shown = python(workplace, "-c", code)
    assert "caught: 2 steps in a row" in shown
    assert "caught: this process has trained already" in shown
    assert "alive: True" in shown


@pytest.mark.slow
def test_predict_refuses_what_it_cannot_answer(trained: Path) -> None:
    code = """
import narrowbert
for model, texts in (("my-model", ["the cat"]), ("my-results/seed-1/model", ["the cat", ("a", "b")])):
    try:
        narrowbert.predict(model, texts)
    except narrowbert.UserError as error:
        print("refused:", error)
"""
    shown = python(trained, "-c", code)
    assert "refused: my-model has not been fine-tuned" in shown
    assert "refused: texts holds single texts and pairs" in shown


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
    shown = python(workplace, str(EXAMPLES / "plain_webdataset.py"), "shards/mine")
    counts = re.findall(r": (\d+) rows, (\d+) masked positions", shown)
    assert [int(found) for found, _ in counts] == [rows, rows]
    assert counts[0] == counts[1]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ("embed_and_search.py", "missing", "texts.txt", "a query"),
        ("fill_mask.py", "missing", "the [MASK] reads ."),
        ("own_objective.py", "missing.yaml", "shards/mine", "runs/unused"),
        ("plain_safetensors.py", "missing"),
        ("plain_webdataset.py", "missing"),
    ],
)
def test_scripts_say_in_one_line_what_is_missing(workplace: Path, argv: tuple[str, ...]) -> None:
    shown = python(workplace, str(EXAMPLES / argv[0]), *argv[1:], expect=1).splitlines()
    assert shown[-1].startswith(f"{argv[0]}: ")
    assert not any("Traceback" in line for line in shown)
