"""What every sublayer shares: its norm, its residual and where the norm stands."""

import torch
from torch import nn

from pipeline.config import ModelConfig


def build_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the hidden size."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon, bias=config.bias)


class Sublayer(nn.Module):
    """Norm, dropout and residual around what a subclass computes.

    Post-norm, as BERT: ``norm(x + f(x))``. Pre-norm: ``x + f(norm(x))`` (Xiong et al. 2020,
    "On Layer Normalization in the Transformer Architecture"); the encoder then ends in a norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_pre_norm = config.normalization == "pre"
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.norm = build_norm(config)

    def _input(self, state: torch.Tensor) -> torch.Tensor:
        """What the sublayer computes on: ``state`` [..., hidden], normalised in pre-norm."""
        return self.norm(state) if self.is_pre_norm else state

    def _output(self, state: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
        """``computed`` added to ``state``, both [..., hidden]; normalised in post-norm."""
        total = state + self.dropout(computed)
        return total if self.is_pre_norm else self.norm(total)
