"""Watch: what a hook does to the parameters of a stage is allowed, finite, and agrees with codes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn

from coldpress.errors import BrokenPluginError, TargetError
from coldpress.modifier import Modifier
from coldpress.numerics import bit_sum, check_finite, version
from coldpress.planned import Running
from coldpress.run.preflight import must_compress, shortened
from coldpress.stage import Stage
from coldpress.state import State


@frozen(eq=False)
class Parameter:
    """A parameter, and how often it had been changed.

    Attributes:
        module: that owns it.
        part: its name in the module.
        parameter: itself.
        version: see `coldpress.numerics.version`.
        shape: of the parameter; assigning to its `data` may change it.
        dtype: of the parameter.
    """

    module: nn.Module
    part: str
    parameter: nn.Parameter
    version: int
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, module: nn.Module, part: str) -> "Parameter":
        """A parameter of a module as it is now."""
        one: Any = module._parameters[part]
        return cls(module, part, one, version(one), one.shape, one.dtype)

    def is_same(self) -> bool:
        """Whether it is still the parameter that it was, with the values that it had."""
        return self.module._parameters.get(self.part) is self.parameter and version(self.parameter) == self.version


@frozen(eq=False)
class Watch:
    """The parameters of a stage before a hook.

    Attributes:
        stage: whose.
        before: full name to parameter.
    """

    stage: Stage
    before: Mapping[str, Parameter]

    @classmethod
    def of(cls, stage: Stage) -> "Watch":
        """The parameters as they are now."""
        return cls(stage, {name: Parameter.of(module, part) for name, module, part in _parameters(stage)})

    def changed(self) -> list[str]:
        """Names of the parameters that are not what they were."""
        return [name for name, one in self.before.items() if not one.is_same()]

    def check_unchanged(self, running: Running) -> None:
        """Refuse a change where later batches or modifiers must see the same stage.

        Raises:
            BrokenPluginError: names the parameter.
        """
        found = self.changed()
        if found:
            raise BrokenPluginError(
                f"{running} changed {found[0]}: weights are changed in finalize only (in initialize by a modifier with "
                "the trait TRANSFORMS, which keeps the model's function)"
            )

    def sums(self) -> dict[str, int]:
        """What the values of the parameters add up to, which changes by way of `data` show in."""
        return {name: bit_sum(one.parameter) for name, one in self.before.items()}

    def check_sums(self, before: Mapping[str, int], modifiers: Sequence[Modifier]) -> None:
        """Refuse a change while batches run, made by way of `data`.

        Raises:
            BrokenPluginError: names the parameter, and whose `calibrate_batch` it may have been.
        """
        found = [name for name, total in self.sums().items() if total != before[name]]
        if found:
            who = " or ".join(type(modifier).__name__ for modifier in modifiers)
            raise BrokenPluginError(
                f"{who}.calibrate_batch at {self.stage.name} changed {found[0]}: weights are changed in finalize only"
            )

    def check_complete(self, running: Running) -> None:
        """Refuse new parameters, lost ones, and other shapes or dtypes: nothing that loads the result has these.

        Raises:
            BrokenPluginError: names the parameter.
        """
        after = {name: module._parameters[part] for name, module, part in _parameters(self.stage)}
        for name in after.keys() - self.before.keys():
            raise BrokenPluginError(
                f"{running} adds the parameter {name}: the model's configuration builds none, so whoever loads the "
                "result would leave it out; change parameters that there are"
            )
        for name, old in self.before.items():
            new = after.get(name)
            if new is None:
                raise BrokenPluginError(f"{running} removes the parameter {name}, which the model's class reads")
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise BrokenPluginError(
                    f"{running} makes {name} {tuple(new.shape)}, {new.dtype}; it was {tuple(old.shape)}, {old.dtype}, "
                    "and must stay so"
                )

    def settle(self, state: State, running: Running) -> None:
        """Check and report what a hook has changed in place, and that it has left out no layer that it must change.

        Raises:
            ColdpressError: one of its kinds.
        """
        self.check_complete(running)
        if not running.may_change_weights():
            self.check_unchanged(running)
            return
        changed = set(self.changed())
        for layer in self.stage.every_layer:
            weight, quantized = f"{layer.name}.weight", state.quantized.get(layer.name)
            encoded = quantized is not None and quantized.codes is not None  # seen too if changed by way of `data`
            if (weight in changed or encoded) and not state.written.is_current(layer):
                state.note_change(layer)
            changed.discard(weight)
        for name in sorted(changed):
            one = self.before[name]
            check_finite(name, one.module.get_parameter(one.part), cause=f"made by {running}")
        self._check_reached(state, running)

    def _check_reached(self, state: State, running: Running) -> None:
        modifier, name = running.modifier, type(running.modifier).__name__
        if running.hook != "finalize":
            return
        claimed = [one for one in modifier.layers(self.stage) if must_compress(modifier, one, state.plan)]
        missed = [f"{name}: {one.name}" for one in claimed if one.name not in state.handled]
        if missed:
            raise TargetError(
                f"{shortened(missed)}\nclaimed and left as it was: a modifier compresses every layer that it claims or "
                "calls state.skip(layer, reason)"
            )


def _parameters(stage: Stage) -> Iterator[tuple[str, nn.Module, str]]:
    """Full name of each parameter of a stage, the module that owns it, and its name there."""
    for name, module in stage.modules.items():
        for part, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{name}.{part}" if name else part, module, part
