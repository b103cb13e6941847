"""The training step of one commit beside that of another, in processes of their own, in turn.

    git worktree add ../before COMMIT
    python benchmarks/two_commits.py ../before . [--record]

Each process makes steps of one shape on random rows, one thread, as `narrowbert train` alone on a machine makes them
(`initialise_process_group`, ZeRO 1, and what that commit does about malloc), and tells the median of its CPU seconds a
step, which neighbours change less than wall time. A pair is one process of each commit; ratios are those within a pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import results  # pyright: ignore[reportMissingImports] - beside this file

SHAPES = {
    "quickstart": {
        "layout": "1sf:7sf", "hidden": 256, "heads": 4, "rows": 48, "micro": 24, "vocab": 8192, "length": 128,
        "dropout": 0.0, "precision": "bf16",
    },
    "12 x 768": {
        "layout": "2sf:10sf", "hidden": 768, "heads": 12, "rows": 8, "micro": 8, "vocab": 30522, "length": 128,
        "dropout": 0.1, "precision": "bf16",
    },
}  # fmt: skip

# Runs in either tree, so it may use only what both have.
STEP = """
import importlib, json, statistics, sys, time
shape = json.loads(sys.argv[1])
steps = int(sys.argv[2])
import torch
from pipeline.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine.deepspeed_engine import build_engine, initialise_process_group, update_weights
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.processes.world import World
try:
    importlib.import_module("pipeline.processes.malloc").keep_freed_memory()
except ModuleNotFoundError:
    pass
device = initialise_process_group(World(rank=0, local_rank=0, size=1))
model = ModelConfig(layout=shape["layout"], hidden_size=shape["hidden"], num_attention_heads=shape["heads"],
    ffn_hidden_size=4 * shape["hidden"], max_position_embeddings=512, hidden_dropout=shape["dropout"],
    attention_dropout=shape["dropout"])
training = TrainingConfig(global_batch_size=shape["rows"], micro_batch_size=shape["micro"],
    precision=shape["precision"], zero_stage=1)
torch.manual_seed(1)
engine = build_engine(RunConfig(model=model, training=training, optimizer=OptimizerConfig()),
    NarrowBertForPretraining(model, shape["vocab"], -(-shape["vocab"] // 128) * 128), device)
ids = torch.randint(5, shape["vocab"], (shape["micro"], shape["length"]))
masked = round(0.15 * shape["length"])
positions = torch.rand(ids.shape).argsort(-1)[:, :masked].sort(-1).values
labels = ids.gather(1, positions)
real = torch.ones_like(labels, dtype=torch.bool)
seconds = []
for _ in range(steps + 1):
    started = time.process_time()
    for _ in range(shape["rows"] // shape["micro"]):
        engine.backward(engine(ids, positions, None, labels, real, None).loss_sum / real.sum())
        update_weights(engine, 1.0)
    seconds.append(time.process_time() - started)
print(statistics.median(seconds[1:]))
"""


def measure(tree: Path, shape: str, steps: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-W", "ignore", "-P", "-c", STEP, json.dumps(SHAPES[shape]), str(steps)]
    done = subprocess.run(argv, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a tree of the project")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a process, besides a first one")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--record", action="store_true", help="add the rows to results/two_commits.jsonl")
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        pairs = []
        for _ in range(options.pairs):
            pairs.append([measure(tree, shape, options.steps) for tree in (options.before, options.after)])
            print(f"{shape}: before {pairs[-1][0]:.3f} s, after {pairs[-1][1]:.3f} s", flush=True)
        ratios = [before / after for before, after in pairs]
        before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(
            {
                "shape": shape,
                "before": f"{before:.3f} s",
                "after": f"{after:.3f} s",
                "before / after (pairs)": f"**{statistics.median(ratios):.2f}** {spread}",
            }
        )
        print(rows[-1])
    if options.record:
        results.record("two_commits", "step", rows)


if __name__ == "__main__":
    main()
