"""The kinds of layout that every library is tried on."""

from typing import Any

import pytest
import torch

from tests.tiny_exports import MASK, batch

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("2sf", {}),
    "sparse_queries": ("1sf:1sf", {}),
    "context_first": ("1sf 1s:1f", {}),
    "shared_keys": ("1sf:2sf", {"narrow_kv": "shared"}),
    "modern": (
        "1sf:1sf",
        {"position_embedding_type": "rope", "normalization": "pre", "norm": "rmsnorm", "hidden_act": "geglu"},
    ),
}

each_layout = pytest.mark.parametrize("kind", LAYOUTS)


def masked_inputs() -> dict[str, torch.Tensor]:
    """Three rows, two of them padded, with a [MASK] in each."""
    ids, mask = batch(12, 7, 9)
    ids[:, 3] = MASK
    return {"input_ids": ids, "attention_mask": mask}


def first_output(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits, start logits or states; zeros where nothing was computed."""
    with torch.no_grad():
        return model(**inputs)[0].nan_to_num()
