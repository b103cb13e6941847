"""Small models with every option, and rows for them."""

from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.masked_lm import NarrowBertForPretraining

VOCAB, LENGTH = 23, 12
LAYOUTS = ["2sf", "sf:2sf", "sf 2s:2f", "sf s:f 2s f s", ":3sf"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalization": "pre"},
    {"norm": "rmsnorm"},
    {"normalization": "pre", "norm": "rmsnorm", "bias": False},
    {"position": "rope"},
    {"position": "alibi"},
    {"activation": "geglu"},
    {"activation": "swiglu", "bias": False},
    {"narrow_kv": "shared"},
    {"narrow_kv": "grouped:2", "position": "rope", "normalization": "pre"},
    {"normalization": "pre", "position": "rope", "activation": "geglu", "rotary_base": 30.0},
]


def name_of(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "bert"


every_option = pytest.mark.parametrize("options", OPTIONS, ids=name_of)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def build(layout: str, *, heads: int = 4, **options: Any) -> NarrowBertForPretraining:
    torch.manual_seed(3)
    config = ModelConfig(layout=layout, num_attention_heads=heads, **{
        "hidden_size": 16, "ffn_hidden_size": 24, "max_position_embeddings": LENGTH, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "init_method_std": 0.4,
    } | options)  # fmt: skip
    model = NarrowBertForPretraining(config, VOCAB)
    with torch.no_grad():  # initialised biases and norms are zeros and ones: errors there would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rows() -> dict[str, torch.Tensor]:
    """Three rows, one padded, with unsorted positions and a slot that does not count."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([LENGTH, LENGTH - 4, LENGTH])
    key_mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(1, VOCAB, (3, LENGTH), generator=generator)
    return {
        "input_ids": ids * key_mask,
        "narrow_positions": torch.tensor([[3, 11, 0], [7, 2, 5], [9, 4, 10]]),
        "key_mask": key_mask[:, None, None, :],
        "labels": torch.randint(0, VOCAB, (3, 3), generator=generator),
        "label_mask": torch.tensor([[True, True, True], [True, True, False], [True, True, True]]),
        "document_ids": torch.tensor([[0] * 5 + [1] * 7, [0] * 12, [0] * 2 + [1] * 6 + [2] * 4]),
    }


def check_that_documents_stand_alone(model: NarrowBertForPretraining) -> None:
    """Each document of the packed rows has the logits that it has in a row of its own."""
    batch, everything = rows(), torch.arange(LENGTH).expand(3, -1)
    with torch.no_grad():
        packed = model.logits(batch["input_ids"], everything, batch["key_mask"], batch["document_ids"])
        for row, length in enumerate(batch["key_mask"].sum(dim=(1, 2, 3)).tolist()):
            for document in batch["document_ids"][row].unique():
                here = (batch["document_ids"][row] == document)[:length].nonzero().flatten()
                ids = batch["input_ids"][row : row + 1, here]
                alone = model.logits(ids, torch.arange(len(here))[None], None, torch.zeros_like(ids))
                assert torch.allclose(packed[row, here], alone[0], atol=1e-4)
