"""Saves two checkpoints of a tiny model on one process and is killed at a given point of the second save.

Usage: python -m tests.faults.save FOLDER

For each point in turn a fork saves step 1, then begins to save step 2 and kills itself with SIGKILL just before the
n-th call that opens, renames, makes or removes something in the folder; then, for several limits, within a write.
The last fork is not killed, but finds at the end of the second save that a newer start has taken over.
Prints one JSON list: per fork what killed it, and the step of the newest checkpoint that then verifies.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # DeepSpeed looks at them, nobody connects

import deepspeed  # noqa: F401 - imported once, before the forks
import torch
import torch.distributed as dist

from pipeline.checkpoints.format import TrainerState, remove_unfinished
from pipeline.checkpoints.reading import newest_checkpoint, read_trainer_state
from pipeline.checkpoints.restore import optimizer_steps
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.engine.deepspeed_engine import build_engine
from pipeline.model.masked_lm import NarrowBertForPretraining

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.unlink"}


def save_twice(folder: Path, arm: Any, taken_over: bool = False) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = ModelConfig(
        layout="sf", hidden_size=8, num_attention_heads=2, ffn_hidden_size=16, max_position_embeddings=8
    )
    training = TrainingConfig(global_batch_size=1, micro_batch_size=1, precision="fp32", zero_stage=0)
    config = RunConfig(model=model, training=training)
    torch.manual_seed(1)
    engine = build_engine(config, NarrowBertForPretraining(model, 50), torch.device("cpu"))
    writer = CheckpointWriter(engine, folder, keep_last=1, may_commit=lambda: not (taken_over and step == 2))
    for step in (1, 2):
        if step == 2:
            arm()
        state = TrainerState(
            step=step, rows_consumed=step, optimizer_steps=optimizer_steps(engine), skipped_steps=0, lineage_id="",
            attempt=1, data_root_hash="", vocab_size=50, config={},
        )  # fmt: skip
        writer.save(state)
        writer.wait()
        (saved,) = writer.finished()
        assert bool(saved.problem) == (taken_over and step == 2), saved.problem


def kill_at_event(folder: Path, number: int) -> Any:
    """Kills at the ``number``-th file operation in the folder from now on."""
    armed, seen = [False], [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if armed[0] and event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: armed.__setitem__(0, True)


def kill_in_write(size: int) -> None:
    """Any file that grows past ``size`` bytes ends the process in the middle of the write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def attempt(folder: Path, kind: str, number: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        arms = {
            "event": lambda: kill_at_event(folder, number),
            "write": lambda: lambda: kill_in_write(number),
            "taken over": lambda: lambda: None,
        }
        save_twice(folder, arms[kind](), taken_over=kind == "taken over")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    left = sorted(path.name for path in folder.iterdir())
    newest, problems = newest_checkpoint(folder)
    latest = (folder / "latest").read_text().strip()
    remove_unfinished(folder)
    return {
        "kind": kind, "number": number, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None, "left": left, "problems": problems,
        "newest": read_trainer_state(newest).step if newest else None, "latest": latest,
        "after": sorted(path.name for path in folder.iterdir()),
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    found: list[dict[str, Any]] = []
    while not found or found[-1]["signal"]:
        found.append(attempt(folder, "event", len(found) + 1))
    found += [attempt(folder, "write", size) for size in (1, 60, 4096)]
    found.append(attempt(folder, "taken over", 0))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
