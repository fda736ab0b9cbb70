"""The measuring pass: all stages, nothing changed or written, and one decision of each modifier that needs it.

    measure(state, stage) of every stage ──> journal ──> decide(state, measured) ──> journal ──> the plan of layers

What was measured, and what was decided, goes through JSON, so that an interrupted run decides as a whole one does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any
from zlib import crc32

import torch
from attrs import evolve, frozen

from coldpress.errors import BrokenPluginError, CheckpointError, RecipeError
from coldpress.modifier import Decision, Modifier
from coldpress.pipeline import Pipeline
from coldpress.planned import Running
from coldpress.run.stage_run import StageRun, generator
from coldpress.schemes import Scheme
from coldpress.stage import Stage
from coldpress.state import State

Note = Callable[[Mapping[str, Any]], None]


@frozen(kw_only=True, eq=False)
class Measuring:
    """One measuring pass.

    Attributes:
        run: measures a stage for the modifiers of this pass.
        read: brings the weights of a stage into memory.
        release: frees them.
        note: makes a record durable.
        drop_experts: leaves the model these experts, and makes the plan of layers anew.
    """

    run: StageRun
    read: Callable[[Stage], None]
    release: Callable[[Stage], None]
    note: Note
    drop_experts: Callable[[Mapping[str, Sequence[int]]], None]

    def decide(self, kept: Sequence[Mapping[str, Any]]) -> None:
        """Measure, decide, and tell the state; what an interrupted run has recorded is not done again.

        Args:
            kept: records of this pass.
        """
        made = next((_sound(record, "decided") for record in kept if "decided" in record), None)
        if made is None:
            measured = self._measured([_sound(record, "measured") for record in kept if "measured" in record])
            found = [
                self._decision(modifier, [values[index] for values in measured])
                for index, modifier in enumerate(self.run.modifiers)
            ]
            made = _as_json([_record(one) for one in found], self.run.modifiers[0])
            self.note({"decided": made, "crc32": _checksum(made)})
        for modifier, record in zip(self.run.modifiers, made, strict=True):
            self.run.state.note_decision(modifier, record["value"])
        self._drop_experts(made)
        for modifier, record in zip(self.run.modifiers, made, strict=True):
            schemes = {name: Scheme.from_dict(data) for name, data in record["schemes"].items()}
            _apply(self.run.state, modifier, schemes)

    def _drop_experts(self, made: Sequence[Mapping[str, Any]]) -> None:
        """Leave the model the experts that a decision keeps.

        Raises:
            RecipeError: another modifier has decided schemes for the layers of the whole model.
        """
        named = [record["kept_experts"] for record in made if record["kept_experts"]]
        if not named:
            return
        choosing = [one for one, record in zip(self.run.modifiers, made, strict=True) if record["schemes"]]
        if choosing:
            raise RecipeError(
                [
                    f"{type(choosing[0]).__name__} has chosen schemes for layers of experts of which some are dropped: "
                    "drop experts in a run of their own first, and choose schemes for what is left"
                ]
            )
        self.drop_experts(named[0])

    def _decision(self, modifier: Modifier, measured: Sequence[Any]) -> Decision:
        state = self.run.state
        with self.run.hooks.running(Running(modifier, "decide", Stage.whole(state.model)), state) as running:
            found = modifier.decide(state, measured)
        if not isinstance(found, Decision):
            raise BrokenPluginError(f"{running} gives a {type(found).__name__}: it must return a Decision")
        return found

    def _measured(self, kept: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """What each modifier measured of each stage, in the order of stages."""
        state, pipeline, found = self.run.state, self.run.pipeline, list[Sequence[Any]]()
        with closing(generator(pipeline.stages(state))) as stages:
            turns = self.run.progress.track(stages, description="measuring", total=pipeline.count(state))
            before: Stage | None = None
            for number, stage in enumerate(turns):
                if before is not None:
                    self.release(before)
                before = stage
                if number < len(kept):
                    run_through(pipeline, state, stage)
                    found.append(kept[number])
                    continue
                torch.manual_seed(state.seed + number)
                self.read(stage)
                found.append(_as_json(self.run.measure(stage), self.run.modifiers[0]))
                self.note({"measured": found[-1], "stage": stage.name, "crc32": _checksum(found[-1])})
            if before is not None:
                self.release(before)
        return found


def run_through(pipeline: Pipeline, state: State, stage: Stage) -> None:
    """Run a stage that needs no work, where the pipeline passes on what the sweep outputs."""
    if pipeline.needs_sweep(state, stage):
        with closing(generator(pipeline.sweep(state, stage))) as sweep:
            for _ in sweep:
                pass


def _apply(state: State, modifier: Modifier, schemes: Mapping[str, Scheme]) -> None:
    for name, scheme in schemes.items():
        if name not in state.plan:
            raise BrokenPluginError(
                f"{type(modifier).__name__} decides a scheme for {name!r}, which no modifier of the recipe quantizes"
            )
        state.plan[name] = evolve(state.plan[name], scheme=scheme)


def _sound(record: Mapping[str, Any], what: str) -> Any:
    """What a record of the journal says, if that is what was written.

    Raises:
        CheckpointError: it is not; says which record, and what to do.
    """
    if record.get("crc32") != _checksum(record[what]):
        place = f" of {record['stage']}" if "stage" in record else ""
        raise CheckpointError(
            f"the journal's record of what was {what}{place} is damaged; pass restart=True to discard the "
            "interrupted run and begin anew"
        )
    return record[what]


def _checksum(value: Any) -> int:
    return crc32(json.dumps(value, sort_keys=True).encode())


def _record(decision: Decision) -> dict[str, Any]:
    return {
        "value": decision.value,
        "schemes": {name: scheme.to_dict() for name, scheme in decision.schemes.items()},
        "kept_experts": {name: list(kept) for name, kept in decision.kept_experts.items()},
    }


def _as_json(value: Any, modifier: Modifier) -> Any:
    """The value as it is read again from a journal."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BrokenPluginError(
            f"{type(modifier).__name__} measures or decides something that JSON cannot hold: {error}"
        ) from error
