"""The residual stream by experiment: what adds to it, what reads it, and whether it can be rotated.

    x ── norm, its weight folded ── x R ──> readers: W R        writers: R^T W ──> (x + y) R

writers     products whose output reaches the block's output as a multiple of itself, if no product reads it: one
            backward pass with the inputs of all products cut off
readers     products whose input is rotated where the stream is: one run with a rotated stream and rotated writers, in
            which each reader is handed what it read before
certificate the parameters rotated as they will be, the block run on a rotated stream: its outputs are those of before,
            the stream rotated

No names, no table of architectures.  What is between the blocks and around them is a block of its own: `shell`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from coldpress.dataflow.certificate import TOLERANCE
from coldpress.dataflow.fold import gain
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.probe import Dataflow
from coldpress.dataflow.producer import candidates
from coldpress.dataflow.product_trace import Arguments, Product, Use
from coldpress.dataflow.rotate import Folding, RotationSite, rotate
from coldpress.dataflow.stream_bench import StreamBench, StreamTrace
from coldpress.dataflow.unreached import same_place
from coldpress.errors import ModelError
from coldpress.numerics import Rotation, rotation_of

_RTOL = 1e-9


@frozen(eq=False)
class Residual:
    """How the residual stream of a block can be rotated.

    Attributes:
        width: of the stream.
        readers: what reads it, the input dimension of each parameter.
        writers: what adds to it, the output dimension of each, biases among them.
        norms: whose weights move into the readers first.
        keeps_ones: whether the rotation must map a row of ones to itself, because a norm subtracts the mean.
    """

    width: int
    readers: tuple[RotationSite, ...]
    writers: tuple[RotationSite, ...]
    norms: tuple[Pair, ...] = field(repr=False)
    keeps_ones: bool

    def within(self, prefix: str) -> "Residual":
        """The same, named from the module that holds the block as `prefix`."""
        return evolve(
            self,
            readers=tuple(site.within(prefix) for site in self.readers),
            writers=tuple(site.within(prefix) for site in self.writers),
            norms=tuple(pair.within(prefix) for pair in self.norms),
        )

    @property
    def sites(self) -> tuple[RotationSite, ...]:
        """Everything that is rotated: readers, writers, and the biases of norms."""
        shifts = tuple(RotationSite(site.parameter, site.dim) for pair in self.norms for site in pair.sites[1:])
        return (*self.readers, *self.writers, *shifts)


def find_residual(bench: StreamBench, flow: Dataflow) -> Residual:
    """Find out how the residual stream of a block can be rotated.

    Args:
        bench: with a copy of the block, which is changed.
        flow: what probing found of its pairs.

    Raises:
        ModelError: it cannot be; says which norm, or which reader.
    """
    problems = []
    for keeps_ones in (False, True):
        try:
            with bench.restored():
                found = _found(bench, flow, keeps_ones=keeps_ones)
            return _with_unreached(bench, found, flow)
        except ModelError as error:
            problems.append(str(error))
    raise ModelError(problems[-1])


def final_products(bench: StreamBench) -> list[str]:
    """Parameters whose products reach the output of a block without another product: what adds to the stream, gates."""
    with bench.restored():
        return [use.parameter for use, slope in _slopes(bench) if slope is not None and bool(slope.any())]


def _found(bench: StreamBench, flow: Dataflow, *, keeps_ones: bool) -> Residual:
    width = bench.width
    rotation = rotation_of(width, "random-matrix", keeps_ones=keeps_ones, generator=bench.generator)
    norms = [pair for pair in flow.pairs if pair.kind == "norm" and pair.whole and pair.width == width]
    rotate(bench.block, _foldings(bench, norms), ())
    folded = bench.reading()
    inputs = bench.module_inputs([pair.producer for pair in norms])
    writers = _writers(bench, flow)
    rotate(bench.block, (), [(site, rotation) for site in writers])
    passed: list[Pair] = []
    with _rotating_shifts(bench, norms, inputs, rotation, passed):
        trace = partial(RotatedTrace, before=folded.uses, rotation=rotation)
        _, seen = bench.run_rotated(rotation, trace)
    assert isinstance(seen, RotatedTrace)
    readers = tuple(RotationSite(name, dim) for name, dim in seen.readers)
    if seen.others:
        raise ModelError(
            f"{bench.name(seen.others[0])} reads the residual stream in another way than through a norm whose "
            "weight can be folded, and a rotation changes what it reads"
        )
    found = Residual(width, readers, writers, tuple(passed), keeps_ones)
    _certify(bench, found, rotation)
    return found


def _certify(bench: StreamBench, residual: Residual, rotation: Rotation) -> None:
    """Rotate the parameters as they will be, and see that the stream is rotated and nothing else has changed."""
    bench.restore()
    before = bench.reading()
    rotate(bench.block, _foldings(bench, residual.norms), [(site, rotation) for site in residual.sites])
    worst = bench.deviation_rotated(before, rotation)
    if not worst <= TOLERANCE:
        raise ModelError(
            "what is added to the residual stream, or read from it, is not all made by linear layers behind norms: a "
            f"rotation changes the output by {worst:.1e}"
        )


def _foldings(bench: StreamBench, norms: Iterable[Pair]) -> list[Folding]:
    return [Folding(pair, gain(bench.block, pair)) for pair in norms]


def _slopes(bench: StreamBench) -> list[tuple[Use, Tensor | None]]:
    """Every product, and the slope at its output of a random direction of the stream, products cut off, [..., O]."""
    return bench.slopes(CutTrace)


def _writers(bench: StreamBench, flow: Dataflow) -> tuple[RotationSite, ...]:
    """The parameters whose products are added to the stream, and their biases."""
    direction = bench.direction
    places = {pair.sites[0].parameter: pair.sites for options in candidates(bench) for pair in options}
    found: dict[tuple[str, int], None] = {}
    for use, slope in _slopes(bench):
        if slope is None or not bool(slope.any()):
            continue
        if slope.shape[-1] == len(direction) and _is_multiple(slope, direction):
            sites = places.get(use.parameter)
            out = bench.block.get_parameter(use.parameter).ndim * 2 - 3 - use.dim  # the last two dimensions
            ends = [(site.parameter, site.dim) for site in sites] if sites else [(use.parameter, out)]
            found |= dict.fromkeys(ends)
        elif slope.shape[-1] == len(direction) and use.parameter not in _read_norms(flow):
            between = _norm_behind(bench, flow, use) or "something that is not linear"
            raise ModelError(
                f"what {bench.name(use.parameter)} adds to the residual stream goes through {between} first, which a "
                "rotation does not pass"
            )
    return tuple(RotationSite(name, dim) for name, dim in found)


def _read_norms(flow: Dataflow) -> set[str]:
    """Parameters that read a norm, as routers and gates do: these add nothing to the stream."""
    return {member.site.parameter for pair in flow.pairs if pair.kind == "norm" for member in pair.members}


def _norm_behind(bench: StreamBench, flow: Dataflow, use: Use) -> str | None:
    """The norm as wide as the stream that a product goes through, where no linear layer can take its weight."""
    taken = {pair.producer for pair in flow.pairs}
    norms = [
        name
        for name, module in bench.block.named_modules()
        if name not in taken
        and any(p is not None and p.ndim == 1 and len(p) == bench.width for p in module._parameters.values())
        and not any(p is not None and p.ndim == 2 for p in module._parameters.values())
    ]
    inputs = bench.module_inputs(norms)
    return next((name for name in norms if name in inputs and _alike(inputs[name], use.output.detach())), None)


def _is_multiple(slope: Tensor, direction: Tensor) -> bool:
    """Whether each vector, [..., O], is a multiple of the direction."""
    share = slope @ direction / direction.square().sum()
    return bool((slope - share[..., None] * direction).abs().max() <= 1e-8 * slope.abs().max())


class CutTrace(StreamTrace):
    """Hands each product its input without history, so that slopes stop there."""

    def multiply(self, func: Callable[..., Any], args: Arguments, named: dict[str, Any], product: Product) -> Any:
        """Cut, then compute."""
        args, named = _replaced(args, named, product.at, product.input.detach())
        return super().multiply(func, args, named, product)


class RotatedTrace(StreamTrace):
    """Sees which products read a rotated stream, and hands them what they read before.

    Attributes:
        readers: parameter and input dimension of those.
        others: parameters whose input is neither what it was nor that rotated.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        before: Sequence[Use],
        rotation: Rotation,
    ) -> None:
        super().__init__(parameters)
        self._before, self._rotation = before, rotation
        self.readers: dict[tuple[str, int], None] = {}
        self.others: list[str] = []

    def multiply(self, func: Callable[..., Any], args: Arguments, named: dict[str, Any], product: Product) -> Any:
        """Compare, hand over what was read before, compute."""
        number = len(self.uses)
        if number >= len(self._before) or self._before[number].parameter != product.parameter:
            raise ModelError(f"with a rotated residual stream other layers run: {product.parameter}")
        old, new = self._before[number].input, product.input
        if new.shape != old.shape:
            raise ModelError(
                f"with a rotated residual stream {product.parameter} reads other tokens: what chooses them reads the "
                "stream, and is no layer"
            )
        if not _alike(new, old):
            if new.shape[-1] == self._rotation.width and _alike(new, self._rotation.apply(old)):
                self.readers[product.parameter, product.dim] = None
            else:
                self.others.append(product.parameter)
        args, named = _replaced(args, named, product.at, old)
        return super().multiply(func, args, named, product)


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return a.numel() == 0 or bool((a - b).abs().max() <= _RTOL * b.abs().max().clamp_min(1e-300))


