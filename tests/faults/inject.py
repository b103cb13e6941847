"""Runs one rank of ``narrowbert`` and does to it what a test asks for.

Usage: python -m tests.faults.inject FAULTS narrowbert-arguments...

FAULTS is JSON: a list of {"do": ..., "rank": which one or null for all, and the rest below}.

- ``{"do": "record", "file": F}``: append to F-RANK every step's rows when they are computed;
- ``{"do": "signal", "place": P, "step": N, "number": S}``: send signal S to itself when the watchdog hears that it has
  come to place P after step N or later, once;
- ``{"do": "sleep", "place": P, "step": N, "seconds": T}``: sleep there, each time;
- ``{"do": "allocate", "place": P, "step": N, "bytes": B}``: ask for so much memory there;
- ``{"do": "slow", "seconds": T}``: take so much longer to read each step's rows;
- ``{"do": "poison", "steps": [N, ...]}``: every gradient of these steps is NaN;
- ``{"do": "amplify", "steps": [N, ...]}``: loss and gradients of these steps are 100 times as large;
- ``{"do": "collective_limit", "seconds": T}``: how long every group waits for a rank;
- ``{"do": "stall_write", "step": N, "seconds": T}``: the disk stands still so long in the checkpoint of step N;
- ``{"do": "torch_timeout", "seconds": T}``: what torch gives groups that nobody has set a limit for;
- ``{"do": "agree_in_rounds"}``: the ranks agree as more than 32 of them do;
- ``{"do": "fail_write", "steps": [N, ...]}``: the disk takes nothing of the checkpoints of these steps.
"""

import datetime
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __main__ as command

if TYPE_CHECKING:  # the command imports nothing heavy before its signals are caught
    from pipeline.data.batches import Batch
    from pipeline.training.meter import StepSums


def record(fault: dict[str, Any]) -> None:
    from pipeline.training.step import Trainer

    original, path = Trainer.step, Path(f"{fault['file']}-{os.environ['RANK']}")

    def record_and_step(trainer: Trainer, batches: "list[Batch]", weight: float, step: int) -> "StepSums":
        ids = [int(i) for batch in batches for i in batch.sequence_ids]
        ranks = trainer.ranks
        entry = {"step": step, "rank": ranks.data_rank, "size": ranks.data_parallel_size, "ids": ids}
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return original(trainer, batches, weight, step)

    Trainer.step = record_and_step


def at_place(fault: dict[str, Any], act: Any) -> None:
    from pipeline.processes.watchdog import Watchdog

    original = Watchdog.reached

    def reached(watchdog: Watchdog, place: str, step: int) -> None:
        original(watchdog, place, step)
        if place == fault["place"] and step >= fault["step"]:
            act()

    Watchdog.reached = reached


def send_signal(fault: dict[str, Any]) -> None:
    sent = []

    def act() -> None:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), fault["number"])

    at_place(fault, act)


def allocate(fault: dict[str, Any]) -> None:
    import torch

    at_place(fault, lambda: torch.empty(fault["bytes"], dtype=torch.uint8))


def slow(fault: dict[str, Any]) -> None:
    from pipeline.data.prefetch import Prefetcher

    original = Prefetcher.step

    def step(data: Prefetcher, number: int) -> Any:
        time.sleep(fault["seconds"])
        return original(data, number)

    Prefetcher.step = step


def poison(fault: dict[str, Any]) -> None:
    from pipeline.training.step import Trainer

    original = Trainer.step

    def poison_and_step(trainer: Trainer, batches: "list[Batch]", weight: float, step: int) -> "StepSums":
        hooks = []
        if step in fault["steps"]:
            hooks = [p.register_hook(lambda grad: grad * float("nan")) for p in trainer.engine.module.parameters()]
        result = original(trainer, batches, weight, step)
        for hook in hooks:
            hook.remove()
        return result

    Trainer.step = poison_and_step


def amplify(fault: dict[str, Any]) -> None:
    from pipeline.training.step import Trainer

    original = Trainer.step

    def amplify_and_step(trainer: Trainer, batches: "list[Batch]", weight: float, step: int) -> "StepSums":
        return original(trainer, batches, weight / 100 if step in fault["steps"] else weight, step)

    Trainer.step = amplify_and_step


def torch_timeout(fault: dict[str, Any]) -> None:
    from torch.distributed import distributed_c10d

    distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=fault["seconds"])


def collective_limit(fault: dict[str, Any]) -> None:
    from pipeline.engine import deepspeed_engine

    deepspeed_engine.collective_limit_s = lambda _: fault["seconds"]


def agree_in_rounds(_: dict[str, Any]) -> None:
    from pipeline.processes import group_sum

    group_sum.RING_RANKS = 1


def stall_write(fault: dict[str, Any]) -> None:
    from pipeline.checkpoints.tensor_file import TensorFile

    original = TensorFile.close

    def close(file: Any) -> Any:
        if f"step-{fault['step']:08d}" in file._file.name:
            time.sleep(fault["seconds"])
        return original(file)

    TensorFile.close = close


def fail_write(fault: dict[str, Any]) -> None:
    from pipeline.checkpoints.tensor_file import TensorFile

    original = TensorFile.write

    def write(file: Any, tensor: Any) -> None:
        if any(f"step-{step:08d}" in file._file.name for step in fault["steps"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, tensor)

    TensorFile.write = write


def main() -> None:
    for fault in json.loads(sys.argv.pop(1)):
        if fault.get("rank") not in (None, int(os.environ["RANK"])):
            continue
        {
            "record": record,
            "signal": send_signal,
            "sleep": lambda fault: at_place(fault, lambda: time.sleep(fault["seconds"])),
            "allocate": allocate,
            "slow": slow,
            "poison": poison,
            "amplify": amplify,
            "torch_timeout": torch_timeout,
            "collective_limit": collective_limit,
            "agree_in_rounds": agree_in_rounds,
            "stall_write": stall_write,
            "fail_write": fail_write,
        }[fault["do"]](fault)
    command.main()


if __name__ == "__main__":
    main()
