"""Too little memory, by a real allocation that fails."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig, TrainingConfig
from pipeline.config_checks import check_config, needs_less_memory
from tests.faults.runs import argv
from tests.marks import long
from tests.processes import Ranks, losses, run_command


@pytest.mark.slow
@pytest.mark.parametrize(("place", "step"), [long("in the forward pass", 0), long("saving", 4)])
def test_no_memory_is_one_line_on_one_rank_of_two_and_what_it_says_works(
    tmp_path: Path, shard_folder: Path, place: str, step: int
) -> None:
    command = argv(tmp_path / "run", shard_folder)
    too_much = {"do": "allocate", "rank": 1, "place": place, "step": step, "bytes": 1 << 60}
    printed = Ranks(2, *command, faults=[too_much]).end(1, 2)[1]  # rank 0 has lost its peer
    (line,) = [line for line in printed.splitlines() if line.startswith("narrowbert: ")]
    assert f"rank 1 (cpu) has no memory for 1073741824.00 GiB more '{place}' after step {step}" in line
    assert "take --training.micro_batch_size 1 or --model.recompute true or --training.zero_stage 2" in line
    assert "Traceback" not in printed
    run_command("pipeline", *command, "--training.micro_batch_size", "1", "--processes", "2")
    assert len(losses(tmp_path / "run")) == 10


@settings(max_examples=25)  # a command line takes its time to read
@given(
    micro=st.integers(1, 12),
    times=st.integers(1, 6),
    data=st.integers(1, 4),
    tensor=st.sampled_from([1, 2, 4]),
    stage=st.integers(0, 3),
    recompute=st.booleans(),
    optimizer=st.sampled_from(["adamw", "muon"]),
)
def test_everything_that_is_advised_is_accepted(
    micro: int, times: int, data: int, tensor: int, stage: int, recompute: bool, optimizer: str
) -> None:
    last_stage = 2 if optimizer == "muon" else 3
    stage = min(stage, last_stage)
    training = {
        "micro_batch_size": micro, "global_batch_size": micro * times * data, "tensor_model_parallel_size": tensor,
        "zero_stage": stage, "precision": "fp32",
    }  # fmt: skip
    given_options = [word for key, value in training.items() for word in (f"--training.{key}", str(value))]
    given_options += ["--model.recompute", str(recompute).lower(), "--optimizer.type", optimizer]
    config = read_config(RunConfig, given_options, "train", "")
    check_config(config, world_size=data * tensor)
    advice = needs_less_memory(config, data * tensor, on_gpu=True)
    if not advice.startswith("take --"):
        assert (micro, recompute) == (1, True)
        assert stage == 0 or optimizer == "muon"
        assert data == 1 or stage == last_stage
        return
    for way in advice.removeprefix("take ").split(" or "):
        changed = read_config(RunConfig, [*given_options, *way.split()], "train", "")
        check_config(changed, world_size=data * tensor)
        assert changed != config


def test_the_next_smaller_micro_batch_is_advised() -> None:
    config = RunConfig(training=TrainingConfig(global_batch_size=1728, micro_batch_size=27))
    assert "--training.micro_batch_size 18 or" in needs_less_memory(config, 16, on_gpu=False)  # 108 rows of a process
