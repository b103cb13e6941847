"""bf16 matrix products on a processor that has none of its own, by way of fp32.

There torch multiplies bf16 in plain loops, 5 to 100 times slower than this (benchmarks/cpu_choices.py). The product of
two bf16 numbers is exact in fp32, so multiplying in fp32 and rounding each sum once gives what a processor with bf16
products gives, but for the order of the sums, at nearly the speed of fp32.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

Results: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]

_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_FUSED_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"

# Operator: (arguments from the first on that are bf16, results from the first on that are).
_PRODUCTS = {
    "mm": (2, 1),
    "addmm": (3, 1),
    "bmm": (2, 1),
    "baddbmm": (3, 1),
    _FUSED_ATTENTION: (3, 1),
    f"{_FUSED_ATTENTION}_backward": (5, 3),
}


def has_bf16_products(device: torch.device) -> bool:
    """Whether the device multiplies bf16 itself."""
    if device.type == "cuda":
        return True  # torch emulates it on the few that cannot
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # not Linux: not known
    return not _FLAGS.isdisjoint(flags.split())


def ensure_bf16_products(device: torch.device) -> None:
    """Before anything is computed in bf16: replace torch's products in this process if ``device`` has none of its own.

    Other types go to torch's kernels as before, 5 microseconds later.
    """
    if not has_bf16_products(device):
        multiply_bf16_in_fp32()


@functools.cache
def multiply_bf16_in_fp32() -> torch.library.Library:
    """Replace them whatever the processor, and keep the replacement alive."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # replacing kernels is the purpose
        for name, (operands, results) in _PRODUCTS.items():
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, _in_fp32(kernel, operands, results), with_keyset=True, allow_override=True)
    return library


def _in_fp32(kernel: torch._C._SafeKernelFunction, operands: int, results: int) -> Callable[..., Results]:
    # After the operands ``args`` has numbers as well, which go to the kernel as they are.
    def product(
        keyset: torch._C.DispatchKeySet, *args: torch.Tensor, **options: torch.Tensor | float | None
    ) -> Results:
        if any(operand.dtype is not torch.bfloat16 for operand in args[:operands]):
            return kernel.call_boxed(keyset, *args, **options)  # which refuses mixed types
        mask = options.get("attn_mask")
        if isinstance(mask, torch.Tensor) and mask.dtype is torch.bfloat16:
            options["attn_mask"] = mask.float()
        wide: Results = kernel.call_boxed(
            keyset, *(operand.float() for operand in args[:operands]), *args[operands:], **options
        )
        if isinstance(wide, torch.Tensor):
            return wide.bfloat16()
        return (*(result.bfloat16() for result in wide[:results]), *wide[results:])

    return product
