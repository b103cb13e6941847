"""The exported model: parity with BERT and with the paper's definition, conversion, the folder itself."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from data_prep.contract.command_line import UserError
from pipeline.config import ModelConfig
from pipeline.export import NarrowBertConfig, NarrowBertForMaskedLM, NarrowBertModel
from pipeline.export.configuration_narrowbert import group_sublayers, parse_layout
from pipeline.export.folder import export_config, pooling_of, write_export
from pipeline.export.from_run import export_run
from pipeline.export.modeling_narrowbert import pad_positions
from pipeline.export.names import CONFIG_NAMES, TIED, from_transformers, to_transformers
from pipeline.initialisation.pretrained import export_pretrained
from pipeline.layout import parse_layout as parse_training_layout
from pipeline.model.masked_lm import NarrowBertForPretraining
from tests.tiny_exports import (
    HEADS,
    HIDDEN,
    INNER,
    LAYOUTS,
    LENGTH,
    MASK,
    NARROW_LAYOUTS,
    SPECIAL_IDS,
    VOCABULARY,
    assert_close,
    batch,
    shaken,
    tiny_config,
    write_tokenizer,
)


def tiny_model(layout: str) -> NarrowBertForMaskedLM:
    return shaken(NarrowBertForMaskedLM, tiny_config(layout))


# --- parity ---------------------------------------------------------------------------------------


def test_bert_layout_equals_transformers_bert() -> None:
    ours = tiny_model("3sf")
    c = ours.config
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_hidden_layers=3,
            num_attention_heads=c.num_attention_heads,
            intermediate_size=c.intermediate_size,
            max_position_embeddings=c.max_position_embeddings,
        )
    ).eval()
    assert list(bert.state_dict()) == list(ours.state_dict())
    bert.load_state_dict(ours.state_dict())
    ids, mask = batch(12, 7, 9)
    types = (torch.arange(LENGTH) > 4).long().expand(3, -1)
    expected = bert(ids, attention_mask=mask, token_type_ids=types).logits
    real = mask.bool()  # what stands at padding has no meaning
    assert_close(ours(ids, attention_mask=mask, token_type_ids=types).logits[real], expected[real])

    labels = torch.full_like(ids, -100)
    labels[0, [1, 5, 6]], labels[1, 2], labels[2, [0, 8]] = 7, 8, torch.tensor([9, 10])
    for model in (ours, bert):
        model(ids, attention_mask=mask, token_type_ids=types, labels=labels).loss.backward()
    gradients = dict(bert.named_parameters())
    for name, parameter in ours.named_parameters():
        expected_gradient = gradients[name].grad
        assert parameter.grad is not None
        assert expected_gradient is not None
        # Softmax ignores a shift of all scores, so a key bias has no gradient but rounding.
        assert "key.bias" in name or parameter.grad.abs().max() > 1e-3, name
        assert_close(parameter.grad, expected_gradient)


class Reference:
    """The paper's definition for one row without padding, one plain product at a time."""

    def __init__(self, model: NarrowBertForMaskedLM) -> None:
        self.weights, self.config = model.state_dict(), model.config

    def logits(self, ids: list[int], position: int) -> torch.Tensor:
        full, narrow = parse_layout(self.config.layout)
        state = [self.embed(token, place) for place, token in enumerate(ids)]
        for number, letters in enumerate(group_sublayers(full)):
            state = [self.layer(f"bert.encoder.layer.{number}", letters, x, state) for x in state]
        x = state[position]
        for number, letters in enumerate(group_sublayers(narrow)):
            # The context is the frozen full state, always.
            x = self.layer(f"bert.encoder_narrow.layer.{number}", letters, x, state)
        x = self.gelu(self.linear("cls.predictions.transform.dense", x))
        x = self.norm("cls.predictions.transform.LayerNorm", x)
        return self.weights["bert.embeddings.word_embeddings.weight"] @ x + self.weights["cls.predictions.bias"]

    def embed(self, token: int, place: int) -> torch.Tensor:
        words, places, types = (
            self.weights[f"bert.embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
        )
        return self.norm("bert.embeddings.LayerNorm", words[token] + places[place] + types[0])

    def layer(self, name: str, letters: str, x: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
        if "s" in letters:
            mixed = self.linear(f"{name}.attention.output.dense", self.attend(name, x, context))
            x = self.norm(f"{name}.attention.output.LayerNorm", mixed + x)
        if "f" in letters:
            inner = self.gelu(self.linear(f"{name}.intermediate.dense", x))
            x = self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", inner) + x)
        return x

    def attend(self, name: str, x: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
        query, size = self.linear(f"{name}.attention.self.query", x), HIDDEN // HEADS
        keys = [self.linear(f"{name}.attention.self.key", c) for c in context]
        values = [self.linear(f"{name}.attention.self.value", c) for c in context]
        heads = []
        for head in range(HEADS):
            rows = slice(head * size, (head + 1) * size)
            shares = torch.stack([query[rows] @ key[rows] / math.sqrt(size) for key in keys]).softmax(0)
            heads.append(shares @ torch.stack([value[rows] for value in values]))
        return torch.cat(heads)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        scaled = centred / (centred.square().mean() + self.config.layer_norm_eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("layout", [*NARROW_LAYOUTS, ":2sf"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_narrow_layouts_equal_the_definition_row_by_row(layout: str, attention: str) -> None:
    model = tiny_model(layout)
    model.set_attn_implementation(attention)
    lengths = (12, 6)
    ids, mask = batch(*lengths)
    positions = torch.tensor([[1, 7, 4], [5, 0, 2]])
    reference = Reference(model)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, narrow_positions=positions).logits
        for row, length in enumerate(lengths):
            for slot in range(3):
                expected = reference.logits(ids[row, :length].tolist(), int(positions[row, slot]))
                assert_close(logits[row, slot], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_position_narrow_is_the_default_of_the_base_model(layout: str) -> None:
    model = tiny_model(layout).bert
    ids, mask = batch(12, 7)
    everything = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad():
        default = model(ids, attention_mask=mask).last_hidden_state
        chosen = model(ids, attention_mask=mask, narrow_positions=everything).last_hidden_state
        reversed_rows = model(ids, attention_mask=mask, narrow_positions=everything.flip(1)).last_hidden_state
    assert default.shape == (2, LENGTH, HIDDEN)
    real = mask.bool()
    assert_close(chosen[real], default[real])
    assert_close(reversed_rows.flip(1)[real], default[real])


OPTIONS = [
    {},
    {"normalization": "pre", "norm": "rmsnorm"},
    {"normalization": "pre", "position": "rope", "activation": "geglu", "bias": False},
    {"position": "alibi", "activation": "swiglu", "narrow_kv": "shared"},
    {"position": "rope", "narrow_kv": "grouped:2", "rotary_base": 50.0},
    {"norm": "rmsnorm", "bias": False},
    {"document_attention": "isolated", "recompute": True},
    {"attention_window": 4, "position": "rope", "rotary_base": 50.0, "local_rotary_base": 20.0},
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())) or "bert")
@pytest.mark.parametrize("layout", ["3sf", "2sf:3sf", "1sf 2s:2f", "sf s:f s sf", ":2sf", "wf s w:sf"])
def test_exported_weights_give_the_training_models_logits(layout: str, options: dict[str, Any], attention: str) -> None:
    training = training_model(layout, **options).eval()
    config = export_config(model_config(layout, **options), SPECIAL_IDS)
    exported = NarrowBertForMaskedLM(config).eval()
    exported.set_attn_implementation(attention)
    converted = to_transformers({name: p.detach() for name, p in training.named_parameters()}, config)
    missing, unexpected = exported.load_state_dict(converted, strict=False)
    assert not unexpected
    assert set(missing) <= set(TIED)
    exported.tie_weights()
    ids, mask = batch(12, 7)
    positions = torch.tensor([[1, 10, 4], [0, 3, 6]])
    with torch.no_grad():
        # A row of one document is the same for a model whose documents are isolated.
        expected = training.logits(ids, positions, mask.bool()[:, None, None], torch.zeros_like(ids))
        assert_close(exported(ids, attention_mask=mask, narrow_positions=positions).logits, expected)
        unpadded = training.logits(ids, positions, None, torch.zeros_like(ids))
        assert_close(exported(ids, narrow_positions=positions).logits, unpadded)


@pytest.mark.parametrize("window", [8, 128])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_windows_of_long_rows_are_those_of_training(position: str, window: int) -> None:
    """In blocks over rectangles and over packed sentences, and as a mask."""
    layout, length = "wf s w:sf", 200
    options = {"attention_window": window, "position": position, "max_position_embeddings": length}
    if position == "rope":
        options |= {"normalization": "pre", "skip_first_norm": True}
    training = training_model(layout, **options).eval()
    exported = NarrowBertForMaskedLM(export_config(model_config(layout, **options), SPECIAL_IDS)).eval()
    state = to_transformers({name: p.detach() for name, p in training.named_parameters()}, exported.config)
    exported.load_state_dict(state, strict=False)
    exported.tie_weights()
    ids = torch.randint(5, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < torch.tensor([[70], [200], [35]])).long()
    positions = torch.tensor([[0, 33, 69], [199, 2, 101], [34, 7, 8]])
    with torch.no_grad():
        expected = training.logits(ids, positions, mask.bool()[:, None, None])
        for attention, unpad in (("sdpa", True), ("sdpa", False), ("eager", True)):
            exported.set_attn_implementation(attention)
            exported.bert.unpad = unpad
            found = exported(ids, attention_mask=mask, narrow_positions=positions).logits
            assert_close(found, expected, 1e-4)
    assert exported.config.num_hidden_layers == 4


# --- the narrow set of the masked-LM model --------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_uneven_masks_equal_row_by_row_runs(layout: str) -> None:
    model = tiny_model(layout)
    lengths = (12, 7, 9, 5)
    ids, mask = batch(*lengths)
    ids[0, [1, 5, 11]] = ids[1, 3] = ids[2, [0, 8]] = MASK  # row 3 has none: every position
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        assert logits.shape == (4, LENGTH, VOCABULARY)
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(logits[row, :length], alone, rtol=0, atol=1e-5, equal_nan=True)
    computed = logits.isfinite().all(-1)
    assert computed[:3].equal(ids[:3] == MASK)
    assert computed[3].all()


def test_padded_positions_keep_their_order_in_long_rows() -> None:
    chosen = torch.rand(3, 512, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.5], [0.1], [0.0]])
    positions, real = pad_positions(chosen)
    for row in range(3):
        assert positions[row][real[row]].tolist() == chosen[row].nonzero().flatten().tolist()


def test_without_masks_or_with_embeddings_every_position_is_computed() -> None:
    model = tiny_model("2sf:2sf")
    ids, mask = batch(12, 7)
    embeds = model.get_input_embeddings()(ids)
    everything = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, narrow_positions=everything).logits
        for logits in (
            model(ids, attention_mask=mask).logits,
            model(inputs_embeds=embeds, attention_mask=mask).logits,
        ):
            assert_close(logits[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_is_the_mean_over_labels_however_they_are_given(layout: str) -> None:
    model = tiny_model(layout)
    ids, mask = batch(12, 7, 9)
    labels = torch.full_like(ids, -100)
    labels[0, [1, 5, 6]], labels[1, 2] = torch.tensor([7, 8, 9]), 10  # row 2 has none
    everything = model(ids, attention_mask=mask, narrow_positions=torch.arange(LENGTH).expand(3, -1)).logits
    expected = nn.functional.cross_entropy(everything.flatten(0, 1), labels.flatten())

    out = model(ids, attention_mask=mask, labels=labels)
    assert_close(out.loss, expected)
    assert out.logits.shape == (3, LENGTH, VOCABULARY)
    assert_close(out.logits[labels != -100], everything[labels != -100])

    positions = torch.tensor([[1, 5, 6], [2, 0, 0], [0, 0, 0]])  # filled up with position 0
    narrow_labels = torch.tensor([[7, 8, 9], [10, -100, -100], [-100] * 3])
    narrow = model(ids, attention_mask=mask, narrow_positions=positions, labels=narrow_labels)
    assert_close(narrow.loss, expected)
    assert narrow.logits.shape == (3, 3, VOCABULARY)

    # Two micro-batches over the step's count add up to the whole, as the Trainer expects.
    parts = [
        model(ids[rows], attention_mask=mask[rows], labels=labels[rows], num_items_in_batch=torch.tensor(4)).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert_close(parts[0] + parts[1], expected)


def test_padded_slots_and_unlabelled_rows_leave_gradients_alone() -> None:
    ids, mask = batch(12, 7)
    labels = torch.full_like(ids, -100)
    labels[0, [1, 5, 6]] = 7
    together, alone = tiny_model("2sf:2sf"), tiny_model("2sf:2sf")
    together(ids, attention_mask=mask, labels=labels).loss.backward()
    alone(ids[:1], labels=labels[:1]).loss.backward()
    for (name, p), q in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert_close(p.grad, q.grad)


def test_a_batch_without_any_label_has_loss_zero_and_zero_gradients() -> None:
    model = tiny_model("2sf:2sf")
    ids, mask = batch(12, 7)
    out = model(ids, attention_mask=mask, labels=torch.full_like(ids, -100))
    out.loss.backward()
    assert out.loss.item() == 0
    assert not out.logits.any()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_hidden_states_attentions_and_tuples() -> None:
    model = tiny_model("2sf:2sf")
    model.set_attn_implementation("eager")
    ids, _ = batch(12, 12)
    ids[:, 3] = MASK
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert [h.shape[1] for h in out.hidden_states] == [LENGTH, LENGTH, LENGTH, 1, 1]
    assert [tuple(a.shape[2:]) for a in out.attentions] == [(LENGTH, LENGTH)] * 2 + [(1, LENGTH)] * 2
    torch.testing.assert_close(model(ids, return_dict=False)[0], out.logits, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_changes_no_gradient(layout: str) -> None:
    ids, mask = batch(12, 7)
    ids[:, 3] = MASK
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model(layout).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(ids, attention_mask=mask, labels=torch.where(ids == MASK, 7, -100)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert_close(again, plain)


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model("2sf:2sf")
    ids, _ = batch(12)
    with torch.no_grad():
        assert model(ids).logits.equal(model(ids).logits)
        model.train()
        assert not model(ids).logits.equal(model(ids).logits)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        assert not model(ids).logits.equal(model(ids).logits)  # dropout on attention is left


def test_wrong_inputs_are_named() -> None:
    model = tiny_model("2sf:2sf")
    ids, mask = batch(12, 7)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model()
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 5\], expected \[2, 12\]"):
        model(ids, attention_mask=mask[:, :5])
    with pytest.raises(ValueError, match=r"narrow_positions have shape \[3\]"):
        model(ids, narrow_positions=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"labels have shape \[2, 12\], expected \[2, 1\]"):
        model(ids, narrow_positions=torch.tensor([[1], [2]]), labels=ids)
    with pytest.raises(ValueError, match="24 positions, the model 16"):
        model(ids.repeat(1, 2))


# --- the configuration ----------------------------------------------------------------------------


def test_layouts_are_grouped_into_layers() -> None:
    config = tiny_config("1sf 1s:1f 2sf")
    assert (config.full_layers, config.narrow_layers) == (["sf", "s"], ["f", "sf", "sf"])
    assert config.num_hidden_layers == 4
    assert tiny_config("12sf:").narrow_layers == []


@pytest.mark.parametrize(
    ("layout", "marked"),
    [
        ("2sg", "2s>>g<<"),
        ("2sf:3x", "2sf:3>>x<<"),
        ("s:f:f", "s:f>>:<<f"),
        ("12", "1>>2<<"),
        ("2 sf", ">>2<< sf"),
        ("0sf", ">>0<<sf"),
        ("f", "no attention"),
        ("", "no attention"),
    ],
)
def test_wrong_layouts_point_at_the_character(layout: str, marked: str) -> None:
    with pytest.raises(ValueError, match=r"^layout ") as error:
        NarrowBertConfig(layout=layout)
    assert marked in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(alphabet="swf0123:  x", max_size=10))
def test_the_export_reads_layouts_as_training_does(layout: str) -> None:
    def read(parse):  # type: ignore[no-untyped-def]
        try:
            return parse(layout)
        except ValueError:
            return None

    ours, training = read(parse_layout), read(parse_training_layout)
    assert ours == (None if training is None else (training.full, training.narrow))


# --- conversion -----------------------------------------------------------------------------------


def training_model(layout: str, heads: int = HEADS, **options: Any) -> NarrowBertForPretraining:
    """A training model with random parameters."""
    shape = {k: v for k, v in model_config(layout, **options).items() if k != "vocab_size"}
    torch.manual_seed(0)
    model = NarrowBertForPretraining(ModelConfig(**shape | {"num_attention_heads": heads}), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def training_state(layout: str, heads: int = HEADS, **options: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in training_model(layout, heads, **options).named_parameters()}


@st.composite
def all_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options under the training model's names."""
    return {
        "normalization": draw(st.sampled_from(["post", "pre"])),
        "norm": draw(st.sampled_from(["layernorm", "rmsnorm"])),
        "position": draw(st.sampled_from(["absolute", "rope", "alibi"])),
        "activation": draw(st.sampled_from(["gelu", "geglu", "swiglu"])),
        "bias": draw(st.booleans()),
        "narrow_kv": draw(st.sampled_from(["per_layer", "shared", "grouped:1", "grouped:2", "grouped:3"])),
        "attention_window": draw(st.sampled_from([2, 128])),
    }


def exported_options(options: dict[str, Any]) -> dict[str, Any]:
    return {CONFIG_NAMES[name]: value for name, value in options.items()}


@st.composite
def layouts(draw: st.DrawFn) -> str:
    full, narrow = draw(st.text(alphabet="swf", max_size=6)), draw(st.text(alphabet="sf", max_size=6))
    return f"{full}:{narrow}" if "s" in full + narrow else f"{full}s:{narrow}"


@settings(max_examples=40, deadline=None)
@given(layouts(), st.sampled_from([1, 2, 4, 8]), all_options())
def test_conversion_is_inverse_to_the_bit(layout: str, heads: int, options: dict[str, Any]) -> None:
    state = training_state(layout, heads, **options)
    config = tiny_config(layout, heads, **exported_options(options))
    exported = to_transformers(state, config)
    again = from_transformers(exported, config)
    assert again.keys() == state.keys()
    assert all(again[name].equal(state[name]) for name in state)
    assert sum(t.numel() for t in exported.values()) == sum(t.numel() for t in state.values())
    forth = to_transformers(again, config)
    assert all(forth[name].equal(exported[name]) for name in exported)


@settings(max_examples=25, deadline=None)
@given(layouts(), all_options())
def test_converted_names_are_the_exported_models(layout: str, options: dict[str, Any]) -> None:
    config = tiny_config(layout, **exported_options(options))
    model = NarrowBertForMaskedLM(config)
    exported = to_transformers(training_state(layout, **options), config)
    assert set(model.state_dict()) - set(model._tied_weights_keys) == set(exported)
    assert {n: tuple(t.shape) for n, t in model.state_dict().items() if n in exported} == {
        n: tuple(t.shape) for n, t in exported.items()
    }


def test_packed_rows_are_taken_apart_per_head() -> None:
    state, size = training_state("1sf:f 2sf", activation="geglu"), HIDDEN // HEADS
    exported = to_transformers(state, tiny_config("1sf:f 2sf", hidden_act="geglu"))

    def equal(theirs: str, rows: slice, ours: str, start: int) -> None:
        for kind in ("weight", "bias"):
            taken = exported[f"bert.{theirs}.{kind}"][rows]
            assert taken.equal(state[f"encoder.{ours}.{kind}"][start : start + len(taken)]), theirs

    for head in range(HEADS):
        rows = slice(head * size, (head + 1) * size)
        for part, name in enumerate(("query", "key", "value")):
            equal(
                f"encoder.layer.0.attention.self.{name}", rows, "full_sublayers.0.linear_qkv", (3 * head + part) * size
            )
        for part, (layer, name) in enumerate([(1, "key"), (1, "value"), (2, "key"), (2, "value")]):
            name = f"encoder_narrow.layer.{layer}.attention.self.{name}"
            equal(name, rows, "narrow_kv.linear", (4 * head + part) * size)
        inner = INNER // HEADS  # 64 and 4 have 4 blocks
        rows = slice(head * inner, (head + 1) * inner)
        for part, name in enumerate(("gate", "dense")):
            equal(
                f"encoder.layer.0.intermediate.{name}", rows, "full_sublayers.1.linear_fc1", (2 * head + part) * inner
            )


def test_shared_keys_and_values_belong_to_the_first_layer_that_reads_them() -> None:
    def owners(narrow_kv: str) -> list[int]:
        return tiny_config("sf:sf f 4sf", narrow_kv=narrow_kv).narrow_kv_owners

    assert owners("per_layer") == [0, 2, 3, 4, 5]
    assert owners("shared") == [0]
    assert owners("grouped:2") == [0, 3, 5]


def test_conversion_refuses_what_does_not_fit_and_lists_it_all() -> None:
    state = training_state("1sf:1sf")
    del state["head.norm.bias"]
    state["encoder.full_sublayers.1.linear_fc3.weight"] = torch.zeros(1)
    state["encoder.narrow_kv.linear.weight"] = torch.zeros(3 * HIDDEN, HIDDEN)
    with pytest.raises(ValueError, match="missing") as error:
        to_transformers(state, tiny_config("1sf:1sf"))
    assert "missing: head.norm.bias" in str(error.value)
    assert "unexpected: encoder.full_sublayers.1.linear_fc3.weight" in str(error.value)
    assert "shape of encoder.narrow_kv.linear.weight: [96, 32], expected [64, 32]" in str(error.value)
    with pytest.raises(ValueError, match=r"unexpected: encoder\.narrow_sublayers"):
        to_transformers(training_state("1sf:1sf"), tiny_config("2sf"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_attention_heads": 5, "hidden_size": 32}, "32 is not a multiple of 5"),
        ({"normalization": "both"}, "normalization is 'both', expected one of post, pre"),
        ({"skip_first_norm": True}, "skip_first_norm needs normalization 'pre'"),
        ({"attention_window": 3}, "attention_window is 3, expected an even number"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"position_embedding_type": "rope", "num_attention_heads": 32, "hidden_size": 32}, "even head size, it is 1"),
        ({"narrow_kv": "grouped:0"}, "'grouped:0' is none of per_layer, shared, grouped:N"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        NarrowBertConfig(**options)


def test_back_conversion_takes_tied_copies_only_if_they_are_equal() -> None:
    state = dict(tiny_model("1sf:1sf").state_dict())
    assert "head.bias" in from_transformers(state, tiny_config("1sf:1sf"))
    del state["bert.encoder.layer.0.attention.self.key.bias"]
    with pytest.raises(ValueError, match=r"missing: bert\.encoder\.layer\.0\.attention\.self\.key\.bias"):
        from_transformers(state, tiny_config("1sf:1sf"))
    state = dict(tiny_model("1sf:1sf").state_dict())
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    with pytest.raises(ValueError, match=r"tied to: cls.predictions.decoder.weight"):
        from_transformers(state, tiny_config("1sf:1sf"))


# --- the folder -----------------------------------------------------------------------------------


def model_config(layout: str, **options: Any) -> dict[str, Any]:
    return dataclasses.asdict(ModelConfig()) | {
        "layout": layout,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "ffn_hidden_size": INNER,
        "max_position_embeddings": 16,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.2,
        "layernorm_epsilon": 1e-12,
        "init_method_std": 0.02,
        "vocab_size": VOCABULARY,
        **options,
    }


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


def export(output: Path, tokenizer_path: Path, layout: str = "1sf 1s:1f 2sf", **changes: object) -> Path:
    arguments: dict[str, object] = {
        "model_config": model_config(layout),
        "tokenizer_path": tokenizer_path,
        "special_ids": SPECIAL_IDS,
        "facts": {"layout": layout, "validation loss": 1.25, "odd | name": "two\nlines"},
        "output": output,
    }
    state = changes.pop("state", None) or training_state(layout)
    write_export(state, **(arguments | changes))  # type: ignore[arg-type]
    return output


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    return export(tmp_path_factory.mktemp("export") / "tiny", tokenizer_path)


def test_the_folder_holds_what_it_should(exported: Path, tokenizer_path: Path) -> None:
    assert sorted(p.name for p in exported.iterdir()) == [
        "README.md",
        "config.json",
        "configuration_narrowbert.py",
        "model.safetensors",
        "modeling_narrowbert.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [p.name for p in exported.parent.iterdir()] == ["tiny"]  # no temporary folder is left
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_narrowbert.NarrowBertConfig",
        "AutoModel": "modeling_narrowbert.NarrowBertModel",
        "AutoModelForMaskedLM": "modeling_narrowbert.NarrowBertForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_narrowbert.NarrowBertForQuestionAnswering",
        "AutoModelForSequenceClassification": "modeling_narrowbert.NarrowBertForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_narrowbert.NarrowBertForTokenClassification",
    }
    expected = {"model_type": "narrowbert", "mask_token_id": 4, "attention_probs_dropout_prob": 0.2}
    assert expected.items() <= config.items()
    assert (exported / "tokenizer.json").read_bytes() == tokenizer_path.read_bytes()
    with safe_open(exported / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    state, layout = load_file(exported / "model.safetensors"), config["layout"]
    back = from_transformers(state, tiny_config(layout))
    assert all(back[name].equal(tensor) for name, tensor in training_state(layout).items())
    card = (exported / "README.md").read_text()
    assert "| validation loss | 1.25 |" in card
    assert "| odd \\| name | two lines |" in card


def test_an_export_for_embeddings_says_how_they_are_pooled(tmp_path: Path, tokenizer_path: Path) -> None:
    for pooling in ("cls", "mean"):
        assert pooling_of(export(tmp_path / pooling, tokenizer_path, "1sf:1sf", pooling=pooling)) == pooling
    assert pooling_of(export(tmp_path / "none", tokenizer_path, "1sf:1sf")) is None
    path = tmp_path / "cls/sentence_bert_config.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"sentence_bert_config.json is damaged, it is no JSON"):
        pooling_of(tmp_path / "cls")


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),  # of this and earlier versions
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),  # of sentence-transformers 6
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_read_in_every_form(tmp_path: Path, modes: dict[str, Any], pooling: str) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 8, **modes}))
    assert pooling_of(tmp_path) == pooling


def test_auto_classes_load_it_with_every_key(exported: Path) -> None:
    model, info = AutoModelForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert type(model) is NarrowBertForMaskedLM
    assert not any(info.values())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    base = AutoModel.from_pretrained(exported)
    assert type(base) is NarrowBertModel
    ids, _ = batch(12)
    with torch.no_grad():
        assert base(ids).last_hidden_state.equal(model.bert(ids).last_hidden_state)


def test_save_and_load_gives_equal_logits_and_carries_the_code(exported: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(exported)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ids, mask = batch(12, 7)
    with torch.no_grad():
        assert again(ids, attention_mask=mask).logits.equal(model(ids, attention_mask=mask).logits)
    for name in ("configuration_narrowbert.py", "modeling_narrowbert.py"):
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == again.config.auto_map


def test_the_tokenizer_is_the_shards_own(exported: Path, tokenizer_path: Path) -> None:
    tokenizer, own = AutoTokenizer.from_pretrained(exported), Tokenizer.from_file(str(tokenizer_path))
    for text in ("The CAFÉ cats, running!", "", "a [MASK] dog", "naïve   end"):
        assert tokenizer(text)["input_ids"] == own.encode(text).ids
    assert tokenizer("cat", "dog")["token_type_ids"] == own.encode("cat", "dog").type_ids
    for role, number in SPECIAL_IDS.items():
        assert getattr(tokenizer, f"{role}_token_id") == number
    assert tokenizer.model_max_length == 16
    assert len(tokenizer(" cat" * 50, truncation=True)["input_ids"]) == 16
    assert tokenizer.init_kwargs["do_lower_case"] is True


FILL_MASK = """
import sys
{preamble}
from transformers import pipeline
fill = pipeline("fill-mask", model=sys.argv[1]{argument})
one, two = fill(["The cat sat on the [MASK].", "The [MASK] [MASK] ran"], batch_size=1)
assert "{module}" in type(fill.model).__module__, type(fill.model).__module__
assert len(one) == 5 and len(two) == 2 and one[0]["score"] >= one[1]["score"]
print([(p["token"], p["score"]) for p in one])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preamble", "argument", "module"),
    [
        ("", ", trust_remote_code=True", "transformers_modules"),
        ("import pipeline.export", "", "pipeline.export"),
    ],
    ids=["remote code", "registered"],
)
def test_fill_mask_in_a_fresh_process(
    exported: Path, tmp_path: Path, preamble: str, argument: str, module: str
) -> None:
    moved = shutil.copytree(exported, tmp_path / "moved")  # the folder is all that is needed
    script = FILL_MASK.format(preamble=preamble, argument=argument, module=module)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(moved)],
        env=os.environ | environment,
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    predicted = eval(done.stdout.strip().splitlines()[-1])

    model = NarrowBertForMaskedLM.from_pretrained(exported)
    ids = AutoTokenizer.from_pretrained(exported)("The cat sat on the [MASK].", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        everything = model(ids, narrow_positions=torch.arange(ids.shape[1]).unsqueeze(0)).logits
    scores, tokens = everything[ids == MASK].softmax(-1).topk(5)
    assert [token for token, _ in predicted] == tokens[0].tolist()
    assert [score for _, score in predicted] == pytest.approx(scores[0].tolist(), abs=1e-5)


def test_bf16_parameters_are_exported_in_fp32(tmp_path: Path, tokenizer_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in training_state("1sf:1sf").items()}
    folder = export(tmp_path / "out", tokenizer_path, "1sf:1sf", state=state)
    weights = load_file(folder / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert weights["cls.predictions.bias"].equal(state["head.bias"].float())


def test_existing_folders(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").write_text("me")
    (tmp_path / "file").write_text("me")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="is not an empty folder"):
            export(tmp_path / name, tokenizer_path)
    assert (tmp_path / "full" / "keep").read_text() == "me"
    (tmp_path / "empty").mkdir()
    assert (export(tmp_path / "empty", tokenizer_path, "1sf") / "config.json").exists()
    assert (export(tmp_path / "new" / "deeper", tokenizer_path, "1sf") / "config.json").exists()


def test_a_refused_export_leaves_nothing(tmp_path: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, error: type[Exception] = ValueError, **changes: object) -> None:
        with pytest.raises(error, match=match):
            export(tmp_path / "out", tokenizer_path, "1sf:1sf", **changes)
        assert not list(tmp_path.iterdir())

    state = training_state("1sf:1sf")
    refused("missing: head.bias", state={n: t for n, t in state.items() if n != "head.bias"})
    refused("unknown to the export: convolution", model_config=model_config("1sf:1sf", convolution=3))
    config = model_config("1sf:1sf") | {"vocab_size": VOCABULARY + 1}  # the weights have one word fewer
    refused("shape of embeddings.word_embeddings.weight", model_config=config)
    refused("another model's", UserError, special_ids=SPECIAL_IDS | {"mask": 44})
    refused("does not put", UserError, special_ids=SPECIAL_IDS | {"cls": 3, "sep": 2})
    config = model_config("1sf:1sf") | {"vocab_size": 10}
    refused("it is another's", UserError, model_config=config)

    def lossy(state: dict[str, torch.Tensor], config: NarrowBertConfig) -> dict[str, torch.Tensor]:
        return {n: t for n, t in to_transformers(state, config).items() if "fc" not in n and "query" not in n}

    def rotted(weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file({n: t + (n == "cls.predictions.bias") for n, t in weights.items()}, path, metadata)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.export.folder.save_file", rotted)
        refused(r"different: cls\.predictions\.bias$")
    monkeypatch.setattr("pipeline.export.folder.to_transformers", lossy)
    refused("lacks .*bert.encoder.layer.0.attention.self.query.weight")


@pytest.mark.parametrize(
    "make",
    [
        lambda output: export_run(Path("nowhere"), output),
        lambda output: export_pretrained(
            Path("nowhere"), output, layout=None, tokenizer_path=None, allow=[], pooling=None
        ),
    ],
)
def test_a_place_that_cannot_be_taken_is_refused_before_the_model_is_read(
    make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    for output, expected in [
        (".", "is the folder that you stand in, and would be replaced: name another, such as model"),
        ("../here", r"such as \.\./here/model"),
        ("..", "is not an empty folder"),
        ("../file/model", "the folder of the export .* cannot be written"),
    ]:
        with pytest.raises(UserError, match=expected):
            make(Path(output))
