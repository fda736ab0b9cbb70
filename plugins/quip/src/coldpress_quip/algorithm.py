"""QuIP (arXiv 2307.13304), incoherence processing: W' = U^T W V with random orthogonal U and V.

    y = x W^T = ((x V) (U^T W V)^T) U^T

A matrix is mu-incoherent if its largest entry is at most mu |W|_F / sqrt(O I) (definition 1); random Hadamard
matrices on both sides make it so with mu = 2 log(4 O I / delta), with probability 1 - delta (QuIP#, arXiv 2402.04396,
lemma 3.1).

Letters: O out, I in.
"""

from math import log, sqrt

from torch import Tensor


def incoherence(weight: Tensor) -> float:
    """The smallest mu with which a matrix is mu-incoherent, [O, I]; 1 where all entries are as large as each other."""
    w = weight.float()
    norm = float(w.norm())
    return float(w.abs().amax()) * sqrt(w.numel()) / norm if norm else 1.0


def expected_incoherence(rows: int, columns: int, *, delta: float = 0.01) -> float:
    """What the incoherence of a matrix is at most after random rotations, with probability 1 - delta."""
    return 2 * log(4 * rows * columns / delta)