def _replaced(args: Arguments, named: dict[str, Any], at: int, x: Tensor) -> tuple[Arguments, dict[str, Any]]:
    if at < len(args):
        return (*args[:at], x, *args[at + 1 :]), named
    return args, {**named, list(named)[at - len(args)]: x}


class _rotating_shifts:  # noqa: N801
    """Notes the norms that the rotated stream reaches, and rotates their biases before they act."""

    def __init__(
        self,
        bench: StreamBench,
        norms: Sequence[Pair],
        inputs: Mapping[str, Tensor],
        rotation: Rotation,
        passed: list[Pair],
    ) -> None:
        self._bench, self._inputs, self._rotation, self._passed = bench, inputs, rotation, passed
        self._handles = [
            bench.block.get_submodule(pair.producer).register_forward_pre_hook(
                partial(self._see, pair), with_kwargs=True
            )
            for pair in norms
            if pair.producer in inputs
        ]

    def __enter__(self) -> None:
        """The hooks are there."""

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, pair: Pair, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        known = any(one.producer == pair.producer for one in self._passed)
        if not known and _alike(x, self._rotation.apply(self._inputs[pair.producer])):
            self._passed.append(pair)
            shifts = [RotationSite(site.parameter, site.dim) for site in pair.sites[1:]]
            rotate(self._bench.block, (), [(site, self._rotation) for site in shifts])


