"""onnxruntime: the files of ``narrowbert onnx`` give torch's numbers, whatever the layout."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from pipeline.export import NarrowBertModel
from pipeline.export.onnx_files import write_onnx
from tests.clients.layouts import each_layout

TEXTS = ["the cat sat on the mat.", "a dog", "the cats ran on a road"]


def run(path: Path, **inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


@pytest.mark.slow
@each_layout
def test_embeddings_of_texts(exported: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported(kind, NarrowBertModel), folder)
    model = AutoModel.from_pretrained(folder).eval()
    ((path, _),) = write_onnx(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = run(path, **tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    expected = torch.stack([state[0] for state in states])
    assert np.allclose(found, expected, atol=1e-4)
