"""Time of a token from rows of 512 to rows of 8,192: global and windowed attention, ModernBERT and its narrowed twin.

    python benchmarks/long_rows.py --part layers --record   # 4 layers of `s` and of `w`
    python benchmarks/long_rows.py --part models --record   # the shape of ModernBERT-base, beside transformers' own

A batch has --tokens tokens, whatever the length of its rows. A training step is forward, backward and AdamW in one
process, as in model.py; transformers' model (sdpa) trains under autocast as its Trainer does, with a head that
computes the masked positions alone (``sparse_prediction``). [CLS] is one forward pass of the exported classes. All
take their turn in every round, with random weights on the same rows; ratios are those within a round. `limit` is the
ratio of the arithmetic, in which a window's pairs alone are counted.
"""

import argparse
import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from model import VOCAB, Contestant, seconds
from results import record
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel

from pipeline.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.engine.deepspeed_engine import initialise_process_group
from pipeline.export import NarrowBertModel
from pipeline.export.folder import export_config
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import RowShape, forward_flops
from pipeline.processes.malloc import keep_freed_memory
from pipeline.processes.world import World

LENGTHS = (512, 1024, 2048, 4096, 8192)
LAYERS = ("4sf", "4wf")
MIX, TWIN = "7sfwfwf sf", "2sfwfwf:16sf"
THEIRS = "transformers' ModernBERT"
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
CPU = torch.device("cpu")


def model_config(layout: str, length: int) -> ModelConfig:
    """ModernBERT-base in a layout."""
    return ModelConfig(
        layout=layout, hidden_size=768, num_attention_heads=12, ffn_hidden_size=1152, max_position_embeddings=length,
        hidden_dropout=0.0, attention_dropout=0.0, layernorm_epsilon=1e-5, normalization="pre", skip_first_norm=True,
        position="rope", rotary_base=160_000.0, attention_window=128, local_rotary_base=10_000.0, activation="geglu",
        bias=False,
    )  # fmt: skip


def row_shape(length: int) -> RowShape:
    return RowShape(seq_length=length, masked_per_row=round(0.15 * length), vocab_size=VOCAB)


def random_batch(length: int, rows: int) -> dict[str, torch.Tensor]:
    shape, generator = row_shape(length), torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    positions = torch.rand(rows, length, generator=generator).argsort(-1)[:, : shape.masked_per_row].sort(-1).values
    return {"input_ids": ids, "narrow_positions": positions, "labels": ids.gather(1, positions)}


def our_step(layout: str, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    rows, length = batch["input_ids"].shape
    training = TrainingConfig(global_batch_size=rows, micro_batch_size=rows, precision="bf16", zero_stage=1)
    config = RunConfig(model=model_config(layout, length), training=training, optimizer=OptimizerConfig())
    return Contestant(config, row_shape(length), CPU, batch).step


def our_cls(layout: str, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable[[], object]:
    ours = {**dataclasses.asdict(model_config(layout, batch["input_ids"].shape[1])), "vocab_size": VOCAB}
    config = export_config(ours, SPECIAL_IDS)
    model = NarrowBertModel(config).eval().to(dtype)
    return torch.inference_mode()(lambda: model.cls_states(batch["input_ids"]))


def their_config(length: int) -> ModernBertConfig:
    """ModernBERT-base; its dropout is 0 already."""
    return ModernBertConfig(
        vocab_size=VOCAB, max_position_embeddings=length, sparse_prediction=True, attn_implementation="sdpa",
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip


def their_step(batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    ids = batch["input_ids"]
    model = ModernBertForMaskedLM(their_config(ids.shape[1])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.full_like(ids, -100).scatter(1, batch["narrow_positions"], batch["labels"])

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_cls(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable[[], object]:
    model = ModernBertModel(their_config(batch["input_ids"].shape[1])).eval().to(dtype)
    return torch.inference_mode()(lambda: model(input_ids=batch["input_ids"]).last_hidden_state[:, 0])


def cls_flops(layout: str, length: int) -> int:
    """FLOPs of one row whose first position alone is narrow, without a head."""
    model = model_config(layout, length)
    shape = dataclasses.replace(row_shape(length), masked_per_row=1)
    head = 2 * (model.hidden_size**2 + model.hidden_size * VOCAB)
    return forward_flops(parse_layout(layout), model, shape) - head


def rounds_of(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after one that does not count."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, CPU))
    return times


def layers_table(options: argparse.Namespace) -> list[dict[str, str]]:
    """Microseconds of a token, one line a length."""
    lines = []
    for length in options.lengths:
        batch = random_batch(length, options.tokens // length)
        cells = {"tokens a row": f"{length:,}"}
        for kind, make in (("step", our_step), ("[CLS]", lambda *x: our_cls(*x, torch.bfloat16))):
            times = rounds_of({layout: make(layout, batch) for layout in LAYERS}, options.rounds)
            cells |= {
                f"`{layout}`, {kind}": f"{statistics.median(own) / options.tokens * 1e6:,.1f} us"
                for layout, own in times.items()
            }
        lines.append(cells)
        print(cells, flush=True)
    return lines


def models_table(options: argparse.Namespace) -> list[dict[str, str]]:
    """Seconds of a batch, and how often ours fits into theirs."""
    lines = []
    for length in options.lengths:
        batch, rows = random_batch(length, options.tokens // length), options.tokens // length
        shape = row_shape(length)
        flops = {
            "step": {x: 3 * forward_flops(parse_layout(x), model_config(x, length), shape) for x in (MIX, TWIN)},
            "[CLS]": {x: cls_flops(x, length) for x in (MIX, TWIN)},
        }
        for kind, ours, theirs in _kinds(batch):
            calls = {THEIRS: theirs(), MIX: ours(MIX), TWIN: ours(TWIN)}
            times = rounds_of(calls, options.rounds)
            for layout in (MIX, TWIN):
                ratios = [a / b for a, b in zip(times[THEIRS], times[layout], strict=True)]
                own = statistics.median(times[layout])
                line = {
                    "rows": f"{rows} x {length:,}",
                    "what": kind,
                    "layout": f"`{layout}`",
                    "transformers": f"{statistics.median(times[THEIRS]):.2f} s",
                    "ours": f"{own:.2f} s",
                    "ratio": f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
                    "limit": f"{flops[kind][MIX] / flops[kind][layout]:.2f}",
                    "TFLOP/s": f"{flops[kind][layout] * rows / own / 1e12:.2f}",
                }
                lines.append(line)
                print(line, flush=True)
    return lines


def _kinds(batch: dict[str, torch.Tensor]) -> Sequence[tuple[str, Callable[[str], Any], Callable[[], Any]]]:
    dtype = torch.bfloat16
    return (
        ("step", lambda layout: our_step(layout, batch), lambda: their_step(batch)),
        ("[CLS]", lambda layout: our_cls(layout, batch, dtype), lambda: their_cls(batch, dtype)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=["layers", "models"])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--record", action="store_true", help="append the table to results/long_rows.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ensure_bf16_products(CPU)
    initialise_process_group(World(rank=0, local_rank=0, size=1))
    lines = layers_table(options) if options.part == "layers" else models_table(options)
    if options.record:
        record("long_rows", options.part, lines)
    dist.destroy_process_group()


if __name__ == "__main__":
    keep_freed_memory()
    main()
