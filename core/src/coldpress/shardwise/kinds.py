"""What the tensors of the output will be: dtypes and shapes, found by handing a format tensors without data."""

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor

from coldpress.checkpoint.placed import Kind
from coldpress.numerics import scale_shape
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme, number_format
from coldpress.shardwise.outline import is_decoded
from coldpress.shardwise.plan import Shard
from coldpress.shardwise.unit import UnitRun, quantized_tensors

_TROUBLE = (NotImplementedError, RuntimeError, TypeError)


@define(eq=False)
class Kinds:
    """Dtypes and shapes of the output's tensors.

    Attributes:
        run: which would make them.
    """

    run: UnitRun
    _known: dict[object, dict[str, Kind]] = field(factory=dict)

    def of(self, shard: Shard) -> dict[str, Kind]:
        """All tensors of a file of the output."""
        weights = self.run.reader.weights
        found: dict[str, Kind] = {}
        for unit in shard.units:
            for name in unit.layers:
                found |= {f"{name}.{suffix}": kind for suffix, kind in self._layer(name).items()}
        for tensor in shard.copied:
            found[tensor] = self.of_copy(tensor)
        for name, part in shard.parts.items():
            whole = torch.empty(tuple(weights.shape(part.tensor)), dtype=weights.dtype(part.tensor), device="meta")
            found[name] = (whole.dtype, tuple(part.of(whole).shape))
        return found

    def of_copy(self, tensor: str) -> Kind:
        """A tensor that is the same in the output, or decoded as a whole."""
        weights = self.run.reader.weights
        dtype = self.run.dtype if is_decoded(weights, tensor) else weights.dtype(tensor)
        return dtype, tuple(weights.shape(tensor))

    def _layer(self, name: str) -> dict[str, Kind]:
        """Suffix to kind, of a layer; layers that are alike are asked about once."""
        fate, matrix = self.run.fates.of[name], self.run.reader.outline.matrices[name]
        scheme = self.run.fates.schemes.get(name)
        module = self.run.state.model.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        key = (fate, scheme, matrix.shape, type(module), weight.dtype, self._sources(name) if fate == "kept" else None)
        if key not in self._known:
            if scheme is None or fate == "decoded":
                self._known[key] = {"weight": (self.run.dtype, matrix.shape)}
            else:
                self._known[key] = self._quantized(name, scheme, kept=fate == "kept")
        return self._known[key]

    def _sources(self, name: str) -> tuple[Kind, ...]:
        """What a layer that is kept is made of, which decides what it becomes."""
        matrix, weights = self.run.reader.outline.matrices[name], self.run.reader.weights
        return tuple(self.run.reader.kinds(stored) for stored in weights.made_of(matrix.tensor))

    def _quantized(self, name: str, scheme: Scheme, *, kept: bool) -> dict[str, Kind]:
        kind, form = type(self.run.state.model.get_submodule(name)), self.run.form
        if kept:
            tensors = self.run.tensors(name)
            return _kinds(name, tensors)
        rows, columns = self.run.reader.outline.matrices[name].shape
        if kind.__name__ == "Conv1D":
            rows, columns = columns, rows
        try:
            made = quantized_tensors(name, kind, self._empty(scheme, (rows, columns), "meta"), form, move=False)
        except _TROUBLE:  # a format that computes with values
            made = quantized_tensors(name, kind, self._empty(scheme, (rows, columns), "cpu"), form)
        return _kinds(name, made)

    def _empty(self, scheme: Scheme, shape: tuple[int, int], device: str) -> Quantized:
        """A layer of this scheme whose codes are zeros."""
        args = scheme.weights
        assert args is not None
        grid = number_format(args)
        points = torch.int8 if args.symmetric else args.zp_dtype or grid.code_dtype
        scales = scale_shape(shape, args)
        two_levels = args.strategy == "tensor_group"
        return Quantized(
            scheme,
            codes=torch.zeros(shape, dtype=grid.code_dtype, device=device),
            scale=torch.ones(scales, dtype=self.run.dtype, device=device),
            zero_point=torch.zeros(scales, dtype=points, device=device),
            global_scale=torch.ones(1, device=device) if two_levels else None,
        )


def _kinds(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    return {full.removeprefix(f"{name}."): (x.dtype, tuple(x.shape)) for full, x in tensors.items()}
