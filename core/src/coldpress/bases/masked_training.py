"""MaskedTraining: what modifiers share that keep weights at zero while the others are trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coldpress.errors import ModelError
from coldpress.lifecycle import Lifecycle, Training
from coldpress.stage import Layer, input_dim


class MaskedTraining(Lifecycle):
    """Zeros that no optimizer step fills: they are put back before anything reads the weights.

    What an optimizer remembers of such a weight has no effect: it is zero again whatever the step was.
    Weights may be shards of FSDP2 (`DTensor`); masks are cut as they are.

    Attributes:
        gone: layer name to which of its weights are zero, bool, in the shape that the module stores.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.gone: dict[str, Tensor] = {}

    def claim(self, layers: Sequence[Layer]) -> None:
        """Act on these layers from now on; none of their weights is masked yet.

        Raises:
            ModelError: adapters are added to one of them.
        """
        adapted = [layer.name for layer in layers if _has_adapters(layer)]
        if adapted:
            raise ModelError(
                f"{adapted[0]}: adapters (PEFT) are added to its weight, and would fill its zeros when they are "
                "merged: train the weights themselves, without adapters"
            )
        self.layers = list(layers)

    def mask(self, layer: Layer, gone: Tensor) -> None:
        """Keep these weights of a layer, [O, I] bool, at zero from now on, in place of those before."""
        self.gone[layer.name] = gone if input_dim(layer.module) else gone.t().contiguous()

    @torch.no_grad()
    def apply(self) -> None:
        """Make the masked weights zero."""
        for layer in self.layers:
            gone = self.gone.get(layer.name)
            if gone is not None:
                weight: Tensor = layer.module._parameters["weight"]  # type: ignore[assignment]
                gone = self.gone[layer.name] = _placed_as(gone, weight)
                weight.detach().masked_fill_(gone, 0)

    def step(self, training: Training) -> None:
        """Put the zeros back."""
        self.apply()

    def detach(self, training: Training) -> None:
        """Forget the masks."""
        self.layers, self.gone = [], {}

    def state_dict(self) -> dict[str, Tensor]:
        """Eight weights a byte, by the names of layers."""
        return {name: pack_bits(_whole(gone)) for name, gone in self.gone.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Masks as they were, applied at once."""
        for layer in self.layers:
            weight = layer.module._parameters["weight"]
            if layer.name in state and weight is not None:
                self.gone[layer.name] = unpack_bits(state[layer.name], tuple(weight.shape)).to(weight.device)
        self.apply()


def pack_bits(mask: Tensor) -> Tensor:
    """A mask of any shape as bytes, [ceil(n / 8)] uint8, the first element in the lowest bit."""
    flat = mask.flatten().to("cpu", torch.uint8)
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`, bool."""
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[: torch.Size(shape).numel()].view(shape).bool()


def _has_adapters(layer: Layer) -> bool:
    """Whether PEFT computes its weight, or wraps it."""
    return layer.module._parameters.get("weight") is None or layer.name.endswith(".base_layer")


def _placed_as(mask: Tensor, weight: Tensor) -> Tensor:
    """A mask on the device of a weight, and sharded as it is."""
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return mask.to(weight.device)
    if hasattr(mask, "device_mesh"):
        return mask
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(mask.to(weight.device), mesh, weight.placements)  # type: ignore[attr-defined]


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
