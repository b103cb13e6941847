"""What ranks decide together, between real processes."""

import json

import pytest

from tests.processes import free_port, run_ranks

SIZE = 4


@pytest.mark.slow
def test_ranks_learn_the_same_and_only_who_asks_waits() -> None:
    port = free_port()
    printed = run_ranks(SIZE, lambda rank: ["-m", "tests.pipeline.processes.agree", str(rank), str(SIZE), str(port)])
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    for rank, one in enumerate(found):
        assert one["weight"] == SIZE * 2**50 + sum(range(SIZE)), "fp64: single precision would lose the units"
        assert one["stops"] == [False, True]
        assert one["problems"] == ["", ""]
        assert one["problem"] == "rank 1 has no rows"
        assert one["numbers"] == [rank / 3 for rank in range(SIZE)]
        assert (one["begun"] < 0.5) == (rank < SIZE - 1), "to begin is not to wait for the last rank"
        assert one["lazy"] == "1", "all to all, groups take descriptors by the number of ranks"
