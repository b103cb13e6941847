"""Grown and coalesced models: what they compute, what stays symmetric, and what is refused."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from pipeline.config import GrowthMethod
from pipeline.export import NarrowBertConfig, NarrowBertForMaskedLM
from pipeline.export.names import State, parameter_shapes
from pipeline.initialisation.growth.coalesce import coalesce, interpolate
from pipeline.initialisation.growth.deepen import deepen, layer_origins
from pipeline.initialisation.growth.grow import Growth, shrink_problems, smaller_config
from pipeline.initialisation.growth.units import balanced_map, centred_map, depth_map
from pipeline.initialisation.growth.widen import widen

HEAD, VOCABULARY = 4, 30
IDS = torch.randint(5, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([[1, 4, 9], [0, 1, 2], [3, 7, 8]])


def config(layout: str, heads: int, inner: int, **options: Any) -> NarrowBertConfig:
    return NarrowBertConfig(
        **{"max_position_embeddings": 16, "attention_window": 4, **options}, vocab_size=VOCABULARY, layout=layout,
        hidden_size=HEAD * heads, num_attention_heads=heads, intermediate_size=inner,
    )  # fmt: skip


def random_state(there: NarrowBertConfig, dtype: torch.dtype = torch.float64) -> State:
    """Norms far from 1 and biases far from 0, so that no error can hide."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.randn(shape, generator=generator, dtype=dtype) * 0.4
        for name, shape in parameter_shapes(there).items()
    }
    return {name: tensor + 1 if "norm" in name.lower() else tensor for name, tensor in state.items()}


def model(here: NarrowBertConfig, state: State) -> NarrowBertForMaskedLM:
    built = NarrowBertForMaskedLM(here).to(next(iter(state.values())).dtype).eval()
    parameters = dict(built.named_parameters())
    assert parameters.keys() == state.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    return built


@torch.no_grad()
def logits(here: NarrowBertConfig, state: State) -> torch.Tensor:
    return model(here, state)(IDS, narrow_positions=PLACES).logits


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


OPTIONS = st.fixed_dictionaries(
    {
        "normalization": st.sampled_from(["pre", "post"]),
        "norm": st.sampled_from(["layernorm", "rmsnorm"]),
        "position_embedding_type": st.sampled_from(["absolute", "rope"]),
        "hidden_act": st.sampled_from(["gelu", "geglu", "swiglu"]),
        "bias": st.booleans(),
        "narrow_kv": st.sampled_from(["per_layer", "shared"]),
    }
)
LAYOUTS = st.sampled_from(["2sf", "1sf:2sf", "sf 1s:2f", "sfwf:2sf", "f sf:s sf"])


@settings(max_examples=40, deadline=None)
@given(
    layout=LAYOUTS, options=OPTIONS, ratio=st.integers(1, 3), inner=st.sampled_from([6, 12, 18]), seed=st.integers(0, 9)
)
def test_a_wider_model_computes_the_same(
    layout: str, options: dict[str, Any], ratio: int, inner: int, seed: int
) -> None:
    there, here = config(layout, 2, 6, **options), config(layout, 2 * ratio, inner, **options)
    state = random_state(there)
    assert relative_error(logits(here, widen(state, there, here, "fpi", seed)), logits(there, state)) < 1e-10


@settings(max_examples=20, deadline=None)
@given(layout=LAYOUTS, options=OPTIONS, heads=st.integers(2, 5), inner=st.integers(6, 13))
def test_zeros_widen_an_rmsnorm_model_to_any_size(layout: str, options: dict[str, Any], heads: int, inner: int) -> None:
    options |= {"norm": "rmsnorm", "layer_norm_eps": 1e-14}
    there, here = config(layout, 2, 6, **options), config(layout, heads, inner, **options)
    state = random_state(there)
    assert relative_error(logits(here, widen(state, there, here, "zero", 3)), logits(there, state)) < 1e-9


@pytest.mark.parametrize("options", [{}, {"normalization": "pre", "norm": "rmsnorm", "hidden_act": "geglu"}])
def test_a_wider_model_computes_the_same_in_fp32(options: dict[str, Any]) -> None:
    there, here = config("1sf:2sf", 2, 6, **options), config("1sf:2sf", 6, 12, **options)
    state = random_state(there, torch.float32)
    assert relative_error(logits(here, widen(state, there, here, "fpi", 3)), logits(there, state)) < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    layouts=st.sampled_from(
        [("1sf:2sf", "2sf:4sf"), ("sfwf:sf", "2sfwfwf:3sf"), ("2sf", "5sf"), ("sf s:2s", "2sf 2s:3s")]
    ),
    options=OPTIONS,
    skips=st.booleans(),
)
def test_layers_that_give_nothing_change_nothing(
    layouts: tuple[str, str], options: dict[str, Any], skips: bool
) -> None:
    options |= {"normalization": "pre", "skip_first_norm": skips}
    there, here = (config(layout, 2, 6, **options) for layout in layouts)
    state = random_state(there)
    deeper = deepen(state, there, here, "identity")
    assert relative_error(logits(here, deeper), logits(there, state)) < 1e-12
    stacked = deepen(state, there, here, "stack")
    assert relative_error(logits(here, stacked), logits(there, state)) > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    layouts=st.sampled_from(
        [("1sf:2sf", "2sf:4sf"), ("sfwf", "2sfwf"), ("1sf:1sf", "3sf:2sf"), ("2sf:2sf", "2sf:2sf")]
    ),
    options=OPTIONS,
    ratio=st.integers(1, 3),
    depth=st.sampled_from(["stack", "interleave"]),
)
def test_to_grow_and_to_coalesce_gives_the_model_back(
    layouts: tuple[str, str], options: dict[str, Any], ratio: int, depth: Any
) -> None:
    there, here = config(layouts[0], 2, 6, **options), config(layouts[1], 2 * ratio, 6 * ratio, **options)
    state = random_state(there)
    back = coalesce(Growth(method="fpi", depth=depth, seed=1).apply(state, there, here), here, there, depth)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-12, msg=name)


