"""Between the training model's parameters and the exported transformers model's, and the export itself.

The training model follows Megatron: sublayers numbered one by one on each side of the narrowing
point, query, key and value rows packed per head into one matrix. The export follows BERT: an
attention and the feed-forward after it are one layer, query, key and value are separate, and so are the
two halves of a gated unit. Keys and values of the frozen state, one matrix in training, are spread over
the narrow layers that first read them.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from data_prep.command_line import UserError
from pipeline.export import configuration_narrowbert, modeling_narrowbert
from pipeline.export.configuration_narrowbert import NarrowBertConfig, group_sublayers, parse_layout
from pipeline.export.modeling_narrowbert import GATED, NarrowBertForMaskedLM

State = dict[str, torch.Tensor]

TIED = NarrowBertForMaskedLM._tied_weights_keys
"""Names in the export that are copies of another: left out of the file, tied again on loading."""

AUTO_MAP = {
    "AutoConfig": "configuration_narrowbert.NarrowBertConfig",
    "AutoModel": "modeling_narrowbert.NarrowBertModel",
    "AutoModelForMaskedLM": "modeling_narrowbert.NarrowBertForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_narrowbert.NarrowBertForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_narrowbert.NarrowBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_narrowbert.NarrowBertForTokenClassification",
}

CONFIG_NAMES = {
    "layout": "layout",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layernorm_epsilon": "layer_norm_eps",
    "init_method_std": "initializer_range",
    "normalization": "normalization",
    "norm": "norm",
    "position": "position_embedding_type",
    "rotary_base": "rope_theta",
    "activation": "hidden_act",
    "bias": "bias",
    "narrow_kv": "narrow_kv",
}
"""The training model's configuration -> the export's."""

TRAINING_ONLY = {"document_attention", "recompute"}
"""What changes nothing for a row of one document: the export has no need of it."""

SPECIAL_TOKEN_ROLES = ("pad", "unk", "cls", "sep", "mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parameter:
    """One parameter of the training model and where it goes."""

    ours: str
    """Name in the training model."""
    theirs: tuple[str, ...]
    """Names in the export; several where one matrix packs them."""
    shape: tuple[int, ...]
    """Shape of each of `theirs`."""
    blocks: int = 1
    """Rows of a matrix that packs several are [blocks, one of each of `theirs`, the rest]."""

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape in the training model."""
        return (self.shape[0] * len(self.theirs), *self.shape[1:])


def to_transformers(state: Mapping[str, torch.Tensor], config: NarrowBertConfig) -> State:
    """The training model's full parameters under the export's names.

    Args:
        state: unsharded parameters by name.
        config: of the exported model.

    Returns:
        Parameters of ``NarrowBertForMaskedLM`` without the tied copies, as in its model.safetensors.
        Nothing is rounded: ``from_transformers`` gives `state` back to the bit.

    Raises:
        ValueError: every parameter that is missing, unexpected or of another shape.
    """
    table = _parameters(config)
    _check(state, {p.ours: p.packed_shape for p in table})
    converted: State = {}
    for parameter in table:
        parts = [state[parameter.ours]]
        if len(parameter.theirs) > 1:
            parts = _unpack(parts[0], len(parameter.theirs), parameter.blocks)
        converted.update(zip(parameter.theirs, parts, strict=True))
    return converted


def from_transformers(state: Mapping[str, torch.Tensor], config: NarrowBertConfig) -> State:
    """The exact inverse of ``to_transformers``; tied copies may be present if they are equal.

    Raises:
        ValueError: every parameter that is missing, unexpected, of another shape, or tied by name
            but not equal.
    """
    table = _parameters(config)
    untied = {name: tensor for name, tensor in state.items() if name not in TIED}
    _check(untied, {name: p.shape for p in table for name in p.theirs})
    unequal = [name for name, of in TIED.items() if name in state and not state[name].equal(untied[of])]
    if unequal:
        raise ValueError(f"not equal to what they are tied to: {', '.join(unequal)}")
    converted: State = {}
    for parameter in table:
        parts = [untied[name] for name in parameter.theirs]
        converted[parameter.ours] = _pack(parts, parameter.blocks) if len(parts) > 1 else parts[0]
    return converted


