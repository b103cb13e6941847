"""Trains a run with an objective of a test's own.

Usage: python -m tests.pipeline.training.train_with RUN_DIR SHARDS
"""

import sys

import torch
import torch.nn.functional as F

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig
from pipeline.data.batches import Batch
from pipeline.processes.world import SINGLE_PROCESS, world_from_environment
from pipeline.runs.directory import prepare_run
from pipeline.training.loop import train
from pipeline.training.objective import ForwardPass, ObjectiveSums
from tests.processes import TINY_RUN


class MaskedLMWithZLoss:
    """Masked-language-model loss plus a tenth of the squared log-normalisers, with twice the weight."""

    def weight(self, batch: Batch) -> torch.Tensor:
        return 2 * batch.label_mask.sum()

    def __call__(self, model: ForwardPass, batch: Batch) -> ObjectiveSums:
        output = model(
            batch.input_ids, batch.masked_positions, batch.key_mask, batch.labels, batch.label_mask,
            batch.document_ids, return_logits=True,
        )  # fmt: skip
        assert output.logits is not None
        counted = output.logits[batch.label_mask]
        again = F.cross_entropy(counted, batch.labels[batch.label_mask], reduction="sum")
        return ObjectiveSums(
            loss_sum=output.loss_sum + 0.1 * counted.logsumexp(-1).square().sum(),
            extra_sums={"masked_lm_loss": output.loss_sum, "difference": (again - output.loss_sum).abs()},
        )


def main() -> int:
    run_dir, shard_folder = sys.argv[1:]
    options = [*TINY_RUN, "--training.precision", "fp32", "--run_dir", run_dir, "--data.path", shard_folder]
    config = read_config(RunConfig, options, "train_with", "")
    world = world_from_environment() or SINGLE_PROCESS
    return train(config, world, prepare_run(config, world.size), MaskedLMWithZLoss())


if __name__ == "__main__":
    sys.exit(main())
