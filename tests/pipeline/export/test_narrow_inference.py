"""Few narrow rows folded, and batches without their padding: equal to the plain computation, and cheaper.

In fp64, so that "equal to rounding" leaves an error nowhere to hide.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from pipeline.export import NarrowBertForSequenceClassification, NarrowBertModel
from pipeline.export import modeling_narrowbert as modeling
from tests.tiny_exports import HEADS, HIDDEN, LENGTH, VOCABULARY, assert_close, batch, shaken, tiny_config

EXACT = 1e-9


@pytest.fixture(autouse=True, scope="module")
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(layout: str, **options: Any) -> NarrowBertModel:
    return shaken(NarrowBertModel, tiny_config(layout, **options))


OPTIONS = st.fixed_dictionaries(
    {
        "normalization": st.sampled_from(["post", "pre"]),
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
        "position_embedding_type": st.sampled_from(["absolute", "rope", "alibi"]),
        "hidden_act": st.sampled_from(["gelu", "swiglu"]),
        "bias": st.booleans(),
        "narrow_kv": st.sampled_from(["per_layer", "shared", "grouped:2"]),
    }
)
NARROW = st.sampled_from(["2sf:3sf", ":2sf", "1sf 1s:1f 2sf", "1sf:3s", "s:2sf"])


# --- folding ----------------------------------------------------------------------------------------


def folded_and_not(model: NarrowBertModel, *inputs: Any, **options: Any) -> list[Any]:
    results = []
    for fold in (True, False):
        model.encoder_narrow.fold = fold
        results.append(model(*inputs, **options))
    return results


@settings(max_examples=40, deadline=None)
@given(NARROW, OPTIONS, st.integers(1, 4), st.sampled_from(["sdpa", "eager"]), st.booleans())
def test_folded_rows_equal_unfolded_ones(
    layout: str, options: dict[str, Any], num_narrow: int, attention: str, unpad: bool
) -> None:
    if options["position_embedding_type"] == "rope":
        options["position_embedding_type"] = "absolute"
    model = build(layout, **options)
    model.set_attn_implementation(attention)
    model.unpad = unpad
    ids, mask = batch(12, 7, 9)
    positions = torch.randint(0, 7, (3, num_narrow), generator=torch.Generator().manual_seed(num_narrow))
    with torch.no_grad():
        folded, plain = folded_and_not(model, ids, attention_mask=mask, narrow_positions=positions)
        assert_close(folded.last_hidden_state, plain.last_hidden_state, EXACT)
        folded, plain = folded_and_not(model, ids, narrow_positions=positions)
        assert_close(folded.last_hidden_state, plain.last_hidden_state, EXACT)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_and_attentions_of_folded_rows_equal_unfolded_ones(dropout: float) -> None:
    ids, mask = batch(12, 7, 9)
    seen = []
    for fold in (True, False):
        model = build("1sf:3sf", hidden_dropout_prob=0.0, attention_probs_dropout_prob=dropout).train()
        model.set_attn_implementation("eager")  # which draws its dropout over the same weights
        model.encoder_narrow.fold = fold
        torch.manual_seed(3)
        out = model(
            ids, attention_mask=mask, narrow_positions=torch.zeros(3, 1, dtype=torch.long), output_attentions=True
        )
        out.last_hidden_state.square().sum().backward()
        seen.append((out, {n: p.grad for n, p in model.named_parameters()}))
    (folded, gradients), (plain, expected) = seen
    for one, other in zip(folded.attentions, plain.attentions, strict=True):
        assert_close(one, other, EXACT)
    for name, gradient in expected.items():
        assert gradients[name] is not None, name
        assert_close(gradients[name], gradient, 1e-7)  # type: ignore[arg-type]


def flops(model: nn.Module, *inputs: Any, **options: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("narrow_kv", ["per_layer", "shared", "grouped:2"])
@pytest.mark.parametrize("length", [4, 12])
def test_folding_is_chosen_where_it_takes_fewer_flops(narrow_kv: str, length: int) -> None:
    model = build("1sf:4sf", narrow_kv=narrow_kv, bias=False)
    model.set_attn_implementation("eager")  # whose products are counted
    ids = batch(12)[0][:, :length]
    chosen = []
    for num_narrow in range(1, length + 1):
        positions = torch.zeros(1, num_narrow, dtype=torch.long)
        counts = []
        for fold in (True, False, None):
            model.encoder_narrow.fold = fold
            counts.append(flops(model, ids, narrow_positions=positions))
        assert counts[2] == min(counts[:2]), num_narrow
        chosen.append(counts[0] < counts[1])
    assert chosen[0] == (narrow_kv != "shared" or length == 12)
    assert not chosen[-1]


def test_break_even_of_the_base_shape() -> None:
    """The numbers in the documentation."""
    config = modeling.NarrowBertConfig()
    for length, most in ((128, 45), (512, 61)):
        pays = [modeling.folding_pays(config, rows, length) for rows in range(1, 100)]
        assert pays.index(False) == most


def test_what_cannot_be_folded_is_not() -> None:
    assert not build("1sf:2sf", position_embedding_type="rope").encoder_narrow.folds(
        tiny_config("1sf:2sf", position_embedding_type="rope"), 1, torch.empty(1, LENGTH)
    )
    model, state = build("1sf:2sf"), torch.empty(1, LENGTH)
    assert model.encoder_narrow.folds(model.config, 1, state)
    assert not model.encoder_narrow.folds(model.config, 1, state.to("meta"))


class Doubled(nn.Linear):
    """As adapters and quantisation replace a linear layer: its weight is not all that it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked(value: nn.Linear) -> nn.Linear:
    value.register_forward_hook(lambda module, inputs, output: 2 * output)
    return value


