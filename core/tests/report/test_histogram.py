"""Histograms by magnitude: counted slowly, merged in any order, and of numbers that are all the same."""

import math

import pytest
import torch

from coldpress.report.histogram import Histogram, largest


def numbers(rows, columns=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 3, columns)  # [rows, columns]


def test_bins_are_quarter_octaves_of_magnitudes():
    x = numbers(40)

    found = Histogram.of(x).to_dict()

    places = [math.floor(4 * math.log2(abs(value))) for value in x.double().flatten().tolist()]
    first = min(places)
    assert found["lowest"] == first / 4
    assert found["counts"] == [places.count(first + step) for step in range(max(places) - first + 1)]
    assert found["largest"] == pytest.approx(float(x.abs().max()), rel=1e-5)
    assert found["rms"] == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-5)
    fourth = x.double().pow(4).mean() / x.double().square().mean().square()
    assert found["kurtosis"] == pytest.approx(float(fourth), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_parts_in_any_order_is_counting_all(dtype):
    x = numbers(24).to(dtype)
    parts = [Histogram.of(part) for part in x.split([1, 7, 16])]

    assert parts[0].merge(parts[1]).merge(parts[2]).to_dict() == Histogram.of(x).to_dict()
    assert parts[2].merge(parts[0].merge(parts[1])).to_dict() == Histogram.of(x).to_dict()


def test_of_many_rows_some_are_counted_and_the_largest_is_of_all():
    x = numbers(4096)
    x[-1, 0] = -1e6

    found = Histogram.of(x).to_dict()

    assert 1 << 12 < found["values"] <= 1 << 14
    assert found["largest"] == 1e6
    assert found["counts"][-1] == 1
    assert found["lowest"] + (len(found["counts"]) - 1) / 4 == math.floor(4 * math.log2(1e6)) / 4


def test_zeros_are_in_the_first_bin_and_have_no_kurtosis():
    found = Histogram.of(torch.zeros(3, 4)).to_dict()

    assert (found["values"], found["counts"], found["rms"], found["kurtosis"]) == (12, [12], 0.0, None)
    assert float(largest(torch.tensor([[-3.0, 2.0]]))) == 3.0
