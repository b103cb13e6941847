"""A ModernBERT of transformers (Warner et al. 2024, arXiv 2412.13663) in the terms of our exports."""

import dataclasses
import re
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.export.model_folder import Json
from pipeline.export.plain.modernbert import BIASES, IN_LAYER, OUTSIDE, SEGMENTS, SETTINGS, WORDS
from pipeline.initialisation.stored_tensor import StoredTensor
from pipeline.layout import Layout

MODEL_TYPE = "modernbert"
_DEFAULTS: dict[str, Json] = {
    "intermediate_size": 1152, "norm_eps": 1e-5, "local_attention": 128, "mlp_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


def config_of(path: Path, config: dict[str, Json]) -> dict[str, Json]:
    """The configuration of a ModernBERT as that of a NarrowBERT.

    Args:
        path: of its config.json, for messages.

    Raises:
        UserError: it says something that no NarrowBERT is.
    """
    activation = config.get("hidden_activation", "gelu")
    if activation != "gelu" or config.get("classifier_activation", "gelu") != "gelu":
        raise UserError(f"{path}: hidden_activation and classifier_activation other than gelu are not known here")
    layers = config.get("num_hidden_layers", 22)
    kinds = config.get("layer_types")
    if kinds is None and isinstance(layers, int):
        every = config.get("global_attn_every_n_layers", 3)
        kinds = [f"{'sliding' if isinstance(every, int) and n % every else 'full'}_attention" for n in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not kinds:
        raise UserError(f"{path}: layer_types does not say of each of num_hidden_layers what it is")
    biases = {key: bool(config.get(key, False)) for key in BIASES}
    if len(set(biases.values())) > 1:
        raise UserError(f"{path}: {', '.join(key for key in biases if biases[key])} alone; all or none is known here")
    translated: dict[str, Json] = {
        "model_type": "narrowbert",
        "layout": str(Layout(full="".join("wf" if kind == "sliding_attention" else "sf" for kind in kinds), narrow="")),
        "normalization": "pre",
        "skip_first_norm": True,
        "position_embedding_type": "rope",
        "rope_theta": _theta(config, "full_attention", "global_rope_theta", 160_000.0),
        "local_rope_theta": _theta(config, "sliding_attention", "local_rope_theta", 10_000.0),
        "hidden_act": "geglu",
        "bias": biases["norm_bias"],
    }
    translated |= {ours: config.get(theirs, _DEFAULTS[theirs]) for ours, theirs in SETTINGS.items()}
    same = ("vocab_size", "hidden_size", "num_attention_heads", "initializer_range", "max_position_embeddings")
    return translated | {key: config[key] for key in same if key in config}


def tensors_of(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors of a ModernBERT by BERT's names, packed ones taken apart. It has no segments: theirs are zeros."""
    named: dict[str, StoredTensor] = {}
    for key, stored in tensors.items():
        names = _names(key)
        rows = stored.shape[0] // len(names)
        for number, name in enumerate(names):
            named[name] = dataclasses.replace(
                stored, shape=(rows, *stored.shape[1:]), first_row=number * rows if len(names) > 1 else None
            )
    words = named.get(WORDS)
    if words is not None:
        named[SEGMENTS] = dataclasses.replace(words, shape=(2, words.shape[1]), is_zero=True)
    return named


def _names(key: str) -> tuple[str, ...]:
    module, _, kind = key.removeprefix("model.").removeprefix("bert.").rpartition(".")
    found = re.fullmatch(r"layers\.([0-9]+)\.(.+)", module)
    if found is not None and found[2] in IN_LAYER:
        return tuple(f"bert.encoder.layer.{found[1]}.{name}.{kind}" for name in IN_LAYER[found[2]])
    return tuple(f"{name}.{kind}" for name in OUTSIDE[module]) if module in OUTSIDE else (key,)


def _theta(config: dict[str, Json], kind: str, older: str, default: float) -> Json:
    """Base of a kind of attention: ``rope_parameters`` of transformers 5, or a key of its own before."""
    parameters = config.get("rope_parameters")
    of_kind = parameters.get(kind) if isinstance(parameters, dict) else None
    theta = of_kind.get("rope_theta") if isinstance(of_kind, dict) else None
    return config.get(older, default) if theta is None else theta
