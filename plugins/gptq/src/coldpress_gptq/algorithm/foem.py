"""FOEM (arXiv 2507.11017): a share of what earlier errors moved a column by is taken back when it is rounded.

Letters: O out, I in.

GPTQ rounds column j at t_j = w_j + a_j, where a = E F is what errors E = W - Q of earlier columns owe it.  To the
paper a is a first-order deviation, which a second-order rule leaves out.  With a share b (`foem_beta`) FOEM

    rounds at t'_j = w_j + (1 - b) a_j,    and passes on (t'_j - q_j) - b (t'_j - w_j)                            (1)

in place of t_j - q_j.  So a column passes on e_j + c a_j, c = (1 - b)^2, where GPTQ passes on e_j + a_j.  This reaches
later columns by 1 - (F + 1)^-1, so a = (E + c a) (1 - (F + 1)^-1), which is

    a = E (1 + (1 - c) F)^-1 F                                                                                   (2)

FOEM is GPTQ with F' = (1 - b) (1 + (1 - c) F)^-1 F in place of F: one triangular solve for each Gram matrix.
Published code applies (1) inside of blocks of 128 columns only; (2) knows no blocks.
"""

import torch
from torch import Tensor


def foem_feedback(feedback: Tensor, beta: float) -> Tensor:
    """F' of (2), [I, I] float32.

    Args:
        feedback: F, strictly upper triangular, [I, I] float32.
        beta: b, from 0, which leaves F as it is, to 1, which leaves nothing of it.
    """
    if beta == 0:
        return feedback
    left = feedback * (1 - (1 - beta) ** 2)  # its diagonal counts as 1
    found: Tensor = torch.linalg.solve_triangular(left, feedback, upper=True, unitriangular=True)
    return found.mul_(1 - beta)
