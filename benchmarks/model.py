"""Whole training steps of NarrowBERT's layouts beside their BERT control, in turn in one run.

    python benchmarks/model.py                                # 12 layers of 768 in bf16, rows of 128 and 512 tokens
    python benchmarks/model.py --trainer                      # against BertForMaskedLM under transformers' Trainer

A step is what `narrowbert train` does in one process: forward, backward, gradient norm, clipping, AdamW with fp32
masters (ZeRO 1), at a global batch of --rows, with malloc set as `narrowbert train` sets it. The control's head runs on
the masked positions only, as NarrowBERT's does. A round times one step of each; ratios are those within a round.
The Trainer has the same malloc and, where the processor has none, the same bf16 products.
`flops` is the ratio of the arithmetic, the limit. On a CUDA device the same code runs there, compiled on static
shapes, and MFU is printed as well; --peak_teraflops is what the device does at best.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.engine.deepspeed_engine import build_engine, initialise_process_group, update_weights
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import RowShape, training_flops
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.processes.malloc import keep_freed_memory
from pipeline.processes.world import World

VOCAB = 30_522
MASKED = 0.15
CASES = (
    ("2sf:10sf", "per_layer"),
    ("1sf:11sf", "per_layer"),
    ("2sf 10s:10f", "per_layer"),
    ("2sf:10sf", "shared"),
    ("1sf:11sf", "shared"),
)
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of the table share."""

    hidden_size: int
    heads: int
    precision: Any
    rows: int
    seq_length: int
    micro_rows: int

    @property
    def shape(self) -> RowShape:
        masked = round(MASKED * self.seq_length)
        return RowShape(seq_length=self.seq_length, masked_per_row=masked, vocab_size=VOCAB)


def configuration(setting: Setting, layout: str, narrow_kv: str) -> RunConfig:
    model = ModelConfig(
        layout=layout, narrow_kv=narrow_kv, hidden_size=setting.hidden_size, num_attention_heads=setting.heads,
        ffn_hidden_size=4 * setting.hidden_size, max_position_embeddings=max(512, setting.seq_length),
        hidden_dropout=DROPOUT, attention_dropout=DROPOUT,
    )  # fmt: skip
    training = TrainingConfig(
        global_batch_size=setting.rows, micro_batch_size=setting.micro_rows, precision=setting.precision, zero_stage=1
    )
    return RunConfig(model=model, training=training, optimizer=OptimizerConfig())


