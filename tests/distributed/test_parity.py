"""One table: layouts x tensor parallel x ZeRO x precision against a plain torch loop in one process.

Groups of two and of four gloo processes are started once a test and run many configurations (parity.py).
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.parity import Curve, configuration, plain_adamw, plain_curve
from tests.marks import long
from tests.processes import run_ranks


def run_group(function: str, world_size: int, folder: Path) -> dict[str, Any]:
    """Call a function of parity.py in every process of a group; return what rank 0 returned."""
    module = "tests.distributed.parity"
    run_ranks(world_size, lambda rank: ["-m", module, function, str(rank), str(world_size), str(folder)])
    return json.loads((folder / "result.json").read_text())


@functools.cache
def expected(layout: str) -> Curve:
    return plain_curve(configuration(layout), lambda model, options: [plain_adamw(model.parameters(), options)])


def assert_close(name: str, curve: Curve, layout: str) -> None:
    assert_curve(name, curve, expected(layout))


def assert_curve(name: str, curve: Curve, expected: Curve) -> None:
    for step, (found, wanted) in enumerate(zip(curve, expected, strict=True)):
        # bf16 keeps 8 bits of a weight; fp32 must differ by no more than the order of additions.
        tolerance = {"rel": 1e-2, "abs": 0.0} if "16" in name else {"rel": 0.0, "abs": 1e-5}
        assert found == pytest.approx(wanted, **tolerance), f"{name}, step {step}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "world_size", "cells"),
    [
        # One layout x 4 stages in fp32 at two tensor-parallel sizes, 3 stages in bf16 at both or one; two layouts more.
        ("curves", 2, 8 + 3 + 1 + 2),
        # 3 layouts x 4 stages in fp32 and 3 stages of one in bf16, at two tensor-parallel sizes; one layout on 2 x 2.
        long("all_curves", 2, 30),
        long("all_curves", 4, 7),
    ],
)
def test_losses_and_gradient_norms_are_those_of_plain_torch(
    tmp_path: Path, function: str, world_size: int, cells: int
) -> None:
    found = run_group(function, world_size, tmp_path)
    assert len(found) == cells
    for name, curve in found.items():
        assert_close(name, curve, layout=name.split(" tp")[0])


@pytest.mark.long
def test_accumulation_offload_and_four_tensor_parallel_ranks_change_nothing(tmp_path: Path) -> None:
    found = run_group("variants", 4, tmp_path)
    assert len(found) == 12
    for name, curve in found.items():
        assert_close(name, curve, layout="sf:sf")


@pytest.mark.long
def test_micro_batches_are_added_up_in_fp32(tmp_path: Path) -> None:
    found = run_group("sums", 2, tmp_path)
    assert len(found) == 7
    for name, distance in found.items():
        # What one rounding on the way to the other rank makes; sums of 32 in bf16 are off by 0.0064, in fp16 by 0.0008.
        assert 0 < distance < (3e-3 if "bf16" in name else 5e-4), name


@pytest.mark.long
def test_an_update_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    found = run_group("refused", 2, tmp_path)
    assert len(found) == 13
    for name, seen in found.items():
        begun, after = seen["curves"]
        assert after == begun, name
        assert begun[1] != begun[0], name
        assert seen["asked"] == pytest.approx([begun[0][1]]), name
        assert seen["scales"][0] == seen["scales"][1], name
        assert seen["updates"] == [0, 0], name


@pytest.mark.long
def test_checkpoints_move_between_topologies(tmp_path: Path) -> None:
    found = run_group("checkpoints", 4, tmp_path)
    assert found["wrong"] == []
    assert_close("five topologies in turn", found["curve"], layout="sf:sf")


@pytest.mark.long
def test_optimizer_states_of_split_layers_and_weights_are_those_of_one_process_and_back(tmp_path: Path) -> None:
    for start, world_size in enumerate((4, 1, 4)):
        folder = tmp_path / f"start-{start}"
        folder.mkdir()
        assert run_group("saved_again", world_size, folder) == [], f"start {start}"
    assert len(list(tmp_path.glob("saved-*/step-*"))) == 3


@pytest.mark.long
def test_fp16_scales_its_loss_and_skips_what_overflows(tmp_path: Path) -> None:
    for name, found in run_group("fp16", 2, tmp_path).items():
        assert_close(f"fp16 {name}", found["curve"], layout="sf:sf")
        losses, norms = zip(*found["overflowing"], strict=True)
        assert set(norms) == {math.inf}, name
        assert len(set(losses)) == 1, "a skipped step changed weights"
        assert found["steps"] == 0
        assert found["state"]["cur_scale"] == 2.0**38


@pytest.mark.slow
def test_dropout_of_tensor_parallel_ranks(tmp_path: Path) -> None:
    found = run_group("dropout", 2, tmp_path)
    assert found["unequal"] == []
    first, again, other = found["losses"]
    assert first == again != other
    (inside, outside), (inside_other, outside_other) = found["drawn"]
    assert inside != inside_other
    assert outside == outside_other