def parameter_shapes(config: NarrowBertConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the export's parameters, without the tied copies."""
    return {name: parameter.shape for parameter in _parameters(config) for name in parameter.theirs}


class _Table:
    """Collects the parameters of a model, in the shapes of its configuration."""

    def __init__(self, config: NarrowBertConfig) -> None:
        self.config = config
        self.rows: list[_Parameter] = []

    def add(self, ours: str, *theirs: str, shape: tuple[int, ...], blocks: int = 1) -> None:
        self.rows.append(_Parameter(ours=ours, theirs=theirs, shape=shape, blocks=blocks))

    def linear(
        self, ours: str, *theirs: str, rows: int | None = None, columns: int | None = None, blocks: int | None = None
    ) -> None:
        """By default hidden size x hidden size, packed head by head."""
        hidden = self.config.hidden_size
        rows, blocks = rows or hidden, blocks or self.config.num_attention_heads
        for kind, shape in (("weight", (rows, columns or hidden)), ("bias", (rows,)))[: 1 + self.config.bias]:
            self.add(f"{ours}.{kind}", *(f"{name}.{kind}" for name in theirs), shape=shape, blocks=blocks)

    def norm(self, ours: str, theirs: str) -> None:
        has_bias = self.config.bias and self.config.norm == "layernorm"
        for kind in ("weight", "bias")[: 1 + has_bias]:
            self.add(f"{ours}.{kind}", f"{theirs}.{kind}", shape=(self.config.hidden_size,))


def _parameters(config: NarrowBertConfig) -> list[_Parameter]:
    """Every parameter of a model with this configuration."""
    table = _Table(config)
    sizes = {"word": config.vocab_size, "token_type": config.type_vocab_size}
    if config.position_embedding_type == "absolute":
        sizes["position"] = config.max_position_embeddings
    for kind, size in sizes.items():
        name = f"embeddings.{kind}_embeddings.weight"
        table.add(name, f"bert.{name}", shape=(size, config.hidden_size))
    table.norm("embeddings.norm", "bert.embeddings.LayerNorm")
    for ours, theirs, letter in sublayers(config.layout):
        if letter == "s":
            _add_attention(table, ours, theirs)
        else:
            _add_feed_forward(table, ours, theirs)
    owners = [f"bert.encoder_narrow.layer.{number}.attention.self" for number in config.narrow_kv_owners]
    if owners:
        table.linear("encoder.narrow_kv.linear", *(f"{owner}.{name}" for owner in owners for name in ("key", "value")))
    if config.normalization == "pre":
        for name in ("frozen_norm", "final_norm") if owners else ("final_norm",):
            table.norm(f"encoder.{name}", f"bert.{name}")
    table.linear("head.dense", "cls.predictions.transform.dense")
    table.norm("head.norm", "cls.predictions.transform.LayerNorm")
    table.add("head.bias", "cls.predictions.bias", shape=(config.vocab_size,))
    return table.rows


def _add_attention(table: _Table, ours: str, theirs: str) -> None:
    query, key, value = (f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
    if ours.startswith("encoder.full"):
        table.linear(f"{ours}.linear_qkv", query, key, value)
    else:  # keys and values are in encoder.narrow_kv
        table.linear(f"{ours}.linear_q", query)
    table.linear(f"{ours}.linear_proj", f"{theirs}.attention.output.dense")
    table.norm(f"{ours}.norm", f"{theirs}.attention.output.LayerNorm")


def _add_feed_forward(table: _Table, ours: str, theirs: str) -> None:
    config = table.config
    inner, blocks = config.intermediate_size, math.gcd(config.intermediate_size, config.num_attention_heads)
    names = ("gate", "dense") if config.hidden_act in GATED else ("dense",)
    table.linear(f"{ours}.linear_fc1", *(f"{theirs}.intermediate.{name}" for name in names), rows=inner, blocks=blocks)
    table.linear(f"{ours}.linear_fc2", f"{theirs}.output.dense", columns=inner)
    table.norm(f"{ours}.norm", f"{theirs}.output.LayerNorm")


def sublayers(layout: str) -> Iterator[tuple[str, str, str]]:
    """(name in the training model, name of the export's layer, letter) of every sublayer, in order."""
    sides = zip(("full", "narrow"), ("encoder", "encoder_narrow"), parse_layout(layout), strict=True)
    for side, encoder, letters_of_side in sides:
        index = 0
        for number, letters in enumerate(group_sublayers(letters_of_side)):
            for letter in letters:
                yield f"encoder.{side}_sublayers.{index}", f"bert.{encoder}.layer.{number}", letter
                index += 1


def _check(state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state that has not exactly the `expected` names and shapes."""
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in expected]
    problems += [
        f"shape of {name}: {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise ValueError("these parameters do not make a model of this configuration: " + "; ".join(problems))


def _unpack(packed: torch.Tensor, parts: int, blocks: int) -> list[torch.Tensor]:
    """Rows arranged [blocks, parts, size] -> `parts` tensors with rows arranged [blocks, size]."""
    by_block = packed.unflatten(0, (blocks, parts, -1))
    return [part.clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in by_block.unbind(1)]


def _pack(parts: list[torch.Tensor], blocks: int) -> torch.Tensor:
    """The inverse of ``_unpack``."""
    return torch.stack([part.unflatten(0, (blocks, -1)) for part in parts], dim=1).flatten(0, 2)


def write_export(
    state: Mapping[str, torch.Tensor],
    *,
    model_config: Mapping[str, Any],
    tokenizer_path: Path,
    special_ids: Mapping[str, int],
    facts: Mapping[str, Any],
    output: Path,
    pooling: str | None = None,
) -> None:
    """Write a folder that transformers loads: weights (fp32), code, tokenizer, model card.

    The folder appears whole or not at all, and only after it has been loaded back through the
    registered classes with every parameter equal.

    Args:
        state: the training model's full parameters, of any floating type.
        model_config: the training model's configuration with its ``vocab_size``: the keys of CONFIG_NAMES
            and TRAINING_ONLY.
        tokenizer_path: the ``tokenizer.json`` of the shards; copied as it is.
        special_ids: the ids of pad, unk, cls, sep and mask in it.
        facts: names and values of the run for the model card.
        output: the folder to make; it may exist if it is empty.
        pooling: ``cls`` or ``mean``: sentence-transformers shall make embeddings of texts this way.

    Raises:
        UserError: `output` exists with something in it or cannot be written, or the tokenizer does
            not belong to the model.
        ValueError: parameters or configuration that do not make the exported model.
    """
    output = Path(output).resolve()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists and is not an empty folder: name another or remove it")
    config = export_config(model_config, special_ids)
    config.default_positions = "cls" if pooling == "cls" else "all"
    tokenizer_config = _tokenizer_config(tokenizer_path, config, special_ids)
    weights = to_transformers(state, config)
    weights = {n: w.detach().cpu().float().contiguous() for n, w in weights.items()}
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        config.save_pretrained(partial)
        for module in (configuration_narrowbert, modeling_narrowbert):
            assert module.__file__ is not None
            shutil.copyfile(module.__file__, partial / Path(module.__file__).name)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(tokenizer_path, partial / "tokenizer.json")
        (partial / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n", encoding="utf-8")
        card = _model_card(output.name, config.layout, tokenizer_config["mask_token"], facts)
        if pooling is not None:
            write_pooling(partial, config, pooling)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _load_back(partial, weights)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"cannot write the export {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_config(model_config: Mapping[str, Any], special_ids: Mapping[str, int]) -> NarrowBertConfig:
    """The export's configuration of a training model (arguments as in ``write_export``).

    Raises:
        ValueError: fields that are missing or unknown.
    """
    # A field that the exported classes do not know would change what they compute: never drop it.
    wrong = set(model_config) ^ (set(CONFIG_NAMES) | TRAINING_ONLY)
    if wrong:
        raise ValueError(f"model configuration fields missing or unknown to the export: {', '.join(sorted(wrong))}")
    if set(special_ids) != set(SPECIAL_TOKEN_ROLES):
        raise ValueError(f"special_ids are {sorted(special_ids)}, expected {sorted(SPECIAL_TOKEN_ROLES)}")
    named: dict[str, Any] = {theirs: model_config[ours] for ours, theirs in CONFIG_NAMES.items()}
    named |= {f"{role}_token_id": special_ids[role] for role in ("pad", "cls", "sep", "mask")}
    return NarrowBertConfig(
        **named,
        architectures=[NarrowBertForMaskedLM.__name__],
        auto_map=dict(AUTO_MAP),
        dtype="float32",
    )


def _tokenizer_config(path: Path, config: NarrowBertConfig, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json, which says everything else."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of bad file
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise UserError(f"{path} has ids up to {largest}, the model only {config.vocab_size} words: it is another's")
    tokens = {role: tokenizer.id_to_token(special_ids[role]) for role in SPECIAL_TOKEN_ROLES}
    absent = [f"{role} ({special_ids[role]})" for role, token in tokens.items() if token is None]
    if absent:
        raise UserError(f"{path} has no token with the id of {', '.join(absent)}: it is another model's")
    if tokenizer.encode("").ids != [special_ids["cls"], special_ids["sep"]]:
        raise UserError(f"{path} does not put {tokens['cls']} before and {tokens['sep']} after a text")
    lowercases = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a"
    return {
        # The class that takes tokenizer.json as it stands; BertTokenizer would rebuild its parts.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": lowercases,
        **{f"{role}_token": token for role, token in tokens.items()},
    }


def write_pooling(folder: Path, config: NarrowBertConfig, pooling: str) -> None:
    """What sentence-transformers reads beside a model: ``SentenceTransformer(folder)`` pools by ``cls`` or ``mean``.

    With ``cls``, ``config.default_positions`` is to be ``"cls"`` too, so that no other row is computed.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, **modes},
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _model_card(name: str, layout: str, mask_token: str, facts: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = "\n".join(f"| {cell(fact)} | {cell(value)} |" for fact, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [narrowbert, masked-lm]
---
# {name}

A NarrowBERT masked-language encoder with layout `{layout}`: `s` is a self-attention sublayer, `f` a
feed-forward sublayer; what is right of `:`, if anything, computes the masked positions only
([Li et al., ACL 2023](https://arxiv.org/abs/2301.04761)).

| | |
| --- | --- |
{rows}

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}", trust_remote_code=True)
print(fill_mask("Fill the {mask_token} in this sentence."))
```

`AutoModelForMaskedLM` scores the `{mask_token}` positions: other rows of its `logits` are zeros unless
their positions are given as `narrow_positions` (or there are labels, or no `{mask_token}` at all). Needs
transformers 5.18 or newer.
"""


def _load_back(folder: Path, weights: State) -> None:
    """Load what was written as a user would, and compare.

    Raises:
        ValueError: a parameter that is missing, unexpected or different after loading.
    """
    with _no_progress_bars():
        model, info = AutoModelForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    problems = [f"{kind}: {name}" for kind, names in info.items() for name in sorted(map(str, names))]
    loaded = model.state_dict()
    problems += [f"missing: {name}" for name in loaded if name not in weights and name not in TIED]
    problems += [f"different: {n}" for n, w in weights.items() if n in loaded and not loaded[n].equal(w)]
    if problems:
        raise ValueError("the export does not load back as written: " + "; ".join(problems))


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
