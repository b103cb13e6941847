"""A training in three phases, as commands: short rows at a constant rate, long rows, and a decay; ever fewer masks."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from pipeline.runs.records import read_points
from tests.processes import TINY_RUN, losses, run_command

COMMON = [
    *TINY_RUN, "--model.layout", "sf:2sf", "--training.precision", "bf16",
    "--optimizer.lr", "1e-2", "--training.eval_interval", "10", "--training.eval_rows", "32",
]  # fmt: skip
CONSTANT = ["--optimizer.lr_decay_style", "constant", "--optimizer.lr_warmup_steps"]


@pytest.mark.slow
def test_three_phases_are_one_training(tmp_path: Path, shard_folder: Path, long_shard_folder: Path) -> None:
    short, long, decay = (tmp_path / name for name in ("short", "long", "decay"))
    short_shards, long_shards = (tmp_path / f"{name}-30" for name in ("short", "long"))
    for shards, remasked in ((shard_folder, short_shards), (long_shard_folder, long_shards)):
        run_command("data_prep", "remask", str(shards), "--output", str(remasked), "--mask.probability", "0.3")
    going_on = ["--model.max_position_embeddings", "64", "--init.moments", "true", "--init.from_run"]

    def train(run_dir: Path, shards: Path, *options: str) -> str:
        argv = ["train", *COMMON, "--run_dir", str(run_dir), "--data.path", str(shards), *options]
        return run_command("pipeline", *argv).stdout

    batch = ["--training.global_batch_size", "8"]
    growing = [
        *batch,
        "--training.micro_batch_size",
        "2",
        "--training.batch_warmup",
        "[[0, 4], [5, 8]]",
        "--training.mask_rate",
        "[[0, 0.15]]",
    ]
    train(short, short_shards, *CONSTANT, "5", "--training.train_steps", "40")
    said = train(long, long_shards, *going_on, str(short), *CONSTANT, "0", *growing, "--processes", "2")
    assert f"starting from weights and moments of step 40 of {short}" in said
    assert "model.max_position_embeddings 32 there, 64 here, repeated in turn" in said
    falling = ["--optimizer.lr_decay_style", "sqrt", "--optimizer.lr_warmup_steps", "0"]
    falling += ["--training.mask_rate", "[[0, 0.05]]", "--training.train_steps", "20"]
    said = train(decay, long_shards, *going_on, f"{long}@10", *falling, *batch)
    assert "rows: the order goes on at row 60" in said
    # Of rows of 32, 64 and 64 tokens.
    assert [masks_a_row(run_dir) for run_dir in (short, long, decay)] == [{10}, {10}, {3}]

    # No phase begins anew: random weights have a loss of log(160) = 5.1, and these texts one of 3.65 by word counts.
    first, second, third = (losses(run_dir) for run_dir in (short, long, decay))
    assert first[1] > 4.9
    assert max(first[40], *second.values(), *third.values()) < 4
    parent = json.loads((decay / "run.json").read_text())["parent"]
    tokens = 40 * 16 * 32 + (5 * 4 + 5 * 8) * 64
    assert (parent["run"], parent["step"], parent["steps"], parent["tokens"]) == ("long", 10, 50, tokens)

    page = tmp_path / "phases.html"
    printed = run_command("pipeline", "report", str(decay), "--output", str(page)).stdout
    assert "50 + 20" in printed
    assert page.read_text().count('data-name="short &gt; long &gt; decay"') > 3
    run_command("pipeline", "average", str(decay), "--last", "2", "--output", str(tmp_path / "average"))
    run_command("pipeline", "export", str(tmp_path / "average"), "--output", str(tmp_path / "model"))
    card = (tmp_path / "model/README.md").read_text()
    assert f"step 10 of long (50 steps and {tokens:,} tokens before)" in card
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert model.config.max_position_embeddings == 64


def masks_a_row(run_dir: Path) -> set[float]:
    """How many tokens of a row the steps of a run masked."""
    points = [point.metrics for point in read_points(run_dir) if "train/loss" in point.metrics]
    slots = [0.0, *(point["train/masked_positions"] for point in points)]
    return {
        (after - before) / point["train/batch_rows"]
        for point, (before, after) in zip(points, pairwise(slots), strict=True)
    }
