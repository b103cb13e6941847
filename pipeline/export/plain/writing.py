"""Configuration and weights of a model in a plain form, loaded back before anyone else has to."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedConfig

from data_prep.contract.command_line import UserError
from data_prep.contract.files import safetensors_written_to
from pipeline.export import AUTO_CLASSES, NarrowBertConfig, NarrowBertForMaskedLM, NarrowBertModel
from pipeline.export.model_folder import quiet_transformers
from pipeline.export.modeling_narrowbert import NarrowBertPreTrainedModel
from pipeline.export.names import TIED, State
from pipeline.export.plain.forms import Form, configuration

TOLERANCE = 1e-4
"""Largest difference that is put down to rounding, in units of the largest number and at least of 1."""


def write_plain(folder: Path, model: NarrowBertPreTrainedModel, form: Form) -> tuple[PreTrainedConfig, list[str]]:
    """Write config.json and model.safetensors (fp32), and check that transformers' own class computes the same of them.

    Args:
        folder: exists.
        model: passed by ``check_form``.

    Returns:
        What is in config.json, and lines on what a user should know.

    Raises:
        UserError: what was written gives other numbers than ``model``.
    """
    model = model.float().eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in TIED}
    prefix = "bert." if isinstance(model, NarrowBertModel) else ""
    state = {f"{prefix}{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = configuration(model.config, state, form, type(model).__name__)
    weights = form.rename(state)
    if prefix:
        base = getattr(transformers, form.classes[type(model).__name__]).base_model_prefix
        weights = {name.removeprefix(f"{base}."): tensor for name, tensor in weights.items()}
    config.save_pretrained(folder)
    with safetensors_written_to(folder):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = _load_back(folder, weights, next(a for a, our in AUTO_CLASSES.items() if type(model) is our))
    difference = _difference(model, loaded, form)
    if not difference <= TOLERANCE:  # nor is it where it is no number
        raise UserError(f"{type(loaded).__name__} differs by {difference:.1e} from {type(model).__name__}: not written")
    return config, form.remarks(model.config, state)


def write_plain_weights(
    folder: Path, config: NarrowBertConfig, weights: State, form: Form, *, encoder_alone: bool
) -> tuple[PreTrainedConfig, list[str]]:
    """``write_plain`` of a masked-LM model with an export's weights, or of its encoder.

    ``weights`` without a head are of an encoder.
    """
    if not any(name.startswith("cls.") for name in weights):
        encoder = NarrowBertModel(config)
        encoder.load_state_dict({name.removeprefix("bert."): tensor for name, tensor in weights.items()})
        return write_plain(folder, encoder, form)
    model = NarrowBertForMaskedLM(config)
    model.load_state_dict({**weights, **{tied: weights[name] for tied, name in TIED.items()}})
    if not encoder_alone:
        return write_plain(folder, model, form)
    described, remarks = write_plain(folder, model.bert, form)
    return described, ["the masked-LM head is left out: what serves embeddings reads the encoder alone", *remarks]


def _load_back(folder: Path, weights: State, auto_class: str) -> Any:
    """The model as others load it, every weight of it as it was written."""
    with quiet_transformers():
        loaded, info = getattr(transformers, auto_class).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, local_files_only=True
        )
    # A BERT's pooler is new in an encoder that has none, as in every BERT that was pretrained without it.
    may_be_new = {name for name in loaded.state_dict() if name.startswith("pooler.")} - weights.keys()
    may_be_new |= loaded._tied_weights_keys.keys() if loaded._tied_weights_keys else set()
    found = loaded.state_dict()
    wrong = [f"{kind}: {n}" for kind, names in info.items() for n in sorted(map(str, names)) if n not in may_be_new]
    wrong += [f"missing: {name}" for name in found if name not in weights and name not in may_be_new]
    wrong += [f"different: {n}" for n, w in weights.items() if n not in found or not found[n].equal(w)]
    if wrong:
        raise UserError(f"{type(loaded).__name__} does not load back as written: {'; '.join(wrong)}: not written")
    return loaded.eval()


@torch.no_grad()
def _difference(ours: NarrowBertPreTrainedModel, theirs: Any, form: Form) -> float:
    """Largest difference of what both compute of random texts, one of them padded."""
    config = ours.config
    window = config.attention_window if any("w" in layer for layer in config.full_layers) else 0
    length = min(config.max_position_embeddings, max(64, window))
    generator = torch.Generator().manual_seed(0)
    mask_BS = (torch.arange(length) < torch.tensor([[length], [length // 3 + 1]])).long()
    inputs = {
        "input_ids": torch.randint(config.vocab_size, mask_BS.shape, generator=generator),
        "attention_mask": mask_BS,
    }
    if "token_type_ids" in form.inputs:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, mask_BS.shape, generator=generator)
    found = theirs(**inputs)
    if isinstance(ours, NarrowBertForMaskedLM):
        inputs["narrow_positions"] = torch.arange(length).expand(mask_BS.shape)
    expected = ours(**inputs)
    names = [name for name in ("last_hidden_state", "logits", "start_logits", "end_logits") if name in expected]
    return max(_largest_difference(found[name], expected[name], mask_BS) for name in names)


def _largest_difference(found: torch.Tensor, expected: torch.Tensor, mask_BS: torch.Tensor) -> float:
    """At real tokens, where there is a row for each."""
    if expected.shape[:2] == mask_BS.shape:
        found, expected = found[mask_BS.bool()], expected[mask_BS.bool()]
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
