"""A folder as the examples of ``narrowbert.py`` and ``examples/`` expect it: shards and small configurations."""

import json
import shutil
from pathlib import Path

import pytest

TRAINING = """
run_dir: runs/mine
model: {layout: 1sf:2sf, hidden_size: 32, num_attention_heads: 2, ffn_hidden_size: 64, max_position_embeddings: 32}
training:
  {precision: fp32, train_steps: 4, global_batch_size: 8, micro_batch_size: 4, eval_interval: 4, eval_rows: 8,
   save_interval: 4, log_interval: 1}
tracking: {enabled: false}
"""
FINETUNING = """
task: classification
data: {text: text, label: label}
training: {epochs: 1, batch_size: 8, max_length: 16, seeds: [1]}
tracking: {enabled: false}
"""


@pytest.fixture(scope="session")
def workplace(shard_folder: Path, second_shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    for name, source in {"wiki": shard_folder, "mine": shard_folder, "books": second_shard_folder}.items():
        shutil.copytree(source, folder / "shards" / name)
    for name, content in {"pretrain/quickstart": TRAINING, "finetune/classification": FINETUNING}.items():
        path = folder / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    lines = [json.dumps({"text": text, "label": text.split()[1]}) for text in ("the model .", "a row .") * 8]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "texts.txt").write_text("the model reads a row\nnarrow layers compute\nless time on small machines\n")
    return folder
