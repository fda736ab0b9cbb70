"""Experts as linear layers: what a fused experts module is replaced by.

experts            LinearExperts: called like the fused module, sends tokens to experts, adds up what they say
experts.0          Expert: down_proj(mix(gate_proj(x), up_proj(x)))
experts.0.up_proj  nn.Linear

A module with one projection of every expert (JetMoE's `input_linear`) has experts of one layer, `input_linear.0.proj`.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.calibration.tap import UNPLACED, TokenRows, mark_rows, rows_of
from coldpress.experts.few_tokens import FewTokens
from coldpress.experts.fused import expert_parameters
from coldpress.experts.layout import DOWN, GATE, ONLY, UP, Layout, Slot
from coldpress.routed import RoutedTap


@frozen(eq=False)
class Mixing:
    """What happens to a token besides the projections, in the words of the fused module.

    Attributes:
        fused: the module that was replaced, without its weights.
        layout: how it computes.
    """

    fused: nn.Module
    layout: Layout

    def between(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """What the down projection reads, [T, M]."""
        return self.layout.mix(self.fused, gate, up)

    def after(self, output: Tensor) -> Tensor:
        """What is weighted, [T, H]."""
        if self.layout.after is None:
            return output
        child: nn.Module = getattr(self.fused, self.layout.after)
        result: Tensor = child(output)
        return result


class Expert(nn.Module):
    """One expert: `gate_proj` (where there is a gate), `up_proj` and `down_proj`, ordinary linear layers; or `proj`."""

    gate_proj: nn.Linear | None

    def __init__(self, mixing: Mixing, layers: dict[str, nn.Linear]) -> None:
        super().__init__()
        self._mixing = mixing
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """What the expert says, [T, H], of tokens [T, H]."""
        if ONLY in self._modules:
            only: Tensor = self.get_submodule(ONLY)(x)
            return only
        gate = self.get_submodule(GATE)(x) if GATE in self._modules else None
        middle = self._mixing.between(gate, self.get_submodule(UP)(x))  # [T, M]
        rows = rows_of(x)
        if rows is not None:
            mark_rows(middle, rows)
        return self._mixing.after(self.get_submodule(DOWN)(middle))


class LinearExperts(nn.Module):
    """The experts of one block; its children are `0`, `1`, ... and those of the module that it replaces.

    While it is `watched`, and is told to show `all_experts` every token, it does so.
    What it returns is the same, because outputs of tokens that the router did not send are not used.

    Args:
        fused: the module that it replaces, whose weights are taken out of it when they are copied.
        layout: where they are.
        copy: give every layer memory of its own; otherwise they are views.
    """

    def __init__(self, fused: nn.Module, layout: Layout, *, copy: bool = True) -> None:
        super().__init__()
        self.watched = False
        self.all_experts = True
        self.few = FewTokens()
        self.taps: list[RoutedTap] = []
        self.layout = layout
        self._names = tuple(inspect.signature(fused.forward).parameters)
        parameters = expert_parameters(fused)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        self.count = len(next(iter(layout.slots.values())).weights(dict(parameters)))
        for name, child in fused.named_children():
            self.add_module(name, child)
        for name, buffer in fused.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in fused._non_persistent_buffers_set)
        mixing = Mixing(fused, layout)
        for number in range(self.count):
            layers = {name: _linear(slot, number, parameters, copy) for name, slot in layout.slots.items()}
            self.add_module(str(number), Expert(mixing, layers))
        if copy:
            for name in parameters:
                owner, _, part = name.rpartition(".")
                delattr(fused.get_submodule(owner), part)
        self.train(fused.training)

    def experts(self) -> Iterator[Expert]:
        """The experts, in order."""
        for number in range(self.count):
            expert = self.get_submodule(str(number))
            assert isinstance(expert, Expert)
            yield expert

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all experts but these, which are renumbered in their order."""
        experts = list(self.experts())
        for number in range(self.count):
            delattr(self, str(number))
        for number, old in enumerate(kept):
            self.add_module(str(number), experts[old])
        self.shapes = self.shapes_of(len(kept))
        self.count = len(kept)

    def shapes_of(self, count: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that this was made of, with as many experts."""
        return {name: (shape[0] // self.count * count, *shape[1:]) for name, shape in self.shapes.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the fused module would return; it is called as that was."""
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        values = [named[name] for name in self._names]
        given = dict(zip(self.layout.order, values, strict=True))
        if "sizes" in given:
            return self._grouped(given["hidden"], given["sizes"])
        if "weights" not in given:
            return self._each_its_own(given["hidden"])
        weights = given["weights"].reshape(-1, given["weights"].shape[-1])  # [T, K]
        everyone = torch.arange(self.count, device=weights.device).expand(len(weights), -1)
        return self._routed(given["hidden"], given.get("index", everyone), weights)

    def fused_tensors(self) -> dict[str, Tensor]:
        """The weights as the replaced module had them, by name; new memory."""
        first: Any = next(iter(next(self.experts()).children()))
        tensors = {
            name: torch.empty(shape, dtype=first.weight.dtype, device=first.weight.device)
            for name, shape in self.shapes.items()
        }
        for role, slot in self.layout.slots.items():
            weights, biases = slot.weights(tensors), slot.biases(tensors)
            for number, expert in enumerate(self.experts()):
                layer: Any = expert.get_submodule(role)
                weights[number].copy_(layer.weight.detach())
                if biases is not None:
                    biases[number].copy_(layer.bias.detach())
        return tensors

    def _routed(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Tokens go to the experts of `index`, [T, K]; what these say is added up, weighted by `weights`, [T, K]."""
        x = hidden.reshape(-1, hidden.shape[-1])  # [T, H]
        index, weights = index.reshape(len(x), -1), weights.reshape(-1, 1)  # [T, K], [T K, 1]
        kind = torch.promote_types(x.dtype, weights.dtype)
        parts = x.new_zeros((index.numel(), x.shape[-1]), dtype=kind)  # [T K, H]
        table = self._empty_table(x)
        for number, (expert, places) in enumerate(zip(self.experts(), self._places(index), strict=True)):
            token = places // index.shape[1]
            if self.watched and self.all_experts:
                output = expert(x)[token]
            elif len(token):
                chosen = x[token]
                if self.watched:
                    mark_rows(chosen, TokenRows(token, len(x)))
                output = expert(chosen)
            else:
                continue
            parts[places] = output.to(kind) * weights[places]
            if table is not None:
                table[token, number] = torch.stack((weights[places, 0].float(), _norms(output)), dim=-1)
        self._show(table)
        return parts.reshape(*index.shape, -1).sum(dim=1).to(hidden.dtype).reshape(hidden.shape)

    def _places(self, index: Tensor) -> tuple[Tensor, ...]:
        """Where in `index`, flat, each expert is chosen, in order; numbers beyond the last mean no expert."""
        flat = index.flatten()
        counts = torch.bincount(flat, minlength=self.count)
        return torch.split(flat.argsort(stable=True), counts.tolist())[: self.count]

    def _grouped(self, hidden: Tensor, sizes: Any) -> Tensor:
        """Tokens, [T, I], come expert by expert, as many as `sizes` says; nothing tells which tokens they are."""
        counts = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        output = []
        for expert, own in zip(self.experts(), torch.split(hidden, counts), strict=True):
            if len(own):
                output.append(expert(mark_rows(own, UNPLACED) if self.watched else own))
        return torch.cat(output)

    def _each_its_own(self, hidden: Tensor) -> Tensor:
        """Every expert has tokens of its own, in order and as many as any other; the caller weights and adds up.

        A token that was not sent to an expert is there as zeros, and is not observed.
        """
        x = hidden.reshape(self.count, -1, hidden.shape[-1])  # [E, T, H]
        output = []
        table = self._empty_table(x[0])
        for number, expert in enumerate(self.experts()):
            own = x[number]
            rows = own.abs().amax(dim=-1).nonzero().flatten()
            if not self.watched or self._has_bias():
                result = expert(own)
            else:
                result = torch.zeros_like(own)
                if len(rows):
                    result[rows] = expert(mark_rows(own[rows], TokenRows(rows, len(own))))
            output.append(result)
            if table is not None:  # the router's weight is in the tokens already
                norms = _norms(result[rows])
                table[rows, number] = torch.stack((torch.ones_like(norms), norms), dim=-1)
        self._show(table)
        return torch.cat(output).reshape(hidden.shape)

    def _empty_table(self, x: Tensor) -> Tensor | None:
        """A table for taps, as `RoutedTokens` describes it, of tokens [T, H] that no expert was sent yet."""
        if not self.taps:
            return None
        return torch.tensor((0.0, -1.0), device=x.device).repeat(len(x), self.count, 1)

    def _show(self, table: Tensor | None) -> None:
        if table is not None:
            for tap in self.taps:
                tap(table)

    def _has_bias(self) -> bool:
        return any(slot.bias is not None for slot in self.layout.slots.values())


def _linear(slot: Slot, number: int, parameters: dict[str, nn.Parameter], copy: bool) -> nn.Linear:
    """One projection of one expert."""
    weights, biases = slot.weights(dict(parameters)), slot.biases(dict(parameters))
    layer = nn.Linear(weights.shape[2], weights.shape[1], bias=biases is not None, device="meta")
    trained = parameters[slot.parameter].requires_grad
    layer.weight = nn.Parameter(_own(weights[number], copy), requires_grad=trained)
    if biases is not None:
        layer.bias = nn.Parameter(_own(biases[number], copy), requires_grad=trained)
    return layer


def _norms(output: Tensor) -> Tensor:
    """Of what an expert says, [T, H], in float32, [T]."""
    found: Tensor = output.float().norm(dim=-1)
    return found


def _own(view: Tensor, copy: bool) -> Tensor:
    return view.detach().clone(memory_format=torch.contiguous_format) if copy else view.detach()
