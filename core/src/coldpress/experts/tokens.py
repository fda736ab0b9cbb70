"""How many tokens each expert saw, and what becomes of those that saw few or none.

An expert layer that saw fewer tokens than it has input channels, or than a setting says, is said to have seen few: the
Gram matrix of its inputs cannot have full rank, and ranges of its inputs are uncertain.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field
from torch import nn

from coldpress.calibration.tap import BatchInputs
from coldpress.errors import CalibrationError
from coldpress.experts.few_tokens import FewTokens
from coldpress.experts.linear import LinearExperts
from coldpress.routed import Observed
from coldpress.stage import Layer, class_names
from coldpress.state import State

log = logging.getLogger(__name__)

_NONE = "no token of the calibration data"


@define(eq=False)
class TokenCount:
    """Tokens by expert layer, of one sweep.

    Attributes:
        layers: the layers of experts whose inputs are observed.
        few: how many are few, and what is done then.
    """

    layers: tuple[Layer, ...]
    few: FewTokens = field(factory=FewTokens)
    _tokens: dict[str, int] = field(factory=dict)

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], layers: Iterable[Observed]) -> "TokenCount":
        """Nothing counted yet.

        Args:
            modules: of the stage, by name.
            layers: that are observed, experts or not.
        """
        experts = {f"{name}.": module for name, module in modules.items() if isinstance(module, LinearExperts)}
        inside = (layer for layer in layers if isinstance(layer, Layer))
        few = next((module.few for module in experts.values()), FewTokens())
        return cls(tuple(layer for layer in inside if any(layer.name.startswith(home) for home in experts)), few)

    def see(self, seen: BatchInputs) -> None:
        """Count one batch."""
        for layer in self.layers:
            count = sum(len(seen.tokens[key]) for key in seen.calls.get(layer.name, ()))
            self._tokens[layer.name] = self._tokens.get(layer.name, 0) + count

    def report(self, state: State) -> list[str]:
        """Note the tokens of every layer in its line of the report, and which are few.

        Returns:
            The layers whose inputs are to be forgotten because they saw few.

        Raises:
            CalibrationError: some saw few, and more data were called for then.
        """
        few = []
        for layer in self.layers:
            notes, least = state.report[layer.name].notes, _least(self.few, layer)
            notes["tokens"] = self._tokens.get(layer.name, 0)
            notes["few_tokens"] = notes["tokens"] < least
            few += [layer] if notes["few_tokens"] else []
        if few:
            self._tell(few)
        return [layer.name for layer in few] if self.few.treatment == "round" else []

    def _tell(self, few: Sequence[Layer]) -> None:
        """Warn of layers that saw few tokens, or refuse them."""
        bound = "than they have input channels" if self.few.least is None else f"than moe_min_tokens={self.few.least}"
        worst = min(few, key=lambda layer: self._tokens.get(layer.name, 0))
        count, all_of_them = self._tokens.get(worst.name, 0), len(self.layers)
        found = f"{len(few)} of {all_of_them} expert layers saw fewer tokens {bound}, the fewest {worst.name} ({count})"
        if self.few.treatment == "refuse":
            times = f"some {-(-_least(self.few, worst) // count)} times as much" if count else "more or other"
            raise CalibrationError(f"{found}: calibrate with {times} data, or moe_calibrate_all_experts=True")
        what = ", and are compressed as if none had come" if self.few.treatment == "round" else ""
        log.warning(
            "%s%s; see the notes of the report, and calibrate with more data or moe_calibrate_all_experts=True",
            *(found, what),
        )


def _least(few: FewTokens, layer: Layer) -> int:
    return layer.weight.shape[1] if few.least is None else few.least


def siblings(model: nn.Module, layer: Layer) -> list[Layer]:
    """The same projection of the other experts of its block; none when the layer is of no expert."""
    expert, _, projection = layer.name.rpartition(".")
    home, _, own = expert.rpartition(".")
    experts = model.get_submodule(home) if own.isdigit() else None
    if not isinstance(experts, LinearExperts):
        return []
    modules = {f"{home}.{i}.{projection}": one.get_submodule(projection) for i, one in enumerate(experts.experts())}
    return [Layer(name, one, class_names(one)) for name, one in modules.items() if name != layer.name]


def report_unseen(state: State, layers: Iterable[Layer]) -> None:
    """Say of experts that no token reached where the scale of their static inputs comes from."""
    for layer in layers:
        line, scheme = state.report[layer.name], state.schemes.get(layer.name)
        why = _why_unseen(state, layer)
        if why is None:
            continue
        inputs = scheme.input_activations if scheme is not None else None
        if line.status == "quantized" and inputs is not None and inputs.dynamic is False:
            state.fall_back(
                layer,
                f"{why} reached this expert: its inputs are scaled as the widest of the other experts of its block",
            )
        elif line.status == "fallback" and line.reason is not None:
            line.reason = line.reason.replace(f"{_NONE} reached", f"{why} reached")


def _why_unseen(state: State, layer: Layer) -> str | None:
    """How few tokens reached a layer that was compressed as if none had; None of one that was not."""
    tokens = state.report[layer.name].notes.get("tokens")
    if tokens is None:
        return None
    if tokens == 0:
        return _NONE
    home = state.model.get_submodule(layer.name.rpartition(".")[0].rpartition(".")[0])
    few = home.few if isinstance(home, LinearExperts) else FewTokens()
    if few.treatment != "round" or tokens >= _least(few, layer):
        return None
    return f"{tokens} tokens of the calibration data, fewer than {_least(few, layer)},"
