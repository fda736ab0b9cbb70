"""The conformance kit: what a plugin promises, as tests that its author adopts in one line.

    test_conformance = conformance("WandaModifier", settings={"sparsity": 0.6})

One pytest id for each promise: `test_conformance[leaves_no_trace]`.
Tiny models to test with are in `coldpress.testing.models`.
"""

from coldpress.testing.kit import conformance

__all__ = ["conformance"]
