"""The exported classes as users meet them: parity with BERT, defaults, and what transformers asks of an encoder.

The second half is transformers' own common tests of models, for an encoder, over all five classes.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.export import (
    AUTO_CLASSES,
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)
from tests.tiny_exports import (
    HEADS,
    HIDDEN,
    INNER,
    LAYOUTS,
    LENGTH,
    NARROW_LAYOUTS,
    VOCABULARY,
    assert_close,
    batch,
    shaken,
    tiny_config,
)

CLASSES = list(AUTO_CLASSES.values())
HEADED = [c for c in CLASSES if c is not NarrowBertModel]
LABELS = 3

each_class = pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
each_head = pytest.mark.parametrize("model_class", HEADED, ids=lambda c: c.__name__)


def build(model_class: Any, layout: str = "2sf:2sf", **options: Any) -> Any:
    labels = 2 if model_class is NarrowBertForQuestionAnswering else LABELS
    return shaken(model_class, tiny_config(layout, **{"num_labels": labels, **options}))


def labels_for(model_class: Any) -> dict[str, torch.Tensor]:
    """Labels of three rows."""
    if model_class is NarrowBertForQuestionAnswering:
        return {"start_positions": torch.tensor([1, 3, 0]), "end_positions": torch.tensor([4, 3, 99])}
    if model_class is NarrowBertForSequenceClassification:
        return {"labels": torch.tensor([0, 2, 1])}
    labels = torch.full((3, LENGTH), -100)
    labels[0, [1, 5, 6]], labels[1, 2], labels[2, [0, 8]] = 1, 2, torch.tensor([0, 2])
    return {"labels": labels}


def first_output(outputs: Any) -> torch.Tensor:
    return outputs[0]


# --- parity with transformers' BERT -----------------------------------------------------------------


def bert_twin(ours: nn.Module, name: str, **options: Any) -> Any:
    bert = getattr(transformers, name.replace("NarrowBert", "Bert"))(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=HEADS,
            intermediate_size=INNER, max_position_embeddings=16, num_labels=ours.config.num_labels, **options,
        )
    ).eval()  # fmt: skip
    assert list(bert.state_dict()) == list(ours.state_dict())
    bert.load_state_dict(ours.state_dict())
    return bert


@each_head
def test_heads_of_the_bert_layout_equal_berts(model_class: Any) -> None:
    ours = build(model_class, "3sf")
    bert = bert_twin(ours, model_class.__name__)
    ids, mask = batch(12, 7, 9)
    types = (torch.arange(LENGTH) > 4).long().expand(3, -1)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    with torch.no_grad():
        expected, found = bert(**inputs), ours(**inputs)
        for name in ("logits", "start_logits", "end_logits"):
            if name in expected:
                # What stands at padding has no meaning.
                keep = mask.bool() if expected[name].dim() > 1 and expected[name].shape[1] == LENGTH else ...
                assert_close(found[name][keep], expected[name][keep])
        if model_class is NarrowBertForQuestionAnswering:  # whose loss has no place for padding, unlike BERT's
            del inputs["attention_mask"]
        labels = labels_for(model_class)
        assert_close(ours(**inputs, **labels).loss, bert(**inputs, **labels).loss)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])),
        ("regression", torch.tensor([[1.5, 0, 1], [0, -2, 0], [0, 1, 0.25]])),
        ("single_label_classification", torch.tensor([2, 0, 1])),
    ],
)
def test_losses_of_sequence_classification_equal_berts(problem: str | None, labels: torch.Tensor) -> None:
    ours = build(NarrowBertForSequenceClassification, "3sf", problem_type=problem)
    bert = bert_twin(ours, "BertForSequenceClassification", problem_type=problem)
    ids, mask = batch(12, 7, 9)
    with torch.no_grad():
        loss = ours(ids, attention_mask=mask, labels=labels).loss
        assert_close(loss, bert(ids, attention_mask=mask, labels=labels).loss)


def test_one_label_is_regression() -> None:
    ours = build(NarrowBertForSequenceClassification, num_labels=1)
    ids, mask = batch(12, 7)
    with torch.no_grad():
        out = ours(ids, attention_mask=mask, labels=torch.tensor([0.5, -1.0]))
    assert_close(out.loss, (out.logits[:, 0] - torch.tensor([0.5, -1.0])).square().mean())


# --- the narrow sets of the heads --------------------------------------------------------------------


@pytest.mark.parametrize("layout", NARROW_LAYOUTS)
def test_classification_computes_cls_alone(layout: str) -> None:
    model = build(NarrowBertForSequenceClassification, layout)
    ids, mask = batch(12, 7, 9)
    with torch.no_grad():
        everything = model.bert(ids, attention_mask=mask).last_hidden_state
        expected = model.classifier(model.bert.pooler(everything[:, 0]))
        assert_close(model(ids, attention_mask=mask).logits, expected)
        rows = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1].shape[1]
    assert rows == 1


def test_cls_of_rows_that_are_padded_on_the_left() -> None:
    model = build(NarrowBertForSequenceClassification)
    ids, mask = batch(12, 7, 9)
    shifts = LENGTH - mask.sum(1)
    rolled = [torch.stack([row.roll(int(n)) for row, n in zip(x, shifts, strict=True)]) for x in (ids, mask)]
    places = (rolled[1].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        assert_close(model(rolled[0], attention_mask=rolled[1], position_ids=places).logits, expected)


def test_tagging_computes_the_labelled_positions_and_else_all() -> None:
    model = build(NarrowBertForTokenClassification)
    ids, mask = batch(12, 7, 9)
    labels = labels_for(NarrowBertForTokenClassification)["labels"]
    positions = torch.tensor([[0, 3], [6, 1], [2, 2]])
    with torch.no_grad():
        everything = model(ids, attention_mask=mask).logits
        assert_close(everything, model.classifier(model.bert(ids, attention_mask=mask).last_hidden_state))
        labelled = model(ids, attention_mask=mask, labels=labels)
        chosen = model(ids, attention_mask=mask, narrow_positions=positions).logits
    assert_close(labelled.logits[labels != -100], everything[labels != -100])
    assert not labelled.logits[labels == -100].any()
    expected = nn.functional.cross_entropy(everything.flatten(0, 1), labels.flatten())
    assert_close(labelled.loss, expected)
    assert_close(chosen, everything.gather(1, positions.unsqueeze(-1).expand(-1, -1, LABELS)))


def test_answers_are_sought_at_all_positions() -> None:
    model = build(NarrowBertForQuestionAnswering)
    ids, mask = batch(12, 7)
    with torch.no_grad():
        out = model(ids, attention_mask=mask)
        rows = model.qa_outputs(model.bert(ids, attention_mask=mask).last_hidden_state)
    scores = torch.stack((out.start_logits, out.end_logits), -1)
    assert_close(scores[mask.bool()], rows[mask.bool()])
    assert (scores[mask == 0] == torch.finfo(scores.dtype).min).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cls_states_are_those_of_cls_alone(layout: str) -> None:
    model = build(NarrowBertModel, layout)
    ids, mask = batch(12, 7)
    rows = []
    model.encoder_narrow.register_forward_hook(lambda module, inputs, output: rows.append(output.numel() // HIDDEN))
    with torch.no_grad():
        found = model.cls_states(ids, mask)
        assert_close(found, model(ids, attention_mask=mask).last_hidden_state[:, 0])
        assert_close(model.cls_states(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask), found)
        left = model.cls_states(ids.flip(1), mask.flip(1))  # padded on the left: the last token comes first
    last = model(ids, attention_mask=mask, position_ids=torch.arange(LENGTH).flip(0).unsqueeze(0))
    assert_close(left, torch.stack([last.last_hidden_state[0, 11], last.last_hidden_state[1, 6]]))
    assert rows[0] == len(ids)
    with pytest.raises(ValueError, match="exactly one of"):
        model.cls_states()


# --- checkpoints -----------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("layout", ["3sf", "2sf:2sf"])
def test_save_and_load_keeps_every_key(model_class: Any, layout: str, tmp_path: Path) -> None:
    model = build(model_class, layout)
    model.save_pretrained(tmp_path)
    auto = next(name for name, c in AUTO_CLASSES.items() if c is model_class)
    again, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is model_class
    assert not any(info.values())
    ids, mask = batch(12, 7)
    with torch.no_grad():
        assert first_output(again(ids, attention_mask=mask)).equal(first_output(model(ids, attention_mask=mask)))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"][auto] == f"modeling_narrowbert.{model_class.__name__}"


@each_class
def test_a_checkpoint_that_lacks_a_tensor_is_refused(model_class: Any, tmp_path: Path) -> None:
    build(model_class).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in (next(n for n in weights if "encoder_narrow" in n), next(iter(weights)), list(weights)[-1]):
        save_file({n: w for n, w in weights.items() if n != name}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks .*{name}"):
            model_class.from_pretrained(tmp_path)


@each_head
def test_only_a_whole_new_head_may_be_missing(model_class: Any, tmp_path: Path) -> None:
    pretrained = build(NarrowBertForMaskedLM)
    pretrained.save_pretrained(tmp_path)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    new = {n for n in model.state_dict() if not n.startswith(("bert.", "cls.")) or n.startswith("bert.pooler.")}
    assert set(info["missing_keys"]) == new
    assert not info["unexpected_keys"]
    ids, mask = batch(12, 7)
    with torch.no_grad():
        expected = pretrained.bert(ids, attention_mask=mask).last_hidden_state
        assert model.bert(ids, attention_mask=mask).last_hidden_state.equal(expected)


def test_a_classifier_of_another_size_is_new_when_asked_for(tmp_path: Path) -> None:
    build(NarrowBertForSequenceClassification).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        NarrowBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model = NarrowBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (5, HIDDEN)


# --- transformers' common tests of an encoder -------------------------------------------------------


@each_class
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_embeds_equal_input_ids(model_class: Any, layout: str) -> None:
    model = build(model_class, layout)
    ids, mask = batch(12, 7, 9)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = first_output(model(ids, attention_mask=mask))
        found = first_output(model(inputs_embeds=embeds, attention_mask=mask))
    keep = mask.bool() if found.shape[1] == LENGTH else ...  # what stands at padding has no meaning
    assert_close(found[keep], expected[keep])


@each_class
def test_results_are_deterministic_and_padding_changes_none(model_class: Any) -> None:
    model = build(model_class)
    ids, mask = batch(12, 7, 9)
    with torch.no_grad():
        out = first_output(model(ids, attention_mask=mask))
        assert out.equal(first_output(model(ids, attention_mask=mask)))
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = first_output(model(ids[row : row + 1, :length]))[0]
            assert_close(out[row][: len(alone)], alone)


@each_class
def test_resized_embeddings_keep_the_old_rows(model_class: Any) -> None:
    model = build(model_class)
    ids, mask = batch(12, 7)
    with torch.no_grad():
        before = first_output(model(ids, attention_mask=mask))
        old = model.get_input_embeddings().weight.clone()
        model.resize_token_embeddings(VOCABULARY + 5)
        assert model.config.vocab_size == VOCABULARY + 5
        assert model.get_input_embeddings().weight[:VOCABULARY].equal(old)
        after = first_output(model(ids, attention_mask=mask))
        ids[0, 3] = VOCABULARY + 4
        assert first_output(model(ids, attention_mask=mask)).isfinite().all()
    if model_class is NarrowBertForMaskedLM:
        assert after.shape[-1] == VOCABULARY + 5
        assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
        after = after[..., :VOCABULARY]
    assert_close(after, before)


def test_tied_weights_are_one_tensor_and_saved_once(tmp_path: Path) -> None:
    model = build(NarrowBertForMaskedLM)
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    again = NarrowBertForMaskedLM.from_pretrained(tmp_path)
    assert again.cls.predictions.decoder.weight is again.get_input_embeddings().weight
    assert copy.deepcopy(again).get_output_embeddings().weight.shape == (VOCABULARY, HIDDEN)


@each_class
def test_new_weights_have_the_initial_spread(model_class: Any) -> None:
    torch.manual_seed(0)
    model = model_class(tiny_config("2sf:2sf", num_labels=LABELS, initializer_range=1e-10))
    for name, parameter in model.named_parameters():
        # As transformers tests it: with hardly any spread every parameter is 0, norms' weights are 1.
        expected = 1.0 if "LayerNorm.weight" in name else 0.0
        assert (parameter - expected).abs().max() < 1e-8, name


@each_class
def test_hidden_states_and_attentions_keep_gradients(model_class: Any) -> None:
    model = build(model_class)
    model.set_attn_implementation("eager")
    ids, mask = batch(12, 7, 9)
    out = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 5
    assert len(out.attentions) == 4
    for tensor in (out.hidden_states[0], out.attentions[0]):
        tensor.retain_grad()
    first_output(out).flatten()[5].backward()  # the first of a vocabulary is [PAD], whose embedding stays 0
    assert out.hidden_states[0].grad.any()
    assert out.attentions[0].grad.any()
    for attention in out.attentions:
        assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


@each_class
def test_attentions_without_eager_attention_are_refused(model_class: Any) -> None:
    with pytest.raises(ValueError, match="output_attentions needs eager attention"):
        build(model_class)(batch(12)[0], output_attentions=True)


@each_head
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model_class: Any, use_reentrant: bool) -> None:
    ids, mask = batch(12, 7, 9)
    gradients = []
    for checkpointed in (False, True):
        model = build(model_class, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(ids, attention_mask=mask, **labels_for(model_class)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        assert plain is not None, name  # what gets no gradient stops DistributedDataParallel
        assert_close(gradients[1][name], plain)


@each_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model_class: Any, dtype: torch.dtype) -> None:
    model = build(model_class, initializer_range=0.1)
    ids, mask = batch(12, 7, 9)
    with torch.no_grad():
        expected = first_output(model(ids, attention_mask=mask))
        found = first_output(model.to(dtype)(ids, attention_mask=mask))
    assert found.dtype == dtype
    keep = mask.bool() if found.shape[1] == LENGTH else ...
    assert_close(found.float()[keep], expected[keep], 0.1)


@each_class
@pytest.mark.long
def test_compiles_without_graph_breaks(model_class: Any) -> None:
    model = build(model_class)
    ids, mask = batch(12, 7, 9)
    inputs: dict[str, Any] = {"attention_mask": mask}
    if model_class is NarrowBertForMaskedLM:  # its own choice depends on the data
        inputs["narrow_positions"] = torch.tensor([[1, 2], [3, 4], [5, 6]])
    with torch.no_grad():
        expected = first_output(model(ids, **inputs))
        found = first_output(torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")(ids, **inputs))
    keep = mask.bool() if found.shape[1] == LENGTH else ...
    assert_close(found[keep], expected[keep])


@each_head
def test_training_learns_a_batch(model_class: Any) -> None:
    model = build(model_class, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, mask = batch(12, 7, 9)
    losses = []
    for _ in range(12):
        loss = model(ids, attention_mask=mask, **labels_for(model_class)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@each_head
def test_accumulated_steps_of_the_trainer_are_those_of_the_whole_batch(model_class: Any, tmp_path: Path) -> None:
    """transformers' Trainer asks a model whether its loss is divided already."""
    ids, mask = batch(12, 7, 9)
    labels = labels_for(model_class)  # rows of three labels and of one: tokens weigh alike, not rows
    examples = [
        {"input_ids": ids[i], "attention_mask": mask[i], **{k: v[i] for k, v in labels.items()}} for i in (0, 1)
    ]
    weights = []
    for size in (2, 1):
        model = build(model_class, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=2 // size, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, report_to=[],
            save_strategy="no", disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        transformers.Trainer(model=model, args=arguments, train_dataset=examples).train()  # type: ignore[arg-type]
        weights.append(model.state_dict())
    start = build(model_class).state_dict()
    assert any((weights[0][name] - start[name]).abs().max() > 1e-4 for name in start)
    for name, whole in weights[0].items():
        assert_close(weights[1][name], whole)


def test_flash_attention_meets_full_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' flash function itself needs a GPU; this one checks what it is given, and answers the same."""
    calls = []

    def flash(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        assert query.shape == key.shape
        assert mask.shape == (3, LENGTH)
        calls.append(module)
        allowed = mask.bool()[:, None, None]
        context = nn.functional.scaled_dot_product_attention(query, key, value, allowed, scale=options["scaling"])
        return context.transpose(1, 2), None

    model = build(NarrowBertModel)
    ids, mask = batch(12, 7, 9)
    positions = torch.arange(LENGTH).flip(0).expand(3, -1)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, narrow_positions=positions).last_hidden_state
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
        model.config._attn_implementation = "flash_attention_2"
        model.unpad = False
        found = model(ids, attention_mask=mask, narrow_positions=positions).last_hidden_state
    assert_close(found[mask.flip(1).bool()], expected[mask.flip(1).bool()])
    assert len(calls) == 2
    model.config.position_embedding_type = "alibi"
    with pytest.raises(ValueError, match="no place for alibi"):
        model(ids)
