"""The smaller model that a run has grown out of, to be measured beside it."""

import dataclasses

import torch

from pipeline.checkpoints.reading import read_tensors, read_trainer_state
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.export.names import from_transformers
from pipeline.initialisation.load import check_init
from pipeline.initialisation.parent_fit import as_exported, model_of, sizes
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.whole_tensors import shard_of
from pipeline.runs.ancestry import Parent, checkpoint_of


def source_model(config: RunConfig, shards: Mixture, parent: Parent | None) -> NarrowBertForPretraining:
    """That model in fp32 on the CPU, split like the run's own; every rank calls this.

    Args:
        config: of the run, with ``init.growth``.
        shards: of the run.
        parent: the checkpoint that it begins at; None: it begins at a model of transformers.
    """
    if parent is None:
        matched = check_init(config, shards).matched
        small, state = matched.config, matched.read()[0]
    else:
        folder = checkpoint_of(parent)
        there = model_of(read_trainer_state(folder))
        small, _ = sizes(there, config, shards)
        state = as_exported(read_tensors(folder, "weights"), small, there, shards)
    model_config = dataclasses.replace(
        config.model,
        layout=small.layout,
        hidden_size=small.hidden_size,
        num_attention_heads=small.num_attention_heads,
        ffn_hidden_size=small.intermediate_size,
    )
    padded_size = padded_vocab_size(shards.vocab_size, config.training.tensor_model_parallel_size)
    model = NarrowBertForPretraining(model_config, shards.vocab_size, padded_size)
    tensors = from_transformers(state, small)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shard_of(tensors[name], parameter))
    return model
