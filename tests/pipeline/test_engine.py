import platform

import pytest
import torch

from pipeline.engine import has_bf16_products


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch tells of x86 processors only")
def test_bf16_products_are_found_where_torch_finds_them():
    torch_says = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert has_bf16_products(torch.device("cpu")) == torch_says
