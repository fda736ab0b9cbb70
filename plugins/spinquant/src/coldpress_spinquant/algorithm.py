"""SpinQuant (arXiv 2405.16406): x W^T = (x R) (W R)^T, R orthogonal, so that x R has no outliers.

R1 rotates the residual stream, R2 each value head, R3 queries and keys, R4 what the down projection reads.
"""

from hashlib import sha256

import torch


def seeded(seed: int, name: str) -> torch.Generator:
    """Random numbers of one rotation, the same in every run and on every machine."""
    digest = sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
