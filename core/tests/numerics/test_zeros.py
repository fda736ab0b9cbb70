"""Counting zeros, against counting them one by one."""

import pytest
import torch

from coldpress.numerics.zeros import count_zeros


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 1024), (2048, 2048), (3, 5), (1024,), (0, 4), (8, 384)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_zero_counts_once(share, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    x[torch.rand(shape, generator=generator) < share] = 0.0
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, x, -x)  # zeros of either sign

    assert count_zeros(x) == x.numel() - int(x.count_nonzero())
    assert count_zeros(x.t() if x.ndim == 2 else x) == count_zeros(x)


def test_what_is_no_number_is_not_zero():
    assert count_zeros(torch.full((1024,), float("nan"))) == 0