def _with_unreached(bench: StreamBench, found: Residual, flow: Dataflow) -> Residual:
    """Experts that the probing input did not reach are rotated as their siblings are.

    Raises:
        ModelError: a layer was not reached, and none that was is like it.
    """
    left = [f"{name}.weight" for name in flow.unreached]
    readers = [*found.readers, *_siblings(bench, found.readers, left)]
    writers = [*found.writers, *_siblings(bench, found.writers, left)]
    known = {site.parameter for site in (*readers, *writers)}
    for name in left:
        if name not in known and found.width in bench.block.get_parameter(name).shape:
            raise ModelError(
                f"{name.removesuffix('.weight')} never ran on the probing input, and might read the stream"
            )
    return evolve(found, readers=tuple(readers), writers=tuple(writers))


def _siblings(bench: StreamBench, sites: Sequence[RotationSite], left: Sequence[str]) -> list[RotationSite]:
    shapes = {name: p.shape for name, p in bench.block.named_parameters()}
    known = {site.parameter for site in sites}
    found: dict[tuple[str, int], RotationSite] = {}
    for site in sites:
        leaf = site.parameter.rpartition(".")[2]
        for name in left:
            other = f"{name.removesuffix('.weight')}.{leaf}"
            alike = shapes.get(other) == shapes[site.parameter] and same_place(site.parameter, other)
            if alike and other not in known:
                found[other, site.dim] = RotationSite(other, site.dim)
    return list(found.values())
