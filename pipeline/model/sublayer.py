"""What every sublayer shares: its norm, its residual and where the norm stands."""

import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.linear_and_norm import build_norm


class Sublayer(nn.Module):
    """Norm, dropout and residual around what a subclass computes.

    Post-norm, as BERT: ``norm(x + f(x))``. Pre-norm: ``x + f(norm(x))`` (Xiong et al. 2020,
    "On Layer Normalization in the Transformer Architecture"); the encoder then ends in a norm.
    """

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.is_pre_norm = config.normalization == "pre"
        self.dropout = nn.Dropout(dropout)
        self.norm = build_norm(config)

    def _input(self, state: torch.Tensor) -> torch.Tensor:
        """What the sublayer computes on: ``state`` [..., H], normalised in pre-norm."""
        return self.norm(state) if self.is_pre_norm else state

    def _output(self, state: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
        """``computed`` added to ``state``, both [..., H]; normalised in post-norm."""
        total = state + self.dropout(computed)
        return total if self.is_pre_norm else self.norm(total)
