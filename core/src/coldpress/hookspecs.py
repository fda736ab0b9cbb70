"""The life of a run, as the four hooks that a modifier may implement.

    for stage in the pipeline's stages:            prologue, block, block, ..., epilogue; or one stage for all
        initialize(state, stage)                   equivalent transformations of weights; request statistics
        for every batch:                           only if a modifier needs data
            the stage runs on the batch, statistics are collected
            calibrate_batch(state, stage, batch)   look at the inputs of your layers, where no statistic will do
        finalize(state, stage)                     compute, and write into weights
    save(state, folder)                            add files of your own to the checkpoint

Modifiers are called in recipe order.
A modifier implements the hooks that it needs and no others; a misspelt one is an error.
What must be remembered between two hooks goes into `state.scratch`, never on the modifier, which is frozen.
If a modifier needs a measuring pass, the same loop runs once before, with `measure` in place of `finalize` and for
such modifiers only; then each of them decides (`Modifier.measure`, `Modifier.decide`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from coldpress.stage import Batch, Stage
    from coldpress.state import State

PROJECT = "coldpress"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def initialize(state: "State", stage: "Stage") -> None:
    """Prepare a stage, and request statistics with `state.request`; its weights are there, no batch has run.

    A modifier with the trait `TRANSFORMS` may change weights here, so that its function is kept: batches have reached
    this stage through the stages before it as they were transformed, and run through it afterwards.
    It is fired again for a modifier that implements `calibrate_batch`, if an earlier modifier transformed its inputs.
    A plan fires it on a model without data, for modifiers that need data and transform nothing, to learn what they
    request.

    Args:
        state: everything that changes during a run.
        stage: the layers that are compressed together now.
    """


@hookspec
def calibrate_batch(state: "State", stage: "Stage", batch: "Batch") -> None:
    """Look at one batch, just after the stage ran on it.

    Weights must not be changed here: later batches of the sweep must see the same stage.

    Args:
        state: everything that changes during a run.
        stage: the layers that are compressed together now.
        batch: inputs of the layers that this recipe targets, [T, I] each, padding removed.
    """


@hookspec
def finalize(state: "State", stage: "Stage") -> None:
    """Compress the stage: all batches have been seen, earlier modifiers have changed it.

    Read with `state.statistic`, or run the stage again with `state.calls`.  An equivalent transformation says what
    becomes of inputs with `state.rescale_inputs` or `state.rotate_inputs`.
    Write with `state.set_quantized` or `state.set_weight`, which check, measure and report.

    Args:
        state: everything that changes during a run.
        stage: the layers that are compressed together now.
    """


@hookspec
def save(state: "State", folder: Path) -> None:
    """Add files to the checkpoint, after every weight is written and before the folder gets its final name.

    The folder is empty so far: weights are written elsewhere, and weights of a streamed model are on the meta device.

    Args:
        state: everything that changes during a run.
        folder: the unfinished checkpoint.
    """
