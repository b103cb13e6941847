"""The feed-forward sublayer, the same on all positions and on the narrow ones."""

import torch
import torch.nn.functional as F

from pipeline.config import ModelConfig
from pipeline.model.linear_and_norm import column_linear, row_linear
from pipeline.model.parameters import gate_blocks, is_gated, output_dropout
from pipeline.model.sublayer import Sublayer
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.layers import Initializer


class FeedForward(Sublayer):
    """Linear, GELU, linear; or a gated unit in place of the first two: GELU(x W) * (x V) is GeGLU, with SiLU SwiGLU.

    Source of the gated units: Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__(config, output_dropout(config, "f"))
        self.is_gated = is_gated(config)
        self.activation = F.silu if config.activation == "swiglu" else F.gelu
        # A gated unit's output features are [blocks, 2 (gate, value), F / blocks]: a tensor-parallel rank holds
        # gates beside their values, and long runs of either, which elementwise kernels like.
        self.local_blocks = gate_blocks(config) // tensor_parallel_group().size()
        output_size = 2 * config.ffn_hidden_size if self.is_gated else config.ffn_hidden_size
        self.linear_fc1 = column_linear(config, output_size, init_method)
        self.linear_fc2 = row_linear(config, config.ffn_hidden_size)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """[B, any number of positions, H] -> the same shape."""
        inner = self.linear_fc1(self._input(state))
        if self.is_gated:
            gate, value = inner.unflatten(-1, (self.local_blocks, 2, -1)).unbind(-2)
            inner = (self.activation(gate) * value).flatten(-2)
        else:
            inner = self.activation(inner)
        return self._output(state, self.linear_fc2(inner))
