"""A model as a ModernBERT of transformers (Warner et al. 2024, arXiv 2412.13663), and its names for both directions.

A ModernBERT has no segments: the first is added to every word. Its decoder then is the words without it.
"""

from typing import Any

import torch
from transformers import ModernBertConfig, PreTrainedConfig

from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import TIED, State

OUTSIDE = {
    "embeddings.tok_embeddings": ("bert.embeddings.word_embeddings",),
    "embeddings.norm": ("bert.embeddings.LayerNorm",),
    "final_norm": ("bert.final_norm",),
    "head.dense": ("cls.predictions.transform.dense",),
    "head.norm": ("cls.predictions.transform.LayerNorm",),
    "decoder": ("cls.predictions.decoder",),
}
"""Its modules outside of layers -> ours."""

IN_LAYER = {
    "attn_norm": ("attention.output.LayerNorm",),
    "attn.Wqkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attn.Wo": ("attention.output.dense",),
    "mlp_norm": ("output.LayerNorm",),
    "mlp.Wi": ("intermediate.gate", "intermediate.dense"),  # what is activated, then what it is multiplied by
    "mlp.Wo": ("output.dense",),
}
"""Its modules in a layer -> ours, in the order in which it packs their rows."""

SETTINGS = {
    "intermediate_size": "intermediate_size",
    "layer_norm_eps": "norm_eps",
    "attention_window": "local_attention",
    "hidden_dropout_prob": "mlp_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""Options of ``NarrowBertConfig`` -> keys of its configuration."""

BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")

WORDS = "bert.embeddings.word_embeddings.weight"
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
_DECODER, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"


def global_every(config: NarrowBertConfig) -> int | None:
    """``global_attn_every_n_layers``: one layer of N attends to the whole row, from the first; None: not so."""
    layers = config.full_layers
    if config.narrow_layers or set(layers) - {"sf", "wf"}:
        return None
    every = next((number for number, layer in enumerate(layers) if number and layer == "sf"), len(layers))
    return every if all((layer == "wf") == bool(number % every) for number, layer in enumerate(layers)) else None


def modernbert_config(config: NarrowBertConfig, state: State, options: dict[str, Any]) -> PreTrainedConfig:
    """The configuration, which says some things twice: programs that read no ``layer_types`` look at the older keys."""
    bases = {"full_attention": config.rope_theta, "sliding_attention": config.local_rope_theta}
    settings: dict[str, Any] = {
        **options,
        **dict.fromkeys(BIASES, config.bias),
        "embedding_dropout": config.hidden_dropout_prob,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
        "tie_word_embeddings": not state[SEGMENTS][0].any(),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "global_attn_every_n_layers": global_every(config),
    }
    written = ModernBertConfig(**settings)
    older = {"global_rope_theta": config.rope_theta, "local_rope_theta": config.local_rope_theta}
    for key, value in {**older, "layer_norm_eps": config.layer_norm_eps}.items():
        setattr(written, key, value)
    return written


def to_modernbert(state: State) -> State:
    """Our parameters under its names, packed as it packs them; the decoder where it is not tied to the words.

    Raises:
        ValueError: a parameter that a ModernBERT does not have.
    """
    left = dict(state)
    segment = left.pop(SEGMENTS)[0]
    if segment.any():
        words = left[WORDS]
        left[WORDS] = words + segment
        left |= {_DECODER: words} if TIED[_DECODER_BIAS] in state else {}
    if TIED[_DECODER_BIAS] in left:
        left[_DECODER_BIAS] = left.pop(TIED[_DECODER_BIAS])
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("bert.encoder.layer."))
    modules: dict[str, tuple[str, ...]] = {
        f"model.{theirs}" if _is_inside(theirs) else theirs: ours for theirs, ours in OUTSIDE.items()
    }
    for number in range(layers):
        for theirs, ours in IN_LAYER.items():
            modules[f"model.layers.{number}.{theirs}"] = tuple(f"bert.encoder.layer.{number}.{name}" for name in ours)
    converted: State = {}
    for theirs, ours in modules.items():
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{name}.{kind}") for name in ours if f"{name}.{kind}" in left]
            if parts:
                converted[f"{theirs}.{kind}"] = parts[0] if len(parts) == 1 else torch.cat(parts)
    if left:
        raise ValueError(f"a ModernBERT has no {', '.join(sorted(left))}")
    return converted


def _is_inside(module: str) -> bool:
    """Whether a module is the encoder's, not the head's."""
    return not module.startswith(("head.", "decoder"))


def modernbert_remarks(config: NarrowBertConfig, state: State) -> list[str]:
    """What it has not, and what a program does not read."""
    remarks = []
    segments = state[SEGMENTS]
    if not segments.equal(segments[:1].expand_as(segments)):
        remarks.append("segments other than the first are left out: a ModernBERT reads both texts of a pair alike")
    if config.bias:
        remarks.append("text-embeddings-inference leaves out the biases of a ModernBERT's norms: serve it elsewhere")
    return remarks
