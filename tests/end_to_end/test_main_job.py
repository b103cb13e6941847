"""Text in, a trained NarrowBERT out: the README's path on a small corpus, through the real commands."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_prep.contract.shards import open_shards
from pipeline.checkpoints.reading import load_run_model
from pipeline.data.batches import validation_batches
from pipeline.data.mixture import open_mixture
from tests.conftest import write_corpus
from tests.processes import run_command

REPOSITORY = Path(__file__).parents[2]
SIZES = [
    "--model.hidden_size", "32", "--model.num_attention_heads", "4", "--model.ffn_hidden_size", "64",
    "--model.max_position_embeddings", "32", "--training.train_steps", "40", "--training.global_batch_size", "16",
    "--training.micro_batch_size", "8", "--training.eval_interval", "20", "--training.save_interval", "20",
    "--optimizer.lr", "0.01", "--processes", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole job was run: shards, two runs, an export, an MLflow store."""
    folder = tmp_path_factory.mktemp("job")
    write_corpus(folder / "corpus.jsonl", num_documents=200)
    prep = [
        "--config", str(REPOSITORY / "configs/prep/quickstart.yaml"), "--corpus.paths", "corpus.jsonl",
        "--output", "shards", "--vocabulary.size", "160", "--vocabulary.alphabet_size", "40", "--seq_length", "32",
        "--num_workers", "1", "--validation_fraction", "0.15",
    ]  # fmt: skip
    run_command("data_prep", "vocab", *prep, cwd=folder)
    run_command("data_prep", "shards", *prep, cwd=folder)
    run_command("data_prep", "verify", "shards", cwd=folder)
    train = ["train", "--config", str(REPOSITORY / "configs/pretrain/quickstart.yaml"), "--data.path", "shards", *SIZES]
    run_command("pipeline", *train, "--model.layout", "sf:2sf", "--run_dir", "runs/narrow", cwd=folder)
    run_command("pipeline", *train, "--model.layout", "3sf", "--run_dir", "runs/control", cwd=folder)
    (folder / "shards").rename(folder / "moved")  # an export needs the run directory alone
    run_command("pipeline", "export", "runs/narrow", "--output", "model", cwd=folder)
    (folder / "moved").rename(folder / "shards")
    return folder


@pytest.mark.slow
def test_loss_falls_and_the_report_compares(workplace: Path) -> None:
    evaluated = run_command("pipeline", "evaluate", "runs/narrow", cwd=workplace).stdout
    loss = float(evaluated.split("validation loss ")[1].split()[0])
    assert loss < 0.8 * math.log(160)  # a model that knows nothing is at log(160)
    table = run_command("pipeline", "report", "runs/narrow", "runs/control", cwd=workplace).stdout.splitlines()
    narrow, control = (line.split() for line in table[2:4])
    assert narrow[:3] == ["narrow", "sf:2sf", "40"]
    rates = [float(row[-3].replace(",", "")) for row in (narrow, control)]
    assert float(narrow[-2].removesuffix("x")) == pytest.approx(rates[0] / rates[1], abs=0.01)
    assert float(narrow[-1].removesuffix("x")) > 1.2


@pytest.mark.slow
def test_mlflow_holds_both_runs(workplace: Path) -> None:
    with sqlite3.connect(workplace / "mlflow.db") as store:
        runs = dict(store.execute("select name, run_uuid from runs where status = 'FINISHED'").fetchall())
        assert set(runs) == {"narrow", "control"}
        where = f"run_uuid = '{runs['narrow']}'"
        losses = store.execute(f"select step, value from metrics where key = 'train/loss' and {where}").fetchall()
        params = dict(store.execute(f"select key, value from params where {where}").fetchall())
        keys = {key for (key,) in store.execute(f"select distinct key from metrics where {where}").fetchall()}
        (artifacts,) = store.execute(f"select artifact_uri from runs where {where}").fetchone()
    spool = [json.loads(line) for line in (workplace / "runs/narrow/metrics.jsonl").read_text().splitlines()]
    expected = [(r["step"], r["metrics"]["train/loss"]) for r in spool if "train/loss" in r["metrics"]]
    assert sorted(losses) == expected
    assert len(expected) == 40
    assert keys >= {"train/tokens_per_second", "validation/loss", "validation/masked_accuracy", "train/gradient_norm"}
    assert params["model.layout"] == "sf:2sf"
    assert params["training.train_steps"] == "40"
    stored = Path(artifacts.removeprefix("file://")) / "config.yaml"
    assert stored.read_text() == (workplace / "runs/narrow/config.yaml").read_text()


@pytest.mark.slow
def test_export_gives_the_trained_models_logits(workplace: Path) -> None:
    trained, _ = load_run_model(workplace / "runs/narrow")
    exported = AutoModelForMaskedLM.from_pretrained(workplace / "model", trust_remote_code=True)
    shards = open_mixture(str(workplace / "shards"), None)
    for batch in validation_batches(shards, max_rows=64, micro_batch_size=16, data_rank=0, data_parallel_size=1):
        mask = None if batch.key_mask is None else batch.key_mask[:, 0, 0].long()
        with torch.no_grad():
            ours = trained.logits(batch.input_ids, batch.masked_positions, batch.key_mask)
            theirs = exported(
                input_ids=batch.input_ids, attention_mask=mask, narrow_positions=batch.masked_positions
            ).logits
        assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.slow
def test_the_mask_is_filled_by_plain_transformers(workplace: Path) -> None:
    sentence = "the model reads a row of tokens and predicts every [MASK] word"
    command = [sys.executable, "-P", str(REPOSITORY / "examples/fill_mask.py"), str(workplace / "model"), sentence]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ}, check=True)
    lines = ended.stdout.strip().splitlines()
    assert lines[0] == sentence
    assert len(lines) == 6
    assert 0 < float(lines[1].split()[0]) <= 1
    tokenizer = AutoTokenizer.from_pretrained(workplace / "model")
    ids = open_shards(workplace / "shards").special_ids
    assert tokenizer("[MASK]").input_ids == [ids["cls"], ids["mask"], ids["sep"]]
