"""A trial: one modifier, one tiny model, a whole run, and what came of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from coldpress import registry
from coldpress.arguments import DEFAULT_CALIBRATION_PIPELINE
from coldpress.calibration.tap import InputTap, StopForward
from coldpress.checkpoint.output import Output
from coldpress.dataflow.partition import partition
from coldpress.modifier import Modifier, Needs
from coldpress.pipeline import Pipeline
from coldpress.planned import LossGradient, ReverseStep
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.stage import Call, Layer, Pass, Stage, calls_inside, find_layers
from coldpress.state import State
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.subject import Subject
from coldpress.testing.trace import weights_of


@frozen(kw_only=True, eq=False)
class Parts(Pipeline):
    """Stage by stage through the model's parts; each sweep runs the whole model, earlier parts compressed.

    The kit has a pipeline of its own so that it needs no plugin but the one that it checks.
    """

    def stages(self, state: State) -> Iterator[Stage]:
        """Yield prologue, blocks and epilogue."""
        yield from partition(state.model)

    holds_calls: ClassVar[bool] = True
    runs_backwards: ClassVar[bool] = True

    def sweep(self, state: State, stage: Stage) -> Iterator[Pass]:
        """Run the whole model on every batch."""
        for index, batch in enumerate(state.batches):
            with suppress(StopForward):
                state.model(**batch)
            yield Pass(index)

    def calls(
        self, state: State, stage: Stage, *, original: bool = False, batches: Collection[int] | None = None
    ) -> Iterator[Call]:
        """Run the whole model for each call, to see what the stage is called with."""
        if original or stage.name not in stage.modules:
            yield from super().calls(state, stage, original=original, batches=batches)
            return
        for index, batch in enumerate(state.batches):
            if batches is None or index in batches:
                yield from calls_inside(Call(index, (), batch, state.model), stage.modules[stage.name])

    def reverse_sweep(self, state: State, loss: LossGradient) -> Iterator[ReverseStep]:
        """Run the whole model forwards and backwards, as one stage."""

        def passes() -> Iterator[Pass]:
            for index, batch in enumerate(state.batches):
                with torch.enable_grad():
                    logits, gradient = loss(index, state.model(**batch))
                    torch.autograd.backward([logits], [gradient])
                yield Pass(index)

        yield ReverseStep(Stage.whole(state.model), passes())


@frozen(eq=False)
class Trial:
    """A finished run.

    Attributes:
        state: as the run left it.
        before: every tensor of the model before the run.
    """

    state: State
    before: dict[str, Tensor]

    @property
    def model(self) -> nn.Module:
        """The compressed model."""
        return self.state.model


def run(
    *modifiers: Modifier,
    model: nn.Module | None = None,
    data: Sequence[Mapping[str, Any]] | None = None,
    pipeline: Pipeline | str | None = None,
    output: Output | None = None,
    **state: Any,
) -> State:
    """Compress a model in memory.

    Args:
        modifiers: of the recipe, in its order.
        model: changed in place; None for a new tiny Llama.
        data: batches; None for eight rows in two batches.
        pipeline: one, or the name of an installed one with its defaults; None for block by block through the kit's own.
        output: where a checkpoint is written; None for nowhere.
        state: more fields of `State`, such as `seed` or `tokenizer`.

    Returns:
        The state as the run left it.
    """
    model = tiny_llama() if model is None else model
    data = batches(batch_size=4) if data is None else data
    found = State(model=model, batches=data, **state)
    chosen = registry.find("pipelines", pipeline)() if isinstance(pipeline, str) else pipeline or Parts()
    Job(recipe=Recipe(list(modifiers)), state=found, pipeline=chosen, output=output).run()
    return found


def run_trial(modifier: Modifier, *, model: nn.Module | None = None, **arguments: Any) -> Trial:
    """Compress a tiny model with one modifier; arguments as for `run`."""
    model = tiny_llama() if model is None else model
    before = weights_of(model)
    return Trial(run(modifier, model=model, **arguments), before)


def trial_of(subject: Subject, *modifiers: Modifier, **arguments: Any) -> Trial:
    """Compress a tiny model with the plugin that is checked, in the pipeline that it needs; arguments as for `run`.

    Args:
        subject: the plugin, a modifier.
        modifiers: the recipe; none for the plugin alone.
    """
    steps = modifiers or (subject.make(),)
    model = arguments.pop("model", None)
    model = subject.build() if model is None else model
    before = weights_of(model)
    return Trial(run(*steps, model=model, pipeline=_pipeline_for(subject, steps), **arguments), before)


def needs_of(*modifiers: Modifier) -> list[Needs]:
    """What modifiers need, or those that they stand for."""
    return [step.needs() for modifier in modifiers for step in modifier.expand()]


def _pipeline_for(subject: Subject, modifiers: Sequence[Modifier]) -> str | None:
    """The pipeline that the test names, or an installed one where modifiers compare with the original model."""
    if subject.pipeline is not None or not any(one.original_inputs for one in needs_of(*modifiers)):
        return subject.pipeline
    able = [plugin.name for plugin in registry.available("pipelines") if plugin.load().runs_original]
    assert able, "it needs original_inputs, and no installed pipeline has them: pip install 'coldpress[pipelines]'"
    return DEFAULT_CALIBRATION_PIPELINE if DEFAULT_CALIBRATION_PIPELINE in able else able[0]


def results_of(trial: Trial) -> dict[str, Tensor]:
    """Everything that a run made: parameters, and codes and scales of quantized layers."""
    tensors: dict[str, Tensor] = dict(trial.model.named_parameters())
    for name, quantized in trial.state.quantized.items():
        for part in ("codes", "scale", "zero_point", "global_scale", "input_scale", "input_zero_point"):
            tensor = getattr(quantized, part)
            if tensor is not None:
                tensors[f"{name}: {part}"] = tensor
    return tensors


def share_different(a: Tensor, b: Tensor) -> float:
    """Share of elements that differ by more than sums in another order do."""
    x, y = a.detach().double(), b.detach().double()
    largest = float(x.abs().max()) if x.numel() else 0.0
    return 1 - torch.isclose(x, y, rtol=1e-3, atol=1e-4 * largest).double().mean().item()


def claimed(modifier: Modifier, model: nn.Module) -> list[Layer]:
    """The layers of a model that a modifier claims, or one that it stands for, in model order."""
    whole = Stage.whole(model)
    names = {layer.name for step in modifier.expand() for layer in step.layers(whole)}
    return [layer for layer in whole.every_layer if layer.name in names]


def ignoring(modifier: Modifier, name: str) -> Modifier:
    """The same settings, with one more layer to leave alone."""
    return evolve(modifier, ignore=[*modifier.ignore, name])


def inputs_of(model: nn.Module, data: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Layer name to everything that the layer is called with on the data, [T, I]."""
    seen: dict[str, list[Tensor]] = {}
    with torch.no_grad(), InputTap(find_layers(model.named_modules())) as tap:
        for index, batch in enumerate(data):
            with suppress(StopForward):
                model(**batch)
            for name, x in tap.collect(index, batch).batch().inputs.items():
                seen.setdefault(name, []).append(x)
    return {name: torch.cat(parts) for name, parts in seen.items()}
