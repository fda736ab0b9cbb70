"""Experts in joint tensors, by name and shape: which rows of which tensor are the weight of which expert.

gate_up_proj [E, 2M, H], down_proj [E, H, M]    the first half of the rows are the gate's: transformers' convention
gate_up_proj [E, H, 2M], down_proj [E, M, H]    turned round: Llama 4 (halves) and gpt-oss (even and odd columns) only

Shapes tell which way round tensors are, and the configuration which rows are the gate's; where the two do not say, or
contradict each other, the experts are refused by name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from coldpress.checkpoint.named import Part
from coldpress.experts.layout import DOWN, GATE, UP, Slot
from coldpress.source import Weights

_GATE_UP, _DOWN = "gate_up_proj", "down_proj"
_KNOWN = (_GATE_UP, _DOWN, GATE, UP, f"{_GATE_UP}_bias", f"{_DOWN}_bias")
_TURNED = {"gpt_oss": ("even", "odd"), "llama4": ("first", "second"), "llama4_text": ("first", "second")}
"""Model types whose joint tensors are [E, I, O], and which columns are the gate's and which are the other's."""


@frozen(eq=False)
class Joint:
    """The experts of one module.

    Attributes:
        tensors: joint tensors, with their shapes: weights and biases.
        layers: name of each layer to its part of a weight.
        biases: name of each layer's bias to its part of one.
    """

    tensors: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, Part]
    biases: Mapping[str, Part] = field(factory=dict)

    def shape(self, part: Part) -> tuple[int, ...]:
        """The shape of a layer's weight, (O, I)."""
        _, first, second = self.tensors[part.tensor]
        rows, columns = (second, first) if part.slot.transposed else (first, second)
        return (rows if part.slot.rows == "all" else rows // 2, columns)


def joint_experts(weights: Weights, config: Mapping[str, Any]) -> tuple[dict[str, Joint], dict[str, str]]:
    """The joint tensors of experts: by module, and those that cannot be told apart, with the reason.

    Args:
        weights: of the dense model; only names and shapes are asked.
        config: `config.json`, parsed.
    """
    found, refused = {}, {}
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in weights.names():
        owner, _, part = name.rpartition(".")
        if "expert" not in owner.rpartition(".")[2]:
            continue
        if part in _KNOWN:
            modules.setdefault(owner, {})[part] = tuple(weights.shape(name))
        elif len(weights.shape(name)) == 3:
            refused[name] = "a joint tensor of experts of a kind that is not known"
    kinds = _model_types(config)
    for owner, shapes in modules.items():
        slots = _slots(shapes, kinds)
        if isinstance(slots, str):
            refused |= {f"{owner}.{part}": slots for part, shape in shapes.items() if len(shape) == 3}
        else:
            found[owner] = _joint(owner, shapes, slots)
    return found, refused


def _slots(shapes: Mapping[str, tuple[int, ...]], kinds: set[str]) -> dict[str, Slot] | str:
    """Projection to where it is, or why that is not known."""
    up, down = shapes.get(_GATE_UP), shapes.get(_DOWN)
    if up is None or down is None:
        return f"{', '.join(shapes)} of experts: only {_GATE_UP} and {_DOWN} together are known"
    if len(up) != 3 or len(down) != 3 or up[0] != down[0]:
        return f"{_GATE_UP} {up} and {_DOWN} {down} are not those of the same experts"
    straight = up[1] == 2 * down[2] and up[2] == down[1]
    turned = up[2] == 2 * down[1] and up[1] == down[2]
    special = next((_TURNED[kind] for kind in sorted(kinds) if kind in _TURNED), None)
    if straight and special is None:
        halves = ("first", "second")
    elif turned and special is not None:
        halves = special
    elif turned:
        return f"{_GATE_UP} is [E, I, O], and which of its columns are the gate's is not known for this model type"
    else:
        return f"{_GATE_UP} {up} and {_DOWN} {down} are not what the model type has"
    biases = [f"{part}_bias" if f"{part}_bias" in shapes else None for part in (_GATE_UP, _DOWN)]
    gate, other = (Slot(_GATE_UP, turned, rows, biases[0]) for rows in halves)
    return {GATE: gate, UP: other, DOWN: Slot(_DOWN, turned, "all", biases[1])}


def _joint(owner: str, shapes: Mapping[str, tuple[int, ...]], slots: Mapping[str, Slot]) -> Joint:
    layers, biases = {}, {}
    for number, role, slot in _each(shapes[_DOWN][0], slots):
        layer = f"{owner}.{number}.{role}"
        layers[layer] = Part(f"{owner}.{slot.parameter}", slot, number, False)
        if slot.bias is not None:
            biases[f"{layer}.bias"] = Part(f"{owner}.{slot.bias}", slot, number, True)
    return Joint({f"{owner}.{part}": shape for part, shape in shapes.items()}, layers, biases)


def _each(count: int, slots: Mapping[str, Slot]) -> Iterator[tuple[int, str, Slot]]:
    for number in range(count):
        for role, slot in slots.items():
            yield number, role, slot


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """The model types that a configuration and those inside of it name."""
    inner = [value for value in config.values() if isinstance(value, Mapping)]
    return {str(one["model_type"]) for one in (config, *inner) if one.get("model_type")}
