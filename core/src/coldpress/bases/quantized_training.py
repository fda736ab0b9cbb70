"""QuantizedTraining: layers that are quantized are trained as they will be served (quantization-aware training).

    attach    each layer computes with Q(w) from now on; w, which the optimizer moves, starts on the grid
    step      nothing, unless the scales are learned
    detach    w becomes Q(w), and the layer's codes and scales are those of the end

Where nothing was trained, w is still what its codes stand for, and the layer keeps them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from coldpress.attachment import Attachment, attach, attachments_on, detach
from coldpress.errors import ModelError, SchemeError
from coldpress.lifecycle import Lifecycle, Training
from coldpress.numerics import (
    calculate_qparams,
    fake_quantize_straight_through,
    group,
    lsq_gradient_scale,
    quantize,
    scale_gradient,
)
from coldpress.quantized import Encoding, Quantized, encoding_of, set_encoding
from coldpress.stage import Layer, Stage, oriented

Ranges = Literal["frozen", "recomputed", "learned"]

_LEARNED = "learned_scale"  # parameter of a layer


@frozen(kw_only=True, eq=False)
class QuantizedWeight(Attachment):
    """The weight of a layer in training on the grid of its scheme; gradients pass straight through.

    Attributes:
        quantized: scheme, scale and zero point that the layer has.
        ranges: whether these hold (`frozen`), follow from smallest and largest weight at each forward (`recomputed`),
            or the scale is a parameter of the layer (`learned`).
    """

    kind: ClassVar[str] = "quantized_weight"
    of_scheme: ClassVar[bool] = True

    quantized: Quantized
    ranges: Ranges = "frozen"

    def weight(self, module: nn.Module, w: Tensor) -> Tensor:
        """The weight, [O, I], rounded."""
        scale, zero_point = self.qparams(module, w)
        args, found = self.quantized.scheme.weights, self.quantized
        assert args is not None
        factor = None if found.global_scale is None else found.global_scale.to(w.device)
        scale = scale.to(torch.promote_types(scale.dtype, w.dtype))
        return fake_quantize_straight_through(w, scale, zero_point, args, global_scale=factor)

    def qparams(self, module: nn.Module, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point that the weight, [O, I], has now; a learned scale with its gradient."""
        found, args = self.quantized, self.quantized.scheme.weights
        assert args is not None
        assert found.scale is not None
        if self.ranges == "recomputed":
            grouped = group(w.detach(), args)  # [*scale_shape, n]
            factor = None if found.global_scale is None else found.global_scale.to(w.device)
            scale, point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=factor)
            return scale.to(found.scale.dtype), None if args.symmetric else point
        kept = None if found.zero_point is None or args.symmetric else found.zero_point.to(w.device)
        if self.ranges == "learned":
            learned = module._parameters[_LEARNED]
            assert learned is not None
            return scale_gradient(learned, lsq_gradient_scale(w, learned, args)), kept
        return found.scale.to(w.device), kept


