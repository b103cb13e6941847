"""Sums by recursive doubling: their plan, and their results against torch's all-reduce."""

import json

import pytest

from pipeline.processes.group_sum import exchanges
from tests.processes import free_port, run_ranks

SIZE = 8


@pytest.mark.parametrize("size", [*range(1, 66), 96, 1000, 1024, 4096])
def test_every_rank_gets_every_number_once_in_rounds_of_the_logarithm(size: int) -> None:
    ways = [exchanges(rank, size) for rank in range(size)]
    sums = [1 << rank for rank in range(size)]  # a number that comes twice carries into the next one's bit
    for rank, way in enumerate(ways):
        if way.gives_to is not None:
            assert ways[way.gives_to].takes_from == rank
            assert not way.partners
            sums[way.gives_to] += sums[rank]
    rounds = max(len(way.partners) for way in ways)
    assert rounds == size.bit_length() - 1
    for step in range(rounds):
        before = list(sums)
        for rank, way in enumerate(ways):
            if way.partners:
                partner = way.partners[step]
                assert ways[partner].partners[step] == rank
                sums[rank] += before[partner]
    for rank, way in enumerate(ways):
        if way.gives_to is not None:
            sums[rank] = sums[way.gives_to]
    assert set(sums) == {(1 << size) - 1}


def test_of_eight_ranks_a_node_the_first_rounds_stay_there() -> None:
    for nodes in (12, 125, 128, 512):
        for rank in range(8 * nodes):
            way = exchanges(rank, 8 * nodes)
            near = 3 if nodes in (128, 512) else 2  # else some ranks are folded into their neighbours
            assert all(partner // 8 == rank // 8 for partner in way.partners[:near])


@pytest.mark.slow
def test_groups_of_one_to_eight_get_the_sums_of_an_all_reduce_and_learn_of_a_lost_rank() -> None:
    port = free_port()
    module = "tests.pipeline.processes.sum_over_groups"
    printed = run_ranks(SIZE, lambda rank: ["-m", module, str(rank), str(SIZE), str(port)])
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    for members in range(1, SIZE + 1):
        of_group = [one["found"][str(members)] for one in found[:members]]
        assert all(one["differing"] == [] for one in of_group), members
        assert all(one["bits"] == of_group[0]["bits"] for one in of_group), "each rank decides by the same number"
    for rank in (0, 2):
        assert found[rank]["failed"]["errors"] == [True, True], "no sum after the first failure"
        assert found[rank]["failed"]["seconds"] < 30, "bounded by the group's limit, not by that of the default one"
