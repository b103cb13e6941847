import pytest

from pipeline.processes.stragglers import Stragglers


def test_a_straggler_is_reported_once_and_only_if_it_stays_one() -> None:
    stragglers = Stragglers()
    slow, even = ([0.1, 0.1, 0.4, 0.1], 0.5), ([0.1, 0.1, 0.11, 0.1], 0.5)
    found = [stragglers.update(*figures)[1] for figures in (slow, slow, even, slow, slow, slow, slow)]
    assert found == [None] * 5 + [2, None]
    assert stragglers.update(*slow)[0] == pytest.approx(4.0)
    # Slow by a factor, but of no weight in the step.
    assert [Stragglers().update([0.001, 0.004], 0.5)[1] for _ in range(5)] == [None] * 5
