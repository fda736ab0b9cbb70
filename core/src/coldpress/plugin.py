"""What plugin authors import: the contract, the bases of modifiers, and errors; loaded at first use.

Tensor functions are in `coldpress.numerics`, the conformance kit in `coldpress.testing`.
"""

from typing import TYPE_CHECKING

from coldpress.lazy import lazy_names

if TYPE_CHECKING:
    from coldpress.attachment import Attached, Attachment, attachment_class
    from coldpress.attention import (
        AttentionInput,
        AttentionStates,
        attention_modules,
        attention_tapped,
        run_attention_taps,
    )
    from coldpress.bases.block_targets import BlockTargets
    from coldpress.bases.fit_report import note_fit
    from coldpress.bases.guidance import GUIDANCE, guided, guiding
    from coldpress.bases.kv_cache import KVCache
    from coldpress.bases.masked_training import MaskedTraining
    from coldpress.bases.online_rotation import AttentionRotation, InputRotation, OnlineRotation, OutputRotation
    from coldpress.bases.pruner import Pruner
    from coldpress.bases.quantized_training import QuantizedTraining
    from coldpress.bases.quantizer import Quantizer
    from coldpress.bases.rotator import (
        Rotator,
        forget_gains,
        layers_outside,
        read_without_call,
        rotate_layer,
        rotate_stage,
        rotations_of,
        stream_of,
    )
    from coldpress.bases.simulated import simulated
    from coldpress.bases.smoother import Smoother, Smoothing
    from coldpress.bases.weight_range import weight_qparams, weight_range
    from coldpress.calibration.batch import count_places, counted_tokens
    from coldpress.calibration.hub_dataset import HubDataset
    from coldpress.calibration.observer import Observer, observer_for
    from coldpress.calibration.statistics import Average, Gamma, Gram, SecondMoment, TokenWeight
    from coldpress.calibration.tap import InputTap, StopForward
    from coldpress.checkpoint import CheckpointReader
    from coldpress.checkpoint.initialization import initialization_reads_weights
    from coldpress.dataflow.fold import gain
    from coldpress.dataflow.fused import FusedLayers
    from coldpress.dataflow.heads import Heads
    from coldpress.dataflow.partition import block_names, partition
    from coldpress.dataflow.rotate import RotationSite
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
    from coldpress.experts import LinearExperts, linear_experts
    from coldpress.experts.tokens import siblings
    from coldpress.foreign import reading
    from coldpress.format import AttachmentLookup, Format, Parts, SchemeLookup, Stored
    from coldpress.hookspecs import hookimpl
    from coldpress.layer_report import LayerReport, Note
    from coldpress.lifecycle import Forward, Lifecycle, Seen, Training
    from coldpress.modifier import (
        DROPS_EXPERTS,
        PRUNES,
        QUANTIZES,
        RUNS_LAST,
        SPARES_QUANTIZED,
        TRANSFORMS,
        Cost,
        Decision,
        Modifier,
        Needs,
    )
    from coldpress.pipeline import Outline, Pipeline
    from coldpress.planned import LossGradient, ReverseStep
    from coldpress.quantized import Quantized
    from coldpress.recipe import Measured, ReadyRecipe, Recipe, write_recipe
    from coldpress.routed import RoutedTokens
    from coldpress.run.fewer_experts import check_fewer_experts
    from coldpress.schemes import NumberFormat, QuantizationArgs, Scheme, number_format, preset, with_float16_scales
    from coldpress.source import Cut, Source, Weights
    from coldpress.stage import Batch, Call, Layer, Pass, Stage, first_tensor, matches_name
    from coldpress.state import State
    from coldpress.statistic import RESCALE, ROTATE, ChunkedStatistic, GradientStatistic, Labels, Statistic, Tokens

