"""The checkpoint format `awq`, version gemm."""

from coldpress_awq_format.format import AWQFormat

__all__ = ["AWQFormat"]
