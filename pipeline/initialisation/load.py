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

from data_prep.contract.command_line import UserError
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import export_config
from pipeline.export.names import State, from_transformers
from pipeline.initialisation.growth.grow import SIZES, Growth, growth_of, smaller_config
from pipeline.initialisation.match import Match, match
from pipeline.initialisation.source import PretrainedSource, open_source
from pipeline.parallel.whole_tensors import shard_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a source gives a model."""

    matched: Match
    """Its tensors as those of a model of its own sizes."""
    config: NarrowBertConfig
    """The model."""
    growth: Growth | None
    """How the one becomes the other; None: they have the same sizes."""

    def read(self) -> tuple[State, State]:
        """As ``Match.read``, of the model."""
        state, is_read = self.matched.read()
        if self.growth is not None:
            state = self.growth.apply(state, self.matched.config, self.config)
            is_read = {name: torch.full(tensor.shape, True) for name, tensor in state.items()}
        return state, is_read

    def describe(self) -> list[str]:
        """Lines for the log."""
        lines = self.matched.describe()
        if self.growth is not None:
            lines += self.growth.describe(self.matched.config, self.config)
        return lines


def check_init(config: RunConfig, shards: Mixture) -> Start:
    """What ``init.from_huggingface`` gives a run; no weight is read, but for tied ones.

    Raises:
        UserError: it does not fit the model or the shards.
    """
    assert config.init.from_huggingface is not None
    model_config = {**dataclasses.asdict(config.model), "vocab_size": shards.vocab_size}
    source = open_source(Path(config.init.from_huggingface))
    here = export_config(model_config, shards.special_ids)
    growth = growth_of(config)
    there = here if growth is None else _size_of(source, here)
    if growth is not None:
        growth.check(str(source.folder), there, here)
    matched = match(source, there, config.init.allow, shards.tokenizer_path)
    if growth is not None and matched.kept:
        raise UserError(f"{source.folder} lacks what growing needs: {', '.join(matched.kept)}")
    return Start(matched=matched, config=here, growth=growth)


def _size_of(source: PretrainedSource, here: NarrowBertConfig) -> NarrowBertConfig:
    """The model as large as a source is."""
    try:
        sizes = [int(str(source.setting(name))) for name in SIZES]
    except ValueError:
        raise UserError(f"{source.folder / 'config.json'}: {', '.join(SIZES)} must be numbers") from None
    return smaller_config(here, str(source.layout), *sizes)


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
