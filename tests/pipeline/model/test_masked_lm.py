"""The training model against transformers' BERT, the exported model, and itself."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from pipeline.config import ModelConfig
from pipeline.export import NarrowBertConfig
from pipeline.export.names import CONFIG_NAMES, to_transformers
from pipeline.model.attention import dot_product_attention
from pipeline.model.masked_lm import NarrowBertForPretraining

VOCAB, LENGTH, MASKED, ROWS = 97, 24, 5, 6


def build(layout: str, **options: float) -> NarrowBertForPretraining:
    torch.manual_seed(3)
    values = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "init_method_std": 0.2} | options
    config = ModelConfig(
        layout=layout, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, max_position_embeddings=LENGTH,
        **values,  # type: ignore[arg-type]
    )  # fmt: skip
    model = NarrowBertForPretraining(config, VOCAB)
    with torch.no_grad():  # initialised biases and norms are zeros and ones: errors there would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def exported_config(model: NarrowBertForPretraining) -> NarrowBertConfig:
    values = {theirs: getattr(model.config, ours, VOCAB) for ours, theirs in CONFIG_NAMES.items()}
    return NarrowBertConfig(**values, mask_token_id=4)


def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([LENGTH, LENGTH - 7, LENGTH, LENGTH - 3, LENGTH, LENGTH - 11])
    positions = torch.stack([torch.randperm(int(n), generator=generator)[:MASKED].sort().values for n in lengths])
    label_mask = torch.ones(ROWS, MASKED, dtype=torch.bool)
    label_mask[1, 3:] = False
    padding = torch.arange(LENGTH) >= lengths[:, None]
    return {
        "input_ids": torch.randint(1, VOCAB, (ROWS, LENGTH), generator=generator).masked_fill(padding, 0),
        "narrow_positions": positions,
        "key_mask": (torch.arange(LENGTH) < lengths[:, None])[:, None, None, :],
        "labels": torch.randint(0, VOCAB, (ROWS, MASKED), generator=generator),
        "label_mask": label_mask,
    }


def test_12sf_equals_transformers_bert_in_logits_and_gradients() -> None:
    model, batch = build("3sf"), rows()
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        )
    )  # fmt: skip
    config = exported_config(model)
    theirs = to_transformers(dict(model.named_parameters()), config)
    missing, unexpected = bert.load_state_dict({k: v.detach() for k, v in theirs.items()}, strict=False)
    assert not unexpected
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    bert.tie_weights()

    labels = torch.full((ROWS, LENGTH), -100)
    real = batch["label_mask"]
    labels[torch.arange(ROWS).unsqueeze(1).expand_as(real)[real], batch["narrow_positions"][real]] = batch["labels"][
        real
    ]
    expected = bert(input_ids=batch["input_ids"], attention_mask=batch["key_mask"][:, 0, 0].long(), labels=labels)
    logits = model.logits(batch["input_ids"], batch["narrow_positions"], batch["key_mask"])
    picked = expected.logits.gather(1, batch["narrow_positions"].unsqueeze(-1).expand(-1, -1, VOCAB))
    assert (logits - picked).abs().max() < 1e-5

    loss = model(**batch).loss_sum / real.sum()
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    bert_gradients = {n: p.grad for n, p in bert.named_parameters()}
    for name, gradient in to_transformers(gradients, config).items():
        assert bert_gradients[name] is not None
        assert (gradient - bert_gradients[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("layout", ["2sf:2sf", "sf 2s:2f"])
def test_padding_cannot_be_seen(layout: str) -> None:
    model, batch = build(layout).eval(), rows()
    changed = dict(batch, input_ids=batch["input_ids"].where(batch["key_mask"][:, 0, 0], 1))
    assert torch.allclose(model(**batch).loss_sum, model(**changed).loss_sum, atol=1e-6)


def test_slots_without_a_label_do_not_count() -> None:
    model, batch = build("sf:sf").eval(), rows()
    changed = dict(batch, labels=batch["labels"].where(batch["label_mask"], 0))
    a, b = model(**batch, count_correct=True), model(**changed, count_correct=True)
    assert a.loss_sum == b.loss_sum
    assert a.num_correct == b.num_correct


def test_initialisation_is_berts() -> None:
    torch.manual_seed(0)
    config = ModelConfig(layout="sf:sf", hidden_size=64, num_attention_heads=4, ffn_hidden_size=256)
    model = NarrowBertForPretraining(config, 500)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name
        elif parameter.ndim == 1:
            assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name


def test_megatrons_initialisation_cuts_off_and_scales_output_projections_by_depth() -> None:
    torch.manual_seed(0)
    options = {"initialization": "megatron", "hidden_size": 128, "ffn_hidden_size": 512}
    model = NarrowBertForPretraining(ModelConfig(layout="2sf s:f 5sf", num_attention_heads=4, **options), 2000)
    outputs = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.numel() > 1000:
            is_output = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            outputs += is_output
            std = 0.02 / 4 if is_output else 0.02  # 8 attention sublayers: sqrt(2 * 8) = 4
            assert parameter.abs().max() <= 3 * std, name
            assert parameter.std().item() == pytest.approx(0.9866 * std, rel=0.02), name  # of what is cut off at 3
    assert outputs == 16


@pytest.mark.parametrize("output_dropout", [None, 0.0, 0.25])
def test_dropout_of_attentions_output_is_that_of_its_sublayers_alone(output_dropout: float | None) -> None:
    model = build("sf w:sf", hidden_dropout=0.125, attention_output_dropout=output_dropout)
    dropouts = {type(module).__name__: module.dropout.p for module in model.modules() if hasattr(module, "dropout")}
    of_attention = 0.125 if output_dropout is None else output_dropout
    assert dropouts == {
        "Embeddings": 0.125, "FullAttention": of_attention, "NarrowAttention": of_attention, "FeedForward": 0.125,
    }  # fmt: skip


def test_dropout_acts_in_training_only() -> None:
    model, batch = build("sf:sf", hidden_dropout=0.3, attention_dropout=0.3), rows()
    assert model(**batch).loss_sum != model(**batch).loss_sum
    model.eval()
    assert model(**batch).loss_sum == model(**batch).loss_sum


@pytest.mark.parametrize("masked", [False, True])
def test_bf16_attention_on_cpu_equals_the_fused_kernel_in_fp32(masked: bool) -> None:
    # bf16 takes another path on CPU; both must compute the same function.
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(3, 4, 5, 16, generator=generator).bfloat16()
    k, v = (torch.randn(3, 4, 9, 16, generator=generator).bfloat16() for _ in range(2))
    mask = (torch.arange(9) < torch.tensor([9, 4, 7])[:, None])[:, None, None, :] if masked else None
    mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if mask is not None else None
    narrow_mask = mask.bfloat16() if mask is not None else None
    expected = dot_product_attention(q.float(), k.float(), v.float(), mask, 0.0)
    assert (dot_product_attention(q, k, v, narrow_mask, 0.0).float() - expected).abs().max() < 0.03
    assert not torch.allclose(expected, dot_product_attention(q.float(), k.float(), v.float().flip(2), mask, 0.0))
