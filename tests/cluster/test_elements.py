"""Every task of a stage has one element, whatever the numbers."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.elements import element_of_task, tasks_of_element


@given(total=st.integers(0, 300), parts=st.integers(1, 70))
def test_elements_share_the_tasks_out_in_blocks(total: int, parts: int) -> None:
    blocks = [tasks_of_element(total, part, parts) for part in range(parts)]
    assert [index for block in blocks for index in block] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    owners = [element_of_task(index, total, parts) for index in range(total)]
    assert owners == [part for part, block in enumerate(blocks) for _ in block]
