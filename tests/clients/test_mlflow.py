"""mlflow.pyfunc: the model that ``narrowbert export --register`` puts into a registry, saved and loaded by MLflow."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
import torch

from pipeline.export import NarrowBertForMaskedLM, pyfunc_narrowbert
from pipeline.export.folder import write_pooling
from pipeline.export.register import pyfunc_signature
from tests.clients.layouts import LAYOUTS
from tests.tiny_exports import MASK, write_folder

TEXTS = ["the cat sat on the [MASK]", "a dog", "[MASK] [MASK] ran"]


def embedder(folder: Path, kind: str, pooling: str | None) -> Path:
    layout, options = LAYOUTS[kind]
    write_folder(folder, NarrowBertForMaskedLM, layout, **options)
    if pooling is not None:
        write_pooling(folder, NarrowBertForMaskedLM.from_pretrained(folder).config, pooling)
    return folder


def states(served: Any, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, last hidden states and logits of one text, without padding."""
    encoded = served.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return (
            encoded["input_ids"][0],
            served.model.bert(**encoded).last_hidden_state[0],
            served.model(**encoded).logits[0],
        )


@pytest.mark.parametrize("pooling", ["cls", "mean", None])
def test_a_registered_model_pools_as_its_export_says(tmp_path: Path, pooling: str | None) -> None:
    served = pyfunc_narrowbert.NarrowBertPyfunc()
    served.load_context(
        SimpleNamespace(artifacts={"model": str(embedder(tmp_path / "tiny", "sparse_queries", pooling))})
    )
    found = served.predict(None, pandas.DataFrame({"text": TEXTS}), {"task": "embeddings"})
    for vector, text in zip(found, TEXTS, strict=True):
        hidden = states(served, text)[1]
        torch.testing.assert_close(
            torch.tensor(vector), hidden[0] if pooling == "cls" else hidden.mean(0), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_model_that_mlflow_saved_answers(exported: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    folder = exported(kind, NarrowBertForMaskedLM)
    mlflow.pyfunc.save_model(
        path=str(tmp_path / "saved"),
        python_model=pyfunc_narrowbert.__file__,
        artifacts={"model": str(folder)},
        signature=pyfunc_signature(),
        pip_requirements=["torch", "transformers"],
    )
    loaded: Any = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    served = loaded.unwrap_python_model()
    guesses = loaded.predict(TEXTS, params={"top_k": 2})
    vectors = loaded.predict(TEXTS, params={"task": "embeddings"})
    for text, guess, vector in zip(TEXTS, guesses, vectors, strict=True):
        ids, hidden, logits = states(served, text)
        best = logits[ids == MASK].softmax(-1).topk(2)
        assert [[g["token"] for g in mask] for mask in guess] == [
            served.tokenizer.convert_ids_to_tokens(row.tolist()) for row in best.indices
        ]
        assert np.allclose(vector, hidden.mean(0), atol=1e-5)


LOAD = """
import importlib.util, sys, types
spec = importlib.util.spec_from_file_location("served", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
served = module.NarrowBertPyfunc()
served.load_context(types.SimpleNamespace(artifacts={"model": sys.argv[2]}))
assert "pipeline" not in sys.modules
print(type(served.model).__name__)
"""


@pytest.mark.slow
def test_a_registered_model_is_loaded_without_a_question(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = exported("sparse_queries", NarrowBertForMaskedLM)
    started = subprocess.Popen(
        [sys.executable, "-P", "-c", LOAD, pyfunc_narrowbert.__file__, str(folder)],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        assert started.wait(timeout=120) == 0  # its standard input stays open
    finally:
        started.kill()
        printed, _ = started.communicate()
    assert printed.splitlines()[-1] == "NarrowBertForMaskedLM"
