"""The feed-forward sublayer, the same on all positions and on the narrow ones."""

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.parallel import ColumnLinear, Initializer, RowLinear


class FeedForward(nn.Module):
    """Linear, GELU, linear, residual, LayerNorm (post-LN, as BERT)."""

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__()
        self.linear_fc1 = ColumnLinear(config.hidden_size, config.ffn_hidden_size, init_method)
        self.linear_fc2 = RowLinear(config.ffn_hidden_size, config.hidden_size, init_method)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """[B, any number of positions, hidden] -> the same shape."""
        return self.norm(state + self.dropout(self.linear_fc2(F.gelu(self.linear_fc1(state)))))
