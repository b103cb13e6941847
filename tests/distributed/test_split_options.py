"""Every option of the model split over two processes against the whole model in one: loss and all gradients."""

import functools
import sys

import pytest
import torch
import torch.distributed as dist

from pipeline.config import ModelConfig
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.groups import initialise_tensor_parallel
from pipeline.parallel.whole_tensors import gather_shards
from tests.pipeline.model.small_models import LENGTH, OPTIONS, VOCAB, rows
from tests.processes import run_ranks

LAYOUTS = ("2sf", "sf:3sf", "sf s:f 2s f s")
CASES = [(layout, options) for layout in LAYOUTS for options in OPTIONS]
CASES += [("wf s w:sf", {"attention_window": 4, "position": position}) for position in ("rope", "alibi")]
CASES += [("sf:3sf", {"document_attention": "isolated", "position": "alibi", "recompute": True})]


def gradients(layout, options):
    """The loss, and the model after its backward pass."""
    torch.manual_seed(3)
    config = ModelConfig(
        layout=layout, num_attention_heads=4, hidden_size=16, ffn_hidden_size=24, max_position_embeddings=LENGTH,
        hidden_dropout=0.0, attention_dropout=0.0, init_method_std=0.4, **options,
    )  # fmt: skip
    model = NarrowBertForPretraining(config, VOCAB, padded_vocab_size(VOCAB, 2))
    loss = model(**rows()).loss_sum
    loss.backward()
    return loss.item(), model


def compare():
    whole = []
    for case in CASES:
        loss, model = gradients(*case)
        whole.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    initialise_tensor_parallel(2)
    for case, (expected, expected_gradients) in zip(CASES, whole, strict=True):
        loss, model = gradients(*case)
        assert loss == pytest.approx(expected, rel=1e-4), case
        for name, parameter in model.named_parameters():
            full = gather_shards(parameter.grad, parameter)
            close = functools.partial(torch.testing.assert_close, atol=1e-4, rtol=1e-3)
            close(full, expected_gradients[name][: len(full)], msg=lambda m, n=name, c=case: f"{c} {n}: {m}")


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    run_ranks(2, lambda rank: ["-m", "tests.distributed.test_split_options", str(rank), "2", str(tmp_path)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    compare()
    dist.barrier()
    dist.destroy_process_group()
