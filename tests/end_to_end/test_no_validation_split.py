"""A run on shards without a validation split trains to its end; what needs one says so in a line."""

from pathlib import Path

import pytest

from data_prep.contract.command_line import UserError
from pipeline.data.plain_webdataset import as_webdataset
from tests.conftest import write_corpus
from tests.end_to_end.test_main_job import REPOSITORY, SIZES
from tests.processes import run_command


@pytest.mark.slow
def test_training_without_validation_rows_leaves_evaluation_out(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", num_documents=80)
    prep = [
        "--corpus.paths", "corpus.jsonl", "--output", "shards", "--vocabulary.size", "160", "--seq_length", "32",
        "--num_workers", "1", "--validation_fraction", "0",
    ]  # fmt: skip
    run_command("data_prep", "vocab", *prep, cwd=tmp_path)
    run_command("data_prep", "shards", *prep, cwd=tmp_path)
    train = ["train", "--config", str(REPOSITORY / "configs/pretrain/quickstart.yaml"), "--data.path", "shards", *SIZES]
    run_command("pipeline", *train, "--model.layout", "sf:2sf", "--run_dir", "runs/plain", cwd=tmp_path)
    assert (tmp_path / "runs/plain/DONE").is_file()
    log = (tmp_path / "runs/plain/logs/rank-0.log").read_text()
    assert log.count("the shards have no validation rows") == 1
    assert "validation loss" not in log
    row = run_command("pipeline", "report", "runs/plain", cwd=tmp_path).stdout.splitlines()[2].split()
    assert row[:5] == ["plain", "sf:2sf", "40", "-", "-"]
    run_command("pipeline", "report", "runs/plain", "--output", "page.html", cwd=tmp_path)
    run_command("pipeline", "export", "runs/plain", "--output", "model", cwd=tmp_path)
    refused = run_command("pipeline", "evaluate", "runs/plain", cwd=tmp_path, expect=2).stderr
    assert "shards: no validation rows, so runs/plain cannot be evaluated; prepare shards with" in refused
    with pytest.raises(UserError, match="shards has no validation rows"):
        as_webdataset(tmp_path / "shards", "validation")
    assert next(iter(as_webdataset(tmp_path / "shards")))["input_ids"].shape == (32,)
