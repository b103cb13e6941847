"""Weights from elsewhere: a BERT of transformers, the NarrowBERT authors' checkpoints, our own exports.

The authors' names are BERT's, with the narrow layers under ``bert.encoder_narrow`` (their released code), and so are
our export's. So one table serves all: the i-th attention and the i-th feed-forward of the layout take the weights of
the i-th there, on whichever side of the narrowing point either stands. What differs is refused unless it is named.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.export.folder import export_config
from pipeline.export.names import from_transformers
from pipeline.initialisation.match import Match, match
from pipeline.initialisation.source import open_source
from pipeline.parallel.whole_tensors import shard_of


def check_init(config: RunConfig, shards: Mixture) -> Match:
    """What ``init.from_huggingface`` gives a run; no weight is read, but for tied ones.

    Raises:
        UserError: it does not fit the model or the shards.
    """
    assert config.init.from_huggingface is not None
    model_config = {**dataclasses.asdict(config.model), "vocab_size": shards.vocab_size}
    source = open_source(Path(config.init.from_huggingface))
    return match(source, export_config(model_config, shards.special_ids), config.init.allow, shards.tokenizer_path)


def load_init(model: nn.Module, config: RunConfig, shards: Mixture) -> Iterable[str]:
    """Put the weights of ``init.from_huggingface`` into the bare model; returns lines for the log.

    Call before DeepSpeed wraps the model, on every rank: each takes its tensor-parallel part.

    Raises:
        UserError: they do not fit the model or the shards.
    """
    matched = check_init(config, shards)
    state, is_read = (from_transformers(tensors, matched.config) for tensors in matched.read())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            read = shard_of(is_read[name], parameter)
            parameter.copy_(torch.where(read, shard_of(state[name], parameter), parameter))
    return matched.describe()
