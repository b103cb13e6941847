"""Sentence classification by exported models beside transformers' BertForSequenceClassification, in turn in one run.

    python benchmarks/inference.py                                      # 12 layers of 768, 8 rows of 128 and 512, fp32
    python benchmarks/inference.py --precision bf16
    python benchmarks/inference.py --texts texts.jsonl --tokenizer vocab.txt   # and rows of real lengths

Each round times one forward pass of the control, then one of every contestant, on the same rows; the ratio is the
median over rounds. `limit` is the ratio of the arithmetic (2 FLOPs a multiply-add, norms and embeddings left out).
`folded` rows never form keys and values right of the colon, `unfolded` ones always do; a user gets what takes fewer
FLOPs. With --texts a batch is padded to its longest: the control computes the padding, ours the real tokens, and each
side's limit counts what it computes. --onnx adds what `narrowbert onnx` writes, run by onnxruntime, in fp32
and in int8 (whose limit is that of fp32); these compute the padding. With --precision bf16 on a processor without bf16
products all but these take those of pipeline/bf16_products.py.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from data_prep.contract.tokenizer import load_tokenizer
from pipeline.engine.bf16_products import ensure_bf16_products
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

ONNX_LAYOUTS = ("12sf", "2sf:10sf")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A row of the table."""

    layout: str
    """Of the model."""
    kind: str
    """How keys and values come about, or which runtime."""
    computed: float
    """FLOPs of all batches."""
    run: Callable[[dict[str, torch.Tensor]], object]
    """Forward pass of a batch."""


def in_torch(shape: Shape, batches: list[dict[str, torch.Tensor]], dtype: torch.dtype) -> list[Contestant]:
    """Ours, of which each computes the real tokens only."""
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    found = []
    for layout, folded in CASES:
        model = build(shape, layout, folded, dtype)
        kind = "folded" if folded else "formed" if "s" in layout.split(":")[1] else "none narrow"
        computed = sum(shape.flops(model.config, n, folded) for n in lengths)
        found.append(Contestant(layout=layout, kind=kind, computed=computed, run=lambda b, m=model: m(**b)))
    return found


def write_networks(shape: Shape, folder: Path) -> None:
    """Classifiers as files: LAYOUT/onnx/model.onnx and .int8.onnx."""
    from pipeline.export.int8_files import quantize
    from pipeline.export.onnx_files import write_onnx

    for layout in ONNX_LAYOUTS:
        build(shape, layout, True, torch.float32).save_pretrained(folder / layout)
        ((path, _),) = write_onnx(folder / layout)
        quantize(path, path.with_suffix(".int8.onnx"))


def in_onnxruntime(
    shape: Shape, batches: list[dict[str, torch.Tensor]], threads: int, folder: Path
) -> list[Contestant]:
    """Those files, which compute the padding."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = []
    for layout in ONNX_LAYOUTS:
        computed = padded_flops(shape, NarrowBertConfig(layout=layout), batches, folded=":" in layout)
        for name, kind in (("model.onnx", "onnx fp32"), ("model.int8.onnx", "onnx int8")):
            path = folder / layout / "onnx" / name
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

            def run(batch: dict[str, torch.Tensor], session: Any = session) -> object:
                arrays = {name: tensor.numpy() for name, tensor in batch.items()}
                return session.run(None, arrays | {"token_type_ids": 0 * arrays["input_ids"]})

            found.append(Contestant(layout=layout, kind=kind, computed=computed, run=run))
    return found


def padded_flops(
    shape: Shape, config: NarrowBertConfig, batches: list[dict[str, torch.Tensor]], *, folded: bool
) -> float:
    return sum(shape.flops(config, batch["input_ids"].shape[1], folded) * len(batch["input_ids"]) for batch in batches)


def seconds(contestant: Contestant, batches: list[dict[str, torch.Tensor]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        contestant.run(batch)
    return time.perf_counter() - started


@torch.inference_mode()
def table(
    title: str, shape: Shape, batches: list[dict[str, torch.Tensor]], options: argparse.Namespace, folder: Path | None
) -> None:
    """Time everyone and print; ``folder`` holds the ONNX files, if they take part."""
    dtype = PRECISIONS[options.precision]
    model = build_control(shape, dtype)
    computed = padded_flops(shape, NarrowBertConfig(layout=f"{shape.layers}sf"), batches, folded=False)
    control = Contestant(layout="", kind="control", computed=computed, run=lambda batch: model(**batch))
    contestants = in_torch(shape, batches, dtype)
    if folder is not None:
        contestants += in_onnxruntime(shape, batches, options.threads, folder)
    everyone = [control, *contestants]
    for contestant in everyone:
        seconds(contestant, batches[:1])
    times = [[seconds(contestant, batches) for contestant in everyone] for _ in range(options.rounds)]
    print(f"\n{title}; control {statistics.median(row[0] for row in times):.3f} s")
    print("layout        keys and values   seconds   ratio   limit   share   rounds")
    for number, contestant in enumerate(contestants, 1):
        ratios = [row[0] / row[number] for row in times]
        ratio = statistics.median(ratios)
        limit = control.computed / contestant.computed
        own = statistics.median(row[number] for row in times)
        print(
            f"{contestant.layout:<13} {contestant.kind:<17} {own:7.3f}   {ratio:.2f}x   {limit:.2f}x   "
            f"{ratio / limit:4.0%}   {min(ratios):.2f}-{max(ratios):.2f}",
            flush=True,
        )


def sample_texts(options: argparse.Namespace) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """Title and batches of texts spread over the whole file."""
    lengths = read_lengths(options.texts, options.tokenizer)
    count = min(len(lengths), options.batches * options.rows)
    sample = [lengths[i * len(lengths) // count] for i in range(count)]
    batches = [make_batch(sample[i : i + options.rows]) for i in range(0, len(sample), options.rows)]
    real, padded = sum(sample), sum(b["input_ids"].numel() for b in batches)
    title = (
        f"{len(batches)} batches of {options.rows} texts of {min(sample)} to {max(sample)} tokens "
        f"(median {statistics.median(sample):.0f}), {1 - real / padded:.0%} padding"
    )
    return title, batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--seq_lengths", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--rows", type=int, default=8, help="rows a batch")
    parser.add_argument("--texts", type=Path, help="texts, for a table of rows of their lengths")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or vocab.txt, to count their tokens")
    parser.add_argument("--batches", type=int, default=6, help="batches of them")
    parser.add_argument("--onnx", action="store_true", help="rows of onnxruntime too")
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.precision == "bf16":
        ensure_bf16_products(torch.device("cpu"))
    print(f"torch {torch.__version__}, {options.precision}, {options.threads} threads, {options.rounds} rounds")
    shape = Shape(hidden_size=options.hidden_size, heads=options.heads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.onnx else None
        if folder is not None:
            write_networks(shape, folder)
        for length in options.seq_lengths:
            table(f"{options.rows} rows of {length}", shape, [make_batch([length] * options.rows)], options, folder)
        if options.texts is not None:
            title, batches = sample_texts(options)
            table(title, shape, batches, options, folder)


if __name__ == "__main__":
    main()
