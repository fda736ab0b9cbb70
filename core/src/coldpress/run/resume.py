"""Going on where a run was interrupted: what it must work on, and bringing a finished stage back to where it was."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from coldpress.arguments import DEFAULT_ACTIVATION_OBSERVER, DEFAULT_WEIGHT_OBSERVER
from coldpress.calibration.gradient_store import GradientStore
from coldpress.checkpoint.binding import binding_of
from coldpress.checkpoint.made_with import MADE_WITH, made_with
from coldpress.checkpoint.output import Output
from coldpress.errors import CheckpointError, SchemeError
from coldpress.models.streaming import WeightStream, fill
from coldpress.report import Progress
from coldpress.stage import Stage
from coldpress.state import State
from coldpress.statistic import GradientStatistic

log = logging.getLogger(__name__)

_GRADIENTS = "gradients"  # the name of a file beside the stages


def bind(state: State, output: Output, job: Mapping[str, str], weights: WeightStream | None) -> dict[str, Any]:
    """What a run works on, before any of it is changed.

    Args:
        state: before the first stage.
        output: that may hold stages of an interrupted run.
        job: what is done, in words.
        weights: where they are streamed from; None when they are in memory.
    """
    if weights is None:
        device = next(state.model.parameters(), torch.empty(0)).device
        files = None
    else:
        device, files = weights.device, weights.reader.files
        weights.fetch_again = lambda name, module: dict(output.weights({name: module}, state))
    return binding_of(state, job={**job, "device": device.type}, files=files, before=output.unfinished)


def bind_code(binding: dict[str, Any], output: Output, parts: Sequence[object], weights: WeightStream | None) -> None:
    """Add to a binding the code that the run is made with, by version and content of every plugin that takes part.

    Args:
        binding: what the run works on.
        output: whose format takes part.
        parts: modifiers, pipeline, attachments.
        weights: whose reader takes part, which may be a source's.
    """
    more = (output.format, None if weights is None else weights.reader)
    observers = (DEFAULT_WEIGHT_OBSERVER, DEFAULT_ACTIVATION_OBSERVER)
    binding[MADE_WITH] = made_with([*parts, *more], recipe=binding["recipe"], observers=observers)


def begin(output: Output, binding: Mapping[str, Any], progress: Progress) -> Sequence[Mapping[str, Any]]:
    """Records of the stages that need not be done again; says how many there are.

    Raises:
        CheckpointError: the interrupted run worked on something else; says on what, and both ways out.
    """
    kept = output.begin(binding)
    if kept:
        _, stages = by_pass(kept)
        count = f"{len(stages)} finished stage{'s' if len(stages) != 1 else ''}"
        names = [record["stage"] for record in (stages[:1] + stages[1:][-1:])]
        what = f"{count}, {' to '.join(names)}" if stages else "what was measured"
        message = f"going on where a run was interrupted; kept: {what}"
        log.info("%s", message)
        progress.say(message)
    return kept


def by_pass(records: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The records of the measuring pass, and those of finished stages."""
    stages = [record for record in records if "report" in record]
    return [record for record in records if "report" not in record], stages


def recall(stage: Stage, record: Mapping[str, Any], state: State, output: Output, weights: WeightStream | None) -> None:
    """Bring a finished stage to where it was: report, schemes, compressed weights, attachments.

    Raises:
        CheckpointError: the pipeline now cuts the model into other stages.
    """
    if record["stage"] != stage.name:
        raise CheckpointError(
            f"the interrupted run finished {record['stage']!r} where the pipeline now comes to {stage.name!r}; "
            "pass restart=True to discard its stages and begin anew"
        )
    with _reading(record):
        output.recall(stage, record, state)
    for layer in stage.every_layer:
        state.quantized.pop(layer.name, None)  # of an earlier pass; it is written
    compressed = dict(output.weights(stage.modules, state))
    if weights is None:
        fill(state.model, compressed)
        output.encode(stage, state)
    else:
        weights.fill(compressed)


def keep_gradients(store: GradientStore, log_entries: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Make durable what the reverse sweep has found."""
    names, tensors = store.to_tensors()
    output.note_tensors({"gradients": names, "log": list(log_entries), "stage": "gradients"}, _GRADIENTS, tensors)


def recall_gradients(
    kept: Sequence[Mapping[str, Any]],
    store: GradientStore,
    wanted: Mapping[str, Sequence[GradientStatistic]],
    state: State,
    output: Output | None,
    weights: WeightStream | None,
) -> bool:
    """Bring back what the reverse sweep of an interrupted run has found; whether there was one.

    Args:
        kept: records of the run.
        store: that gets what was found.
        wanted: the statistics of each layer.
        state: whose log gets what was logged.
        output: that holds it; None where nothing is written.
        weights: where they are streamed from; None when they are in memory.
    """
    record = next((record for record in kept if "gradients" in record), None)
    if record is None or output is None:
        return False
    device = next(state.model.parameters(), torch.empty(0)).device if weights is None else weights.device
    with _reading(record):
        store.fill(record["gradients"], output.noted_tensors(_GRADIENTS), wanted, device)
        state.log.extend(dict(entry) for entry in record["log"])
    return True


@contextmanager
def _reading(record: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a record of another form leads to into an error that says what to do."""
    try:
        yield
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
        StopIteration,
        SchemeError,
    ) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"the journal's record of {record['stage']} is damaged ({what}); pass restart=True to discard "
            "the interrupted run and begin anew"
        ) from error
