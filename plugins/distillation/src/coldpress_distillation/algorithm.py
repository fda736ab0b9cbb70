"""Losses of distillation, as sums over tokens.

Letters: T tokens that count, V vocabulary, D width of hidden states, K logits of the teacher that are kept.

    KL            tau^2 sum_t KL(softmax(teacher / tau) || softmax(student / tau))   (Hinton et al., arXiv 1503.02531)
    SquareHead    ||student - teacher||^2 / ||teacher||^2                           (arXiv 2310.06927, section 3.1)
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_CHUNK = 256  # tokens whose probabilities are held at once


def kl_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Divergence of predictions, summed over tokens, in float32.

    Args:
        student: logits, [T, V], with their gradient.
        teacher: logits, [T, V].
        temperature: tau; the sum is multiplied by its square, so that gradients keep their size.
        top_k: K; the tokens that the teacher holds most likely, all others are one more class.  None keeps all.

    Returns:
        A scalar.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for one, other in zip(torch.split(student, _CHUNK), torch.split(teacher, _CHUNK), strict=True):
        total = total + checkpoint(_divergence, one, other, temperature, top_k, use_reentrant=False)
    return total * temperature**2


def square_head(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of hidden states, relative to the size of the teacher's, a scalar in float32.

    Args:
        student: [T, D], with its gradient.
        teacher: [T, D].
    """
    student, teacher = student.float(), teacher.float()
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def _divergence(student: Tensor, teacher: Tensor, temperature: float, top_k: int | None) -> Tensor:
    log_q, log_p = ((x.float() / temperature).log_softmax(-1) for x in (student, teacher))  # [T, V]
    if top_k is not None and top_k < log_p.shape[-1]:
        log_p, places = log_p.topk(top_k, dim=-1)  # [T, K]
        log_q = log_q.gather(-1, places)
        log_p, log_q = (torch.cat([x, _rest(x)], dim=-1) for x in (log_p, log_q))  # [T, K + 1]
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _rest(log_p: Tensor) -> Tensor:
    """The logarithm of what is left to 1, [T, 1], of log-probabilities [T, K]."""
    left = 1 - log_p.exp().sum(-1, keepdim=True)
    return left.clamp(min=torch.finfo(left.dtype).eps).log()