def random_rows(setting: Setting, device: torch.device) -> dict[str, torch.Tensor]:
    shape, generator = setting.shape, torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCAB, (setting.rows, shape.seq_length), generator=generator)
    positions = torch.rand(setting.rows, shape.seq_length, generator=generator).argsort(-1)[:, : shape.masked_per_row]
    positions = positions.sort(-1).values
    batch = {"input_ids": ids, "narrow_positions": positions, "labels": ids.gather(1, positions)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class Contestant:
    """An engine that can do a step."""

    def __init__(
        self, config: RunConfig, shape: RowShape, device: torch.device, batch: dict[str, torch.Tensor]
    ) -> None:
        torch.manual_seed(1)
        model = NarrowBertForPretraining(config.model, VOCAB, padded_vocab_size(VOCAB, 1))
        self.engine = build_engine(config, model, device, shape)
        self.engine.train()
        self.config = config
        self.batch = batch

    def step(self) -> None:
        micro, total = self.config.training.micro_batch_size, self.config.training.global_batch_size
        label_mask = torch.ones_like(self.batch["labels"][:micro], dtype=torch.bool)
        for start in range(0, total, micro):
            rows = {name: tensor[start : start + micro] for name, tensor in self.batch.items()}
            output = self.engine(rows["input_ids"], rows["narrow_positions"], None, rows["labels"], label_mask, None)
            self.engine.backward(output.loss_sum / label_mask.sum())
            update_weights(self.engine, 1.0)


def seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table(setting: Setting, options: argparse.Namespace, device: torch.device) -> None:
    batch = random_rows(setting, device)
    print(f"\n{setting.seq_length} tokens, {setting.rows} rows per step in micro-batches of {setting.micro_rows}")
    cases = (("12sf", "per_layer"), *CASES)
    configs = [configuration(setting, layout, narrow_kv) for layout, narrow_kv in cases]
    contestants = [Contestant(config, setting.shape, device, batch) for config in configs]
    for contestant in contestants:
        contestant.step()
    rounds = []
    for number in range(options.rounds):
        rounds.append([seconds(contestant.step, device) for contestant in contestants])
        print(f"round {number + 1}, seconds:", *(f"{own:.2f}" for own in rounds[-1]), flush=True)
    print("layout        narrow_kv   step s   ratio   rounds      flops   share of the limit   MFU")
    flops = [training_flops(parse_layout(c.model.layout), c.model, setting.shape) * setting.rows for c in configs]
    for column, (layout, narrow_kv) in enumerate(cases):
        own = statistics.median(times[column] for times in rounds)
        ratios = [times[0] / times[column] for times in rounds]
        ratio, limit = statistics.median(ratios), flops[0] / flops[column]
        use = f"{flops[column] / own / options.peak_teraflops / 1e12:.0%}" if options.peak_teraflops else ""
        print(
            f"{layout:<13} {narrow_kv:<10} {own:7.2f}   {ratio:.2f}x   {min(ratios):.2f}-{max(ratios):.2f}   "
            f"{limit:.2f}x   {ratio / limit:18.0%}   {use}"
        )
    for contestant in contestants:
        contestant.engine.destroy()


def trainer_steps(setting: Setting, rounds: int, threads: int) -> list[float]:
    """Seconds of steps of transformers' BertForMaskedLM under its Trainer; in a process without a process group."""
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting.precision == "bf16":
        ensure_bf16_products(device)
    batch = random_rows(setting, device)
    labels = torch.full_like(batch["input_ids"], -100).scatter(1, batch["narrow_positions"], batch["labels"])
    rows = [{"input_ids": i, "labels": x} for i, x in zip(batch["input_ids"].cpu(), labels.cpu(), strict=True)]
    bert = BertConfig(
        vocab_size=VOCAB, hidden_size=setting.hidden_size, num_hidden_layers=12, num_attention_heads=setting.heads,
        intermediate_size=4 * setting.hidden_size,
    )  # fmt: skip
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir="unused", max_steps=rounds + 2, per_device_train_batch_size=setting.micro_rows,
        gradient_accumulation_steps=setting.rows // setting.micro_rows, bf16=setting.precision == "bf16",
        use_cpu=device.type == "cpu", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model=BertForMaskedLM(bert), args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return [later - earlier for earlier, later in itertools.pairwise(ends)][1:]


def against_trainer(setting: Setting, options: argparse.Namespace, device: torch.device) -> None:
    """Rows a second of K = 2 and of transformers' BertForMaskedLM under its Trainer, on the same rows."""
    batch = random_rows(setting, device)
    ours = Contestant(configuration(setting, "2sf:10sf", "per_layer"), setting.shape, device, batch)
    ours.step()
    before = [seconds(ours.step, device) for _ in range(options.rounds)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(trainer_steps, setting, options.rounds, options.threads).result()
    after = [seconds(ours.step, device) for _ in range(options.rounds)]
    ours.engine.destroy()
    own, other = statistics.median(before + after), statistics.median(theirs)
    print(f"\n{setting.seq_length} tokens, {setting.precision}, {setting.rows} rows per step:")
    print(
        f"NarrowBERT 2sf:10sf {setting.rows / own:.2f} rows/s ({statistics.median(before):.2f} s a step before, ",
        end="",
    )
    print(f"{statistics.median(after):.2f} s after)")
    print(f"BertForMaskedLM under Trainer {setting.rows / other:.2f} rows/s; ratio {other / own:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32", "fp16"])
    parser.add_argument("--seq_lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rows", type=int, default=64, help="rows per step")
    parser.add_argument("--micro_tokens", type=int, default=8_192, help="tokens a micro-batch")
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peak_teraflops", type=float, default=0.0, help="of the device, for MFU")
    parser.add_argument("--trainer", action="store_true", help="compare with transformers' Trainer instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = initialise_process_group(World(rank=0, local_rank=0, size=1))
    print(
        f"{device}, torch {torch.__version__}, {options.precision}, {options.threads} threads, {options.rounds} rounds"
    )
    for seq_length in options.seq_lengths:
        setting = Setting(
            hidden_size=options.hidden_size, heads=options.heads, precision=options.precision, rows=options.rows,
            seq_length=seq_length, micro_rows=min(options.rows, max(1, options.micro_tokens // seq_length)),
        )  # fmt: skip
        (against_trainer if options.trainer else table)(setting, options, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    keep_freed_memory()
    main()
