"""A workbench that knows where the residual stream enters a block and where it leaves it.

block    enters as an argument, leaves as the first output; all other outputs must stay what they are
shell    the model with its blocks passed through: leaves where blocks are called, all outputs must stay
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.dataflow.call import Call
from coldpress.dataflow.certificate import deviation
from coldpress.dataflow.product_trace import PRODUCTS, ProductTrace, Use
from coldpress.dataflow.rebound import deep_copy
from coldpress.dataflow.workbench import Reading, TraceFactory, Workbench
from coldpress.errors import ModelError
from coldpress.numerics import Rotation
from coldpress.stage import is_linear

_ROWS = 1024  # of an embedding, and of an output head, that are looked at


class StreamTrace(ProductTrace):
    """Records products, and rows that are looked up in embeddings."""

    products: ClassVar = {**PRODUCTS, torch.nn.functional.embedding: (0, 1, -2), torch.embedding: (1, 0, -2)}


class StreamBench(Workbench):
    """Runs a float64 copy of a block, or of a shell, with its residual stream as it is or rotated.

    Args:
        block: a block; or a model whose blocks are `PassThrough`.
        call: arguments as captured.
        seed: of everything random.

    Attributes:
        width: of the residual stream.
        direction: a random vector of this width.

    Raises:
        ModelError: it does not run in float64, or no residual stream is found.
    """

    def __init__(self, block: nn.Module, call: Call, *, seed: int = 0) -> None:
        super().__init__(block, Call(*call.fresh(torch.float64)), seed=seed)
        self.passages = [module for module in self.block.modules() if isinstance(module, PassThrough)]
        leaves, *others = self._leaves(self.before)
        self.width = leaves.shape[-1]
        if any(other.shape[-1] != self.width for other in others):
            raise ModelError("blocks are called with hidden states of several widths, so there is no one stream")
        self.direction = torch.randn(self.width, generator=self.generator, dtype=torch.float64)
        self.entry = None if self.passages else _entry(self.call, leaves)
        self._saved = {name: p.detach().clone() for name, p in self.block.named_parameters()}

    def restore(self) -> None:
        """Give all parameters the values that they had at first."""
        with torch.no_grad():
            for name, p in self.block.named_parameters():
                p.copy_(self._saved[name])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The parameters have the values that they had at first, inside and afterwards."""
        self.restore()
        try:
            yield
        finally:
            self.restore()

    def template(self) -> Any:
        """What the block returns, for `PassThrough`."""
        args, kwargs = self.call.fresh(torch.float64)
        with torch.no_grad(), StreamTrace(()):
            return self.block(*args, **kwargs)

    def reading(self) -> Reading:
        """One run, as the parameters are now."""
        return self.run(StreamTrace)

    def module_inputs(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The first tensor that each of these modules is called with, of those that run."""
        seen: dict[str, Tensor] = {}

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(name, next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).clone())

        handles = [
            self.block.get_submodule(n).register_forward_pre_hook(lambda _, a, k, n=n: note(n, a, k), with_kwargs=True)
            for n in names
        ]
        try:
            self.reading()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def run_rotated(self, rotation: Rotation, trace: TraceFactory) -> tuple[Reading, ProductTrace]:
        """One run with the stream rotated where it enters, and the trace that saw it."""
        made: list[ProductTrace] = []

        def make(parameters: Any) -> ProductTrace:
            made.append(trace(parameters))
            return made[0]

        call = self.call
        self.call = _rotated(call, self.entry, rotation)
        try:
            return self.run(make), made[0]
        finally:
            self.call = call

    def deviation_rotated(self, before: Reading, rotation: Rotation) -> float:
        """How far one run with a rotated stream is from what was read before, with the stream rotated, relative."""
        leaves = [rotation.apply(one) for one in self._leaves(before)]
        after, _ = self.run_rotated(rotation, StreamTrace)
        outputs = before.outputs if self.passages else (*leaves, *before.outputs[1:])
        rest = [_nearest(x, y, rotation) for x, y in zip(outputs, after.outputs, strict=True)]
        return deviation([*leaves, *rest], [*self._leaves(after), *after.outputs])

    @torch.enable_grad()
    def slopes(self, trace: TraceFactory) -> list[tuple[Use, Tensor | None]]:
        """Every product and the slope, at its output, of the leaving stream along `direction`; None where none is."""
        reading = self.run_with_gradients(trace)
        outputs = [use.output for use in reading.uses]
        total = torch.stack([(one @ self.direction).sum() for one in self._leaves(reading)]).sum()
        able = [x for x in outputs if x.requires_grad]
        found = torch.autograd.grad(total, able, allow_unused=True) if total.requires_grad else [None] * len(able)
        slopes = iter(found)
        return [(use, next(slopes) if use.output.requires_grad else None) for use in reading.uses]

    def _leaves(self, reading: Reading) -> list[Tensor]:
        """The stream where it leaves: once, or at every block that a shell calls."""
        if self.passages:
            seen = [p.seen for p in self.passages if p.seen is not None]
            if not seen:
                raise ModelError("no block is called")
            return seen
        if not reading.outputs or reading.outputs[0].ndim < 2:
            raise ModelError(f"{type(self.block).__name__} outputs no hidden states")
        return [reading.outputs[0]]


class PassThrough(nn.Module):
    """Stands for a block: it notes what it is called with, and returns that in the form in which the block does.

    Args:
        block: that it stands for; what a model asks of it besides is answered by the block.
        template: what the block returns.
    """

    def __init__(self, block: nn.Module, template: Any) -> None:
        super().__init__()
        vars(self).update(template=template, seen=None, _block=weakref.ref(block))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_block" not in vars(self):
                raise
            return getattr(vars(self)["_block"](), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the hidden states, and return them."""
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        vars(self)["seen"] = hidden
        return _with_first(self.template, hidden)[0]


def shell(model: nn.Module, blocks: Sequence[str], templates: Mapping[str, Any]) -> nn.Module:
    """A copy of a model with its blocks passed through, and of embeddings and heads the first rows only.

    Args:
        model: in memory or on the meta device.
        blocks: names of its blocks.
        templates: name of a block to what it returns; blocks without one are not called.
    """
    memo: dict[int, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for name in blocks:
        block = model.get_submodule(name)
        memo[id(block)] = PassThrough(block, templates.get(name))
    inside = tuple(f"{name}." for name in blocks)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if name in blocks or name.startswith(inside) or weight is None or weight.ndim != 2:
            continue
        if isinstance(module, nn.Embedding) or is_linear(module):
            for part in (weight, module._parameters.get("bias")):
                if part is not None and (len(part) > _ROWS or part.is_meta):
                    memo[id(part)] = nn.Parameter(_first_rows(part, generator), requires_grad=False)
    copied = deep_copy(model, memo)
    _separate(copied)
    return copied


def _first_rows(part: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of a weight or bias, drawn where it has no data."""
    rows = part.detach()[:_ROWS]
    return torch.randn(rows.shape, generator=generator).to(rows.dtype) if rows.is_meta else rows.clone()


def unreached_outside(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Names of the modules with weights of their own that a run of a shell does not call."""
    left: dict[str, None] = {}
    handles = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            left[name] = None
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: left.pop(n, None)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(left)


def _separate(model: nn.Module) -> None:
    """Give modules that share a weight one each, and embeddings no padding row, which may have been cut off."""
    seen: set[int] = set()
    for module in model.modules():
        for part, p in module._parameters.items():
            if p is not None and id(p) in seen:
                module._parameters[part] = nn.Parameter(p.detach().clone(), requires_grad=False)
            elif p is not None:
                seen.add(id(p))
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


@frozen(eq=False)
class _Entry:
    """The argument by which the stream enters."""

    tensor: Tensor


def _entry(call: Call, leaves: Tensor) -> _Entry:
    for value in (*call.args, *call.kwargs.values()):
        states = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
        if states and value.shape[-1] == leaves.shape[-1] and value.numel() == leaves.numel():
            return _Entry(value)
    raise ModelError("no argument of the block is as large as its output, so no residual stream is found")


def _rotated(call: Call, entry: _Entry | None, rotation: Rotation) -> Call:
    """The call with every argument that is the entering tensor rotated."""
    if entry is None:
        return call
    turned = rotation.apply(entry.tensor)

    def change(value: Any) -> Any:
        return turned if value is entry.tensor else value

    return Call(tuple(map(change, call.args)), {name: change(value) for name, value in call.kwargs.items()})


def _nearest(expected: Tensor, found: Tensor, rotation: Rotation) -> Tensor:
    """An output as it was, or rotated where that is what it has become, as states that are passed on may be."""
    if expected.shape != found.shape or expected.shape[-1] != rotation.width:
        return expected
    turned = rotation.apply(expected)
    return turned if (turned - found).abs().max() < (expected - found).abs().max() else expected


def _with_first(value: Any, hidden: Tensor) -> tuple[Any, bool]:
    """A block's output with its first floating tensor replaced, and whether there was one."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return hidden, True
    if isinstance(value, Mapping):
        parts, done = _with_first(list(value.values()), hidden)
        new = copy.copy(value)
        for name, part in zip(value, parts, strict=True):
            new[name] = part  # type: ignore[index]
        return new, done
    if isinstance(value, tuple | list):
        parts, done = [], False
        for part in value:
            new, found = (part, False) if done else _with_first(part, hidden)
            parts.append(new)
            done = done or found
        made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return made, done
    return value, False