class QuantizedTraining(Lifecycle):
    """Quantization-aware training of layers that are quantized already, by `oneshot` or as a checkpoint has them.

    Args:
        choose: which of the layers of a model; those of them that are not quantized, or not trained, are left alone.
        ranges: see `QuantizedWeight`.
        of: the modifier that finds it an error if none of its layers is quantized; None where that is no error.
    """

    def __init__(
        self, choose: Callable[[Stage], Sequence[Layer]], ranges: Ranges = "frozen", *, of: str | None = None
    ) -> None:
        self._choose, self._ranges, self._of = choose, ranges, of
        self._attached: dict[str, tuple[Layer, Encoding]] = {}

    def attach(self, training: Training) -> None:
        """Let each layer compute with its rounded weight.

        Raises:
            SchemeError: scales are to be learned that have a number format of their own, or no layer is quantized.
            ModelError: the layer shares its weight with another one.
        """
        layers = [layer for layer in self._choose(training.stage()) if is_trained_quantized(layer)]
        if self._of is not None and not layers:
            raise SchemeError(
                f"{self._of} trains layers that are quantized, and none of its layers is: name a modifier that "
                "quantizes them before it, such as GPTQModifier, or start from a compressed checkpoint"
            )
        shared = _shared(training.model)
        for layer in layers:
            self._check(layer, shared)
        for layer in layers:
            encoding = encoding_of(layer.module)
            assert encoding is not None
            self._attached[layer.name] = layer, encoding
            if self._ranges == "learned":
                scale = encoding.quantized.scale
                assert scale is not None
                start = scale.to(layer.weight.device, layer.weight.dtype, copy=True)
                layer.module.register_parameter(_LEARNED, nn.Parameter(start))
            attach(layer.module, QuantizedWeight(quantized=encoding.quantized, ranges=self._ranges))

    def names(self) -> Sequence[str]:
        """The layers that are trained so."""
        return tuple(self._attached)

    def learned(self) -> list[nn.Parameter]:
        """The scales that are learned."""
        found = [layer.module._parameters.get(_LEARNED) for layer, _ in self._attached.values()]
        return [one for one in found if one is not None]

    @torch.no_grad()
    def step(self, training: Training) -> None:
        """Keep learned scales on their side of zero, where rounding has a meaning."""
        for layer, encoding in self._attached.values():
            scale, begun = layer.module._parameters.get(_LEARNED), encoding.quantized.scale
            if scale is not None and begun is not None:
                sides = begun.to(scale).sign()
                scale.mul_(sides).clamp_(min=torch.finfo(scale.dtype).tiny ** 0.5).mul_(sides)

    @torch.no_grad()
    def detach(self, training: Training) -> None:
        """Round the weights for good; codes and scales of each layer are those of its weight from now on."""
        for layer, encoding in self._attached.values():
            attached = next(one for one in attachments_on(layer.module) if isinstance(one, QuantizedWeight))
            if whole_encoding(layer, encoding) is None or self._moved(layer, encoding):
                scale, point = attached.qparams(layer.module, whole_weight(layer))
                requantize(layer, _with_scale(encoding.quantized, scale, point))
            detach(layer.module, QuantizedWeight.kind)
            layer.module._parameters.pop(_LEARNED, None)
        self._attached = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Scales and zero points that hold, by layer; learned ones are parameters, which the Trainer saves."""
        found = {}
        for name, (_, encoding) in self._attached.items():
            for part in ("scale", "zero_point", "global_scale"):
                value = getattr(encoding.quantized, part)
                if value is not None:
                    found[f"{name}:{part}"] = value
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take scales and zero points as they were."""
        for name, (layer, encoding) in list(self._attached.items()):
            kept: dict[str, Any] = {
                key.rpartition(":")[2]: value for key, value in state.items() if key.rpartition(":")[0] == name
            }
            quantized = evolve(encoding.quantized, **kept)
            self._attached[name] = layer, evolve(encoding, quantized=quantized)
            attach(layer.module, QuantizedWeight(quantized=quantized, ranges=self._ranges))

    def _moved(self, layer: Layer, encoding: Encoding) -> bool:
        """Whether a learned scale is no longer what it was."""
        scale, old = layer.module._parameters.get(_LEARNED), encoding.quantized.scale
        return scale is not None and old is not None and not torch.equal(scale, old.to(scale))

    def _check(self, layer: Layer, shared: set[int]) -> None:
        encoding = encoding_of(layer.module)
        assert encoding is not None
        args = encoding.quantized.scheme.weights
        assert args is not None
        if self._ranges == "learned" and (encoding.quantized.global_scale is not None or args.scale_dtype is not None):
            raise SchemeError(
                f"{layer.name}: its scales are numbers of a format of their own, which no gradient moves; "
                "take ranges: frozen or recomputed"
            )
        if id(layer.module._parameters["weight"]) in shared:
            raise ModelError(
                f"{layer.name} is quantized and shares its weight with another module, so training would move both: "
                "ignore the layer, or pass tie_word_embeddings=False"
            )


def is_trained_quantized(layer: Layer) -> bool:
    """Whether a layer has codes and its weight is trained."""
    encoding, weight = encoding_of(layer.module), layer.module._parameters.get("weight")
    if encoding is None or encoding.quantized.scheme.weights is None or weight is None:
        return False
    return bool(weight.requires_grad)


def requantize(layer: Layer, quantized: Quantized) -> None:
    """Round a layer's weight to the grid of scales that it is given, and let it have these codes.

    Args:
        layer: whose weight moved, in training or by adapters that were merged.
        quantized: scheme and scales; codes are found here.
    """
    args, weight = quantized.scheme.weights, whole_weight(layer)
    assert args is not None
    assert quantized.scale is not None
    scale = quantized.scale.to(weight.device)
    wide = torch.promote_types(weight.dtype, torch.float32)
    codes = quantize(
        weight.to(wide),
        scale.to(wide),
        None if args.symmetric or quantized.zero_point is None else quantized.zero_point.to(weight.device),
        args,
        global_scale=None if quantized.global_scale is None else quantized.global_scale.to(weight.device),
    )
    found = evolve(quantized, codes=codes, scale=scale)
    write_weight(layer, found.weight(weight.dtype))
    set_encoding(layer.module, found, whole_weight(layer))


def whole_encoding(layer: Layer, encoding: Encoding) -> Quantized | None:
    """The codes of a layer, if its weight is still what codes stand for."""
    return encoding.encode(whole_weight(layer))


def whole_weight(layer: Layer) -> Tensor:
    """The weight of a layer, [O, I], gathered where it is a shard of FSDP2."""
    weight: Any = layer.module._parameters["weight"]
    weight = weight.detach()
    return oriented(weight.full_tensor() if hasattr(weight, "full_tensor") else weight, layer.classes)


def write_weight(layer: Layer, weight: Tensor) -> None:
    """Write a weight, [O, I], into a layer, sharded as it is."""
    own: Any = layer.module._parameters["weight"]
    weight = oriented(weight, layer.classes)
    if hasattr(own, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        weight = distribute_tensor(weight.contiguous(), own.device_mesh, own.placements)
    own.detach().copy_(weight)


def every_quantized(stage: Stage) -> list[Layer]:
    """All layers of a model: what is trained where no modifier says otherwise."""
    return list(stage.every_layer)


def _with_scale(quantized: Quantized, scale: Tensor, zero_point: Tensor | None) -> Quantized:
    assert quantized.scale is not None
    points = quantized.zero_point if zero_point is None else zero_point
    return evolve(quantized, scale=scale.detach().to(quantized.scale.dtype, copy=True), zero_point=points)


def _shared(model: nn.Module) -> set[int]:
    """The ids of parameters that several modules have."""
    seen, found = set[int](), set[int]()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (found if id(parameter) in seen else seen).add(id(parameter))
    return found