__all__ = [
    "DROPS_EXPERTS",
    "GUIDANCE",
    "PRUNES",
    "QUANTIZES",
    "RESCALE",
    "ROTATE",
    "RUNS_LAST",
    "SPARES_QUANTIZED",
    "TRANSFORMS",
    "ArgumentError",
    "Attached",
    "Attachment",
    "AttachmentLookup",
    "AttentionInput",
    "AttentionRotation",
    "AttentionStates",
    "Average",
    "Batch",
    "BlockTargets",
    "CalibrationError",
    "Call",
    "CheckpointError",
    "CheckpointReader",
    "ChunkedStatistic",
    "ColdpressError",
    "Cost",
    "Cut",
    "Decision",
    "Format",
    "Forward",
    "FusedLayers",
    "Gamma",
    "GradientStatistic",
    "Gram",
    "Heads",
    "HubDataset",
    "InputRotation",
    "InputTap",
    "KVCache",
    "Labels",
    "Layer",
    "LayerReport",
    "Lifecycle",
    "LinearExperts",
    "LossGradient",
    "MaskedTraining",
    "Measured",
    "ModelError",
    "Modifier",
    "Needs",
    "Note",
    "NumberFormat",
    "NumericsError",
    "Observer",
    "OnlineRotation",
    "Outline",
    "OutputRotation",
    "Parts",
    "Pass",
    "Pipeline",
    "PluginError",
    "Pruner",
    "QuantizationArgs",
    "Quantized",
    "QuantizedTraining",
    "Quantizer",
    "RankError",
    "ReadyRecipe",
    "Recipe",
    "RecipeError",
    "ReverseStep",
    "RotationSite",
    "Rotator",
    "RoutedTokens",
    "Scheme",
    "SchemeError",
    "SchemeLookup",
    "SecondMoment",
    "Seen",
    "Smoother",
    "Smoothing",
    "Source",
    "Stage",
    "State",
    "Statistic",
    "StopForward",
    "Stored",
    "TargetError",
    "TokenWeight",
    "Tokens",
    "Training",
    "Weights",
    "attachment_class",
    "attention_modules",
    "attention_tapped",
    "block_names",
    "check_fewer_experts",
    "count_places",
    "counted_tokens",
    "first_tensor",
    "forget_gains",
    "gain",
    "guided",
    "guiding",
    "hookimpl",
    "initialization_reads_weights",
    "layers_outside",
    "linear_experts",
    "matches_name",
    "note_fit",
    "number_format",
    "observer_for",
    "partition",
    "preset",
    "read_without_call",
    "reading",
    "rotate_layer",
    "rotate_stage",
    "rotations_of",
    "run_attention_taps",
    "siblings",
    "simulated",
    "stream_of",
    "weight_qparams",
    "weight_range",
    "with_float16_scales",
    "write_recipe",
]

if not TYPE_CHECKING:  # to a type checker any name would be there
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "attachment": ("Attached", "Attachment", "attachment_class"),
            "bases.block_targets": ("BlockTargets",),
            "bases.fit_report": ("note_fit",),
            "bases.guidance": ("GUIDANCE", "guided", "guiding"),
            "bases.kv_cache": ("KVCache",),
            "bases.masked_training": ("MaskedTraining",),
            "bases.online_rotation": ("AttentionRotation", "InputRotation", "OnlineRotation", "OutputRotation"),
            "bases.pruner": ("Pruner",),
            "bases.quantized_training": ("QuantizedTraining",),
            "bases.quantizer": ("Quantizer",),
            "bases.rotator": (
                "Rotator",
                "forget_gains",
                "gain",
                "layers_outside",
                "read_without_call",
                "rotate_layer",
                "rotate_stage",
                "rotations_of",
                "stream_of",
            ),
            "bases.simulated": ("simulated",),
            "bases.smoother": ("Smoother", "Smoothing"),
            "bases.weight_range": ("weight_qparams", "weight_range"),
            "calibration.batch": ("count_places", "counted_tokens"),
            "attention": (
                "AttentionInput",
                "AttentionStates",
                "attention_modules",
                "attention_tapped",
                "run_attention_taps",
            ),
            "calibration.hub_dataset": ("HubDataset",),
            "calibration.observer": ("Observer", "observer_for"),
            "calibration.statistics": ("Average", "Gamma", "Gram", "SecondMoment", "TokenWeight"),
            "calibration.tap": ("InputTap", "StopForward"),
            "checkpoint": ("CheckpointReader",),
            "checkpoint.initialization": ("initialization_reads_weights",),
            "dataflow.fold": ("gain",),
            "dataflow.heads": ("Heads",),
            "dataflow.fused": ("FusedLayers",),
            "dataflow.partition": ("block_names", "partition"),
            "dataflow.rotate": ("RotationSite",),
            "experts": ("LinearExperts", "linear_experts"),
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
            "experts.tokens": ("siblings",),
            "foreign": ("reading",),
            "format": ("AttachmentLookup", "Format", "Parts", "SchemeLookup", "Stored"),
            "hookspecs": ("hookimpl",),
            "modifier": (
                "DROPS_EXPERTS",
                "PRUNES",
                "QUANTIZES",
                "RUNS_LAST",
                "SPARES_QUANTIZED",
                "TRANSFORMS",
                "Cost",
                "Decision",
                "Modifier",
                "Needs",
            ),
            "pipeline": ("Outline", "Pipeline"),
            "planned": ("LossGradient", "ReverseStep"),
            "routed": ("RoutedTokens",),
            "run.fewer_experts": ("check_fewer_experts",),
            "schemes": ("NumberFormat", "QuantizationArgs", "Scheme", "number_format", "preset", "with_float16_scales"),
            "source": ("Cut", "Source", "Weights"),
            "stage": ("Batch", "Call", "Layer", "Pass", "Stage", "first_tensor", "matches_name"),
            "layer_report": ("LayerReport", "Note"),
            "lifecycle": ("Forward", "Lifecycle", "Seen", "Training"),
            "quantized": ("Quantized",),
            "recipe": ("Measured", "ReadyRecipe", "Recipe", "write_recipe"),
            "state": ("State",),
            "statistic": (
                "RESCALE",
                "ROTATE",
                "ChunkedStatistic",
                "GradientStatistic",
                "Labels",
                "Statistic",
                "Tokens",
            ),
        },
    )
