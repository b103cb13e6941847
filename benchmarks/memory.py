"""Predicted and measured memory of one training process on CPU.

    python benchmarks/memory.py [--shapes SHAPE ...]

For each shape its processes are started, import everything and compute something small: that is the
baseline. Then they build the engine and make steps on rows made up here. The measured figure is the
peak of the resident memory since the baseline (Linux: VmHWM), less the baseline, of rank 0; the
predicted one is what ``narrowbert plan`` prints. malloc is told to give freed memory back at once:
otherwise the peak also holds what malloc keeps for later, up to a third more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import record

from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.model.arithmetic import RowShape

STEPS = 3
# processes, seq_length, masked_per_row, vocab_size, model, training
SHAPES: dict[str, tuple[int, int, int, int, dict[str, Any], dict[str, Any]]] = {
    "activations": (
        1, 128, 19, 2048,
        {"layout": "2sf:2sf", "hidden_size": 256, "num_attention_heads": 8, "ffn_hidden_size": 1024},
        {"micro_batch_size": 64, "precision": "fp32", "zero_stage": 1},
    ),
    "states": (
        2, 64, 10, 65536,
        {"layout": "1sf:3sf", "hidden_size": 256, "num_attention_heads": 4, "ffn_hidden_size": 1024},
        {"micro_batch_size": 2, "precision": "bf16", "zero_stage": 2},
    ),
    "split-layers": (
        2, 64, 10, 65536,
        {"layout": "1sf:3sf", "hidden_size": 256, "num_attention_heads": 4, "ffn_hidden_size": 1024},
        {"micro_batch_size": 8, "precision": "fp32", "zero_stage": 1, "tensor_model_parallel_size": 2},
    ),
    "split-weights": (
        2, 64, 10, 65536,
        {"layout": "1sf:3sf", "hidden_size": 256, "num_attention_heads": 4, "ffn_hidden_size": 1024},
        {"micro_batch_size": 4, "precision": "bf16", "zero_stage": 3},
    ),
    "recompute": (
        1, 128, 19, 2048,
        {"layout": "2sf:2sf", "hidden_size": 256, "num_attention_heads": 8, "ffn_hidden_size": 1024, "recompute": True},
        {"micro_batch_size": 64, "precision": "fp32", "zero_stage": 1},
    ),
    "recompute-split": (
        2, 128, 19, 2048,
        {"layout": "6sf", "hidden_size": 256, "num_attention_heads": 8, "ffn_hidden_size": 1024, "recompute": True},
        {"micro_batch_size": 64, "precision": "fp32", "zero_stage": 1, "tensor_model_parallel_size": 2},
    ),
}  # fmt: skip


def configuration(name: str) -> tuple[int, RowShape, RunConfig]:
    """Processes, rows and configuration of a shape."""
    processes, seq_length, masked, vocab_size, model, training = SHAPES[name]
    groups = processes // training.get("tensor_model_parallel_size", 1)
    total = training["micro_batch_size"] * groups
    config = RunConfig(
        model=ModelConfig(max_position_embeddings=seq_length, **model),
        training=TrainingConfig(train_steps=STEPS, global_batch_size=total, **training),
    )
    return processes, RowShape(seq_length=seq_length, masked_per_row=masked, vocab_size=vocab_size), config


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS is now, VmHWM the peak since it was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(name: str, rank: int, folder: Path) -> None:
    """One process: train, and (rank 0) write baseline and peak."""
    import torch
    import torch.distributed as dist

    processes, shape, config = configuration(name)
    training = config.training
    os.environ.update(
        DS_ACCELERATOR="cpu", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    import deepspeed  # noqa: F401 - part of the baseline

    from pipeline.engine.deepspeed_engine import build_engine, update_weights
    from pipeline.model.masked_lm import NarrowBertForPretraining
    from pipeline.model.parameters import padded_vocab_size
    from pipeline.parallel.groups import initialise_tensor_parallel

    initialise_tensor_parallel(training.tensor_model_parallel_size)
    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()
    baseline = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    torch.manual_seed(0)
    padded = padded_vocab_size(shape.vocab_size, training.tensor_model_parallel_size)
    engine = build_engine(config, NarrowBertForPretraining(config.model, shape.vocab_size, padded), torch.device("cpu"))
    rows = training.micro_batch_size
    generator = torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        input_ids = torch.randint(shape.vocab_size, (rows, shape.seq_length), generator=generator)
        positions = torch.randint(shape.seq_length, (rows, shape.masked_per_row), generator=generator)
        labels = torch.randint(shape.vocab_size, positions.shape, generator=generator)
        output = engine(input_ids, positions, None, labels, torch.ones_like(labels, dtype=torch.bool))
        engine.backward(output.loss_sum / labels.numel())
        update_weights(engine, config.optimizer.clip_grad)
    if rank == 0:
        result = {"baseline": baseline, "peak": resident("VmHWM") - baseline}
        (folder / "result.json").write_text(json.dumps(result))
    dist.barrier()
    os._exit(0)


def run(name: str) -> dict[str, int]:
    """Start the processes of a shape; return what rank 0 measured."""
    processes = configuration(name)[0]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--shapes", name, "--folder", folder, "--rank"]
        children = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(processes)]
        if any(child.wait() for child in children):
            raise SystemExit(f"a process of {name} failed")
        return json.loads((Path(folder) / "result.json").read_text())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--record", action="store_true", help="append the rows to results/memory.jsonl")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        measure(arguments.shapes[0], arguments.rank, arguments.folder)
    from pipeline.planning.memory import predict_memory

    print("| shape | weights | gradients | optimizer | activations | predicted | measured | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for name in arguments.shapes:
        processes, shape, config = configuration(name)
        predicted = predict_memory(config, shape, processes)
        measured = run(name)["peak"]
        parts = (predicted.weights, predicted.gradients, predicted.optimizer, predicted.activations)
        cells = " | ".join(f"{part / 2**20:,.0f}" for part in (*parts, predicted.total, measured))
        ratio = f"{predicted.total / measured:.2f}"
        print(f"| `{name}` | {cells} | {ratio} |", flush=True)
        sizes = {"predicted": predicted.total, "measured": measured}
        rows.append(
            {"shape": f"`{name}`"} | {key: f"{size / 2**20:,.0f}" for key, size in sizes.items()} | {"ratio": ratio}
        )
    print("\nMiB per process.")
    if arguments.record:
        record("memory", "table-1", rows)


if __name__ == "__main__":
    main()
