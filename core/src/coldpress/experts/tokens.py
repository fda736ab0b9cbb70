"""How many tokens each expert saw, and what becomes of those that saw few or none.

An expert layer that saw fewer tokens than it has input channels is said to have seen few: the Gram matrix of its
inputs cannot have full rank, and ranges of its inputs are uncertain.
"""

import logging
from collections.abc import Iterable, Mapping

from attrs import define, field
from torch import nn

from coldpress.calibration.tap import BatchInputs
from coldpress.experts.linear import LinearExperts
from coldpress.routed import Observed
from coldpress.stage import Layer, class_names
from coldpress.state import State

log = logging.getLogger(__name__)


@define(eq=False)
class TokenCount:
    """Tokens by expert layer, of one sweep.

    Attributes:
        layers: the layers of experts whose inputs are observed.
    """

    layers: tuple[Layer, ...]
    _tokens: dict[str, int] = field(factory=dict)

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], layers: Iterable[Observed]) -> "TokenCount":
        """Nothing counted yet.

        Args:
            modules: of the stage, by name.
            layers: that are observed, experts or not.
        """
        homes = [f"{name}." for name, module in modules.items() if isinstance(module, LinearExperts)]
        inside = (layer for layer in layers if isinstance(layer, Layer))
        return cls(tuple(layer for layer in inside if any(layer.name.startswith(home) for home in homes)))

    def see(self, seen: BatchInputs) -> None:
        """Count one batch."""
        for layer in self.layers:
            count = sum(len(seen.tokens[key]) for key in seen.calls.get(layer.name, ()))
            self._tokens[layer.name] = self._tokens.get(layer.name, 0) + count

    def report(self, state: State) -> None:
        """Note the tokens of every layer in its line of the report, and which are few."""
        few = 0
        for layer in self.layers:
            notes = state.report[layer.name].notes
            notes["tokens"] = self._tokens.get(layer.name, 0)
            notes["few_tokens"] = notes["tokens"] < layer.weight.shape[1]
            few += notes["few_tokens"]
        if few:
            first = next(layer.name for layer in self.layers if state.report[layer.name].notes["few_tokens"])
            log.warning(
                "%d of %d expert layers saw fewer tokens than they have input channels, the first is %s; see the notes "
                "of the report, and calibrate with more data or moe_calibrate_all_experts=True",
                few,
                len(self.layers),
                first,
            )


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
        inputs = scheme.input_activations if scheme is not None else None
        is_static = inputs is not None and inputs.dynamic is False
        if line.notes.get("tokens") == 0 and line.status == "quantized" and is_static:
            state.fall_back(
                layer,
                "no token of the calibration data reached this expert: its inputs are scaled as the widest of the "
                "other experts of its block",
            )
