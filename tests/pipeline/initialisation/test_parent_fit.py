"""The parameters of one run as those of another: what is read elsewhere, repeated, or refused."""

import dataclasses
from typing import Any

import pytest
import torch

from data_prep.contract.command_line import config_as_dict
from pipeline.checkpoints.format import TrainerState
from pipeline.config import InitConfig, ModelConfig, RunConfig
from pipeline.data.mixture import Mixture
from pipeline.initialisation.parent_fit import differences, fit_to
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.groups import initialise_tensor_parallel

BERT = ModelConfig(
    layout="3sf", hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, max_position_embeddings=16,
    hidden_dropout=0.0, attention_dropout=0.0, init_method_std=0.3, activation="geglu",
)  # fmt: skip


def state_of(model: ModelConfig, shards: Mixture) -> TrainerState:
    return TrainerState(
        step=1, rows_consumed=1, optimizer_steps=1, skipped_steps=0, lineage_id="a", attempt=1, data_root_hash="x",
        vocab_size=shards.vocab_size, config=config_as_dict(RunConfig(model=model)),
    )  # fmt: skip


def build(model: ModelConfig, shards: Mixture) -> NarrowBertForPretraining:
    initialise_tensor_parallel(1)
    torch.manual_seed(1)
    return NarrowBertForPretraining(model, shards.vocab_size, shards.vocab_size).eval()


@pytest.mark.parametrize(
    ("there", "here", "allow"), [("3sf", "2sf:sf", ()), ("3sf", "sf s:f sf", ()), ("sf:2sf", "2sf:sf", ("layout",))]
)
def test_layers_are_read_on_other_sides_of_the_narrowing_point(
    shards: Mixture, there: str, here: str, allow: tuple[str, ...]
) -> None:
    parent = dataclasses.replace(BERT, layout=there)
    config = RunConfig(model=dataclasses.replace(BERT, layout=here), init=InitConfig(allow=allow))
    state = state_of(parent, shards)
    wrong, others = differences(state, config, shards)
    assert (wrong, others) == ([], [f"model.layout {there} there, {here} here"])
    theirs, ours = build(parent, shards), build(config.model, shards)
    tensors = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    fitted = fit_to(config, shards, state)(tensors)
    before, after = (torch.cat([t.flatten() for t in found.values()]) for found in (tensors, fitted))
    assert torch.equal(before.sort().values, after.sort().values)
    ours.load_state_dict({**ours.state_dict(), **fitted})
    if there == "3sf" and here == "2sf:sf":  # the last layer's queries alone are fewer
        ids = torch.randint(0, shards.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
        places = torch.tensor([[1, 5], [0, 11]])
        documents = torch.zeros_like(ids)
        with torch.no_grad():
            before = theirs.logits(ids, places, None, documents)
            torch.testing.assert_close(ours.logits(ids, places, None, documents), before, rtol=1e-4, atol=1e-4)
    # Of second moments there are only some where Muon has trained the matrices.
    some = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 1 or "embeddings" in name}
    partly = fit_to(config, shards, state)(some)
    assert all(torch.equal(partly[name], fitted[name]) for name in partly if fitted[name].ndim == 1)


@pytest.mark.parametrize(
    ("there", "here", "wrong"),
    [
        ({"layout": "sf:2sf"}, {"layout": "2sf:sf"}, ["layout"]),
        ({"layout": "sfwfwf"}, {"layout": "sf:2sf"}, []),  # narrow positions attend to the whole row
        ({"layout": "sfwfwf"}, {"layout": "sfwf", "attention_window": 8}, ["layout", "attention_window"]),
        (
            {"layout": "sfwfwf", "position": "rope"},
            {"layout": "sfwfwf", "position": "rope", "local_rotary_base": 9.0},
            [],
        ),
        ({}, {"layout": "2sf:2sf"}, ["layout"]),
        ({"narrow_kv": "shared"}, {"narrow_kv": "shared", "layout": "sf:2sf"}, ["layout"]),
        ({"normalization": "pre"}, {"normalization": "pre", "layout": "2sf:sf"}, []),
        ({"normalization": "pre", "layout": "2sf:sf"}, {"normalization": "pre", "layout": "3sf"}, ["layout"]),
        ({"bias": False, "norm": "layernorm"}, {"bias": False, "norm": "rmsnorm"}, ["norm"]),
        ({"position": "alibi"}, {"position": "rope"}, ["position"]),
        ({"activation": "geglu"}, {"activation": "swiglu"}, ["activation"]),
        ({}, {"max_position_embeddings": 8}, ["max_position_embeddings"]),
        ({"position": "rope"}, {"position": "rope", "max_position_embeddings": 8, "rotary_base": 160000.0}, []),
        ({}, {"hidden_dropout": 0.1, "recompute": True, "document_attention": "isolated"}, []),
    ],
)
def test_what_weights_do_not_allow_is_told_from_what_they_do(
    shards: Mixture, there: dict[str, Any], here: dict[str, Any], wrong: list[str]
) -> None:
    state = state_of(dataclasses.replace(BERT, **there), shards)
    config = RunConfig(model=dataclasses.replace(BERT, **here))
    found, others = differences(state, config, shards)
    assert [line.split()[0].removeprefix("model.") for line in found] == wrong
    ours, theirs = dataclasses.asdict(config.model), dataclasses.asdict(dataclasses.replace(BERT, **there))
    assert len(found) + len(others) == sum(ours[name] != theirs[name] for name in ours)


def test_positions_are_repeated_in_turn(shards: Mixture) -> None:
    config = RunConfig(model=dataclasses.replace(BERT, max_position_embeddings=40))
    name = "embeddings.position_embeddings.weight"
    table = torch.randn(16, 32)
    grown = fit_to(config, shards, state_of(BERT, shards))({name: table, "x": table})
    assert torch.equal(grown[name], torch.cat([table, table, table[:8]]))
    assert grown["x"] is table
