"""Makes ``artifacts/``: small shards, a run with a checkpoint, an export and their figures, by an older commit.

Run it with the older commit on ``PYTHONPATH``, never with the code under test::

    git worktree add ../older 28863e1
    PYTHONPATH=../older python tests/compatibility/make.py /tmp/narrowbert-artifacts
    mv /tmp/narrowbert-artifacts tests/compatibility/artifacts

``records.json`` holds what that commit computed: the losses of 30 steps and the logits of the export.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

STEPS, SAVED_STEP, SEQ_LENGTH, VOCAB_SIZE = 30, 20, 32, 200
# Every processor computes the same bits: no instructions beyond the oldest set, sums in one order.
SAME_BITS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
TRAINING = (
    "--model.layout", "1sf:2sf",
    "--model.hidden_size", "16",
    "--model.num_attention_heads", "2",
    "--model.ffn_hidden_size", "32",
    "--model.max_position_embeddings", str(SEQ_LENGTH),
    "--optimizer.lr", "0.01",
    "--training.precision", "fp32",
    "--training.train_steps", str(STEPS),
    "--training.global_batch_size", "8",
    "--training.micro_batch_size", "4",
    "--training.eval_interval", "1000",
    "--training.eval_rows", "8",
    "--training.save_interval", str(SAVED_STEP),
    "--training.log_interval", "1",
    "--tracking.enabled", "false",
)  # fmt: skip
"""A model with dropout whose loss falls visibly; 30 steps of it are the golden curve."""


def losses(run_dir: Path) -> dict[str, float]:
    """Training loss of every step; JSON keeps a Python float to the bit."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [(str(line["step"]), line["metrics"].get("train/loss")) for line in lines]
    return {step: loss for step, loss in steps if loss is not None}


def main(folder: Path) -> None:
    """Make everything below ``folder``, which must not exist."""
    folder.mkdir()
    corpus, scratch = folder / "corpus.txt", folder / "scratch"
    _write_corpus(corpus)
    prep = (
        "--corpus.paths", f"[{corpus}]", "--seq_length", str(SEQ_LENGTH), "--vocabulary.size", str(VOCAB_SIZE),
        "--vocabulary.alphabet_size", "60", "--mask.variants", "2", "--validation_fraction", "0.2",
        "--corpus.txt_documents", "paragraph",
        "--output", str(folder / "shards"),
    )  # fmt: skip
    _run("data_prep", "vocab", *prep)
    _run("data_prep", "shards", *prep)
    _run("pipeline", "train", *TRAINING, "--data.path", str(folder / "shards"), "--run_dir", str(scratch))
    _run("pipeline", "export", str(scratch), "--output", str(folder / "export"))
    records = {"losses": losses(scratch), "torch": _torch_version(), "logits": logits(folder / "export")}
    _keep_interrupted_run(scratch, folder / "run")
    (folder / "records.json").write_text(json.dumps(records, indent=1) + "\n")
    corpus.unlink()


def _write_corpus(path: Path) -> None:
    numbers = random.Random(1)
    words = ["".join(numbers.choices("abcdefghij", k=numbers.randint(2, 5))) for _ in range(120)]
    documents = [" ".join(numbers.choices(words, k=numbers.randint(10, 80))) + " ." for _ in range(120)]
    path.write_text("\n\n".join(documents) + "\n")


def _run(package: str, *argv: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", package, *argv], check=True, env={**os.environ, **SAME_BITS})


def _torch_version() -> str:
    code = "import torch; print(torch.__version__)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def logits(export: Path, register: str = "") -> list[list[float]]:
    """Logits of two masked positions, the second in a padded row; by the export's own code unless ``register``."""
    code = (
        f"import json, sys, torch\n{register}\n"
        "from transformers import AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code={not register}).eval()\n"
        "ids = torch.tensor([[2, 9, 4, 30, 41, 3], [2, 4, 12, 3, 0, 0]])\n"
        "with torch.no_grad():\n"
        "    logits = model(input_ids=ids, attention_mask=(ids > 0).long()).logits\n"
        "print(json.dumps(logits[ids == 4].tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(export)],
        check=True, capture_output=True, text=True, env={**os.environ, **SAME_BITS, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return json.loads(done.stdout)


def _keep_interrupted_run(scratch: Path, run_dir: Path) -> None:
    """The run as a power cut after step 20 leaves it, without its logs."""
    saved = f"step-{SAVED_STEP:08d}"
    for name in ("config.yaml", "run.json", "tokenizer.json"):
        run_dir.mkdir(exist_ok=True)
        shutil.copy(scratch / name, run_dir / name)
    shutil.copytree(scratch / "checkpoints" / saved, run_dir / "checkpoints" / saved)
    (run_dir / "checkpoints" / "latest").write_text(f"{saved}\n")
    lines = (scratch / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["step"] <= SAVED_STEP))
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
