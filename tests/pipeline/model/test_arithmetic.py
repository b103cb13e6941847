import dataclasses
from typing import Any

import pytest

from pipeline.config import ModelConfig
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import RowShape, forward_flops, predicted_speedup
from pipeline.model.masked_lm import NarrowBertForPretraining

OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalization": "pre"},
    {"normalization": "pre", "norm": "rmsnorm", "position": "rope", "activation": "geglu", "bias": False},
    {"norm": "rmsnorm", "position": "alibi", "activation": "swiglu", "narrow_kv": "shared"},
    {"bias": False, "narrow_kv": "grouped:2"},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))


@pytest.mark.parametrize(
    ("layout", "at_128", "at_512"),
    [("1sf:11sf", 2.68, 2.76), ("2sf:10sf", 2.33, 2.38), ("3sf:9sf", 2.05, 2.09), ("4sf:8sf", 1.84, 1.87)],
)
def test_predicted_speedups(layout: str, at_128: float, at_512: float) -> None:
    # Worked out by hand from the matrix products of a layer, 15% masked (19.2 and 76.8 positions).
    for length, masked, expected in ((128, 19, at_128), (512, 77, at_512)):
        shape = RowShape(seq_length=length, masked_per_row=masked, vocab_size=30_522)
        assert predicted_speedup(ModelConfig(layout=layout), shape) == pytest.approx(expected, abs=0.02)


@every_option
@pytest.mark.parametrize("layout", ["2sf", "sf s:f 3sf", "sf 2s:2f", ":2sf"])
def test_flops_are_those_of_the_matrix_products(layout: str, options: dict[str, Any]) -> None:
    """Counted by torch itself while the model runs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(
        layout=layout, hidden_size=16, num_attention_heads=2, ffn_hidden_size=40, max_position_embeddings=24,
        hidden_dropout=0.0, attention_dropout=0.0, **options,
    )  # fmt: skip
    shape = RowShape(seq_length=24, masked_per_row=5, vocab_size=50)
    model = NarrowBertForPretraining(config, 50).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        model.logits(torch.zeros(1, 24, dtype=torch.long), torch.arange(5).unsqueeze(0), None)
    assert counter.get_total_flops() == forward_flops(parse_layout(config.layout), config, shape)


def test_attention_to_a_window_is_what_its_positions_see() -> None:
    # 4 H a pair of a query and a key; of each query as many as the window has, not those of whole blocks.
    shape = RowShape(seq_length=512, masked_per_row=77, vocab_size=500)
    model = ModelConfig(attention_window=128)
    whole, window = (forward_flops(parse_layout(text), model, shape) for text in ("4sf:2sf", "sf 3wf:2sf"))
    assert whole - window == 3 * 4 * 768 * 512 * (512 - 129)
    short = dataclasses.replace(shape, seq_length=100)
    assert forward_flops(parse_layout("wf"), model, short) == forward_flops(parse_layout("sf"), model, short)


def test_the_keys_and_values_of_all_narrow_layers_are_one_product() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(layout="sf:6sf", hidden_size=16, num_attention_heads=2, ffn_hidden_size=32)
    model = NarrowBertForPretraining(config, 50).eval()
    assert model.encoder.narrow_kv is not None
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        model.encoder.narrow_kv(torch.zeros(1, 24, 16), None)
    assert counter.get_flop_counts()["Global"] == {torch.ops.aten.addmm: 6 * 4 * 24 * 16 * 16}


@pytest.mark.parametrize(("layout", "at_512"), [("1sf:11sf", 4.13), ("2sf:10sf", 3.20)])
def test_sharing_keys_and_values_predicts_more(layout: str, at_512: float) -> None:
    # By hand, in units of s h^2: control 12 x 26.67 + 12.26, full layer 26.67, narrow layer 3.41, one projection 4.
    shape = RowShape(seq_length=512, masked_per_row=77, vocab_size=30_522)
    assert predicted_speedup(ModelConfig(layout=layout, narrow_kv="shared"), shape) == pytest.approx(at_512, abs=0.02)