def hooked_before(value: nn.Linear) -> nn.Linear:
    value.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return value


def wrapped(value: nn.Linear) -> nn.Linear:
    """As accelerate wraps ``forward``, to bring the weight where it is needed."""
    forward = value.forward
    value.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    return value


def replaced(value: nn.Linear) -> nn.Linear:
    double = Doubled(HIDDEN, HIDDEN)
    double.load_state_dict(value.state_dict())
    return double


class Rounded(nn.Module):
    """As bitsandbytes and gguf keep weights: whole numbers, with a scale."""

    def __init__(self, value: nn.Linear) -> None:
        super().__init__()
        self.scale = value.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((value.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = value.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


@pytest.mark.parametrize(
    "change",
    [hooked, hooked_before, wrapped, replaced, Rounded, parametrizations.weight_norm, parametrizations.orthogonal],
)
@pytest.mark.parametrize("projection", ["key", "value"])
def test_a_projection_that_is_more_than_its_weight_is_called(change: Any, projection: str) -> None:
    ids, mask = batch(12, 7, 9)
    inputs = {"attention_mask": mask, "narrow_positions": torch.zeros(3, 1, dtype=torch.long)}
    model = build("1sf:2sf")
    with torch.no_grad():
        before = model(ids, **inputs).last_hidden_state
        attention = model.encoder_narrow.layer[1].attention.self  # type: ignore[union-attr]
        setattr(attention, projection, change(getattr(attention, projection)))
        found, expected = folded_and_not(model, ids, **inputs)
    assert_close(found.last_hidden_state, expected.last_hidden_state, EXACT)
    if change is not parametrizations.weight_norm:  # another form of the same weight
        assert not torch.allclose(found.last_hidden_state, before, atol=1e-4)


# --- without padding ----------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    """Padded on the right, on the left, or with holes; at least one real token a row."""
    lengths = draw(st.lists(st.integers(1, LENGTH), min_size=1, max_size=5))
    right = torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    kind = draw(st.sampled_from(["right", "left", "holes"]))
    if kind == "holes":
        holes = torch.rand(right.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.4
        return (right & ~holes).index_fill(1, torch.tensor([0]), True).long()
    return (right.flip(1) if kind == "left" else right).long()


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(NARROW, st.just("3sf")), OPTIONS, masks(), st.sampled_from([None, 1, 3]), st.sampled_from([None, False])
)
def test_packed_batches_equal_padded_ones(
    layout: str, options: dict[str, Any], mask: torch.Tensor, num_narrow: int | None, fold: bool | None
) -> None:
    model = build(layout, **options)
    model.encoder_narrow.fold = fold
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(2))
    places, keep = None, mask.bool()
    if num_narrow is not None:  # real tokens, in any order
        places = mask.double().multinomial(num_narrow, replacement=True)
        keep = torch.ones_like(places, dtype=torch.bool)
    results = []
    with torch.no_grad():
        for unpad in (True, False):
            model.unpad = unpad
            results.append(model(ids, attention_mask=mask, narrow_positions=places).last_hidden_state)
    assert_close(results[0][keep], results[1][keep], EXACT)


def test_padding_takes_no_arithmetic_and_its_rows_are_zeros() -> None:
    model = build("1sf:2sf")
    ids, mask = batch(12, 7, 9, 7)
    alone = sum(flops(model, row[:length].unsqueeze(0)) for row, length in zip(ids, mask.sum(1), strict=True))
    assert flops(model, ids, attention_mask=mask) == alone
    model.unpad = False
    assert flops(model, ids, attention_mask=mask) > alone
    model.unpad = True
    with torch.no_grad():
        assert not model(ids, attention_mask=mask).last_hidden_state[mask == 0].any()


def test_gradients_of_packed_batches_equal_padded_ones() -> None:
    ids, mask = batch(12, 7, 9)
    gradients = []
    for unpad in (True, False):
        config = tiny_config("1sf:2sf", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = shaken(NarrowBertForSequenceClassification, config).train()
        model.bert.unpad = unpad
        model.bert.encoder_narrow.fold = False
        model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 1])).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        assert gradients[0][name] is not None, name
        assert_close(gradients[0][name], expected, EXACT)


