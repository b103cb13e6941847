"""The linear layers and norms of which every part of the model is built."""

from torch import nn

from pipeline.config import ModelConfig
from pipeline.parallel.layers import ColumnLinear, Initializer, InterleavedColumnLinear, RowLinear


def column_linear(config: ModelConfig, output_size: int, init_method: Initializer) -> ColumnLinear:
    """From the hidden state; tensor-parallel ranks divide the output features among them."""
    return ColumnLinear(config.hidden_size, output_size, init_method, bias=config.bias)


def interleaved_column_linear(
    config: ModelConfig, num_layers: int, init_method: Initializer
) -> InterleavedColumnLinear:
    """Keys and values of ``num_layers`` projections of the hidden state in one parameter; ranks divide the heads."""
    return InterleavedColumnLinear(
        config.hidden_size,
        num_layers,
        config.num_attention_heads,
        2 * config.head_dim,
        init_method,
        bias=config.bias,
    )


def row_linear(config: ModelConfig, input_size: int, init_method: Initializer) -> RowLinear:
    """Back to the hidden state; tensor-parallel ranks divide the input features among them."""
    return RowLinear(input_size, config.hidden_size, init_method, bias=config.bias)


def build_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the hidden size."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon, bias=config.bias)
