"""Where a block multiplies an activation by one of its parameters, seen at the tap while the block runs.

    F.linear(x, W)   addmm(b, x, W)   x @ W   bmm(x, W)   grouped_mm(x, W)   with W a parameter or a view of one

A `ProductTrace` sees `nn.Linear`, `Conv1D`, routers that own a bare weight and stacks of experts alike, by no name.
While it is open the block computes in float64 throughout: casts to narrower types are widened, so that
what is equal by algebra is equal to 1e-12 and not to the 1e-7 of a norm that insists on float32.
The default dtype, which belongs to the whole process, is float64 for as long.
"""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = (torch.float32, torch.float16, torch.bfloat16)
CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

# function -> (position of the activation, position of the weight, dimension of the weight that is summed over)
PRODUCTS: dict[Callable[..., Any], tuple[int, int, int]] = {
    torch.nn.functional.linear: (0, 1, -1),
    torch.addmm: (1, 2, -2),
    torch.baddbmm: (1, 2, -2),
    torch.matmul: (0, 1, -2),
    torch.mm: (0, 1, -2),
    torch.bmm: (0, 1, -2),
    torch.Tensor.matmul: (0, 1, -2),
    torch.Tensor.__matmul__: (0, 1, -2),
    torch.Tensor.mm: (0, 1, -2),
    torch.Tensor.bmm: (0, 1, -2),
    torch.nn.functional.grouped_mm: (0, 1, -2),
}


@frozen(eq=False)
class Use:
    """One product of an activation with a parameter.

    Attributes:
        parameter: name of the parameter in the block.
        dim: dimension of the parameter that meets the input channels.
        input: the activation, [..., I].
        output: the product before anything else is done to it, [..., O].
        identity: equal for two uses of the very same tensor, views of it included.
    """

    parameter: str
    dim: int
    input: Tensor
    output: Tensor
    identity: tuple[int, ...]


class Product(NamedTuple):
    """A product that is about to be computed.

    Attributes:
        parameter: name of the parameter in the block.
        dim: dimension of the parameter that meets the input channels.
        at: place of the activation among the arguments, by position before by name.
        input: the activation.
    """

    parameter: str
    dim: int
    at: int
    input: Tensor


Arguments = tuple[Any, ...]


class ProductTrace(TorchFunctionMode):
    """Records every `Use` of a block's parameters while it is open; float64 throughout."""

    products: ClassVar[Mapping[Callable[..., Any], tuple[int, int, int]]] = PRODUCTS

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._owners = {p.untyped_storage().data_ptr(): (n, p) for n, p in parameters if p.ndim in (2, 3)}

    def __enter__(self) -> "ProductTrace":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` in float64 and note it where it multiplies by a parameter."""
        if func in CASTS:
            return args[0].double()
        args = tuple(_wide(a) for a in args)
        named = {k: _wide(v) for k, v in (kwargs or {}).items()}
        found = self._product(func, args, named)
        return func(*args, **named) if found is None else self.multiply(func, args, named, found)

    def multiply(self, func: Callable[..., Any], args: Arguments, named: dict[str, Any], product: Product) -> Any:
        """Compute a product and record it; a subclass may look at its input, and change it."""
        output = func(*args, **named)
        self.uses.append(Use(product.parameter, product.dim, product.input, output, identity(product.input)))
        return output

    def _product(self, func: Callable[..., Any], args: Arguments, named: Mapping[str, Any]) -> Product | None:
        if func not in self.products:
            return None
        at, weight_at, summed = self.products[func]
        both = (*args, *named.values()) if len(args) <= weight_at else args
        if len(both) <= weight_at or not isinstance(both[weight_at], Tensor):
            return None
        x, weight = both[at], both[weight_at]
        owner = self._owners.get(weight.untyped_storage().data_ptr())
        if owner is None:
            return None
        name, parameter = owner
        dim = _same_dimension(parameter, weight, summed)
        return Product(name, dim, at, x) if dim is not None and weight.is_floating_point() else None


def identity(x: Tensor) -> tuple[int, ...]:
    """The same for two views that hold the very same numbers with the same last dimension."""
    return (x.untyped_storage().data_ptr(), int(x.storage_offset()), x.numel(), x.shape[-1], x._version)


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


def _same_dimension(parameter: Tensor, view: Tensor, summed: int) -> int | None:
    """The dimension of the parameter that is `view`'s dimension `summed`; None where the view tells nothing."""
    if view.ndim < 2:
        return None
    found = [
        d
        for d in range(parameter.ndim)
        if parameter.shape[d] == view.shape[summed] and parameter.stride(d) == view.stride(summed)
    ]
    return found[-1] if found else None
