"""A training in three phases, as commands: short rows at a constant rate, long rows, and a decay."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from tests.processes import TINY_RUN, losses, run_command

COMMON = [
    *TINY_RUN, "--model.layout", "sf:2sf", "--training.precision", "bf16",
    "--optimizer.lr", "1e-2", "--training.eval_interval", "10", "--training.eval_rows", "32",
]  # fmt: skip
CONSTANT = ["--optimizer.lr_decay_style", "constant", "--optimizer.lr_warmup_steps"]


@pytest.mark.slow
def test_three_phases_are_one_training(tmp_path: Path, shard_folder: Path, long_shard_folder: Path) -> None:
    short, long, decay = (tmp_path / name for name in ("short", "long", "decay"))
    going_on = ["--model.max_position_embeddings", "64", "--init.moments", "true", "--init.from_run"]

    def train(run_dir: Path, shards: Path, *options: str) -> str:
        argv = ["train", *COMMON, "--run_dir", str(run_dir), "--data.path", str(shards), *options]
        return run_command("pipeline", *argv).stdout

    batch = ["--training.global_batch_size", "8"]
    train(short, shard_folder, *CONSTANT, "5", "--training.train_steps", "40")
    said = train(long, long_shard_folder, *going_on, str(short), *CONSTANT, "0", *batch, "--processes", "2")
    assert f"starting from weights and moments of step 40 of {short}" in said
    assert "model.max_position_embeddings 32 there, 64 here, repeated in turn" in said
    falling = ["--optimizer.lr_decay_style", "sqrt", "--optimizer.lr_warmup_steps", "0"]
    said = train(decay, long_shard_folder, *going_on, f"{long}@10", *falling, *batch, "--training.train_steps", "20")
    assert "rows: the order goes on at row 80" in said

    # No phase begins anew: random weights have a loss of log(160) = 5.1, and these texts one of 3.65 by word counts.
    first, second, third = (losses(run_dir) for run_dir in (short, long, decay))
    assert first[1] > 4.9
    assert max(first[40], *second.values(), *third.values()) < 4
    parent = json.loads((decay / "run.json").read_text())["parent"]
    tokens = 40 * 16 * 32 + 10 * 8 * 64
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