def test_what_is_not_packed() -> None:
    ids, mask = batch(12, 7)
    assert modeling.pack(torch.ones_like(mask)) is None
    assert modeling.pack(torch.stack((mask[0], torch.zeros(LENGTH)))) is None  # a row of padding alone
    packing = modeling.pack(mask)
    assert packing is not None
    assert packing.runs == ((7, 1), (12, 1))
    assert packing.order_B.tolist() == [1, 0]
    assert packing.ends.tolist() == [0, 7, 19]
    assert packing.tokens_T.tolist() == [*range(12, 19), *range(12)]
    model = build("1sf:2sf")
    with torch.no_grad():  # outputs of layers are asked for: they keep their places
        assert model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1].shape == (2, LENGTH, HIDDEN)


@pytest.mark.parametrize("num_narrow", [None, 3])
def test_the_kernel_for_all_lengths_is_given_what_it_asks_for(
    num_narrow: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself runs on CUDA only: this one has its signature and its documented meaning."""

    def varlen(query: Any, key: Any, value: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int) -> torch.Tensor:
        assert ends_q.dtype == ends_k.dtype == torch.int32
        rows = []
        for q0, q1, k0, k1 in zip(ends_q[:-1], ends_q[1:], ends_k[:-1], ends_k[1:], strict=True):
            assert q1 - q0 <= most_q
            assert k1 - k0 <= most_k
            parts = (query[q0:q1], key[k0:k1], value[k0:k1])
            rows.append(nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in parts)).transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr(modeling, "varlen_attn", varlen)
    packing = modeling.pack(batch(12, 7, 9, 7)[1])
    assert packing is not None
    packing = packing._replace(num_narrow=num_narrow)
    monkeypatch.setattr(torch, "tensor", None)  # a list copied to the device would wait for it in every layer
    queries = 35 if num_narrow is None else 4 * num_narrow
    query, key, value = (torch.randn(1, HEADS, n, HIDDEN // HEADS) for n in (queries, 35, 35))
    expected = modeling.packed_attention(query, key, value, packing, 0.0)
    assert_close(modeling.varlen_attention(query, key, value, packing), expected, EXACT)


def test_heads_that_the_kernel_would_refuse_are_not_packed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "varlen_attn", print)
    half, ampere = torch.bfloat16, (8, 0)
    assert modeling.varlen_kernel_takes(half, 64, ampere)
    assert modeling.varlen_kernel_takes(torch.float16, 256, (9, 0))
    refused = [(half, 44, ampere), (half, 264, ampere), (torch.float32, 64, ampere), (half, 64, (7, 5))]
    assert not any(modeling.varlen_kernel_takes(*given) for given in refused)
    monkeypatch.setattr(modeling, "varlen_attn", None)
    assert not modeling.varlen_kernel_takes(half, 64, ampere)
