"""A V-cycle of two levels, as commands: a little of the large model, half of it, and the large one again."""

from pathlib import Path

import pytest

from pipeline.runs.records import read_metrics
from tests.processes import TINY_RUN, losses, run_command

LARGE = {"hidden_size": "32", "num_attention_heads": "4", "ffn_hidden_size": "64", "layout": "2sf:2sf"}
SMALL = {"hidden_size": "16", "num_attention_heads": "2", "ffn_hidden_size": "32", "layout": "1sf:1sf"}


def sizes(of: dict[str, str]) -> list[str]:
    return [word for name, value in of.items() for word in (f"--model.{name}", value)]


@pytest.mark.slow
def test_a_v_cycle_goes_on_where_each_level_ended(tmp_path: Path, shard_folder: Path) -> None:
    def train(name: str, level: dict[str, str], steps: int, *options: str) -> str:
        argv = [*TINY_RUN, *sizes(level), "--run_dir", str(tmp_path / name), "--data.path", str(shard_folder)]
        argv += [
            "--training.train_steps",
            str(steps),
            "--optimizer.lr",
            "0.01",
            "--optimizer.lr_decay_style",
            "constant",
        ]
        argv += ["--optimizer.lr_warmup_steps", "3", "--training.precision", "fp32", "--model.normalization", "pre"]
        return run_command("pipeline", "train", *argv, *options).stdout

    def resize(source: str, name: str, level: dict[str, str], *options: str) -> str:
        argv = [str(tmp_path / source), "--output", str(tmp_path / name), *sizes(level), *options]
        return run_command("pipeline", "resize", *argv).stdout

    train("first", LARGE, 30)
    said = resize("first", "half", SMALL)
    assert f"made of: step 30 of {tmp_path / 'first'}, layout 2sf:2sf" in said
    train("small", SMALL, 60, "--init.from_huggingface", str(tmp_path / "half"))
    said = resize("small", "whole", LARGE, "--blend", str(tmp_path / "first"), "--alpha", "0.5")
    assert f"blended with: {tmp_path / 'first'}, of which 0.5" in said
    train("last", LARGE, 20, "--init.from_huggingface", str(tmp_path / "whole"))
    first, last = losses(tmp_path / "first"), losses(tmp_path / "last")
    assert first[1] > 4.9  # random weights: log(160) = 5.1
    assert max(last.values()) < 4.4
    assert dict(read_metrics(tmp_path / "last")["validation/loss"])[20] < 3.9
