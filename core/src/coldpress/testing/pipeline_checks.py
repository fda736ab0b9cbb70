"""What a pipeline promises: stages that are the whole model, sweeps that are its own forward, and no trace."""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from coldpress.calibration.tap import InputTap, StopForward
from coldpress.errors import CalibrationError
from coldpress.pipeline import Pipeline
from coldpress.planned import Sweep
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.stage import Pass, Stage, find_layers
from coldpress.state import State
from coldpress.testing.check import Check
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, differences, trace_of, weights_of
from coldpress.testing.trial import inputs_of, run_trial

T = TypeVar("T")


def every_tensor_in_one_stage(subject: Subject) -> None:
    """Every module that has a tensor is in exactly one stage; stages are counted from 0 and have names of their own."""
    for model in _models():
        counts: Counter[str] = Counter()
        names, indices = [], []
        with torch.no_grad(), _closing(_pipeline(subject).stages(_state(model))) as stages:
            for stage in stages:
                names.append(stage.name)
                indices.append(stage.index)
                counts.update(stage.modules.keys())
        own = [name for name, module in model.named_modules() if _has_tensors(module)]
        wrong = [f"{name} is in {counts[name]} stages" for name in own if counts[name] != 1]
        assert not wrong, f"{type(model).__name__}: {', '.join(wrong[:4])}"
        assert indices == list(range(len(names))), f"the stages have the indices {indices}"
        assert len(set(names)) == len(names), f"two stages have one name: {names}"


def stages_hold_the_models_modules(subject: Subject) -> None:
    """What a stage calls a module is that module's name in the model."""
    for model in _models():
        known = dict(model.named_modules())
        with torch.no_grad(), _closing(_pipeline(subject).stages(_state(model))) as stages:
            for stage in stages:
                wrong = [name for name, module in stage.modules.items() if known.get(name) is not module]
                assert not wrong, f"stage {stage.name}: {', '.join(wrong[:4])} is no module of the model"


def parts_are_the_stage(subject: Subject) -> None:
    """Every module of a stage that has a tensor is in exactly one of its parts, which have its name and index."""
    for model in _models():
        pipeline, state = _pipeline(subject), _state(model)
        with torch.no_grad(), _closing(pipeline.stages(state)) as stages:
            for stage in stages:
                with _closing(pipeline.parts(state, stage)) as divided:
                    parts = list(divided)
                counts = Counter(name for part in parts for name in part.modules)
                own = [name for name, module in stage.modules.items() if _has_tensors(module)]
                wrong = [f"{name} is in {counts[name]} parts" for name in own if counts[name] != 1]
                assert not wrong, f"stage {stage.name}: {', '.join(wrong[:4])}"
                others = [name for name in counts if name not in stage.modules]
                assert not others, f"stage {stage.name}: {', '.join(others[:4])} is not of it"
                assert {(part.name, part.index) for part in parts} == {(stage.name, stage.index)}, "parts are renamed"


def sweeps_once_in_order(subject: Subject) -> None:
    """A sweep yields every batch once, in order; a pipeline that runs none says so with a CalibrationError."""
    pipeline, state = _pipeline(subject), _state(tiny_llama())
    with torch.no_grad(), _closing(pipeline.stages(state)) as stages:
        for stage in _parts(pipeline, state, stages):
            try:
                with _closing(pipeline.sweep(state, stage)) as sweep:
                    seen = list(sweep)
            except CalibrationError:
                assert not pipeline.runs_batches, "it says that it runs batches, and refuses to"
                return
            assert pipeline.runs_batches, "it says that it runs no batches, and does"
            wanted = [Pass(index) for index in range(len(state.batches))]
            assert seen == wanted, f"stage {stage.name} saw the batches {seen}"


def takes_enough(subject: Subject) -> None:
    """A forward that is ended with `StopForward`, because the rest is not observed, is no error."""
    try:
        _swept(_pipeline(subject), _state(tiny_llama()))
    except StopForward:
        raise AssertionError("StopForward went through the sweep: catch it around the forward") from None


def inputs_are_the_models_own(subject: Subject) -> None:
    """While nothing is compressed, layers are called with what a plain forward of the model calls them with."""
    for model in _models():
        data = _padded()
        expected = inputs_of(model, data)
        seen = _swept(_pipeline(subject), _state(model, data))
        for name, x in expected.items():
            assert name in seen, f"{name} ran in no sweep of its stage"
            assert seen[name].shape == x.shape, f"{name}: {tuple(seen[name].shape)} instead of {tuple(x.shape)}"
            close = torch.allclose(seen[name].float(), x.float(), rtol=1e-4, atol=1e-5)
            assert close, f"{name}: its inputs are not those of a plain forward"


def leaves_no_trace(subject: Subject) -> None:
    """After the last stage, and after stopping at any stage, the model is bit for bit what it was, without hooks."""
    for model in _models():
        for most in (1, 2, 1000):
            with _unchanged(model):
                _walk(_pipeline(subject), _state(model), most=most)


def undoes_after_an_error(subject: Subject) -> None:
    """An error in the middle of a sweep leaves nothing behind either."""
    model = tiny_llama()
    with _unchanged(model):
        try:
            _walk(_pipeline(subject), _state(model), fail=True)
        except _StopError:
            return
    raise AssertionError("the error of the caller was swallowed")


