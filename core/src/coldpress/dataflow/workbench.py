"""A float64 copy of one block that can be run, scaled and put back; the block itself is never touched.

The copy is prepared so that nothing hides: 1-D parameters (norms of ones, biases of zeros) are moved by random
amounts, weights that multiply an activation are brought to unit gain, weights on the meta device are drawn.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from attrs import frozen
from torch import Tensor, nn

from coldpress.dataflow.call import Call
from coldpress.dataflow.certificate import deviation, random_scales, restore, snapshot, tensors
from coldpress.dataflow.fold import fold
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.product_trace import ProductTrace, Use
from coldpress.dataflow.rebound import deep_copy
from coldpress.dataflow.skeleton import drop_hooks, fill
from coldpress.errors import ModelError
from coldpress.stage import is_linear

TraceFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], ProductTrace]
"""What makes the trace of a run, of the parameters of the block."""


@frozen(eq=False)
class Reading:
    """What one run showed.

    Attributes:
        uses: every product with a parameter, in order.
        outputs: every floating tensor that the block returned.
    """

    uses: tuple[Use, ...]
    outputs: tuple[Tensor, ...]


class Workbench:
    """Runs a float64 copy of a block on one call.

    Args:
        block: any module; weights may be on the meta device.
        call: arguments as captured.
        seed: of everything random.

    Raises:
        ModelError: the copy does not run in float64, or two runs of it differ.
    """

    def __init__(self, block: nn.Module, call: Call, *, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.call = call
        self.block = _double_copy(block)
        fill(self.block, self.generator, torch.float64)
        _move_vectors(self.block, self.generator)
        _unit_gain(self.block, self.run().uses, self.generator)
        self.before = self.run()
        if deviation(self.before.outputs, self.run().outputs) > 0:
            raise ModelError(f"{type(block).__name__}: two runs on one input differ; nothing can be probed")

    def run(self, trace: TraceFactory = ProductTrace) -> Reading:
        """One run without gradients; products are seen by this trace."""
        with torch.no_grad():
            return self._run(trace)

    def run_with_gradients(self, trace: TraceFactory = ProductTrace) -> Reading:
        """One run that records the graph of all uses."""
        for p in self.block.parameters():
            p.requires_grad_(p.is_floating_point())
        try:
            with torch.enable_grad():
                return self._run(trace)
        finally:
            for p in self.block.parameters():
                p.requires_grad_(False)

    def _run(self, trace: TraceFactory) -> Reading:
        args, kwargs = self.call.fresh(torch.float64)
        tap = trace(self.block.named_parameters())
        try:
            with tap:
                outputs = tensors(self.block(*args, **kwargs))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as e:
            raise ModelError(f"{type(self.block).__name__} does not run alone in float64: {e}") from e
        if not all(bool(o.isfinite().all()) for o in outputs):
            raise ModelError(f"{type(self.block).__name__}: NaN or Inf in the output of the probe")
        return Reading(tuple(tap.uses), tuple(outputs))

    def certify(self, pair: Pair) -> float:
        """The largest relative change of any output after folding random scales; see `certificate`."""
        saved = snapshot(self.block, pair)
        worst = 0.0
        for scale in random_scales(pair, self.generator):
            fold(self.block, pair, scale)
            try:
                worst = max(worst, deviation(self.before.outputs, self.run().outputs))
            except ModelError:  # NaN, or a branch that only the changed block takes
                worst = float("inf")
            finally:
                restore(self.block, saved)
        return worst

    def run_scaled(self, pair: Pair, factors: Tensor) -> Reading:
        """One run with the channels of a producer multiplied by `factors`, [C]; only members of the pair compensate."""
        saved = snapshot(self.block, pair)
        fold(self.block, pair, factors**-pair.degree)
        try:
            return self.run()
        finally:
            restore(self.block, saved)

    def name(self, parameter: str) -> str:
        """The layer that owns a weight, or the parameter itself where it is no module's 2-D `weight`."""
        owner, _, leaf = parameter.rpartition(".")
        return owner if leaf == "weight" and self.block.get_parameter(parameter).ndim == 2 else parameter

    def layers(self) -> Mapping[str, nn.Module]:
        """Every linear layer of the copy by name."""
        return {n: m for n, m in self.block.named_modules() if is_linear(m)}


def _double_copy(block: nn.Module) -> nn.Module:
    """A float64 copy on the CPU without anybody's hooks, experts one after the other."""
    new = deep_copy(block)
    for module in new.modules():
        drop_hooks(module)
        config = getattr(module, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "eager"  # type: ignore[union-attr]  # grouped kernels have no float64
    if any(t.is_meta for t in (*new.parameters(), *new.buffers())):
        return new.double().eval().requires_grad_(False)
    return new.to("cpu").double().eval().requires_grad_(False)


@torch.no_grad()
def _move_vectors(block: nn.Module, generator: torch.Generator) -> None:
    for p in block.parameters():
        if p.ndim == 1 and p.is_floating_point():
            p.add_(0.3 * torch.rand(p.shape, generator=generator, dtype=torch.float64))


@torch.no_grad()
def _unit_gain(block: nn.Module, uses: tuple[Use, ...], generator: torch.Generator) -> None:
    """Bring every weight that multiplies an activation to a root mean square of 1 / sqrt(inputs), no row of zeros."""
    for name, dim in dict.fromkeys((u.parameter, u.dim) for u in uses):
        p = block.get_parameter(name)
        dead = ~p.any(dim=dim, keepdim=True)
        if bool(dead.any()):
            size = p.square().mean().sqrt() if bool(p.any()) else 1.0
            p.add_(dead * size * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        p.div_(p.square().mean().sqrt() * p.shape[dim] ** 0.5)
