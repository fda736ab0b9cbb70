"""coldpress: compress large language models, with plugins that anybody can publish.

What users call, loaded at its first use: `import coldpress` imports neither torch nor any plugin.
Modifiers, observers, pipelines and formats are in `coldpress.modifiers` and its siblings; what plugin authors import
is in `coldpress.plugin`.
"""

from typing import TYPE_CHECKING

from coldpress.lazy import lazy_names

if TYPE_CHECKING:
    from coldpress.bases.weight_range import weight_qparams
    from coldpress.entrypoints.load_context import load_context
    from coldpress.entrypoints.model_free import convert, model_free_ptq
    from coldpress.entrypoints.oneshot import oneshot
    from coldpress.entrypoints.plan import plan
    from coldpress.entrypoints.session import Oneshot, Session, active_session, create_session, reset_session
    from coldpress.entrypoints.train import train
    from coldpress.errors import (
        ArgumentError,
        CalibrationError,
        CheckpointError,
        ColdpressError,
        ModelError,
        NumericsError,
        PluginError,
        RankError,
        RecipeError,
        SchemeError,
        TargetError,
    )
    from coldpress.evaluation import divergence, perplexity
    from coldpress.models import load_model, load_tokenizer
    from coldpress.recipe import Recipe, read_recipe, write_recipe
    from coldpress.schemes import QuantizationArgs, Scheme, preset, preset_names

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CalibrationError",
    "CheckpointError",
    "ColdpressError",
    "ModelError",
    "NumericsError",
    "Oneshot",
    "PluginError",
    "QuantizationArgs",
    "RankError",
    "Recipe",
    "RecipeError",
    "Scheme",
    "SchemeError",
    "Session",
    "TargetError",
    "active_session",
    "convert",
    "create_session",
    "divergence",
    "load_context",
    "load_model",
    "load_tokenizer",
    "model_free_ptq",
    "oneshot",
    "perplexity",
    "plan",
    "preset",
    "preset_names",
    "read_recipe",
    "reset_session",
    "train",
    "weight_qparams",
    "write_recipe",
]

if not TYPE_CHECKING:  # to a type checker any name would be there
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bases.weight_range": ("weight_qparams",),
            "entrypoints.oneshot": ("oneshot",),
            "entrypoints.plan": ("plan",),
            "entrypoints.load_context": ("load_context",),
            "entrypoints.model_free": ("convert", "model_free_ptq"),
            "entrypoints.train": ("train",),
            "entrypoints.session": ("Oneshot", "Session", "active_session", "create_session", "reset_session"),
            "errors": (
                "ArgumentError",
                "CalibrationError",
                "CheckpointError",
                "ColdpressError",
                "ModelError",
                "NumericsError",
                "PluginError",
                "RankError",
                "RecipeError",
                "SchemeError",
                "TargetError",
            ),
            "evaluation": ("divergence", "perplexity"),
            "models": ("load_model", "load_tokenizer"),
            "recipe": ("Recipe", "read_recipe", "write_recipe"),
            "schemes": ("QuantizationArgs", "Scheme", "preset", "preset_names"),
        },
    )
