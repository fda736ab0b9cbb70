"""How far a weight is from another."""

import torch
from torch import Tensor


def relative_error(old: Tensor, new: Tensor) -> float:
    """Frobenius norm of the change over that of `old`; 0 for two matrices of zeros."""
    size = torch.linalg.vector_norm(old, dtype=torch.float32)
    change = torch.linalg.vector_norm(old.float() - new)  # never in place: `old.float()` may be `old`
    return float(change / size) if size > 0 else float(change)
