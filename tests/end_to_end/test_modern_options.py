"""The modern options through the real commands: train over two processes, resume, evaluate, export."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from pipeline.checkpoints.reading import load_run_model
from pipeline.data.batches import validation_batches
from pipeline.data.mixture import open_mixture
from tests.processes import TINY_RUN, losses, run_command

OPTIONS = [
    "--model.layout", "sf:3sf", "--model.normalization", "pre", "--model.norm", "rmsnorm", "--model.position", "rope",
    "--model.activation", "geglu", "--model.bias", "false", "--model.narrow_kv", "grouped:2",
    "--model.document_attention", "isolated", "--training.precision", "fp32", "--processes", "2",
]  # fmt: skip


@pytest.mark.slow
def test_a_modern_narrowbert_trains_recomputes_and_exports(tmp_path: Path, shard_folder: Path) -> None:
    train = ["train", *TINY_RUN, "--data.path", str(shard_folder), *OPTIONS]
    run_command("pipeline", *train, "--run_dir", str(tmp_path / "run"))
    # Dropout is on: a second forward pass that drew other numbers would show in the losses.
    run_command("pipeline", *train, "--run_dir", str(tmp_path / "again"), "--model.recompute", "true")
    assert len(losses(tmp_path / "run")) == 10
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    assert "validation loss" in run_command("pipeline", "evaluate", str(tmp_path / "run")).stdout

    run_command("pipeline", "export", str(tmp_path / "run"), "--output", str(tmp_path / "model"))
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    trained, _ = load_run_model(tmp_path / "run")
    shards = open_mixture(str(shard_folder), None)
    batch = next(validation_batches(shards, max_rows=8, micro_batch_size=8, data_rank=0, data_parallel_size=1))
    one_document = torch.zeros_like(batch.document_ids)  # the export takes ordinary rows
    with torch.no_grad():
        expected = trained.logits(batch.input_ids, batch.masked_positions, None, one_document)
        found = exported(batch.input_ids, narrow_positions=batch.masked_positions).logits
    assert (found - expected).abs().max() < 1e-5
