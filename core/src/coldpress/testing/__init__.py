"""For tests of plugins: the conformance kit, and runs of tiny models.

    test_conformance = conformance("WandaModifier", settings={"sparsity": 0.6})

One pytest id for each promise: `test_conformance[leaves_no_trace]`.

    state = run(WandaModifier(sparsity=0.6), model=tiny_llama(), pipeline="sequential")

Tiny models, batches and tensors to test with are in `coldpress.testing.models` and `coldpress.testing.tensors`.
"""

from typing import TYPE_CHECKING

from coldpress.lazy import lazy_names
from coldpress.testing.kit import conformance

if TYPE_CHECKING:
    from coldpress.testing.tensors import draw, random_gram
    from coldpress.testing.trial import run

__all__ = ["conformance", "draw", "random_gram", "run"]

_HOMES = {"testing.tensors": ("draw", "random_gram"), "testing.trial": ("run",)}  # which need torch

__getattr__, _ = lazy_names(__name__, _HOMES)
