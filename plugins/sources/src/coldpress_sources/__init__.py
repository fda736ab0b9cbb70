"""Checkpoints that are published quantized: FP8, packed FP4 (DeepSeek), MXFP4 (gpt-oss), ModelOpt's NVFP4 and FP8."""

from coldpress_sources.fp8 import FP8Source
from coldpress_sources.modelopt import ModelOptSource
from coldpress_sources.mxfp4 import MXFP4Source

__all__ = ["FP8Source", "MXFP4Source", "ModelOptSource"]
