"""The two machines that are compared: with GPUs, and without them."""

import os
from pathlib import Path

import torch

from tests.processes import losses, run_command

ON = os.environ.get("NARROWBERT_TEST_GPU", "")
PROCESSES = min(2, torch.cuda.device_count()) if ON == "cuda" else 2
"""Of a run that is divided."""

CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
# Compilation takes longer than these runs; a test of its own looks at it.
GPU = {"TORCH_COMPILE_DISABLE": "1"} if ON == "cuda" else CPU

RUN = [
    "--model.layout", "sf:sf", "--model.hidden_size", "64", "--model.num_attention_heads", "4",
    "--model.ffn_hidden_size", "128", "--model.max_position_embeddings", "32", "--model.hidden_dropout", "0",
    "--model.attention_dropout", "0", "--optimizer.lr", "0.003", "--training.train_steps", "12",
    "--training.global_batch_size", "16", "--training.micro_batch_size", "4", "--training.precision", "fp32",
    "--training.log_interval", "1", "--training.eval_interval", "100", "--training.eval_rows", "16",
    "--training.save_interval", "6", "--tracking.enabled", "false",
]  # fmt: skip


def train(run_dir: Path, shards: Path, *options: str, machine: dict[str, str]) -> list[float]:
    """Train a small run to its end; its losses."""
    command = ["train", *RUN, "--run_dir", str(run_dir), "--data.path", str(shards), *options]
    run_command("pipeline", *command, **machine)
    found = losses(run_dir)
    return [found[step] for step in sorted(found)]
