"""Checkpoint formats: `compressed-tensors`, which vLLM and transformers read, and `dense`, which everything reads."""

from coldpress_compressed_tensors.formats.compressed_tensors import CompressedTensorsFormat
from coldpress_compressed_tensors.formats.dense import DenseFormat

__all__ = ["CompressedTensorsFormat", "DenseFormat"]
