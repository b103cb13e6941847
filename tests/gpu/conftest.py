"""These tests compare the GPUs of this machine with its CPU. ``make gpu`` runs them.

NARROWBERT_TEST_GPU=cuda needs a GPU. NARROWBERT_TEST_GPU=cpu compares the CPU with itself, which shows that the tests
work; ``make test-long`` does that.
"""

import os

import pytest
import torch

from tests.gpu.machines import ON


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if not ON:
        reason = "no GPU was asked for: `make gpu` runs this"
    elif ON == "cuda" and not torch.cuda.is_available():
        reason = f"this machine has no GPU that torch {torch.__version__} can use"
    for item in items:
        if reason and "gpu" in item.path.parent.name:
            item.add_marker(pytest.mark.skip(reason=reason))
    assert ON in ("", "cuda", "cpu"), os.environ["NARROWBERT_TEST_GPU"]
