"""A weight written over another one, rows by rows."""

import pytest
import torch

from coldpress.errors import NumericsError
from coldpress.numerics import calculate_qparams, dequantize, dequantized_rows, overwrite, quantize, relative_error
from coldpress.numerics.group import group
from coldpress.schemes import QuantizationArgs


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
def test_rows_are_those_of_the_whole_and_so_is_the_error(strategy):
    args = QuantizationArgs(num_bits=4, strategy=strategy, group_size=64 if strategy == "group" else None)
    old = torch.randn(700, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()  # more than a piece
    grouped = group(old, args)
    qparams = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    codes = quantize(old, *qparams, args)
    new = dequantize(codes, *qparams, args, dtype=old.dtype)

    weight = old.clone()
    rows = dequantized_rows(codes, *qparams, args, dtype=old.dtype)
    error = overwrite(weight, rows, original=weight, name="w", cause="made here")

    assert torch.equal(weight, new)
    assert error == pytest.approx(relative_error(old, new), rel=1e-6)


def test_rows_that_would_not_be_finite_are_named_and_not_written():
    weight = torch.zeros(4, 2, dtype=torch.float16)
    rows = [(slice(0, 2), torch.ones(2, 2)), (slice(2, 4), torch.full((2, 2), 1e6))]

    with pytest.raises(NumericsError, match=r"'w\[2:4\]' holds 4 Inf among its 4 values; made here"):
        overwrite(weight, rows, original=None, name="w", cause="made here")
    assert weight.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
