"""Which options let a process fit into a GPU's memory."""

import re
import shlex

import pytest

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig
from pipeline.config_checks import check_config
from pipeline.model.arithmetic import RowShape
from pipeline.planning.fitting import fitting_line
from pipeline.planning.memory import bucket_bytes, predict_memory

SHAPE = RowShape(seq_length=2048, masked_per_row=307, vocab_size=30522)
TENSOR_PARALLEL = "training.tensor_model_parallel_size"
LONG = [
    "--model.layout", "4sf", "--model.max_position_embeddings", "2048", "--training.global_batch_size", "64",
    "--training.micro_batch_size", "8", "--model.attention_dropout", "0",
]  # fmt: skip


def needed(config: RunConfig, processes: int) -> float:
    return (predict_memory(config, SHAPE, processes, on_gpu=True).total + bucket_bytes(config, processes)) / 2**30


def parsed(*more: str) -> RunConfig:
    return read_config(RunConfig, [*LONG, *more], "narrowbert train", "")


@pytest.mark.parametrize(
    ("more", "processes", "share", "expected"),
    [
        ((), 2, 0.95, {"training.micro_batch_size"}),
        ((), 2, 0.33, {"training.micro_batch_size", "model.recompute", "training.zero_stage", TENSOR_PARALLEL}),
        (("--optimizer.type", "muon"), 1, 0.75, {"training.micro_batch_size", "model.recompute"}),
    ],
)
def test_the_options_that_it_names_do_fit(
    more: tuple[str, ...], processes: int, share: float, expected: set[str]
) -> None:
    config = parsed(*more)
    size = needed(config, processes) * share
    line = fitting_line(config, SHAPE, processes, size)
    found = re.fullmatch(r"does not fit; ([\d.]+) GiB with (.+)", line)
    assert found is not None, line
    assert {option[2:] for option in shlex.split(found[2]) if option.startswith("--")} <= expected
    changed = parsed(*more, *shlex.split(found[2]))
    check_config(changed, world_size=processes)
    assert float(found[1]) == pytest.approx(needed(changed, processes), abs=0.06)
    assert needed(changed, processes) <= size


def test_what_fits_and_what_cannot_is_said() -> None:
    config = parsed()
    assert fitting_line(config, SHAPE, 2, needed(config, 2) + 2) == "fits, with 2.0 GiB to spare"
    assert "does not fit: " in fitting_line(config, SHAPE, 1, 0.5)
    assert "take more processes, shorter rows or a smaller model" in fitting_line(config, SHAPE, 1, 0.5)
