"""Tensors of a model that lie in the memory of others, though they are not one: a change of one would change both.

q_proj.weight = Parameter(joint[:64])    k_proj.weight = Parameter(joint[64:])     apart
gate.weight = Parameter(joint[:64])      up.weight = Parameter(joint[32:96])       shared
head.weight = Parameter(embed.weight.data)                                         shared
weight = Parameter(row.expand(64, 64))                                             shared, with itself
"""

from collections import defaultdict

import torch
from torch import Tensor, nn


def shares_memory(model: nn.Module) -> frozenset[int]:
    """Ids of the parameters and buffers that need memory of their own, so that each can be changed by itself.

    Of several in the same memory the one that begins first keeps it.  Buffers that share with buffers are left alone.
    """
    every = (*model.parameters(), *model.buffers())
    tensors = {id(one): one for one in every if one.numel() and one.layout == torch.strided and not one.is_meta}
    by_storage: dict[int, list[Tensor]] = defaultdict(list)
    found = {key for key, one in tensors.items() if _lies_in_itself(one)}
    for key, one in tensors.items():
        if key not in found:
            by_storage[one.untyped_storage().data_ptr()].append(one)
    for sharing in by_storage.values():
        reaching: list[Tensor] = []  # of those that keep their memory, what may reach into the next
        for one in sorted(sharing, key=_range):
            reaching = [other for other in reaching if _range(other)[1] > _range(one)[0]]
            if reaching and any(isinstance(other, nn.Parameter) for other in (one, *reaching)):
                found.add(id(one))
            else:
                reaching.append(one)
    return frozenset(found)


def _lies_in_itself(tensor: Tensor) -> bool:
    """Whether elements share memory with each other, as those of an expanded tensor do."""
    first, last = _range(tensor)
    return last - first < tensor.numel() * tensor.element_size()


def _range(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor, and the one after its last."""
    extent = sum((int(size) - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset()) * tensor.element_size()
    return first, first + (extent + 1) * tensor.element_size()
