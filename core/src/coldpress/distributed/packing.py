"""Packing: any value as bytes, its tensors bit for bit, whatever their dtype, strides and device."""

import io
import pickle
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn


@frozen(eq=False)
class _Form:
    """What a tensor is but for its numbers.

    Attributes:
        dtype: of it.
        shape: of it.
        stride: of it; tensors that are expanded or transposed stay so, because kernels depend on it.
        extent: elements from the first to the last.
        accelerated: it is not on the CPU.
        parameter: it is one of a module.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    extent: int
    accelerated: bool
    parameter: bool


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.forms: list[_Form] = []
        self._known: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) not in (Tensor, nn.Parameter) or value.is_meta or value.layout != torch.strided:
            return None
        if id(value) not in self._known:
            self._known[id(value)] = len(self.tensors)
            self.tensors.append(value)  # kept alive: no other tensor gets its id
            self.forms.append(form_of(value))
        return self._known[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, key: Any) -> Tensor:
        tensor: Tensor = self._tensors[key]
        return tensor


def pack(value: Any) -> Tensor:
    """A value as bytes, [n] uint8 on the CPU."""
    body = io.BytesIO()
    packer = _Packer(body)
    packer.dump(value)
    head = pickle.dumps((packer.forms, body.getvalue()), protocol=pickle.HIGHEST_PROTOCOL)
    sizes = torch.tensor([len(head)]).view(torch.uint8)
    text = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    return torch.cat([sizes, text, *(raw(tensor) for tensor in packer.tensors)])


def unpack(packed: Tensor, device: torch.device) -> Any:
    """The value again.

    Args:
        packed: as `pack` made it.
        device: of tensors that were not on the CPU.
    """
    length = int(packed[:8].clone().view(torch.int64))
    forms, body = pickle.loads(packed[8 : 8 + length].numpy().tobytes())  # of a rank of this run
    tensors, start = [], 8 + length
    for form in forms:
        size = form.extent * form.dtype.itemsize
        tensors.append(_formed(packed[start : start + size].clone(), form, device))
        start += size
    return _Unpacker(io.BytesIO(body), tensors).load()


def raw(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last, [n] uint8 on the CPU."""
    extent = _extent(tensor)
    flat = torch.as_strided(tensor.detach(), (extent,), (1,))
    return flat.cpu().contiguous().view(torch.uint8) if extent else torch.empty(0, dtype=torch.uint8)


def form_of(tensor: Tensor) -> _Form:
    """What `raw` leaves out."""
    parameter = isinstance(tensor, nn.Parameter)
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    return _Form(tensor.dtype, shape, stride, _extent(tensor), tensor.device.type != "cpu", parameter)


def _extent(tensor: Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _formed(data: Tensor, form: _Form, device: torch.device) -> Tensor:
    flat = data.view(form.dtype) if form.extent else torch.empty(0, dtype=form.dtype)
    flat = flat.to(device) if form.accelerated else flat
    tensor = torch.as_strided(flat, form.shape, form.stride)
    return nn.Parameter(tensor, requires_grad=False) if form.parameter else tensor
