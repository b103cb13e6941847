"""What a run directory says of its run: which losses a resume must reproduce, and with which configuration."""

from pathlib import Path

import pytest
import yaml

from data_prep.contract.command_line import UserError
from pipeline.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from pipeline.data.mixture import Mixture
from pipeline.runs.attempts import register_attempt
from pipeline.runs.directory import check_run, write_configuration
from pipeline.runs.records import Spool


def changes(
    run_dir: Path, shards: Mixture, losses: dict[int, dict[str, float]], processes: int, **values: int
) -> list[str]:
    """Start the run once more, log losses by step, and return what the spool reports as not deterministic."""
    attempt = register_attempt(run_dir, RunConfig(training=TrainingConfig(**values)), shards, processes)
    spool = Spool(run_dir, may_differ_until=attempt.may_differ_until)
    for step, metrics in losses.items():
        spool.write(step, metrics)
    spool.close()
    return [line.split(" is ")[0] for line in spool.changed]


def test_other_eval_rows_are_no_fault_but_other_training_losses_are(tmp_path: Path, shards: Mixture) -> None:
    first = {4: {"train/loss": 2.0, "validation/loss": 3.0}, 8: {"train/loss": 1.0, "validation/loss": 2.0}}
    other_rows = {step: metrics | {"validation/loss": 9.0} for step, metrics in first.items()}
    assert changes(tmp_path, shards, first, 2, eval_rows=64) == []
    assert changes(tmp_path, shards, {4: other_rows[4]}, 2, eval_rows=32) == []
    # Started again with those 32: the losses on disk are still those of 64 rows.
    again = {4: other_rows[4], 8: {"train/loss": 1.5, "validation/loss": 9.0}, 12: {"validation/loss": 8.0}}
    assert changes(tmp_path, shards, again, 2, eval_rows=32) == ["train/loss of step 8"]
    assert changes(tmp_path, shards, {12: {"validation/loss": 7.0}}, 2, eval_rows=32) == ["validation/loss of step 12"]


def test_another_topology_gives_other_roundings_for_the_steps_before_it(tmp_path: Path, shards: Mixture) -> None:
    assert changes(tmp_path, shards, {8: {"train/loss": 1.0, "validation/loss": 2.0}}, 2) == []
    rounded = {8: {"train/loss": 1.5, "validation/loss": 2.5}, 9: {"train/loss": 0.5}}
    assert changes(tmp_path, shards, rounded, 4) == []
    assert changes(tmp_path, shards, rounded | {9: {"train/loss": 0.75}}, 4) == ["train/loss of step 9"]


def test_a_run_of_a_version_that_lacked_an_option_had_its_default(
    tmp_path: Path, shards: Mixture, shard_folder: Path
) -> None:
    def config(**model: float) -> RunConfig:
        return RunConfig(
            run_dir=str(tmp_path),
            data=DataConfig(path=str(shard_folder)),
            model=ModelConfig(**model),  # pyright: ignore[reportArgumentType]
        )

    register_attempt(tmp_path, config(), shards, 1)
    write_configuration(config(), shards)
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del stored["model"]["rotary_base"], stored["init"], stored["training"]["max_failed_saves"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    check_run(config(), 1)
    with pytest.raises(UserError, match=r"\(model.rotary_base 10000.0 there, 500.0 here\)"):
        check_run(config(rotary_base=500.0), 1)
