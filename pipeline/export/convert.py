"""Between the training model's parameters and the exported transformers model's, and the export itself.

The training model follows Megatron: sublayers numbered one by one on each side of the narrowing
point, query, key and value rows packed per head into one matrix. The export follows BERT: an
attention and the feed-forward after it are one layer, query, key and value are separate.
"""

import contextlib
import dataclasses
import json
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
from pipeline.export.modeling_narrowbert import NarrowBertForMaskedLM

State = dict[str, torch.Tensor]

TIED = NarrowBertForMaskedLM._tied_weights_keys
"""Names in the export that are copies of another: left out of the file, tied again on loading."""

AUTO_MAP = {
    "AutoConfig": "configuration_narrowbert.NarrowBertConfig",
    "AutoModel": "modeling_narrowbert.NarrowBertModel",
    "AutoModelForMaskedLM": "modeling_narrowbert.NarrowBertForMaskedLM",
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
}
"""The training model's configuration -> the export's."""

SPECIAL_TOKEN_ROLES = ("pad", "unk", "cls", "sep", "mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parameter:
    """One parameter of the training model and where it goes."""

    ours: str
    """Name in the training model."""
    theirs: tuple[str, ...]
    """Names in the export; several where one matrix packs them, per head, in this order."""
    shape: str
    """Shape of each of `theirs`, a letter a dimension: V words, P positions, T token types, H hidden, F inner."""


def to_transformers(state: Mapping[str, torch.Tensor], layout: str, num_attention_heads: int) -> State:
    """The training model's full parameters under the export's names.

    Args:
        state: unsharded parameters by name.
        layout: the paper's string, such as ``2sf:10sf``.
        num_attention_heads: how many heads the packed matrices hold.

    Returns:
        Parameters of ``NarrowBertForMaskedLM`` without the tied copies, as in its model.safetensors.
        Nothing is rounded: ``from_transformers`` gives `state` back to the bit.

    Raises:
        ValueError: every parameter that is missing, unexpected or of another shape.
    """
    table = _parameters(layout)
    _check(state, {p.ours: (p.shape, len(p.theirs)) for p in table}, num_attention_heads)
    converted: State = {}
    for parameter in table:
        parts = [state[parameter.ours]]
        if len(parameter.theirs) > 1:
            parts = _unpack(parts[0], len(parameter.theirs), num_attention_heads)
        converted.update(zip(parameter.theirs, parts, strict=True))
    return converted


def from_transformers(state: Mapping[str, torch.Tensor], layout: str, num_attention_heads: int) -> State:
    """The exact inverse of ``to_transformers``; tied copies may be present if they are equal.

    Raises:
        ValueError: every parameter that is missing, unexpected, of another shape, or tied by name
            but not equal.
    """
    table = _parameters(layout)
    untied = {name: tensor for name, tensor in state.items() if name not in TIED}
    _check(untied, {name: (p.shape, 1) for p in table for name in p.theirs}, num_attention_heads)
    unequal = [name for name, of in TIED.items() if name in state and not state[name].equal(untied[of])]
    if unequal:
        raise ValueError(f"not equal to what they are tied to: {', '.join(unequal)}")
    converted: State = {}
    for parameter in table:
        parts = [untied[name] for name in parameter.theirs]
        converted[parameter.ours] = _pack(parts, num_attention_heads) if len(parts) > 1 else parts[0]
    return converted


def _parameters(layout: str) -> list[_Parameter]:
    """Every parameter of a model with this layout."""
    table: list[_Parameter] = []

    def add(ours: str, *theirs: str, weight: str) -> None:
        for kind, shape in (("weight", weight), ("bias", weight[0])):
            names = tuple(f"{name}.{kind}" for name in theirs)
            table.append(_Parameter(ours=f"{ours}.{kind}", theirs=names, shape=shape))

    for name, shape in (("word", "VH"), ("position", "PH"), ("token_type", "TH")):
        name = f"embeddings.{name}_embeddings.weight"
        table.append(_Parameter(ours=name, theirs=(f"bert.{name}",), shape=shape))
    add("embeddings.norm", "bert.embeddings.LayerNorm", weight="H")
    sides = parse_layout(layout)
    for side, encoder, sublayers in zip(("full", "narrow"), ("encoder", "encoder_narrow"), sides, strict=True):
        index = 0
        for number, letters in enumerate(group_sublayers(sublayers)):
            theirs = f"bert.{encoder}.layer.{number}"
            for letter in letters:
                ours = f"encoder.{side}_sublayers.{index}"
                index += 1
                if letter == "s":
                    query, key, value = (f"{theirs}.attention.self.{n}" for n in ("query", "key", "value"))
                    if side == "full":
                        add(f"{ours}.linear_qkv", query, key, value, weight="HH")
                    else:
                        add(f"{ours}.linear_q", query, weight="HH")
                        add(f"{ours}.linear_kv", key, value, weight="HH")
                    add(f"{ours}.linear_proj", f"{theirs}.attention.output.dense", weight="HH")
                    add(f"{ours}.norm", f"{theirs}.attention.output.LayerNorm", weight="H")
                else:
                    add(f"{ours}.linear_fc1", f"{theirs}.intermediate.dense", weight="FH")
                    add(f"{ours}.linear_fc2", f"{theirs}.output.dense", weight="HF")
                    add(f"{ours}.norm", f"{theirs}.output.LayerNorm", weight="H")
    add("head.dense", "cls.predictions.transform.dense", weight="HH")
    add("head.norm", "cls.predictions.transform.LayerNorm", weight="H")
    table.append(_Parameter(ours="head.bias", theirs=("cls.predictions.bias",), shape="V"))
    return table


def _check(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[str, int]], num_attention_heads: int
) -> None:
    """Refuse a state that is not `expected`: name -> (shape in letters, parts packed into dimension 0)."""
    problems = [f"missing: {name}" for name in expected if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in expected]
    sizes: dict[str, int] = {}  # the first parameter with a letter says its size
    for name, (letters, packed) in expected.items():
        if name not in state:
            continue
        shape = tuple(state[name].shape)
        if len(shape) == len(letters):
            for letter, size in zip(letters, shape, strict=True):
                sizes.setdefault(letter, size)
        wanted = [sizes.get(letter, 0) for letter in letters]
        wanted[0] *= packed
        if list(shape) != wanted:
            problems.append(f"shape of {name}: {list(shape)}, expected {wanted}")
    if sizes.get("H", 0) % num_attention_heads:
        problems.append(f"{num_attention_heads} attention heads do not divide hidden size {sizes['H']}")
    if problems:
        raise ValueError("these parameters do not make a model of this layout: " + "; ".join(problems))