def test_an_interpolation_ends_at_both_models() -> None:
    there = config("1sf:1sf", 2, 6)
    before, grown = random_state(there, torch.float32), random_state(there, torch.float32)
    grown = {name: tensor.roll(1, 0) for name, tensor in grown.items()}
    for alpha, end in ((0.0, before), (1.0, grown)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in interpolate(before, grown, alpha).items())
    middle = interpolate(before, grown, 0.25)["cls.predictions.bias"]
    torch.testing.assert_close(middle, 0.75 * before["cls.predictions.bias"] + 0.25 * grown["cls.predictions.bias"])


@settings(deadline=None)
@given(small=st.integers(1, 9), extra=st.integers(0, 20), seed=st.integers(0, 5))
def test_every_unit_has_as_many_copies_and_its_shares_add_up(small: int, extra: int, seed: int) -> None:
    large = small + extra
    found = balanced_map(small, large, 2, torch.Generator().manual_seed(seed))
    copies = torch.bincount(found.of, minlength=small)
    assert set(copies.tolist()) <= {large // small, -(-large // small)}
    sums = torch.zeros(small, dtype=torch.float64).index_add_(0, found.of, found.share)
    torch.testing.assert_close(sums, torch.ones(small, dtype=torch.float64))
    assert found.of[:small].tolist() == list(range(small))
    assert len(set(found.share[copies[found.of] > 1].tolist())) == int((copies[copies > 1]).sum())


def test_layers_are_stacked_as_whole_copies_with_the_top_ones_above() -> None:
    assert depth_map(3, 8, "stack") == [0, 1, 2, 0, 1, 2, 1, 2]
    assert depth_map(3, 8, "interleave") == [0, 0, 0, 1, 1, 1, 2, 2]
    assert depth_map(4, 4, "stack") == depth_map(4, 4, "interleave") == [0, 1, 2, 3]
    origins = layer_origins(["sf", "wf"], ["sf", "wf", "wf", "sf", "wf", "wf"], "stack")
    assert [origin.number for origin in origins] == [0, 1, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="1 layers 'wf' there, 0 here"):
        layer_origins(["sf", "wf"], ["sf", "sf"], "stack")


def test_new_heads_and_units_are_those_of_the_layer_above() -> None:
    """And the top layer's are its own; what is of the residual stream is copied as ever."""
    there, here = config("2sf:sf", 2, 6), config("2sf:sf", 4, 12)
    state = random_state(there)
    grown = {method: widen(state, there, here, method, 3) for method in ("fpi", "aki")}
    layers = ["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.encoder_narrow.layer.0"]
    for name, size, dim in (
        ("attention.self.query.weight", 8, 0), ("attention.self.value.bias", 8, 0), ("intermediate.dense.weight", 6, 0),
        ("attention.output.dense.weight", 8, 1), ("output.dense.weight", 6, 1),
    ):  # fmt: skip
        for layer, above in zip(layers, [*layers[1:], layers[-1]], strict=True):
            own, other = (grown[method][f"{layer}.{name}"].split(size, dim) for method in ("aki", "fpi"))
            assert torch.equal(own[0], other[0])
            assert torch.equal(own[1], grown["fpi"][f"{above}.{name}"].split(size, dim)[1])
    for name in ("bert.embeddings.word_embeddings.weight", f"{layers[0]}.output.dense.bias", "cls.predictions.bias"):
        assert torch.equal(grown["aki"][name], grown["fpi"][name])


def test_tiles_have_the_small_model_in_their_middle() -> None:
    there, here = config("2sf", 2, 6), config("2sf", 4, 10)
    assert centred_map(2, 4, HEAD).of.tolist() == [1, 0, 1, 0]
    state = random_state(there)
    tiled = widen(state, there, here, "tile", 0)
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(tiled[name][2:8, 4:12], state[name])
    assert torch.equal(tiled[name][8:, 4:12], state[name][:2])
    assert torch.equal(
        tiled["cls.predictions.transform.LayerNorm.weight"][4:12], state["cls.predictions.transform.LayerNorm.weight"]
    )


@pytest.mark.parametrize("method", ["fpi", "aki", "zero"])  # the copies of a tile are equal: so it was published
@pytest.mark.parametrize(
    "options", [{"norm": "rmsnorm"}, {"norm": "rmsnorm", "normalization": "pre", "hidden_act": "geglu"}]
)
def test_no_two_units_are_equal_after_some_steps_without_dropout(method: Any, options: dict[str, Any]) -> None:
    options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    there, here = config("1sf:1sf", 2, 6, **options), config("1sf:1sf", 4, 12, **options)
    grown = model(here, widen(random_state(there, torch.float32), there, here, method, 3)).train()
    optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        ids = torch.randint(0, VOCABULARY, (8, 12), generator=generator)
        optimizer.zero_grad()
        grown(ids, labels=ids.roll(1, 1)).loss.backward()
        optimizer.step()
    for name, parameter in grown.named_parameters():
        if parameter.ndim == 2:
            for matrix in (parameter, parameter.T):
                assert len(matrix.detach().unique(dim=0)) == len(matrix), name


@pytest.mark.parametrize("method", get_args(GrowthMethod))
def test_the_same_seed_gives_the_same_bytes(method: Any) -> None:
    there, here = (
        config(layout, heads, 6 * heads, norm="rmsnorm") for layout, heads in (("1sf:1sf", 2), ("2sf:3sf", 3))
    )
    state = random_state(there, torch.float32)
    first, second, other = (
        Growth(method=method, depth="stack", seed=seed).apply(state, there, here) for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == parameter_shapes(here)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items()) or method == "tile"


@pytest.mark.parametrize(
    ("there", "here", "growth", "expected"),
    [
        (("2sf", 2, 6), ("2sf", 4, 12), {}, ""),
        (("2sf", 2, 6), ("2sf", 2, 6), {}, "it has the same sizes: leave out init.growth"),
        (("2sf", 4, 6), ("2sf", 2, 12), {}, "model.hidden_size 16 there, 8 here, which is smaller"),
        (("2sf", 2, 6), ("2sf", 4, 12), {"method": "zero"}, "growth zero needs norm rmsnorm"),
        (("2sf", 2, 6), ("4sf", 2, 6), {"depth": "identity"}, "depth identity needs a pre-norm model"),
        (("2sf", 2, 6), ("1sf", 4, 12), {}, "left of ':' 2 layers 'sf' there, 1 here"),
        (("2sf", 2, 6), ("2sfwf", 4, 12), {}, "0 layers 'wf' there, 2 here"),
        (("3sf", 2, 6), ("1sf:3sf", 2, 6), {}, "left of ':' 3 layers 'sf' there, 1 here"),
    ],
)  # fmt: skip
def test_what_cannot_grow_is_refused(there: Any, here: Any, growth: dict[str, Any], expected: str) -> None:
    small, large = config(*there), config(*here)
    grower = Growth(**{"method": "fpi", "depth": "stack", "seed": 0, **growth})
    if not expected:
        grower.check("small", small, large)
        return
    with pytest.raises(UserError, match="small cannot grow to the model: ") as caught:
        grower.check("small", small, large)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_of_another_size_are_refused() -> None:
    small, large = (
        config("2sf", 2, 6),
        NarrowBertConfig(layout="2sf", hidden_size=16, num_attention_heads=2, intermediate_size=6),
    )
    assert "heads of 4 there, 8 here" in " ".join(Growth(method="fpi", depth="stack", seed=0).problems(small, large))
    assert shrink_problems(config("2sf", 4, 6), config("2sf", 2, 12), "stack") == [
        "ffn_hidden_size 6 to 12, which is larger, while others become smaller"
    ]


def test_a_model_of_as_many_layers_is_narrowed_where_the_larger_one_is() -> None:
    here = config("2sf:2sf", 4, 12)
    assert smaller_config(here, "4sf", 8, 2, 6).layout == "2sf:2sf"
    assert smaller_config(here, "1sf:1sf", 8, 2, 6).layout == "1sf:1sf"


def test_what_growing_changes_is_said() -> None:
    small = config("1sf:1sf", 2, 6)
    for here, growth, expected in (
        (config("1sf:1sf", 4, 12), {}, []),
        (config("1sf:1sf", 3, 12), {}, ["model.hidden_size 8 to 12, model.num_attention_heads 2 to 3 is"]),
        (config("2sf:2sf", 4, 12), {"method": "aki"}, ["growth aki takes new units", "depth stack repeats layers"]),
        (config("1sf:1sf", 3, 12), {"method": "tile"}, ["growth tile divides nothing"]),
    ):  # fmt: skip
        remarks = Growth(**{"method": "fpi", "depth": "stack", "seed": 0, **growth}).remarks(small, here)
        assert len(remarks) == len(expected), remarks
        assert all(line.startswith(start) for line, start in zip(remarks, expected, strict=True))
