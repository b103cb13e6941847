"""Megatron's tensor-parallel parts on two gloo processes against one."""

import textwrap

from tests.processes import run_ranks

SCRIPT = textwrap.dedent(
    """
    import os, sys, functools, torch, torch.distributed as dist, torch.nn.functional as F
    from megatron.core import parallel_state
    from pipeline.parallel.groups import tensor_parallel_group
    from pipeline.parallel.layers import ColumnLinear, RowLinear, WordEmbedding

    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    init = functools.partial(torch.nn.init.normal_, std=0.5)

    def build():
        torch.manual_seed(1)
        return WordEmbedding(10, 6, init, 10), ColumnLinear(6, 8, init), RowLinear(8, 4, init)

    def run(embedding, column, row):
        output = row(torch.tanh(column(embedding(torch.tensor([[1, 7, 9]])))))
        output.square().sum().backward()
        return output

    assert tensor_parallel_group().size() == 1
    whole = build()
    expected = run(*whole)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    assert tensor_parallel_group().size() == 2
    split = build()
    assert split[1].weight.shape == (4, 6), split[1].weight.shape
    assert split[2].weight.shape == (4, 4), split[2].weight.shape
    output = run(*split)
    assert torch.allclose(output, expected, atol=1e-6)
    part = slice(4 * rank, 4 * rank + 4)
    assert torch.equal(split[1].weight, whole[1].weight[part])
    assert torch.allclose(split[1].weight.grad, whole[1].weight.grad[part], atol=1e-5)
    assert torch.allclose(split[2].weight.grad, whole[2].weight.grad[:, part], atol=1e-5)
    assert torch.allclose(split[0].weight.grad, whole[0].weight.grad[5 * rank : 5 * rank + 5], atol=1e-5)
    dist.barrier()
    print("equal")
    """
)


def test_two_processes_equal_one(tmp_path: object) -> None:
    for printed in run_ranks(2, lambda rank: ["-c", SCRIPT, str(rank), f"{tmp_path}/store"]):
        assert printed.strip().endswith("equal")