def bad_batch_is_reported(subject: Subject) -> None:
    """A batch that the model does not take is a CalibrationError, and leaves nothing behind."""
    model = tiny_llama()
    batch = {"input_ids": torch.full((1, 4), 10**6)}  # beyond the vocabulary
    with _unchanged(model):
        try:
            _walk(_pipeline(subject), _state(model, [batch]))
        except CalibrationError:
            return
    raise AssertionError("a batch that the model cannot run was passed over in silence")


def serves_a_run(subject: Subject) -> None:
    """Rounding weights through it gives what rounding them block by block gives."""
    model = tiny_llama()
    state = _state(model)
    Job(recipe=Recipe(_rounding()), state=state, pipeline=_pipeline(subject)).run()
    other = run_trial(_rounding()).model
    different = changed(weights_of(other), model)
    assert not different, f"not rounded as they should be: {', '.join(different[:4])}"


class _StopError(Exception):
    """Whoever asked for the sweep goes home."""


def _rounding() -> Rounding:
    return Rounding(scheme="W8A16", group_size=-1, ignore=["lm_head"])


def _walk(pipeline: Pipeline, state: State, *, most: int = 1000, fail: bool = False) -> None:
    """Go through the first `most` stages, sweeping where it sweeps; `fail` raises after the first batch."""
    with torch.no_grad(), _closing(pipeline.stages(state)) as stages:
        for count, stage in enumerate(_parts(pipeline, state, stages), 1):
            if pipeline.runs_batches:
                with _closing(pipeline.sweep(state, stage)) as sweep:
                    for _ in sweep:
                        if fail:
                            raise _StopError
            elif fail:
                raise _StopError
            if count >= most:
                return


def _swept(pipeline: Pipeline, state: State) -> dict[str, Tensor]:
    """What the layers of each stage were called with while it was swept, by name, [T, I]."""
    seen: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _closing(pipeline.stages(state)) as stages:
        for stage in _parts(pipeline, state, stages):
            with InputTap(stage.every_layer) as tap, _closing(pipeline.sweep(state, stage)) as sweep:
                for one in sweep:
                    for name, x in tap.collect(one.index, state.batches[one.index]).batch().inputs.items():
                        seen.setdefault(name, []).append(x)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _parts(pipeline: Pipeline, state: State, stages: Iterator[Stage]) -> Iterator[Stage]:
    """The parts of every stage that hold layers, as a run sweeps them."""
    for stage in stages:
        with _closing(pipeline.parts(state, stage)) as parts:
            yield from (part for part in parts if part.every_layer)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """What happens inside, happily or not, leaves no trace on the model."""
    trace, weights = trace_of(model), weights_of(model)
    yield
    found = differences(trace, trace_of(model))
    assert not found, "left behind:\n  " + "\n  ".join(found[:8])
    touched = changed(weights, model)
    assert not touched, f"changed: {', '.join(touched[:4])}"


@contextmanager
def _closing(iterator: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close a generator afterwards, as a run does."""
    assert isinstance(iterator, Generator), "stages and sweeps are generators: write them with yield"
    try:
        yield iterator
    finally:
        iterator.close()


def _pipeline(subject: Subject) -> Pipeline:
    pipeline: Pipeline = subject.make()
    return pipeline


def _models() -> Iterator[nn.Module]:
    yield tiny_llama()
    yield tiny_llama(tied=True)
    yield tiny_conv1d()


def _state(model: nn.Module, data: list[dict[str, Tensor]] | None = None) -> State:
    """As a run hands it to a pipeline: every layer is observed, and no key-value cache is kept."""
    config: Any = model.config
    config.use_cache = False
    observed = frozenset(layer.name for layer in find_layers(model.named_modules()))
    data = batches(rows=3, batch_size=2) if data is None else data
    return State(model=model, batches=data, sweep=Sweep(observed=observed))


def _padded() -> list[dict[str, Tensor]]:
    """Two batches, the rows of the first of different lengths."""
    data = batches(rows=3, batch_size=2)
    data[0]["attention_mask"][1, -6:] = 0
    return data


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _runs_batches(subject: Subject) -> bool:
    return bool(subject.cls.runs_batches)


_WHOLE = ("stages_hold_the_models_modules", "every_tensor_in_one_stage", "parts_are_the_stage")

CHECKS = (
    Check(settings_class),
    Check(import_is_quiet, applies=has_a_module),
    Check(stages_hold_the_models_modules),
    Check(every_tensor_in_one_stage, after=("stages_hold_the_models_modules",)),
    Check(parts_are_the_stage, after=("every_tensor_in_one_stage",)),
    Check(sweeps_once_in_order),
    Check(takes_enough, after=("sweeps_once_in_order",), applies=_runs_batches),
    Check(inputs_are_the_models_own, after=(*_WHOLE, "takes_enough"), applies=_runs_batches),
    Check(leaves_no_trace),
    Check(undoes_after_an_error, after=("leaves_no_trace",)),
    Check(bad_batch_is_reported, after=("sweeps_once_in_order", "undoes_after_an_error"), applies=_runs_batches),
    Check(serves_a_run, after=_WHOLE),
)
