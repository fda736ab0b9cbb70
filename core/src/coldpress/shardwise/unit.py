"""A unit of work: a few layers, read, given to the hooks of a recipe's modifiers, and made the tensors of a format.

Each has a state and modules of its own, so that units are worked on at the same time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from coldpress.calibration.store import StatisticStore
from coldpress.errors import CheckpointError
from coldpress.format import Format
from coldpress.layer_report import LayerReport
from coldpress.modifier import Modifier
from coldpress.numerics import check_finite
from coldpress.pipeline import Pipeline
from coldpress.planned import Sweep
from coldpress.quantized import Quantized
from coldpress.report import SILENT
from coldpress.run.hooks import Hooks
from coldpress.run.outcome import reason_untouched
from coldpress.run.preflight import Claim
from coldpress.run.stage_checks import check_weights
from coldpress.run.stage_run import StageRun
from coldpress.shardwise.layers import LayerReader
from coldpress.shardwise.outline import layer_module, module_tree
from coldpress.shardwise.plan import Fates, Unit
from coldpress.stage import Stage, oriented
from coldpress.state import State


@frozen(kw_only=True, eq=False)
class NoForward(Pipeline):
    """Nothing runs: there is no model that could."""

    runs_batches = False

    def stages(self, state: State) -> Iterator[Stage]:
        """All of it."""
        yield Stage.whole(state.model)


@frozen(kw_only=True, eq=False)
class UnitRun:
    """What works on units.

    Attributes:
        modifiers: of the recipe.
        reader: of weights.
        state: of the whole run; only read.
        claims: of all modifiers.
        fates: of all layers.
        form: that tensors are written in.
        dtype: of the model.
    """

    modifiers: Sequence[Modifier]
    reader: LayerReader
    state: State
    claims: Sequence[Claim]
    fates: Fates
    form: Format
    dtype: torch.dtype

    def run(self, unit: Unit) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """The tensors of a unit's layers by their names in the output, on the CPU, and a line of each layer.

        Raises:
            ColdpressError: one of its kinds.
        """
        changed = [name for name in unit.layers if self.fates.of[name] == "changed"]
        state = self._compressed(changed, unit.beside) if changed else None
        tensors: dict[str, Tensor] = {}
        lines = []
        for name in unit.layers:
            lines.append(self._line(name, state))
            tensors |= self.tensors(name, state)
            _release(name, state)
        return tensors, lines

    def _compressed(self, names: Sequence[str], beside: Sequence[str]) -> State:
        """The layers after all hooks."""
        tree = module_tree({name: self._read(name) for name in (*names, *beside)})
        stage = Stage("model", 0, {name: tree.get_submodule(name) for name in names})
        check_weights(stage)
        state = State(
            model=tree,
            seed=self.state.seed,
            plan={name: self.state.plan[name] for name in (*names, *beside) if name in self.state.plan},
            report={name: evolve(self.state.report[name]) for name in names},
            scale_dtype=self.state.scale_dtype,
        )
        store = StatisticStore()
        state.begin_pass(Sweep(), store, lambda *_, **__: iter(()))
        with torch.no_grad():
            StageRun(
                modifiers=self.modifiers,
                hooks=Hooks(self.modifiers),
                state=state,
                store=store,
                pipeline=NoForward(),
                progress=SILENT,
            ).compress(stage)
        check_weights(stage, cause="made by a modifier, for it was finite before")
        for layer in stage.every_layer:
            line = state.report[layer.name]
            if line.status == "untouched" and line.reason is None:
                line.reason = reason_untouched(layer, self.claims)
        return state

    def _read(self, name: str) -> nn.Module:
        kind: Any = self.state.model.get_submodule(name)
        return layer_module(type(kind), self.reader.dense(name, kind.weight.dtype))

    def _line(self, name: str, state: State | None) -> LayerReport:
        return self.state.report[name] if state is None or name not in state.report else state.report[name]

    def tensors(self, name: str, state: State | None = None) -> Mapping[str, Tensor]:
        """What is written of one layer; of one that is changed, `state` knows what became of it."""
        fate = self.fates.of[name]
        kind = type(self.state.model.get_submodule(name))
        if fate == "kept":
            stored = evolve(self.reader.quantized(name), scheme=self.fates.schemes[name])
            check_scales(name, stored, self.form)
            return quantized_tensors(name, kind, stored, self.form)
        if fate == "changed" and state is not None:
            found = state.quantized.get(name)
            if found is not None:
                return quantized_tensors(name, kind, found, self.form)
            weight: Any = state.model.get_submodule(name).weight
            return {f"{name}.weight": weight.detach().to("cpu", self.dtype)}
        weight = self.reader.dense(name, torch.float32)
        check_finite(f"{name}.weight", weight)
        return {f"{name}.weight": weight.to("cpu", self.dtype)}


def _release(name: str, state: State | None) -> None:
    """Free what is written of a layer now: what holds it may be a cycle that is collected much later."""
    if state is not None and state.quantized.pop(name, None) is not None:
        module: Any = state.model.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().to("meta"), requires_grad=False)


def check_scales(name: str, quantized: Quantized, form: Format) -> None:
    """Refuse scales that the format of the output would round, for the codes of the layer are kept.

    Raises:
        CheckpointError: names the layer.
    """
    args, scale = quantized.scheme.weights, quantized.scale
    if args is None or scale is None or args.scale_dtype != torch.float16:
        return
    if not torch.equal(scale.half().to(scale.dtype), scale):
        raise CheckpointError(
            f"{name}: float16, in which {type(form).__name__} stores scales, would round those of the checkpoint, and "
            "its codes would stand for other weights: choose the format compressed-tensors, which keeps scales as they "
            "are, or compress the dense model in this format"
        )


def quantized_tensors(
    name: str, kind: type[nn.Module], quantized: Quantized, form: Format, *, move: bool = True
) -> dict[str, Tensor]:
    """What is written of a layer, by its names in the output; on the CPU, unless told not to move it there."""
    classes = tuple(one.__name__ for one in kind.__mro__)
    found = {}
    for suffix, tensor in form.tensors(quantized).items():
        stored = oriented(tensor, classes).contiguous() if suffix == "weight" else tensor
        found[f"{name}.{suffix}"] = stored.to("cpu") if move else stored
    return found
