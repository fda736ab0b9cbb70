"""The life of a run, as the four hooks that a modifier may implement.

    for stage in the pipeline's stages:            prologue, block, block, ..., epilogue; or one stage for all
        initialize(state, stage)                   claim layers, ask for statistics
        for every batch:                           only if somebody needs data
            the stage runs on the batch, statistics are collected
            calibrate_batch(state, stage, batch)   look at the inputs of your layers, where no statistic will do
        finalize(state, stage)                     compute, and write into weights
    save(state, folder)                            add files of your own to the checkpoint

Modifiers are called in recipe order.
A modifier implements the hooks that it needs and no others; a misspelt one is an error, not a silence.
What must be remembered between two hooks goes into `state.scratch`, never on the modifier, which is frozen.
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
    """Get ready for a stage, and ask for statistics with `state.request`; its weights are there, no batch has run.

    It is fired again for a modifier that implements `calibrate_batch`, if an earlier modifier moved the signal.

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

    Read with `state.statistic`; who moves the signal says how with `state.carry`.
    Write with `state.set_quantized` or `state.set_weight`, which measure and report, or with `layer.weight.copy_`.

    Args:
        state: everything that changes during a run.
        stage: the layers that are compressed together now.
    """


@hookspec
def save(state: "State", folder: Path) -> None:
    """Add files to the checkpoint, after every weight is written and before the folder gets its final name.

    Args:
        state: everything that changes during a run.
        folder: the unfinished checkpoint.
    """
