"""The mean over tokens that come in windows, and how sure it is."""

import math

import torch
from torch import Tensor


def mean_of_windows(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """The mean over all tokens and its standard error, with windows as the independent units.

    Tokens of one window hang together, so they are not counted as independent.  The mean is a ratio of sums over
    windows; its variance is that of the linearised ratio (Cochran, Sampling Techniques, section 6.4):
    k / (k - 1) * sum_i (sum_i - mean * count_i)^2 / (sum_i count_i)^2.

    Args:
        sums: of the values of each window, [k].
        counts: tokens of each window, [k].

    Returns:
        Mean and standard error; the error is NaN for a single window, which says nothing of the spread.
    """
    sums, counts = sums.double(), counts.double()
    total, k = counts.sum(), len(sums)
    mean = sums.sum() / total
    if k < 2:
        return mean.item(), math.nan
    residual = sums - mean * counts  # [k]
    return mean.item(), torch.sqrt(k / (k - 1) * residual.square().sum() / total.square()).item()