def _unpack(packed: torch.Tensor, parts: int, heads: int) -> list[torch.Tensor]:
    """Rows arranged [heads, parts, head_dim] -> `parts` tensors with rows arranged [heads, head_dim]."""
    by_head = packed.unflatten(0, (heads, parts, -1))
    return [part.clone(memory_format=torch.contiguous_format).flatten(0, 1) for part in by_head.unbind(1)]


def _pack(parts: list[torch.Tensor], heads: int) -> torch.Tensor:
    """The inverse of ``_unpack``."""
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def write_export(
    state: Mapping[str, torch.Tensor],
    *,
    model_config: Mapping[str, Any],
    tokenizer_path: Path,
    special_ids: Mapping[str, int],
    facts: Mapping[str, Any],
    output: Path,
) -> None:
    """Write a folder that transformers loads: weights (fp32), code, tokenizer, model card.

    The folder appears whole or not at all, and only after it has been loaded back through the
    registered classes with every parameter equal.

    Args:
        state: the training model's full parameters, of any floating type.
        model_config: the training model's configuration with its ``vocab_size``: the keys of CONFIG_NAMES.
        tokenizer_path: the ``tokenizer.json`` of the shards; copied as it is.
        special_ids: the ids of pad, unk, cls, sep and mask in it.
        facts: names and values of the run for the model card.
        output: the folder to make; it may exist if it is empty.

    Raises:
        UserError: `output` exists with something in it or cannot be written, or the tokenizer does
            not belong to the model.
        ValueError: parameters or configuration that do not make the exported model.
    """
    output = Path(output).resolve()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists and is not an empty folder: name another or remove it")
    config = _config(model_config, special_ids)
    weights = to_transformers(state, config.layout, config.num_attention_heads)
    weights = {n: w.detach().cpu().float().contiguous() for n, w in weights.items()}
    tokenizer_config = _tokenizer_config(tokenizer_path, config, special_ids)
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
        (partial / "README.md").write_text(card, encoding="utf-8")
        _load_back(partial, weights)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"cannot write the export {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _config(model_config: Mapping[str, Any], special_ids: Mapping[str, int]) -> NarrowBertConfig:
    # A field that the exported classes do not know would change what they compute: never drop it.
    wrong = set(model_config) ^ set(CONFIG_NAMES)
    if wrong:
        raise ValueError(f"model configuration fields missing or unknown to the export: {', '.join(sorted(wrong))}")
    if set(special_ids) != set(SPECIAL_TOKEN_ROLES):
        raise ValueError(f"special_ids are {sorted(special_ids)}, expected {sorted(SPECIAL_TOKEN_ROLES)}")
    named: dict[str, Any] = {CONFIG_NAMES[name]: value for name, value in model_config.items()}
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
