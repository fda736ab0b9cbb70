"""Shapes that kernels for CPUs are fast for."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from coldpress.models.padded import padded_linears
from coldpress.models.sliced import sliced_attention


@contextmanager
def suited_to_cpus(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers pad their tokens, and attention is computed in slices, where either is faster."""
    with padded_linears(model), sliced_attention():
        yield
