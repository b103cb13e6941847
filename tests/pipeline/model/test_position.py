"""Positions: absolute, rotary and ALiBi, and where they start again."""

import torch

from pipeline.model.position import alibi_slopes, positions_in_document
from tests.pipeline.model.small_models import build, rows


def test_full_rotary_shift_changes_nothing_but_absolute_positions_do() -> None:
    # Relative positions: the same tokens further right, with nothing before them to see, give the same result.
    for position, equal in (("rope", True), ("alibi", True), ("absolute", False)):
        model, batch = build("sf:2sf", position=position).eval(), rows()
        ids, places = batch["input_ids"][:, :8], torch.tensor([[1, 6], [0, 7], [3, 2]])
        moved = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), dim=1)
        seen = (torch.arange(12) >= 4)[None, None, None].expand(3, 1, 1, 12)
        difference = model.logits(ids, places, None) - model.logits(moved, places + 4, seen)
        assert bool(difference.abs().max() < 1e-4) is equal, position


def test_narrow_positions_are_those_of_the_whole_row() -> None:
    # With a narrow side alone, moving the gathered position to slot 0 must not move it to position 0.
    for position in ("rope", "alibi"):
        model, batch = build(":2sf", position=position).eval(), rows()
        together = model.logits(batch["input_ids"], batch["narrow_positions"], None)
        for slot in range(3):
            alone = model.logits(batch["input_ids"], batch["narrow_positions"][:, slot : slot + 1], None)
            assert torch.allclose(together[:, slot : slot + 1], alone, atol=1e-5)


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8, torch.device("cpu")).tolist() == [2.0**-i for i in range(1, 9)]
    # Not a power of two: those of 4 heads, then the first, third, ... of 8.
    assert alibi_slopes(6, torch.device("cpu")).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    assert alibi_slopes(1, torch.device("cpu")).tolist() == [2.0**-8]


def test_positions_start_again_in_each_document() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 3, 3]], dtype=torch.int16)
    assert positions_in_document(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
