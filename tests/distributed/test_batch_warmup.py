"""Runs whose steps have few rows at first."""

import json
from pathlib import Path

import pytest

from tests.faults.runs import consumed, expected_rows
from tests.marks import long
from tests.processes import TINY_RUN, Ranks, losses, run_command, user_error

WARMUP = "[[0, 4], [3, 8], [6, 16]]"
ROWS = [4] * 3 + [8] * 3 + [16] * 4  # of the ten steps

pytestmark = pytest.mark.slow


def argv(run_dir: Path, shard_folder: Path, *options: str) -> list[str]:
    return [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder), "--training.precision", "fp32",
        "--training.save_interval", "2", "--training.micro_batch_size", "2", "--training.batch_warmup", WARMUP,
        "--model.hidden_dropout", "0", "--model.attention_dropout", "0", *options,
    ]  # fmt: skip


def metric(run_dir: Path, name: str) -> list[float]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    found = {record["step"]: record["metrics"][name] for record in records if name in record["metrics"]}
    return [found[step] for step in sorted(found)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """The run of one rank."""
    folder = tmp_path_factory.mktemp("warmup") / "one"
    run_command("pipeline", *argv(folder, shard_folder))
    return folder


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ["--training.zero_stage", "2"]),
        long(1, ["--training.micro_batch_size", "4"]),
        long(2, ["--training.zero_stage", "0"]),
        long(2, ["--training.zero_stage", "3"]),
        long(1, ["--training.zero_stage", "2", "--training.offload_optimizer", "true"]),
    ],
)
def test_micro_batches_of_a_step_do_not_change_what_it_learns(
    tmp_path: Path, shard_folder: Path, one: Path, processes: int, options: list[str]
) -> None:
    # With two ranks the first steps have one micro-batch; alone they have two, so that sums end at other places.
    state = json.loads((one / "checkpoints/step-00000010/trainer.json").read_text())
    assert (state["rows_consumed"], state["optimizer_steps"]) == (sum(ROWS), 10)
    assert metric(one, "train/batch_rows") == ROWS
    assert metric(one, "train/tokens") == [32 * sum(ROWS[:step]) for step in range(11)]
    other = tmp_path / "other"
    run_command("pipeline", *argv(other, shard_folder, "--processes", str(processes), *options))
    assert losses(other) == pytest.approx(losses(one), abs=2e-5)
    assert metric(other, "train/gradient_norm") == pytest.approx(metric(one, "train/gradient_norm"), rel=1e-3)


@pytest.mark.long
def test_every_row_comes_once_through_stops_and_other_numbers_of_ranks(tmp_path: Path, shard_folder: Path) -> None:
    run_dir, record = tmp_path / "run", [{"do": "record", "file": str(tmp_path / "rows")}]
    command = argv(run_dir, shard_folder)
    for size, step in ((2, 2), (1, 5)):
        place = {"do": "signal", "rank": size - 1, "place": "in the forward pass", "step": step, "number": 15}
        Ranks(size, *command, faults=[*record, place]).end(85)
    Ranks(2, *command, faults=record).end(0)
    assert consumed(tmp_path / "rows") == expected_rows(shard_folder, len(ROWS), rows_of_steps=ROWS)
    run_command("pipeline", *argv(tmp_path / "whole", shard_folder))
    assert losses(run_dir) == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)


def test_what_lies_ahead_may_change(tmp_path: Path, shard_folder: Path) -> None:
    run_command("pipeline", *argv(tmp_path / "run", shard_folder, "--training.train_steps", "5",
                                  "--optimizer.lr_decay_style", "constant"))  # fmt: skip
    longer = [
        "--training.train_steps",
        "8",
        "--optimizer.lr_decay_style",
        "constant",
        "--optimizer.lr_warmup_steps",
        "1",
    ]
    refused = user_error(
        "pipeline", *argv(tmp_path / "run", shard_folder, *longer, "--training.batch_warmup", "[[0, 4], [4, 16]]")
    )
    assert "step 4 had 8 rows of 5 masked positions and would have 4 rows of 5 masked positions" in refused
    later = "[[0, 4], [3, 8], [7, 16]]"
    run_command("pipeline", *argv(tmp_path / "run", shard_folder, *longer, "--training.batch_warmup", later))
    assert metric(tmp_path / "run", "train/batch_rows") == [4, 4, 4, 8, 8, 8, 8, 16]
