"""Sentence classification by exported models beside transformers' BertForSequenceClassification, in turn in one run.

    python benchmarks/inference.py                                      # 12 layers of 768, 8 rows of 128 and 512, fp32
    python benchmarks/inference.py --precision bf16                     # on a processor that multiplies bf16
    python benchmarks/inference.py --texts texts.jsonl --tokenizer vocab.txt   # and rows of real lengths

Each round times one forward pass of the control, then one of every contestant, on the same rows; the ratio is the
median over rounds. `limit` is the ratio of the arithmetic (2 FLOPs a multiply-add, norms and embeddings left out).
`folded` rows never form keys and values right of the colon, `unfolded` ones always do; a user gets what takes fewer
FLOPs. With --texts a batch is padded to its longest: the control computes the padding, ours the real tokens, and each
side's limit counts what it computes.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from data_prep.vocabulary import load_tokenizer
from pipeline.export import NarrowBertConfig, NarrowBertForSequenceClassification

CASES: tuple[tuple[str, bool], ...] = (
    ("2sf:10sf", False),
    ("2sf:10sf", True),
    ("3sf:9sf", False),
    ("3sf:9sf", True),
    ("4sf:8sf", False),
    ("4sf:8sf", True),
    ("2sf 10s:10f", False),
)
"""(layout, folded)"""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of all models."""

    hidden_size: int
    heads: int
    layers: int = 12

    def flops(self, config: NarrowBertConfig, length: int, folded: bool) -> float:
        """Of one row of ``length`` tokens whose first position is narrow."""
        s, h = length, self.hidden_size
        full = {"s": 8 * s * h**2 + 4 * s**2 * h, "f": 16 * s * h**2}
        attention = 8 * h**2 + 4 * self.heads * s * h if folded else 4 * s * h**2 + 4 * h**2 + 4 * s * h
        narrow = {"s": attention, "f": 16 * h**2}
        sides = ((config.full_layers, full), (config.narrow_layers, narrow))
        return sum(cost[letter] for layers, cost in sides for layer in layers for letter in layer)


def build(shape: Shape, layout: str, folded: bool, dtype: torch.dtype) -> NarrowBertForSequenceClassification:
    torch.manual_seed(1)
    config = NarrowBertConfig(
        layout=layout, hidden_size=shape.hidden_size, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden_size,
    )  # fmt: skip
    model = NarrowBertForSequenceClassification(config).eval().to(dtype)
    model.bert.encoder_narrow.fold = folded
    return model


def build_control(shape: Shape, dtype: torch.dtype) -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        hidden_size=shape.hidden_size, num_attention_heads=shape.heads, num_hidden_layers=shape.layers,
        intermediate_size=4 * shape.hidden_size,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval().to(dtype)


def read_lengths(texts: Path, tokenizer: Path) -> list[int]:
    """Tokens of each line of a .txt, or of the field "text" of each line of a .jsonl; at most 512."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    read = [json.loads(line)["text"] for line in lines] if texts.suffix == ".jsonl" else lines
    return [min(512, len(encoding.ids)) for encoding in load_tokenizer(tokenizer).encode_batch(read)]


def make_batch(lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Random tokens in rows of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": torch.randint(1000, 30_000, mask.shape, generator=generator) * mask, "attention_mask": mask}


def seconds(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        model(**batch)
    return time.perf_counter() - started


@torch.inference_mode()
def table(title: str, shape: Shape, batches: list[dict[str, torch.Tensor]], options: argparse.Namespace) -> None:
    dtype = PRECISIONS[options.precision]
    control = build_control(shape, dtype)
    contestants = [build(shape, layout, folded, dtype) for layout, folded in CASES]
    everyone: list[Any] = [control, *contestants]
    for model in everyone:
        seconds(model, batches[:1])
    times = [[seconds(model, batches) for model in everyone] for _ in range(options.rounds)]
    bert = NarrowBertConfig(layout=f"{shape.layers}sf")
    padded = sum(shape.flops(bert, b["input_ids"].shape[1], False) * len(b["input_ids"]) for b in batches)
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    print(f"\n{title}; control {statistics.median(row[0] for row in times):.3f} s")
    print("layout        keys and values   seconds   ratio   limit   share   rounds")
    for number, (layout, folded) in enumerate(CASES, 1):
        ratios = [row[0] / row[number] for row in times]
        ratio = statistics.median(ratios)
        limit = padded / sum(shape.flops(contestants[number - 1].config, n, folded) for n in lengths)
        kind = "folded" if folded else "formed" if "s" in layout.split(":")[1] else "none narrow"
        own = statistics.median(row[number] for row in times)
        print(
            f"{layout:<13} {kind:<17} {own:7.3f}   {ratio:.2f}x   {limit:.2f}x   {ratio / limit:4.0%}   "
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--seq_lengths", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--rows", type=int, default=8, help="rows a batch")
    parser.add_argument("--texts", type=Path, help="texts, for a table of rows of their lengths")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or vocab.txt, to count their tokens")
    parser.add_argument("--batches", type=int, default=6, help="batches of them")
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.precision}, {options.threads} threads, {options.rounds} rounds")
    shape = Shape(hidden_size=options.hidden_size, heads=options.heads)
    for length in options.seq_lengths:
        table(f"{options.rows} rows of {length}", shape, [make_batch([length] * options.rows)], options)
    if options.texts is not None:
        lengths = read_lengths(options.texts, options.tokenizer)
        # Every n-th text, so that the batches are a sample of the whole file.
        step = max(1, len(lengths) // (options.batches * options.rows))
        sample = lengths[::step][: options.batches * options.rows]
        batches = [make_batch(sample[i : i + options.rows]) for i in range(0, len(sample), options.rows)]
        real, padded = sum(sample), sum(b["input_ids"].numel() for b in batches)
        title = (
            f"{len(batches)} batches of {options.rows} texts of {min(sample)} to {max(sample)} tokens "
            f"(median {statistics.median(sample):.0f}), {1 - real / padded:.0%} padding"
        )
        table(title, shape, batches, options)


if __name__ == "__main__":
    main()
