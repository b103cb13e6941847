"""Trains a run and tells what each of its steps has done, as JSON on the last line.

Usage: python -m tests.pipeline.training.observe BACKEND RUN_DIR SHARDS [options of a run]

BACKEND compiles the model on CPU, as on CUDA; with "none" nothing does.
"""

import json
import resource
import sys
import time
from typing import Any

import torch
from torch._dynamo.utils import counters

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig
from pipeline.data.batches import Batch
from pipeline.engine import compilation
from pipeline.processes.world import SINGLE_PROCESS
from pipeline.runs.directory import prepare_run
from pipeline.training.loop import train
from pipeline.training.objective import MASKED_LANGUAGE_MODELLING, ForwardPass, ObjectiveSums
from tests.processes import TINY_RUN


class Observed:
    """The objective of every run; before each micro-batch it notes what has happened so far."""

    def __init__(self) -> None:
        self.synchronizations, self.notes, self.handed_over = 0, [], []
        self.watched = False

    def weight(self, batch: Batch) -> torch.Tensor:
        return MASKED_LANGUAGE_MODELLING.weight(batch)

    def __call__(self, model: ForwardPass, batch: Batch) -> ObjectiveSums:
        self.notes.append(
            {
                "graphs": counters["stats"]["unique_graphs"],
                "synchronizations": self.synchronizations,
                "padded": batch.key_mask is not None,
                "gradients": self.handed_over,
            }
        )
        if not self.watched and isinstance(model, torch.nn.Module):
            self.watched = True
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(lambda _: self.handed_over.append(time.perf_counter()))
        sums = MASKED_LANGUAGE_MODELLING(model, batch)
        self.handed_over = []
        sums.loss_sum.register_hook(lambda _: self.handed_over.append(time.perf_counter()))
        return sums


def main() -> int:
    backend, run_dir, shard_folder, *options = sys.argv[1:]
    if backend != "none":
        compilation.BACKENDS["cpu"] = backend
    config = read_config(
        RunConfig, [*TINY_RUN, *options, "--run_dir", run_dir, "--data.path", shard_folder], "observe", ""
    )
    observed: Any = Observed()
    from deepspeed.accelerator import get_accelerator

    def synchronize(*_: object) -> None:
        observed.synchronizations += 1

    setattr(type(get_accelerator()), "synchronize", synchronize)  # noqa: B010 - of a class that is not typed
    code = train(config, SINGLE_PROCESS, prepare_run(config, 1), observed)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    graphs = counters["stats"]["unique_graphs"]
    breaks = sum(sum(counters[kind].values()) for kind in ("graph_break", "unimplemented"))
    print(json.dumps({"notes": observed.notes, "graphs": graphs, "breaks": breaks, "page_faults": faults}))
    return code


if __name__ == "__main__":
    sys.exit(main())
