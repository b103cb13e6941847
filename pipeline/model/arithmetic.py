"""Arithmetic of a run: parameters, FLOPs, predicted speed-up, memory, time. Imports no torch.

FLOPs count 2 a multiply-add, matrix products only; a backward pass is twice a forward pass.
With s positions a row, m narrow positions, hidden size h, feed-forward size f, vocabulary V:

- full attention sublayer: 8 s h^2 + 4 s^2 h
- narrow attention sublayer: 4 m h^2 + 4 m s h, and for each projection of the frozen state's keys and
  values (one a narrow attention sublayer unless they share it) 4 s h^2
- feed-forward sublayer on r rows: 4 r h f; gated 6 r h f
- head on r rows: r (2 h^2 + 2 h V)

With f = 4 h these are the terms of a BERT layer (24 s h^2 + 4 s^2 h). A control's head runs on
the masked rows only, like NarrowBERT's: against a head on every token the ratios would look
about 1.2 times better. Attention is counted as if documents saw each other, and what is computed
again in a backward pass (model.recompute) is not counted: both as is usual for MFU.
"""

import dataclasses

from pipeline.config import ModelConfig
from pipeline.layout import Layout, kv_projections, parse_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """What a row of the shards looks like."""

    seq_length: int
    """Positions a row."""
    masked_per_row: int
    """Masked positions a row."""
    vocab_size: int
    """Entries of the vocabulary."""


def forward_flops(layout: Layout, model: ModelConfig, shape: RowShape) -> int:
    """FLOPs of one row's forward pass."""
    s, m, h, f = shape.seq_length, shape.masked_per_row, model.hidden_size, model.ffn_hidden_size
    matrices = 2 if model.activation == "gelu" else 3
    cost = {
        "full s": 8 * s * h * h + 4 * s * s * h,
        "full f": 2 * matrices * s * h * f,
        "narrow s": 4 * m * h * h + 4 * m * s * h,
        "narrow f": 2 * matrices * m * h * f,
    }
    keys_values = _num_projections(layout, model) * 4 * s * h * h
    head = m * (2 * h * h + 2 * h * shape.vocab_size)
    full = sum(cost[f"full {letter}"] for letter in layout.full)
    return full + sum(cost[f"narrow {letter}"] for letter in layout.narrow) + keys_values + head


def training_flops(layout: Layout, model: ModelConfig, shape: RowShape) -> int:
    """FLOPs of one row's forward and backward pass."""
    return 3 * forward_flops(layout, model, shape)


def predicted_speedup(model: ModelConfig, shape: RowShape) -> float:
    """How much less arithmetic a row costs than in the control (the same sublayers, no narrowing)."""
    layout = parse_layout(model.layout)
    return forward_flops(layout.control(), model, shape) / forward_flops(layout, model, shape)


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Trainable parameters."""
    h, f, layout = model.hidden_size, model.ffn_hidden_size, parse_layout(model.layout)
    num_projections = _num_projections(layout, model)
    bias = int(model.bias)
    norm = h * (2 if model.norm == "layernorm" and model.bias else 1)
    square = h * h + bias * h
    inner = f if model.activation == "gelu" else 2 * f
    attention = {"full": 4 * square + norm, "narrow": 2 * square + norm}
    feed_forward = h * inner + bias * inner + f * h + bias * h + norm
    sublayers = layout.full + layout.narrow
    encoder = layout.full.count("s") * attention["full"] + layout.narrow.count("s") * attention["narrow"]
    encoder += num_projections * 2 * square + sublayers.count("f") * feed_forward
    if model.normalization == "pre":
        encoder += norm + (norm if num_projections else 0)  # at the end, and of the frozen state
    positions = model.max_position_embeddings if model.position == "absolute" else 0
    embeddings = (vocab_size + positions + 2) * h + norm
    head = square + norm + vocab_size
    return embeddings + encoder + head


def _num_projections(layout: Layout, model: ModelConfig) -> int:
    return len(set(kv_projections(model.narrow_kv, layout.narrow.count("s"))))


def model_state_bytes(
    num_parameters: int, precision: str, zero_stage: int, data_parallel_size: int
) -> tuple[int, int, int]:
    """Bytes a rank for weights, gradients, and fp32 master weights with Adam moments (no activations).

    Per parameter: bf16 and fp16 2 + 2 + 12, fp32 4 + 4 + 12 (DeepSpeed keeps a master copy there as
    well; without ZeRO it does not: 4 + 4 + 8). Stage 1 splits the 12 over the ranks, 2 the gradients
    too, 3 the weights too (Rajbhandari et al., "ZeRO", SC 2020, section 3).

    Args:
        num_parameters: that a rank holds, after tensor parallelism.
        precision: of weights and gradients.
        zero_stage: 0 to 3.
        data_parallel_size: ranks over which ZeRO splits.
    """
    unit = 4 if precision == "fp32" else 2
    weights, gradients, optimizer = unit * num_parameters, unit * num_parameters, 12 * num_parameters
    if zero_stage == 0:
        optimizer = 8 * num_parameters
    if zero_stage >= 1:
        optimizer //= data_parallel_size
    if zero_stage >= 2:
        gradients //= data_parallel_size
    if zero_stage >= 3:
        weights //= data_parallel_size
    return weights, gradients, optimizer
