"""What a run of several ranks does beside that of one: the same work on every rank, and the same result."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from attrs import frozen

from coldpress.calibration.gradient_store import GradientStore
from coldpress.calibration.ranked_store import RankedStore
from coldpress.calibration.store import StatisticStore
from coldpress.checkpoint.binding import binding_of
from coldpress.checkpoint.journal import differences
from coldpress.distributed import Ranks, Share
from coldpress.errors import CalibrationError, RankError
from coldpress.numerics import bit_sum
from coldpress.planned import CallSource
from coldpress.stage import Call, Stage
from coldpress.state import State


def check_agreement(state: State, binding: Mapping[str, Any], recipe: str) -> None:
    """Before the first stage: refuse ranks that work on something else, or not as this one does.

    Args:
        state: of the run.
        binding: what the run works on, by text or hash; empty where nothing is written.
        recipe: in words.

    Raises:
        RankError: names the rank, and what is different.
    """
    ranks = state.share.ranks
    if ranks.size == 1:
        return
    what = binding or binding_of(state, job={"recipe": recipe}, files=None, before={})
    threads = {"threads": torch.get_num_threads(), "processors": torch.backends.cpu.get_cpu_capability()}
    first, *others = ranks.gather("what the run works on", {**what, **threads})
    for rank, other in enumerate(others, start=1):
        found = [
            one.replace(" then,", " on rank 0,").replace(" now", f" on rank {rank}")
            for one in differences(first, other)
        ]
        if found:
            raise RankError(
                f"rank {rank} does not work on the same as rank 0:\n  "
                + "\n  ".join(found)
                + "\ngive every rank the same arguments, files, packages and OMP_NUM_THREADS"
            )


def check_same_weights(stage: Stage, ranks: Ranks) -> None:
    """After a stage: refuse to go on where ranks have computed other weights, which would not show in what is written.

    Raises:
        RankError: names the first parameter.
    """
    if ranks.size == 1:
        return
    sums = {
        f"{name}.{part}": bit_sum(parameter)
        for name, module in stage.modules.items()
        for part, parameter in module._parameters.items()
        if parameter is not None and not parameter.is_meta
    }
    for rank, other in enumerate(ranks.gather(f"the weights of {stage.name}", sums)):
        found = [name for name in sums if other.get(name) != sums[name]]
        if found:
            raise RankError(
                f"{found[0]} is not the same on rank {rank} and on rank {ranks.rank}: these do not compute alike; use "
                "machines of one kind, or one process"
            )


def store_of(state: State, gradients: GradientStore, *, decided: bool) -> StatisticStore:
    """The statistics of the stages of a pass."""
    if state.share.ranks.size == 1:
        return StatisticStore(gradients, decided=decided)
    return RankedStore(gradients, decided=decided, share=state.share, count=len(state.batches))


def calls_of(share: Share, own: CallSource, count: int) -> CallSource:
    """Where calls of stages come from: those of all batches on every rank, each from the rank that runs it."""
    return own if share.ranks.size == 1 else _SharedCalls(share, own, count)


@frozen(eq=False)
class _SharedCalls:
    """The calls of a stage by every batch; all ranks ask for them in the same order.

    Attributes:
        share: of the run.
        own: where those of this rank come from.
        count: of batches.
    """

    share: Share
    own: CallSource
    count: int

    def __call__(self, stage: Stage, *, original: bool, batches: Collection[int] | None) -> Iterator[Call]:
        """The calls in the order of batches."""
        here = next(iter(self.own(stage, original=original, batches=None)), None)
        mine = {index for index in range(self.count) if self.share.owns(index)}
        found = iter(self.own(stage, original=original, batches=mine if batches is None else mine & set(batches)))
        head = next(found, None)
        for index in range(self.count) if batches is None else sorted(set(batches) & set(range(self.count))):
            ours = head if head is not None and head.index == index and index in mine else None
            arguments = None if ours is None else (ours.args, dict(ours.kwargs))
            arguments = self.share.ranks.broadcast(
                f"the call of {stage.name} by batch {index}", arguments, source=self.share.owner(index)
            )
            if ours is not None:
                yield ours
                head = next(found, None)
            elif arguments is not None:
                if here is None:
                    raise CalibrationError(
                        f"no batch of rank {self.share.ranks.rank} reaches {stage.name}, and a modifier runs it again: "
                        "use one process"
                    )
                args, kwargs = arguments
                yield Call(index, args, kwargs, here.forward)
