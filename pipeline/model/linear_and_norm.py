"""The linear layers and norms of which every part of the model is built."""

import functools
import math

from torch import nn

from pipeline.config import ModelConfig
from pipeline.layout import parse_layout
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


def row_linear(config: ModelConfig, input_size: int) -> RowLinear:
    """Back to the hidden state; tensor-parallel ranks divide the input features among them."""
    scale = 1.0
    if config.initialization == "megatron":  # Shoeybi et al. 2019, "Megatron-LM", section 3.2, as GPT-2
        scale = 1 / math.sqrt(2 * parse_layout(config.layout).num_layers)
    return RowLinear(input_size, config.hidden_size, initializer(config, scale), bias=config.bias)


def initializer(config: ModelConfig, scale: float = 1.0) -> Initializer:
    """What draws a weight whose standard deviation is ``scale`` times that of most."""
    std = scale * config.init_method_std
    if config.initialization == "megatron":
        return functools.partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)
    return functools.partial(nn.init.normal_, std=std)


def build_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the hidden size."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon, bias=config.bias)
