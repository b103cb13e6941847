"""How long training stands still for a checkpoint, against the whole time of the save.

    python benchmarks/checkpoint.py [--processes 2] [--saves 5] [--folder DIR]

A model of BERT-base's size (110 M parameters, fp32 master weights and two moments: 1.3 GB) is saved several times.
``blocked`` is what a step waits for: the copy to host memory. ``whole`` is what it would wait for if the save were
synchronous: copy, exchange between ranks, writing, hashing, flushing to disk and the rename, with nothing else running.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def rank_main(rank: int, size: int, folder: Path, saves: int) -> None:
    os.environ.update(DS_ACCELERATOR="cpu", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    import torch
    import torch.distributed as dist

    from pipeline.checkpoints.format import TrainerState
    from pipeline.checkpoints.restore import optimizer_steps
    from pipeline.checkpoints.writing import CheckpointWriter
    from pipeline.config import RunConfig, TrainingConfig
    from pipeline.engine.deepspeed_engine import build_engine
    from pipeline.model.masked_lm import NarrowBertForPretraining

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    training = TrainingConfig(global_batch_size=size, micro_batch_size=1, precision="fp32", zero_stage=1)
    config = RunConfig(training=training)
    engine = build_engine(config, NarrowBertForPretraining(config.model, 30522), torch.device("cpu"))
    parameters = sum(p.numel() for p in engine.module.parameters())
    writer = CheckpointWriter(engine, folder / "checkpoints", keep_last=1)
    blocked, whole = [], []
    for step in range(1, saves + 1):
        state = TrainerState(
            step=step, rows_consumed=step, optimizer_steps=optimizer_steps(engine), skipped_steps=0, lineage_id="",
            attempt=1, data_root_hash="", vocab_size=30522, config={},
        )  # fmt: skip
        dist.barrier()
        seconds = writer.save(state)
        writer.wait()
        (saved,) = writer.finished()
        assert not saved.problem, saved.problem
        blocked.append(seconds)
        whole.append(saved.seconds)
    if rank == 0:
        first = blocked[0] / statistics.median(whole[1:])
        share = statistics.median(b / w for b, w in zip(blocked[1:], whole[1:], strict=True))
        print(
            f"{size} processes, {parameters / 1e6:.0f} M parameters: whole save {statistics.median(whole[1:]):.2f} s "
            f"({min(whole[1:]):.2f} to {max(whole[1:]):.2f}), blocked {statistics.median(blocked[1:]):.3f} s "
            f"({min(blocked[1:]):.3f} to {max(blocked[1:]):.3f}): {100 * share:.1f}%; the first save of a start, which "
            f"makes the buffers, blocked {blocked[0]:.3f} s ({100 * first:.1f}%)",
            flush=True,
        )
    dist.barrier()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Blocking time of a checkpoint.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary folder)")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        rank_main(options.rank, options.processes[0], options.folder, options.saves)
    for size in options.processes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            common = [sys.executable, __file__, "--processes", str(size), "--folder", folder]
            common += ["--saves", str(options.saves)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size))}
            ranks = [subprocess.Popen([*common, "--rank", str(rank)], env=environment) for rank in range(size)]
            for rank in ranks:
                rank.wait()


if __name__ == "__main__":
    main()
