"""What `oneshot` and the command line take: names and defaults that llm-compressor's users know.

Imports neither torch nor transformers, because the command line reads this room to answer `--help`.
Every default that differs from llm-compressor's says so, with the reason, in its class's docstring.
"""

from coldpress.arguments.dataset import DATA_COLLATORS, DATA_PREPARATION, DATA_SOURCE, DatasetArguments
from coldpress.arguments.defaults import (
    DEFAULT_ACTIVATION_OBSERVER,
    DEFAULT_ALGORITHM,
    DEFAULT_CALIBRATION_PIPELINE,
    DEFAULT_DATASET,
    DEFAULT_FORMAT,
    DEFAULT_IGNORE,
    DEFAULT_PIPELINE,
    DEFAULT_QUANTIZER,
    DEFAULT_WEIGHT_OBSERVER,
    DEMO_MODEL,
    DENSE_FORMAT,
    FEW_BITS,
    FEW_BITS_ALGORITHM,
    QUALITIES,
)
from coldpress.arguments.model import PRECISIONS, ModelArguments
from coldpress.arguments.output import OutputArguments
from coldpress.arguments.parse import Arguments, argument_names, parse_arguments, pipeline_setting_names, warn_idle
from coldpress.arguments.pipeline import PipelineArguments
from coldpress.arguments.recipe import RecipeArguments
from coldpress.arguments.training import TrainingArguments
from coldpress.arguments.without_effect import WITHOUT_EFFECT

__all__ = [
    "DATA_COLLATORS",
    "DATA_PREPARATION",
    "DATA_SOURCE",
    "DEFAULT_ACTIVATION_OBSERVER",
    "DEFAULT_ALGORITHM",
    "DEFAULT_CALIBRATION_PIPELINE",
    "DEFAULT_DATASET",
    "DEFAULT_FORMAT",
    "DEFAULT_IGNORE",
    "DEFAULT_PIPELINE",
    "DEFAULT_QUANTIZER",
    "DEFAULT_WEIGHT_OBSERVER",
    "DEMO_MODEL",
    "DENSE_FORMAT",
    "FEW_BITS",
    "FEW_BITS_ALGORITHM",
    "PRECISIONS",
    "QUALITIES",
    "WITHOUT_EFFECT",
    "Arguments",
    "DatasetArguments",
    "ModelArguments",
    "OutputArguments",
    "PipelineArguments",
    "RecipeArguments",
    "TrainingArguments",
    "argument_names",
    "parse_arguments",
    "pipeline_setting_names",
    "warn_idle",
]
