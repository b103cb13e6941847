"""Runs that mask less than their shards do, or less and less."""

import json
import shutil
from pathlib import Path

import pytest

from tests.processes import TINY_RUN, losses, run_command, user_error

RATES = "[[0, 0.3], [4, 0.16], [7, 0.06]]"
SLOTS = [10] * 4 + [5] * 3 + [2] * 3  # of rows of 32, in each of the ten steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of `shard_folder`, 10 of 32 tokens masked."""
    output = tmp_path_factory.mktemp("masked") / "shards"
    run_command("data_prep", "remask", str(shard_folder), "--output", str(output), "--mask.probability", "0.3")
    return output


def argv(run_dir: Path, folder: Path, *options: str, rates: str | None = RATES) -> list[str]:
    return [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(folder), "--training.precision", "fp32",
        "--training.save_interval", "3", "--training.eval_interval", "5", "--model.layout", "sf:2sf",
        *([] if rates is None else ["--training.mask_rate", rates]), *options,
    ]  # fmt: skip


def series(run_dir: Path, name: str) -> dict[int, float]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["metrics"][name] for record in records if name in record["metrics"]}


def go_back(run_dir: Path, step: int) -> None:
    """Forget what came after the checkpoint of a step."""
    for path in run_dir.glob("checkpoints/step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    for name in ("DONE", "metrics.jsonl"):
        (run_dir / name).unlink()


@pytest.mark.long
def test_a_falling_rate_resumes_to_the_bit_and_is_counted(tmp_path: Path, folder: Path) -> None:
    run_command("pipeline", *argv(tmp_path / "whole", folder, "--processes", "2"))
    whole = losses(tmp_path / "whole")
    assert len(whole) == 10
    rates = series(tmp_path / "whole", "train/mask_rate")
    assert [rates[step] for step in range(1, 11)] == [slots / 32 for slots in SLOTS]
    slots = series(tmp_path / "whole", "train/masked_positions")
    assert [slots[step] for step in range(1, 11)] == [16 * sum(SLOTS[:step]) for step in range(1, 11)]
    run_dir = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", run_dir)
    go_back(run_dir, 6)
    run_command("pipeline", *argv(run_dir, folder, "--processes", "2"))
    assert losses(run_dir) == {step: loss for step, loss in whole.items() if step > 6}
    assert series(run_dir, "validation/loss")[10] == series(tmp_path / "whole", "validation/loss")[10]

    # What lies ahead may change, and what is done may not.
    go_back(run_dir, 6)
    refused = user_error("pipeline", *argv(run_dir, folder, rates="[[0, 0.3], [5, 0.06]]"))
    assert (
        "6 of its steps are done: step 5 had 16 rows of 5 masked positions and would have 16 rows of 10 mask" in refused
    )
    run_command("pipeline", *argv(run_dir, folder, "--processes", "2", rates="[[0, 0.3], [4, 0.16], [8, 0.1]]"))
    changed = losses(run_dir)
    assert changed[7] == whole[7]
    assert changed[8] != whole[8]
    assert series(run_dir, "train/mask_rate")[9] == 3 / 32


def test_losses_of_a_falling_rate_do_not_depend_on_the_processes(tmp_path: Path, folder: Path) -> None:
    base = ["--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    run_command("pipeline", *argv(tmp_path / "one", folder, *base, "--training.micro_batch_size", "16"))
    run_command("pipeline", *argv(tmp_path / "two", folder, *base, "--processes", "2", "--training.zero_stage", "2"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)


@pytest.mark.long
def test_the_full_rate_gives_the_losses_of_no_rate(tmp_path: Path, folder: Path) -> None:
    run_command("pipeline", *argv(tmp_path / "none", folder, rates=None))
    run_command("pipeline", *argv(tmp_path / "full", folder, rates="[[0, 0.31]]"))
    assert losses(tmp_path / "full") == losses(tmp_path / "none")
    run_command("pipeline", *argv(tmp_path / "lower", folder, rates="[[0, 0.15]]"))
    assert losses(tmp_path / "lower") != losses(tmp_path / "none")
    refused = user_error("pipeline", *argv(tmp_path / "more", folder, rates="[[0, 0.15], [2, 0.35]]"))
    assert "mask_rate 0.35 from step 2 on is 11 of 32 tokens, and the shards hold 10, a rate of 0.3125" in refused


@pytest.mark.long
def test_evaluations_have_their_own_rate_and_an_older_run_keeps_its_own(tmp_path: Path, folder: Path) -> None:
    def positions(run_dir: Path) -> int:
        shown = run_command("pipeline", "evaluate", str(run_dir), "--max_rows", "8").stdout
        return int(shown.split(" masked tokens")[0].split("(")[-1].replace(",", ""))

    whole = argv(tmp_path / "run", folder, "--training.eval_rows", "8")
    run_command("pipeline", *whole)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["eval_masked_per_row"] == 5
    run_command("pipeline", *argv(tmp_path / "full", folder, "--training.eval_rows", "8", "--training.eval_mask_rate",
                                  "0.9"))  # fmt: skip
    assert losses(tmp_path / "run") == losses(tmp_path / "full")
    own, full = (series(tmp_path / name, "validation/loss") for name in ("run", "full"))
    assert own != full
    assert positions(tmp_path / "full") == 2 * positions(tmp_path / "run") == 80

    # As an earlier version has left it: evaluated with all that the shards hold.
    go_back(tmp_path / "run", 6)
    del record["eval_masked_per_row"]
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    for claim in (tmp_path / "run/attempts").iterdir():
        claim.write_text(json.dumps({"lineage_id": record["lineage_id"], "order_version": record["order_version"]}))
    lines = (tmp_path / "run/config.yaml").read_text().splitlines(True)
    (tmp_path / "run/config.yaml").write_text("".join(line for line in lines if "eval_mask_rate" not in line))
    assert positions(tmp_path / "run") == 80
    run_command("pipeline", *whole)
    assert series(tmp_path / "run", "validation/loss")[10] == full[10]
    assert json.loads((tmp_path / "run/run.json").read_text())["eval_masked_per_row"] == 10
