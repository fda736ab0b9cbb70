"""Signed descent on all layers of a block at once; what served best is kept."""

from collections.abc import Iterator, Mapping

import torch
from attrs import frozen
from torch import Tensor

from coldpress.plugin import Layer
from coldpress_autoround.algorithm.rounding import Fixed, Learned, dense, rounded, signs, stepped
from coldpress_autoround.block import Block

CHECKS = (0.5, 0.75, 1.0)
"""After these shares of the steps the error over all batches is taken, as it is before the first."""


@frozen(kw_only=True)
class Schedule:
    """How far and how often.

    Attributes:
        iters: steps.
        batch_size: samples that a step sees.
        lr: length of the first step of offsets; later ones shrink to 0 in proportion.
        minmax_lr: the same of the factors of ranges.
    """

    iters: int
    batch_size: int
    lr: float
    minmax_lr: float


@frozen(eq=False)
class Outcome:
    """What descent came to.

    Attributes:
        learned: the best of what was checked, the start among it.
        before: mean squared error of the block's outputs at the start.
        after: with what was learned.
        reached: layers that had a gradient.
    """

    learned: Mapping[Layer, Learned]
    before: float
    after: float
    reached: frozenset[Layer]


def descend(
    block: Block, weights: Mapping[Layer, Fixed], start: Mapping[Layer, Learned], schedule: Schedule, *, seed: int
) -> Outcome:
    """Learn how weights are rounded so that the block's outputs are what they should be.

    Args:
        block: that computes with them.
        weights: of each layer.
        start: what is learned of each, at first.
        schedule: how far and how often.
        seed: of the order of batches.
    """
    learned, reached = dict(start), set[Layer]()
    best, before = dict(start), block.error(_dense(weights, start))
    if not before:
        return Outcome(best, before, before, frozenset(weights))
    least, checks = before, {max(1, round(share * schedule.iters)) for share in CHECKS}
    order = minibatches(block.rows(), schedule.batch_size, torch.Generator().manual_seed(seed))
    for step, batches in zip(range(schedule.iters), order, strict=False):
        found = {layer: rounded(weight, learned[layer]) for layer, weight in weights.items()}
        now = {layer: dense(weights[layer], one) for layer, one in found.items()}
        gradients = block.gradients(now, batches, size=before**0.5)
        left = 1 - step / schedule.iters
        for layer, gradient in gradients.items():
            direction = signs(weights[layer], learned[layer], found.pop(layer), gradient)
            lengths = {"lr": schedule.lr * left, "minmax_lr": schedule.minmax_lr * left}
            learned[layer] = stepped(learned[layer], direction, **lengths)
        reached.update(gradients)
        if step + 1 in checks:
            error = block.error(_dense(weights, learned))
            if error < least:
                best, least = dict(learned), error
    return Outcome(best, before, least, frozenset(reached))


def minibatches(rows: Mapping[int, int], batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of batches that hold as many samples, for each step; all of them in turn, shuffled each time anew.

    Args:
        rows: index of a batch to how many samples it has.
        batch_size: samples of a step; all where there are fewer.  What is left of a turn is left out.
        generator: of the order.
    """
    indices = list(rows)
    enough = min(batch_size, sum(rows.values()))
    while True:
        chosen, samples = list[int](), 0
        for place in torch.randperm(len(indices), generator=generator).tolist():
            chosen.append(indices[place])
            samples += rows[indices[place]]
            if samples >= enough:
                yield chosen
                chosen, samples = [], 0


def _dense(weights: Mapping[Layer, Fixed], learned: Mapping[Layer, Learned]) -> dict[Layer, Tensor]:
    return {layer: dense(weight, rounded(weight, learned[layer])) for layer, weight in weights.items()}
