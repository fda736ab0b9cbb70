"""coldpress: make large language models small after training, with plugins that anybody can publish.

The public names, loaded when they are first used: `import coldpress` imports neither torch nor any plugin.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coldpress.cache import cache_args, quantize_cache, watch_cache
    from coldpress.calibration.fit import note_fit
    from coldpress.calibration.observer import Observer, observer_for
    from coldpress.calibration.tap import Enough, Tap
    from coldpress.checkpoint import CheckpointReader, Format, SchemeLookup
    from coldpress.entrypoints.oneshot import oneshot
    from coldpress.entrypoints.session import Session, active_session, create_session, reset_session
    from coldpress.errors import (
        ArgumentError,
        CalibrationError,
        CheckpointError,
        ColdpressError,
        ModelError,
        NumericsError,
        PluginError,
        RecipeError,
        SchemeError,
        TargetError,
    )
    from coldpress.evaluation import divergence, perplexity
    from coldpress.hookspecs import hookimpl
    from coldpress.models import load_model, load_tokenizer
    from coldpress.modifier import COMES_LAST, MOVES_SIGNAL, PRUNES, QUANTIZES, READS_DATA, Modifier
    from coldpress.pipeline import Pipeline, block_names, partition
    from coldpress.pruner import Pruner
    from coldpress.quantizer import Quantizer, weight_qparams
    from coldpress.recipe import Recipe, read_recipe, write_recipe
    from coldpress.schemes import NumberFormat, QuantizationArgs, Scheme, number_format, preset, preset_names
    from coldpress.smoother import Smoother, Smoothing
    from coldpress.stage import Batch, Layer, Stage
    from coldpress.state import LayerReport, Quantized, State
    from coldpress.statistic import RESCALE, ROTATE, Statistic

__version__ = "0.1.0"

_HOMES = {
    "cache": ("cache_args", "quantize_cache", "watch_cache"),
    "calibration.fit": ("note_fit",),
    "calibration.observer": ("Observer", "observer_for"),
    "calibration.tap": ("Enough", "Tap"),
    "checkpoint": ("CheckpointReader", "Format", "SchemeLookup"),
    "entrypoints.oneshot": ("oneshot",),
    "entrypoints.session": ("Session", "active_session", "create_session", "reset_session"),
    "errors": (
        "ArgumentError",
        "CalibrationError",
        "CheckpointError",
        "ColdpressError",
        "ModelError",
        "NumericsError",
        "PluginError",
        "RecipeError",
        "SchemeError",
        "TargetError",
    ),
    "evaluation": ("divergence", "perplexity"),
    "hookspecs": ("hookimpl",),
    "models": ("load_model", "load_tokenizer"),
    "modifier": ("COMES_LAST", "MOVES_SIGNAL", "PRUNES", "QUANTIZES", "READS_DATA", "Modifier"),
    "pipeline": ("Pipeline", "block_names", "partition"),
    "pruner": ("Pruner",),
    "quantizer": ("Quantizer", "weight_qparams"),
    "recipe": ("Recipe", "read_recipe", "write_recipe"),
    "schemes": ("NumberFormat", "QuantizationArgs", "Scheme", "number_format", "preset", "preset_names"),
    "smoother": ("Smoother", "Smoothing"),
    "stage": ("Batch", "Layer", "Stage"),
    "state": ("LayerReport", "Quantized", "State"),
    "statistic": ("RESCALE", "ROTATE", "Statistic"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "COMES_LAST",
    "MOVES_SIGNAL",
    "PRUNES",
    "QUANTIZES",
    "READS_DATA",
    "RESCALE",
    "ROTATE",
    "ArgumentError",
    "Batch",
    "CalibrationError",
    "CheckpointError",
    "CheckpointReader",
    "ColdpressError",
    "Enough",
    "Format",
    "Layer",
    "LayerReport",
    "ModelError",
    "Modifier",
    "NumberFormat",
    "NumericsError",
    "Observer",
    "Pipeline",
    "PluginError",
    "Pruner",
    "QuantizationArgs",
    "Quantized",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "Scheme",
    "SchemeError",
    "SchemeLookup",
    "Session",
    "Smoother",
    "Smoothing",
    "Stage",
    "State",
    "Statistic",
    "Tap",
    "TargetError",
    "active_session",
    "block_names",
    "cache_args",
    "create_session",
    "divergence",
    "hookimpl",
    "load_model",
    "load_tokenizer",
    "note_fit",
    "number_format",
    "observer_for",
    "oneshot",
    "partition",
    "perplexity",
    "preset",
    "preset_names",
    "quantize_cache",
    "read_recipe",
    "reset_session",
    "watch_cache",
    "weight_qparams",
    "write_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'coldpress' has no attribute {name!r}")
    return getattr(import_module(f"coldpress.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
