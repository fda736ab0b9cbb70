"""Whether data and pipeline give what the modifiers of a recipe need."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from coldpress import registry
from coldpress.calibration.batch import count_tokens
from coldpress.errors import BrokenPluginError, CalibrationError, RecipeError
from coldpress.modifier import DROPS_EXPERTS, Modifier, Needs
from coldpress.pipeline import Pipeline
from coldpress.state import State


def _refuse_training(needs: Iterable[tuple[str, Needs]]) -> None:
    for name, one in needs:
        if one.training:
            raise RecipeError([f"{name} acts while a model is trained, and in nothing else: use coldpress.train"])


def _refuse_two_that_drop(modifiers: Sequence[Modifier]) -> None:
    dropping = [type(modifier).__name__ for modifier in modifiers if DROPS_EXPERTS in modifier.traits]
    if len(dropping) > 1:
        raise RecipeError([f"{' and '.join(dropping)} drop experts, each of the whole model: keep one of them"])


def check_needs(modifiers: Sequence[Modifier], pipeline: Pipeline, state: State) -> None:
    """Refuse a recipe whose modifiers need what the data or the pipeline do not give.

    Raises:
        RecipeError: a modifier acts in training only, or two drop experts.
        CalibrationError: says which modifier needs what and what to do, or which batch is empty.
        BrokenPluginError: what a modifier needs contradicts itself.
    """
    needs = [(type(modifier).__name__, modifier.needs()) for modifier in modifiers]
    for name, one in needs:
        _check_consistent(name, one)
    _refuse_training(needs)
    _refuse_two_that_drop(modifiers)
    learning = ", ".join(name for name, one in needs if one.gradients or one.loss_gradients)
    if learning and torch.is_inference_mode_enabled():
        raise CalibrationError(f"{learning} needs gradients: call it outside of torch.inference_mode()")
    needy = ", ".join(name for name, one in needs if one.data)
    if not needy:
        return
    kind = type(pipeline).__name__
    if not state.batches:
        raise CalibrationError(f"{needy} needs calibration data: pass dataset=...")
    if not pipeline.runs_batches:
        raise CalibrationError(f"{needy} needs calibration data, and the pipeline {kind} runs none; choose another")
    _check_pipeline(needs, pipeline)
    _refuse_empty(state.batches)


def _check_pipeline(needs: Sequence[tuple[str, Needs]], pipeline: Pipeline) -> None:
    """Refuse a pipeline that does not show what a modifier needs of a sweep."""
    kind = type(pipeline).__name__
    comparing = ", ".join(name for name, one in needs if one.original_inputs)
    if comparing and not pipeline.runs_original:
        raise CalibrationError(
            f"{comparing} compares inputs with those of the original model, which the pipeline {kind} does not show; "
            f"choose {_pipelines_that('runs_original')}"
        )
    calling = ", ".join(name for name, one in needs if one.calls)
    if calling and not pipeline.holds_calls:
        raise CalibrationError(
            f"{calling} runs stages again on what they are called with, which the pipeline {kind} does not hold; "
            f"choose {_pipelines_that('holds_calls')}"
        )
    guided = ", ".join(name for name, one in needs if one.loss_gradients)
    if guided and not pipeline.runs_backwards:
        raise CalibrationError(
            f"{guided} needs gradients of the model's loss, and the pipeline {kind} does not run backwards; choose "
            f"{_pipelines_that('runs_backwards')}, or leave guidance out"
        )


def _check_consistent(name: str, needs: Needs) -> None:
    reads = needs.original_inputs or needs.calls or needs.gradients or bool(needs.loss_gradients)
    if (reads and not needs.data) or (needs.gradients and not needs.calls):
        raise BrokenPluginError(
            f"{name}: original_inputs, calls and loss_gradients need data, gradients need calls: {needs}"
        )


def _refuse_empty(batches: Sequence[Mapping[str, Any]]) -> None:
    empty = [str(index) for index, batch in enumerate(batches) if count_tokens(batch) == 0]
    if empty:
        raise CalibrationError(
            f"{len(empty)} of {len(batches)} batches hold no token: {', '.join(empty[:8])}"
            f"{', ...' if len(empty) > 8 else ''}; leave them out"
        )


def _pipelines_that(ability: str) -> str:
    """The installed pipelines that have an ability, in words."""
    able = [plugin.name for plugin in registry.available("pipelines") if getattr(plugin.load(), ability)]
    return " or ".join(able) or "another"
