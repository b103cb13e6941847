"""FLOPs of a row and the predicted speed-up. Imports no torch.

A multiply-add counts as 2 FLOPs. Matrix products alone are counted: each weight of the parameter table
times the positions that are multiplied by it, and the products of attention. A backward pass is twice a forward pass.
With S positions of a row, P narrow ones, H ``hidden_size``, F ``ffn_hidden_size`` and V ``vocab_size``:

- full attention sublayer: 8 S H^2 + 4 S^2 H; of a window of W, 8 S H^2 + 4 S (W + 1) H, of no more than the row
- narrow attention sublayer: 4 P H^2 + 4 P S H, and 4 S H^2 for each key/value projection of the frozen
  state (one per narrow attention sublayer unless they share it)
- feed-forward sublayer on n positions: 4 n H F, gated 6 n H F
- head on n positions: n (2 H^2 + 2 H V)

With F = 4 H these are the terms of a BERT layer (24 S H^2 + 4 S^2 H). A control's head computes the masked
positions only, like NarrowBERT's: against a head on every token the ratios would look about 1.2 times better.
Attention is counted as if documents saw each other. What recomputation computes again in a backward pass is
not counted. Both are usual for MFU.
"""

import dataclasses
from collections.abc import Mapping

from pipeline.config import ModelConfig
from pipeline.layout import Layout, parse_layout
from pipeline.model.parameters import hidden_matrices, model_parameters

MUON_ITERATIONS = 5
"""Of Newton and Schulz, by which Muon orthogonalises (Jordan et al. 2024)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """What a row of the shards looks like."""

    seq_length: int
    """Positions per row."""
    masked_per_row: int
    """Masked positions per row."""
    vocab_size: int
    """Entries of the vocabulary."""


def forward_flops(layout: Layout, model: ModelConfig, shape: RowShape) -> int:
    """FLOPs of one row's forward pass."""
    num_positions = {"every": shape.seq_length, "narrow": shape.masked_per_row}
    products = sum(
        num_positions[parameter.multiplies] * parameter.num_elements
        for parameter in model_parameters(model, shape.vocab_size, layout)
        if parameter.multiplies is not None
    )
    keys_of_query = {"s": shape.seq_length, "w": min(model.attention_window + 1, shape.seq_length)}
    num_pairs = sum(
        letters.count(letter) * num_positions[side] * num_keys
        for side, letters in (("every", layout.full), ("narrow", layout.narrow))
        for letter, num_keys in keys_of_query.items()
    )
    # Each query is multiplied by the keys, and its probabilities by the values, of what it sees.
    return 2 * products + 2 * num_pairs * 2 * model.hidden_size


def training_flops(layout: Layout, model: ModelConfig, shape: RowShape) -> int:
    """FLOPs of one row's forward and backward pass."""
    return 3 * forward_flops(layout, model, shape)


def predicted_speedup(model: ModelConfig, shape: RowShape) -> float:
    """How much less arithmetic a row costs than in the control (the same sublayers, no narrowing)."""
    return predicted_speedup_of_rows(model, {shape: 1})


def predicted_speedup_of_rows(model: ModelConfig, rows: Mapping[RowShape, int]) -> float:
    """The same of so many rows of each shape together."""
    layout = parse_layout(model.layout)
    own, control = (
        sum(count * forward_flops(one, model, shape) for shape, count in rows.items())
        for one in (layout, layout.control())
    )
    return control / own


def orthogonalisation_flops(model: ModelConfig) -> int:
    """FLOPs with which Muon orthogonalises all hidden matrices once.

    For m rows and n columns, m the smaller: 2 m^2 n for the Gram matrix, 2 m^3 for its square, 2 m^2 n to apply the
    polynomial, in each of the iterations.
    """
    total = 0
    for matrix in hidden_matrices(model):
        short, long = sorted((matrix.shape[0] // matrix.num_parts, matrix.shape[1]))
        total += matrix.num_parts * MUON_ITERATIONS * (4 * short * short * long + 2 * short**3)
    return total
