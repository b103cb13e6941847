"""An objective of one's own reaches the loss, the gradients and the records."""

from pathlib import Path

import pytest

from pipeline.runs.records import read_metrics
from tests.processes import TINY_RUN, run_command


@pytest.mark.slow
def test_an_objective_of_ones_own_is_trained_and_recorded(tmp_path: Path, shard_folder: Path) -> None:
    run_command("tests.pipeline.training.train_with", str(tmp_path / "own"), str(shard_folder))
    own = read_metrics(tmp_path / "own")
    options = [*TINY_RUN, "--training.precision", "fp32", "--data.path", str(shard_folder)]
    run_command("pipeline", "train", *options, "--run_dir", str(tmp_path / "plain"))
    plain = read_metrics(tmp_path / "plain")
    assert [step for step, _ in own["objective/masked_lm_loss"]] == list(range(1, 11))
    # The first losses are of the same weights; the weight halves the mean over the masked positions.
    assert own["objective/masked_lm_loss"][0][1] == pytest.approx(plain["train/loss"][0][1] / 2, rel=1e-6)
    assert own["train/loss"][0][1] > own["objective/masked_lm_loss"][0][1]
    assert max(value for _, value in own["objective/difference"]) < 1e-5
    # Other gradients: from the second step on it is another run.
    assert own["objective/masked_lm_loss"][-1][1] != pytest.approx(plain["train/loss"][-1][1] / 2, rel=1e-6)
    assert own["validation/loss"][0][1] == plain["validation/loss"][0][1]
