"""What of a run grows with its processes."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataConfig, RunConfig, TrainingConfig
from pipeline.data.mixture import open_mixture
from pipeline.data.order import Deal, RowOrder, StepOrder
from pipeline.planning.growth import agreement_rounds, agreement_seconds, readers_of_chunk
from pipeline.planning.plan import PlanOptions, plan


def test_an_agreement_takes_rounds_by_the_logarithm_and_up_to_32_ranks_a_ring() -> None:
    # A power of two, and one more: those that are left over hand their numbers in and are told the sum.
    assert [agreement_rounds(ranks) for ranks in (2, 64, 1024, 1025, 4096)] == [1, 6, 10, 12, 12]
    assert agreement_seconds(32, hop_s=1.0, round_s=100.0) == 62.0
    assert agreement_seconds(33, hop_s=1.0, round_s=100.0) == 700.0


@pytest.mark.parametrize("shares", [(1,), (3, 1)])
def test_readers_of_a_chunk_are_those_that_ask_for_one_of_its_rows(shares: tuple[int, ...]) -> None:
    rows, batch, ranks, steps = np.full(12, 16), 24, 4, 5
    order = StepOrder(Deal(shares), [RowOrder(rows, f"folder {n}", 1, 3) for n in range(len(shares))], batch)
    asked: dict[tuple[int, ...], set[int]] = {}
    for step in range(steps):
        for rank in range(ranks):
            own = order.positions_of_process(step * batch, batch, data_rank=rank, data_parallel_size=ranks)
            for chunk in zip(*order.locate(own)[:3], strict=True):
                asked.setdefault(tuple(int(number) for number in chunk), set()).add(rank)
    expected = sum(len(readers) for readers in asked.values()) / len(asked)
    assert readers_of_chunk(order, batch, ranks, steps) == expected > 1


def test_a_plan_of_several_nodes_says_what_grows_with_them(shard_folder: Path) -> None:
    config = RunConfig(
        data=DataConfig(path=str(shard_folder)), training=TrainingConfig(global_batch_size=64, micro_batch_size=1)
    )

    def lines(nodes: int) -> dict[str, str]:
        return dict(plan(config, PlanOptions(processes=64, nodes=nodes)).lines)

    assert not {"agreement", "reading", "checkpoint", "resume", "heartbeats"} & set(lines(1))
    found = lines(8)
    assert found["agreement"].startswith(f"{1e3 * agreement_seconds(64):.1f} ms")
    readers = readers_of_chunk(open_mixture(str(shard_folder), None).order(1234, 64), 64, 64, 3125)
    assert found["reading"] == f"a chunk is read by {readers:.2f} of 64 data-parallel processes"
    parameters = plan(config, PlanOptions(processes=64)).parameters
    assert found["checkpoint"].startswith(f"{12 * parameters / 1e9:.4g} GB, ")
    assert found["resume"].startswith(f"{(4 + 12 / 64) * parameters / 1e9:.4g} GB")
    assert found["heartbeats"] == "8 files every 10 s"
