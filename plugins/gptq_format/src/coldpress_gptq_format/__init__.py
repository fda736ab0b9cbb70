"""The checkpoint format `gptq`, versions 1 and 2."""

from coldpress_gptq_format.format import GPTQFormat

__all__ = ["GPTQFormat"]
