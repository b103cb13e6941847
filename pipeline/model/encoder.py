"""One encoder for every layout: BERT, ContextFirst, SparseQueries and mixtures."""

import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.layout import parse_layout
from pipeline.model.attention import FullAttention, NarrowAttention
from pipeline.model.feedforward import FeedForward
from pipeline.parallel import Initializer


class Encoder(nn.Module):
    """Runs the full sublayers, gathers the narrow rows, runs the narrow sublayers on them."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__()
        layout = parse_layout(config.layout)
        self.full_sublayers = nn.ModuleList(
            FullAttention(config, init_method) if letter == "s" else FeedForward(config, init_method)
            for letter in layout.full
        )
        self.narrow_sublayers = nn.ModuleList(
            NarrowAttention(config, init_method) if letter == "s" else FeedForward(config, init_method)
            for letter in layout.narrow
        )

    def forward(
        self,
        state_BTH: torch.Tensor,
        narrow_positions_BN: torch.Tensor,
        key_mask_B11T: torch.Tensor | None,
    ) -> torch.Tensor:
        """Encode rows and return the narrow positions only.

        Args:
            state_BTH: embedded rows.
            narrow_positions_BN: positions in 0..T-1, int64. A repeated position is computed twice.
            key_mask_B11T: True where a key is a real token; None if every one is.

        Returns:
            [B, N, H].
        """
        for sublayer in self.full_sublayers:
            is_attention = isinstance(sublayer, FullAttention)
            state_BTH = sublayer(state_BTH, key_mask_B11T) if is_attention else sublayer(state_BTH)
        narrow_BNH = gather_rows(state_BTH, narrow_positions_BN)
        for sublayer in self.narrow_sublayers:
            is_attention = isinstance(sublayer, NarrowAttention)
            narrow_BNH = sublayer(narrow_BNH, state_BTH, key_mask_B11T) if is_attention else sublayer(narrow_BNH)
        return narrow_BNH


def gather_rows(state_BTH: torch.Tensor, positions_BN: torch.Tensor) -> torch.Tensor:
    """Pick ``positions`` of each row: [B, T, H], [B, N] -> [B, N, H]."""
    rows, length, hidden = state_BTH.shape
    # Row indices into the flattened state: index_select copies whole rows, gather single numbers.
    first = torch.arange(0, rows * length, length, device=positions_BN.device).unsqueeze(1)
    flat = (positions_BN + first).flatten()
    return state_BTH.reshape(-1, hidden).index_select(0, flat).unflatten(0, positions_BN.shape)
