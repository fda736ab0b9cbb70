"""The reverse sweep before the first stage: statistics of output gradients, with the weights of one stage in memory.

    stages in their order      every batch runs, what blocks are called with is kept
    stages in reverse order    a block is replayed with autograd, batch by batch; gradients by its layers are collected

It is done once for each kind of labels, on the model as it came, and what it finds is kept for an interrupted run.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from attrs import frozen
from torch import nn

from coldpress.calibration.gradient_store import GradientStore
from coldpress.calibration.gradient_tap import GradientTap
from coldpress.calibration.loss import CrossEntropy
from coldpress.checkpoint.output import Output
from coldpress.errors import CalibrationError
from coldpress.experts import watched_experts
from coldpress.modifier import Modifier
from coldpress.pipeline import Pipeline
from coldpress.planned import ReverseStep, Sweep, no_calls
from coldpress.report import Progress
from coldpress.run.resume import keep_gradients
from coldpress.run.stage_run import generator
from coldpress.stage import Stage
from coldpress.state import State
from coldpress.statistic import LABELS, GradientStatistic, Statistics

log = logging.getLogger(__name__)

Wanted = dict[str, tuple[GradientStatistic, ...]]
"""Layer name to the statistics that are wanted of it."""


def wanted_gradients(modifiers: Sequence[Modifier], model: nn.Module) -> Wanted:
    """The statistics of output gradients that modifiers need, of the layers that they claim."""
    whole, found = Stage.whole(model), Wanted()
    for modifier in modifiers:
        for layer in modifier.layers(whole) if modifier.needs().loss_gradients else ():
            if "Linear" in layer.classes:
                found[layer.name] = tuple(dict.fromkeys((*found.get(layer.name, ()), *modifier.needs().loss_gradients)))
    return found


@frozen(kw_only=True, eq=False)
class ReverseSweep:
    """Collects statistics of output gradients.

    Attributes:
        state: whose model and batches.
        pipeline: that runs backwards.
        wanted: what is collected of which layer.
        store: where it goes.
        read: brings the weights of a stage into memory.
        release: frees them.
        progress: what a person sees meanwhile.
    """

    state: State
    pipeline: Pipeline
    wanted: Wanted
    store: GradientStore
    read: Callable[[Stage], None]
    release: Callable[[Stage], None]
    progress: Progress

    def run(self, statistics: Statistics, output: Output | None = None) -> None:
        """Collect everything, one sweep for each kind of labels.

        Args:
            statistics: of the run, which no hook reads meanwhile.
            output: that keeps what is found for an interrupted run.

        Raises:
            CalibrationError: the model cannot be run backwards.
            NumericsError: a gradient is not finite; layer and batch are named.
        """
        logged = len(self.state.log)
        for labels in LABELS:
            wanted = {name: tuple(one for one in found if one.labels == labels) for name, found in self.wanted.items()}
            wanted = {name: found for name, found in wanted.items() if found}
            if wanted:
                self._check_differentiable()
                self._run(CrossEntropy(self.state.batches, labels, self.state.seed), wanted, statistics)
        if output is not None:
            keep_gradients(self.store, self.state.log[logged:], output)

    def _run(self, loss: CrossEntropy, wanted: Wanted, statistics: Statistics) -> None:
        sweep = Sweep(observed=frozenset(wanted), propagated_error=False, gradients=True)
        self.state.begin_pass(sweep, statistics, no_calls)
        count = self.pipeline.count(self.state)
        total = None if count is None else 2 * count - 2
        with _frozen(self.state.model), closing(generator(self.pipeline.reverse_sweep(self.state, loss))) as steps:
            before: Stage | None = None
            for step in self.progress.track(steps, description=f"gradients, labels {loss.labels}", total=total):
                if before is not None and before is not step.stage:
                    self.release(before)
                before = step.stage
                self.read(step.stage)
                self._replay(step, wanted)
            if before is not None:
                self.release(before)
        nats = sum(value for value, _ in loss.losses.values())
        tokens = sum(count for _, count in loss.losses.values())
        if not tokens:
            raise CalibrationError(
                f"no token of the data has a label (labels {loss.labels}): samples of one token predict nothing, and "
                "padding and loss masks leave some out; use longer samples"
            )
        self.state.log.append({"gradients": loss.labels, "tokens": tokens, "loss": round(nats / tokens, 4)})
        log.info("gradients of the loss, labels %s: %d tokens, %.4f nats each", loss.labels, tokens, nats / tokens)

    def _replay(self, step: ReverseStep, wanted: Wanted) -> None:
        """Run one stage backwards, and collect what is wanted of its layers."""
        if step.passes is None:
            return
        layers = [layer for layer in step.stage.every_layer if layer.name in wanted]
        with GradientTap(layers) as tap, watched_experts(step.stage.modules.values(), routed=True):
            for one in step.passes:
                for name, gradient, tokens in tap.collect(one.index, self.state.batches[one.index]):
                    self.store.see(name, wanted[name], gradient, tokens)

    def _check_differentiable(self) -> None:
        """Refuse what autograd does not record.

        Raises:
            CalibrationError: says what to do.
        """
        if torch.is_inference_mode_enabled() or any(one.is_inference() for one in self.state.model.parameters()):
            raise CalibrationError(
                "gradients are needed, and torch.inference_mode() is on, or was when the model was loaded: call "
                "coldpress, and load the model, outside of it (torch.no_grad() does no harm)"
            )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter of a model requires a gradient: none is computed for weights."""
    required = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name in required:
        model.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for name in required:  # by name: weights that are streamed are other objects by now
            model.get_parameter(name).requires_grad_(True)
