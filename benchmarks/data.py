"""Whether reading keeps up: rows per second that one thread makes into batches, against those that a CPU trains.

Per round, in turn: the first epoch of a fresh reader, which checks every chunk's hash; its second epoch; and training
steps of the smallest preset (forward, backward, fused AdamW), fed by one thread that reads ahead. The rows decide the
length of the position table, the preset the rest. OMP_NUM_THREADS says how many threads compute.

    python benchmarks/data.py SHARDS [OTHER_SHARDS]

With OTHER_SHARDS the two mixed 3 : 1 as well.
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch

from data_prep.contract.command_line import read_config
from pipeline.config import RunConfig
from pipeline.data.batches import TrainingData
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.prefetch import Prefetcher
from pipeline.engine.bf16_products import has_bf16_products
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.training.objective import MASKED_LANGUAGE_MODELLING

PRESET = Path(__file__).parent.parent / "configs/pretrain/quickstart.yaml"
ROUNDS = 5
TRAINED_STEPS = 4
CPU = torch.device("cpu")


def reader(shards: Mixture, config: RunConfig) -> TrainingData:
    return TrainingData(shards, config.training, seed=config.data.seed)


def read_rates(shards: Mixture, config: RunConfig) -> list[float]:
    """Rows a second in the first and in the second epoch."""
    data, size, rates = reader(shards, config), config.training.global_batch_size, []
    steps = sum(shards.train_rows) // size
    for epoch in range(2):
        started = time.perf_counter()
        for step in range(epoch * steps, (epoch + 1) * steps):
            data.step(step)
        rates.append(steps * size / (time.perf_counter() - started))
    return rates


class Trainer:
    """The preset's model and optimizer, and one thread that reads."""

    def __init__(self, shards: Mixture, config: RunConfig) -> None:
        dtype = torch.bfloat16 if has_bf16_products(CPU) else torch.float32
        model = dataclasses.replace(config.model, max_position_embeddings=shards.seq_length)
        self.model = NarrowBertForPretraining(model, shards.vocab_size).to(dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.data = Prefetcher(
            reader(shards, config), MASKED_LANGUAGE_MODELLING.weight, CPU, num_workers=1, prefetch_factor=2
        )
        self.done = 0

    def step(self) -> tuple[float, float]:
        """Seconds waited for the rows, and of the whole step."""
        started = time.perf_counter()
        batches = self.data.step(self.done).batches
        waited = time.perf_counter() - started
        for b in batches:
            output = self.model(b.input_ids, b.masked_positions, b.key_mask, b.labels, b.label_mask, b.document_ids)
            (output.loss_sum / b.label_mask.sum() / len(batches)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return waited, time.perf_counter() - started


def compare(name: str, shards: Mixture, config: RunConfig) -> None:
    trainer = Trainer(shards, config)
    trainer.step()
    first, later, trained, waits = [], [], [], []
    for _ in range(ROUNDS):
        rates = read_rates(shards, config)
        steps = [trainer.step() for _ in range(TRAINED_STEPS)]
        first.append(rates[0])
        later.append(rates[1])
        trained.append(TRAINED_STEPS * trainer.size / sum(seconds for _, seconds in steps))
        waits += [1000 * waited for waited, _ in steps[1:]]  # before the first of a round the thread had time to spare
    ratios = [rate / of_trainer for rate, of_trainer in zip(later, trained, strict=True)]
    print(
        f"{name}, {sum(shards.train_rows):,} rows of {shards.seq_length}: one thread reads "
        f"{statistics.median(first):,.0f} rows/s in the first epoch, {statistics.median(later):,.0f} in the second; "
        f"training {statistics.median(trained):,.1f} rows/s; ratio {statistics.median(ratios):,.0f} "
        f"({min(ratios):,.0f} to {max(ratios):,.0f}); a step waits {statistics.median(waits):.2f} ms (median), "
        f"{max(waits):.2f} ms (most)",
        flush=True,
    )


def main(paths: list[str]) -> None:
    config = read_config(RunConfig, ["--config", str(PRESET)], "data.py", "")
    compare("alone", open_mixture(paths[0], None), config)
    if len(paths) > 1:
        compare("mixed 3 : 1", open_mixture(paths, [3, 1]), config)


if __name__ == "__main__":
    main(sys.argv[1:])
