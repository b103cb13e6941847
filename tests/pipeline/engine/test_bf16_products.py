import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pipeline.engine.bf16_products import has_bf16_products, multiply_bf16_in_fp32


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch tells of x86 processors only")
def test_bf16_products_are_found_where_torch_finds_them():
    torch_says = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert has_bf16_products(torch.device("cpu")) == torch_says


def products(dtype: torch.dtype) -> dict[str, list[torch.Tensor]]:
    """Result and gradients of each kind of product: of the same numbers in either type."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_()

    x, weight, bias, query, key, added = (
        numbers(7, 33), numbers(5, 33), numbers(5), numbers(2, 3, 4, 16), numbers(2, 3, 9, 16), numbers(6, 4, 9)
    )  # fmt: skip
    shift = torch.zeros(4, 9).masked_fill(torch.arange(9) > 5, -64.0)

    def attention(mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, 2 * key, attn_mask=mask)

    cases = {
        "linear": (F.linear(x, weight, bias), (x, weight, bias)),
        "linear without bias": (F.linear(x, weight), (x, weight)),
        "addmm": (torch.addmm(bias, x, weight.T, beta=0.5, alpha=2), (bias, x, weight)),
        "bmm": (query @ key.mT, (query, key)),
        "baddbmm": (torch.baddbmm(added, query.flatten(0, 1), key.flatten(0, 1).mT, beta=3), (added, query, key)),
        "attention": (attention(None), (query, key)),
        "attention, bool mask": (attention(shift == 0), (query, key)),
        "attention, added mask": (attention(shift.to(dtype)), (query, key)),
    }
    found = {}
    for name, (result, inputs) in cases.items():
        direction = torch.linspace(-1, 1, result.numel()).view_as(result).bfloat16().to(dtype)
        found[name] = [result.detach(), *torch.autograd.grad(result, inputs, direction)]
    return found


def compare() -> None:
    """Asserts; in a process of its own, where the products stay replaced."""
    reference, torchs_own = products(torch.float32), products(torch.bfloat16)
    multiply_bf16_in_fp32()
    replaced = products(torch.bfloat16)
    # The one that shows that they are replaced: torch's own attention rounds inside as well.
    assert not torch.equal(torchs_own["attention"][0], reference["attention"][0].bfloat16())
    for name, (result, *gradients) in replaced.items():
        assert torch.equal(result, reference[name][0].bfloat16()), name
        for gradient, own, expected in zip(gradients, torchs_own[name][1:], reference[name][1:], strict=True):
            assert gradient.dtype is own.dtype is torch.bfloat16, name
            assert (gradient - expected).abs().max() <= 2**-7 * expected.abs().max(), name
    after = products(torch.float32)
    assert all(torch.equal(a, b) for name in after for a, b in zip(after[name], reference[name], strict=True))
    ones = torch.ones(2, 2)
    for mixed in (lambda: ones.bfloat16() @ ones, lambda: ones @ ones.bfloat16()):
        with pytest.raises(RuntimeError, match="same dtype"):
            mixed()


def test_bf16_products_by_way_of_fp32_are_those_of_fp32_rounded_once():
    subprocess.run([sys.executable, __file__], check=True, timeout=120)


if __name__ == "__main__":
    compare()
