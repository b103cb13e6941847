"""The classes of transformers that a model can be written as, and what it has to be for each.

Every option of ``NarrowBertConfig`` is in at least one part of a form: it is needed to be something, it is taken over,
or it has no effect in such a model. So no new option is lost unseen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import BertConfig, PreTrainedConfig

from data_prep.contract.command_line import UserError
from pipeline.export import AUTO_CLASSES
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.modeling_narrowbert import GATED
from pipeline.export.names import CONFIG_NAMES, State
from pipeline.export.plain.modernbert import (
    SETTINGS,
    global_every,
    modernbert_config,
    modernbert_remarks,
    to_modernbert,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What one option has to be."""

    option: str
    """Of ``NarrowBertConfig``."""
    holds: Callable[[NarrowBertConfig], bool]
    text: str
    """The values that it may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One ``model_type`` of transformers."""

    model_type: str
    needs: tuple[Need, ...]
    takes: Mapping[str, str]
    """Option of ``NarrowBertConfig`` -> its name there."""
    without_effect: frozenset[str]
    """Options that change nothing in a model that has what is needed, or that ``configure`` and ``rename`` see to."""
    classes: Mapping[str, str]
    """Our class -> the one that computes the same."""
    inputs: Sequence[str]
    """What the model reads."""
    configure: Callable[[NarrowBertConfig, State, dict[str, Any]], PreTrainedConfig]
    """The configuration of a model with these weights; the options that are taken over have their names there."""
    rename: Callable[[State], State]
    """``NarrowBertForMaskedLM``'s weights, or those of another class, by their names there."""
    remarks: Callable[[NarrowBertConfig, State], list[str]]
    """Lines on what a user should know of such a model."""


def exactly(option: str, value: str | bool) -> Need:
    """One value and no other."""
    return Need(option=option, holds=lambda config: getattr(config, option) == value, text=str(value))


def check_form(config: NarrowBertConfig, form: Form, class_name: str) -> None:
    """Refuse a model that is another function than the form's.

    Args:
        class_name: of the model.

    Raises:
        UserError: all that differs.
    """
    kind = form.model_type
    options = {theirs: f"model.{ours}" for ours, theirs in CONFIG_NAMES.items()}
    wrong = [
        f"{options[need.option]} is {getattr(config, need.option)}, {kind} needs {need.text}"
        for need in form.needs
        if not need.holds(config)
    ]
    if class_name not in form.classes:
        wrong.append(f"its class is {class_name}, whose head is not that of a {kind}")
    if wrong:
        raise UserError(f"the model is no {kind} ({'; '.join(wrong)}): leave out --model_type")


def configuration(config: NarrowBertConfig, state: State, form: Form, class_name: str) -> PreTrainedConfig:
    """The configuration in the form of a model that ``check_form`` has passed."""
    options: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in form.takes.items()}
    if class_name not in (AUTO_CLASSES["AutoModel"].__name__, AUTO_CLASSES["AutoModelForMaskedLM"].__name__):
        options |= {key: getattr(config, key) for key in ("id2label", "label2id", "problem_type")}
    options |= {"num_hidden_layers": len(config.full_layers), "architectures": [form.classes[class_name]]}
    return form.configure(config, state, options | {"dtype": "float32"})


def _bert_config(_: NarrowBertConfig, __: State, options: dict[str, Any]) -> PreTrainedConfig:
    return BertConfig(**options)


def _no_remarks(_: NarrowBertConfig, __: State) -> list[str]:
    return []


_SAME_AS_BERT = (
    "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps",
    "pad_token_id", "classifier_dropout", "position_embedding_type",
)  # fmt: skip

BERT = Form(
    model_type="bert",
    needs=(
        Need(
            option="layout",
            holds=lambda config: set(config.full_layers) == {"sf"} and not config.narrow_layers,
            text="sf alone, such as 12sf",
        ),
        exactly("normalization", "post"),
        exactly("norm", "layernorm"),
        exactly("position_embedding_type", "absolute"),
        Need(option="hidden_act", holds=lambda config: config.hidden_act not in GATED, text="gelu"),
        exactly("bias", True),
    ),
    takes={name: name for name in _SAME_AS_BERT},
    without_effect=frozenset(
        {"skip_first_norm", "rope_theta", "attention_window", "local_rope_theta", "narrow_kv", "tie_word_embeddings"}
        | {"cls_token_id", "sep_token_id", "mask_token_id"}
    ),
    classes={our.__name__: our.__name__.removeprefix("Narrow") for our in AUTO_CLASSES.values()},
    inputs=("input_ids", "token_type_ids", "attention_mask"),
    configure=_bert_config,
    rename=dict,
    remarks=_no_remarks,
)

_SAME_AS_MODERNBERT = (
    "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings", "initializer_range", "pad_token_id",
    "cls_token_id", "sep_token_id",
)  # fmt: skip

MODERNBERT = Form(
    model_type="modernbert",
    needs=(
        Need(
            option="layout",
            holds=lambda config: global_every(config) is not None,
            text="sf as the first and then every Nth layer, with wf between, such as 7sfwfwf sf or 12sf",
        ),
        exactly("normalization", "pre"),
        exactly("skip_first_norm", True),
        exactly("norm", "layernorm"),
        exactly("position_embedding_type", "rope"),
        exactly("hidden_act", "geglu"),
    ),
    takes={name: name for name in _SAME_AS_MODERNBERT} | SETTINGS,
    # The configuration has bias and the bases under several keys each, and segments are added to the words.
    without_effect=frozenset(
        {"bias", "rope_theta", "local_rope_theta", "type_vocab_size", "narrow_kv", "tie_word_embeddings"}
        | {"mask_token_id", "classifier_dropout"}
    ),
    classes={f"Narrow{name}": name.replace("Bert", "ModernBert") for name in ("BertModel", "BertForMaskedLM")},
    inputs=("input_ids", "attention_mask"),
    configure=modernbert_config,
    rename=to_modernbert,
    remarks=modernbert_remarks,
)

FORMS = {form.model_type: form for form in (BERT, MODERNBERT)}
"""By ``model_type``."""
