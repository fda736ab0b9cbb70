"""Layout: where in the fused tensors of an experts module the weights of each expert's projections are.

Legend: E experts, O out, I in, H hidden, M width between the projections.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations, product
from operator import attrgetter
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from coldpress.experts.fused import expert_parameters, fused_weights, stacked

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
ONLY = "proj"
"""The projection of an expert that has no other in its module."""

OWN_GATE = "_apply_gate"
"""What transformers calls a method that makes of both halves at once what the down projection reads."""

_ROWS: dict[str, Callable[[int], slice]] = {
    "all": lambda _: slice(None),
    "first": lambda width: slice(0, width // 2),
    "second": lambda width: slice(width // 2, None),
    "even": lambda _: slice(0, None, 2),
    "odd": lambda _: slice(1, None, 2),
}
HALVES = (("first", "second"), ("second", "first"), ("even", "odd"), ("odd", "even"))
"""Which rows of a joint projection are the gate's and which are the other's."""


@frozen
class Slot:
    """Where one projection of every expert is.

    Attributes:
        parameter: the fused weights, three dimensions, E first.
        transposed: it is [E, I, O] and not [E, O, I].
        rows: which of its outputs: all, first or second half, even or odd.
        bias: the fused biases, [E, O] before `rows` is taken.
        each: rows of one expert where the parameter is a matrix with expert below expert; 0 where it is none.
    """

    parameter: str
    transposed: bool = False
    rows: str = "all"
    bias: str | None = None
    each: int = 0

    def weights(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The weights, [E, O, I]; a view."""
        weights = parameters[self.parameter]
        weights = weights.view(-1, self.each, weights.shape[1]) if self.each else weights
        weights = weights.transpose(1, 2) if self.transposed else weights
        return weights[:, _ROWS[self.rows](weights.shape[1])]

    def biases(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The biases, [E, O]; a view."""
        if self.bias is None:
            return None
        biases = parameters[self.bias]
        return biases[:, _ROWS[self.rows](biases.shape[1])]


@frozen
class Layout:
    """How an experts module computes.

    Attributes:
        slots: projection to where it is; without `gate_proj` when there is no gate, `proj` alone when there is one.
        mixing: the attribute of the module that lies between the projections: a method that takes both halves
            joined, or an activation (of the gate, or of one projection without a gate); none after `proj`.
        after: the child that the output of an expert goes through before it is weighted.
        order: what the arguments of the forward are: hidden, index, weights, and sizes of the groups of tokens that
            are sent to one expert after the other.
    """

    slots: Mapping[str, Slot] = field(hash=False)
    mixing: str = ""
    after: str | None = None
    order: tuple[str, ...] = ("hidden", "index", "weights")

    @property
    def is_routed(self) -> bool:
        """Whether tokens are sent to some of whole experts: not to all, and not to one projection of them."""
        return ONLY not in self.slots and self.order != ("hidden", "weights")

    def mix(self, module: nn.Module, gate: Tensor | None, up: Tensor) -> Tensor:
        """What the down projection reads, [T, M]."""
        between: Callable[[Tensor], Tensor] = attrgetter(self.mixing)(module)
        if gate is None:
            return between(up)
        if self.mixing == OWN_GATE:
            return between(self._joined(gate, up))
        return between(gate) * up

    def _joined(self, gate: Tensor, up: Tensor) -> Tensor:
        rows = self.slots[GATE].rows
        if rows in ("even", "odd"):
            return torch.stack((gate, up) if rows == "even" else (up, gate), dim=-1).flatten(-2)
        return torch.cat((gate, up) if rows == "first" else (up, gate), dim=-1)


def slot_choices(module: nn.Module) -> Iterator[dict[str, Slot]]:
    """Every way to read the parameters of a module as projections that fits their shapes, the likeliest first.

    Gate and up of one joint tensor are both `all` here: which half is which, `layouts` tries.
    """
    weights = fused_weights(module)
    if len(weights) not in (2, 3):
        return
    each, own = bool(stacked(module)[0]), expert_parameters(module).items()
    biases = [name for name, tensor in own if tensor.ndim == 2 and name not in weights]
    for names in permutations(weights):
        for turned in product((False, True), repeat=len(names)):
            slots = [
                Slot(name, transposed, each=each * weights[name].shape[1])
                for name, transposed in zip(names, turned, strict=True)
            ]
            if _fit(slots, module):
                yield from _with_biases(slots, biases, module)


def layouts(module: nn.Module) -> Iterator[Layout]:
    """Every layout that fits the shapes of a module's parameters and the number of its arguments."""
    children = [name for name, _ in module.named_children()]
    between = [*_callables(module)]
    if child := stacked(module)[0]:
        between = [f"{child}.{name}" for name in _callables(module.get_submodule(child))]
    for slots in slot_choices(module):
        gated = GATE in slots
        own = _own_halves(module, slots) if gated and slots[GATE].parameter == slots[UP].parameter else None
        for found in [own] if own else []:
            yield from _with_after(Layout(found, OWN_GATE), children)
        for halved in _halved(slots):
            for name in between:
                yield from _with_after(Layout(halved, name), children)


def argument_orders(count: int) -> list[tuple[str, ...]]:
    """What the arguments of an experts module may be, by their number."""
    orders: dict[int, list[tuple[str, ...]]] = {
        1: [("hidden",)],
        2: [("hidden", "weights")],
        3: [("hidden", "index", "weights"), ("hidden", "weights", "index")],
    }
    return orders.get(count, [])


def _callables(module: nn.Module) -> list[str]:
    """What may lie between projections: children of a module, and functions that it has."""
    children = [name for name, _ in module.named_children()]
    return children + [name for name, value in vars(module).items() if name[0] != "_" and callable(value)]


def _fit(slots: list[Slot], module: nn.Module) -> bool:
    """Whether inputs and outputs have the widths that such projections have."""
    shapes = [slot.weights(dict(expert_parameters(module))).shape for slot in slots]
    (*before, down) = [(shape[1], shape[2]) for shape in shapes]  # (O, I) each
    width = sum(out for out, _ in before)
    hidden = {inner for _, inner in before}
    if hidden != {down[0]} or len({out for out, _ in before}) > 1:
        return False
    return width == 2 * down[1] or (len(before) == 1 and width == down[1])


def _with_biases(slots: list[Slot], biases: list[str], module: nn.Module) -> Iterator[dict[str, Slot]]:
    """The slots by projection, with every assignment of biases to them that fits; all biases must be used."""
    parameters: Any = expert_parameters(module)
    spare = [None] * (len(slots) - len(biases))
    choices = dict.fromkeys(permutations([*biases, *spare], len(slots)))
    likely = sorted(
        choices, key=lambda some: sum(b is not None and slots[i].parameter not in b for i, b in enumerate(some))
    )
    for chosen in likely:
        pairs = list(zip(slots, chosen, strict=True))
        if all(b is None or parameters[b].shape[1] == slot.weights(parameters).shape[1] for slot, b in pairs):
            *before, down = [evolve(slot, bias=bias) for slot, bias in pairs]
            joint = before[0].weights(parameters).shape[1] == 2 * down.weights(parameters).shape[2]
            if len(before) == 2 or joint:
                yield {GATE: before[0], UP: before[-1], DOWN: down}
            else:
                yield {UP: before[0], DOWN: down}


def _halved(slots: Mapping[str, Slot]) -> Iterator[dict[str, Slot]]:
    """The slots, with each choice of who has which rows of a joint projection."""
    if GATE not in slots or slots[GATE].parameter != slots[UP].parameter:
        yield dict(slots)
        return
    for rows in HALVES:
        yield _with_rows(slots, rows)


def _with_rows(slots: Mapping[str, Slot], rows: tuple[str, str]) -> dict[str, Slot]:
    gate, up = rows
    return {**slots, GATE: evolve(slots[GATE], rows=gate), UP: evolve(slots[UP], rows=up)}


def _with_after(layout: Layout, children: list[str]) -> Iterator[Layout]:
    yield layout
    for name in children:
        if name != layout.mixing:
            yield evolve(layout, after=name)


def _own_halves(module: nn.Module, slots: Mapping[str, Slot]) -> dict[str, Slot] | None:
    """Which rows are the gate's for a module that mixes both halves itself; None when it does not.

    Output 0 depends on two of the joint values; the one that it is not affine in belongs to the gate.
    """
    own: Any = getattr(module, OWN_GATE, None)
    if own is None:
        return None
    width = slots[DOWN].weights(dict(expert_parameters(module))).shape[2]  # M
    start = torch.full((1, 2 * width), 0.3, dtype=torch.float64)
    partner = next((place for place in (width, 1) if _moves(own, start, place)), None)
    if partner is None or not _moves(own, start, 0):
        return None
    swapped = _is_affine(own, start, 0) and not _is_affine(own, start, partner)
    rows = ("first", "second") if partner == width else ("even", "odd")
    return _with_rows(slots, (rows[1], rows[0]) if swapped else rows)


def _moves(own: Callable[[Tensor], Tensor], start: Tensor, place: int) -> bool:
    """Whether output 0 depends on the value at a place."""
    return bool(own(_moved(start, place, -0.2))[0, 0] != own(_moved(start, place, 0.2))[0, 0])


def _is_affine(own: Callable[[Tensor], Tensor], start: Tensor, place: int) -> bool:
    """Whether output 0 is a straight line in the value at a place, around 0."""
    line = torch.stack([own(_moved(start, place, step))[0, 0] for step in (-0.4, -0.2, 0.0, 0.2, 0.4)])  # [5]
    return bool(line.diff().diff().abs().max() < 1e-12)


def _moved(start: Tensor, place: int, value: float) -> Tensor:
    moved = start.clone()
    moved[0, place] = value
    return moved
