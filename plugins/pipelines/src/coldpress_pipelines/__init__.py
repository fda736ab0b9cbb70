"""Pipelines: how a model is cut into stages, and how calibration batches travel through them."""

from coldpress_pipelines.pipelines.basic import Basic
from coldpress_pipelines.pipelines.data_free import DataFree
from coldpress_pipelines.pipelines.independent import Independent
from coldpress_pipelines.pipelines.layer_sequential import LayerSequential
from coldpress_pipelines.pipelines.sequential import Sequential

__all__ = ["Basic", "DataFree", "Independent", "LayerSequential", "Sequential"]
