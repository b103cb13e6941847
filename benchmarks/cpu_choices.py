"""What the CPU path does differently, each against what it replaced, in turn in one run.

1. bf16 products by way of fp32, as on processors that have none, against torch's own;
2. attention: two plain products against torch's fused kernel, forward and backward;
3. a training step with freed memory kept, as in every training, against glibc's defaults.

    python benchmarks/cpu_choices.py
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pipeline.config import ModelConfig
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.model.attention import plain_attention
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.processes.malloc import keep_freed_memory

PAIRS = 9
CPU = torch.device("cpu")


def seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def products() -> None:
    print("bf16 products, one thread: torch's own / by way of fp32, median of pairs")
    x, weight, gradient = (torch.randn(*shape).bfloat16() for shape in ((1024, 768), (3072, 768), (1024, 3072)))
    query, key = (torch.randn(96, 128, 64).bfloat16() for _ in range(2))
    for name, a, b in (
        ("linear", x, weight.T),
        ("gradient of its input", gradient, weight),
        ("gradient of its weight", gradient.T, x),
        ("attention's scores", query, key.mT),
    ):

        def own(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch.matmul(a, b)

        def wide(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch.matmul(a.float(), b.float()).bfloat16()

        own()
        wide()
        ratios = [seconds(own) / seconds(wide) for _ in range(PAIRS)]
        print(f"  {name:22} {tuple(a.shape)} x {tuple(b.shape)} : {statistics.median(ratios):.1f}x")


def attention() -> None:
    print("attention, forward and backward, one thread: fused / plain, median of pairs")
    shapes = [(32, 4, 128, 128), (32, 4, 19, 128), (8, 12, 512, 512), (8, 12, 77, 512)]
    shapes += [(4, 12, 1024, 1024), (1, 12, 2048, 2048), (2, 12, 307, 2048)]
    for dtype in (torch.bfloat16, torch.float32):
        for rows, heads, queries, keys in (
            (32, 4, 128, 128),
            (32, 4, 19, 128),
            (8, 12, 512, 512),
            (8, 12, 77, 512),
            (4, 12, 1024, 1024),
            (1, 12, 2048, 2048),
            (2, 12, 307, 2048),
        ):
            q = torch.randn(rows, heads, queries, 64, dtype=dtype, requires_grad=True)
            k, v = (torch.randn(rows, heads, keys, 64, dtype=dtype, requires_grad=True) for _ in range(2))
            gradient = torch.randn_like(q)

            def fused(q=q, k=k, v=v, gradient=gradient) -> None:
                F.scaled_dot_product_attention(q, k, v).backward(gradient)

            def plain(q=q, k=k, v=v, gradient=gradient) -> None:
                plain_attention(q, k, v, None, 0.0).backward(gradient)

            fused()
            plain()
            ratios = [seconds(fused) / seconds(plain) for _ in range(PAIRS)]
            name = str(dtype).removeprefix("torch.")
            print(f"  {name:9} {rows} x {heads} heads, {queries:3} x {keys} : {statistics.median(ratios):.2f}x")


def step(layout: str) -> None:
    """Median seconds of a forward and backward pass of the quickstart shape; printed for the parent."""
    torch.manual_seed(0)
    config = ModelConfig(
        layout=layout,
        hidden_size=256,
        num_attention_heads=4,
        ffn_hidden_size=1024,
        max_position_embeddings=128,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    model = NarrowBertForPretraining(config, 8192).bfloat16()
    ids, labels = torch.randint(0, 8192, (16, 128)), torch.randint(0, 8192, (16, 19))
    positions = torch.rand(16, 128).argsort(1)[:, :19].sort(1).values
    real = torch.ones_like(labels, dtype=torch.bool)

    def once() -> None:
        model(ids, positions, None, labels, real).loss_sum.backward()
        model.zero_grad()

    once()
    print(statistics.median(seconds(once) for _ in range(PAIRS)))


def memory() -> None:
    print("training step of the quickstart shape, bf16, one thread: default malloc / kept memory, median of pairs")
    for layout in ("1sf:7sf", "8sf"):
        ratios = []
        for _ in range(5):
            plain, kept = (
                float(
                    subprocess.run([sys.executable, __file__, layout, malloc], capture_output=True, check=True).stdout
                )
                for malloc in ("default", "kept")
            )
            ratios.append(plain / kept)
        print(f"  {layout:8}: {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        ensure_bf16_products(CPU)
        if sys.argv[2] == "kept":
            keep_freed_memory()
        step(sys.argv[1])
    else:
        products()
        ensure_bf16_products(CPU)
        attention()
        memory()
