"""The schemes that ggml has names for, and its mixes, which give more bits to the layers that matter most.

Q4_K_M gives Q6_K to the values of attention and the last matrix of the MLP in the first and last eighth of the blocks
and in each third between, to embeddings that are the head too, and to the head; everything else has Q4_K.
Where 256 does not divide the columns of a layer, it has the type of 32 columns that llama.cpp falls back to.

Source: `llama-quant.cpp` of llama.cpp, whose mixes these are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from attrs import evolve

from coldpress.plugin import QuantizationArgs, Scheme, SchemeError


def _legacy(num_bits: int, symmetric: bool = True) -> QuantizationArgs:
    return QuantizationArgs(num_bits=num_bits, symmetric=symmetric, group_size=32, scale_dtype=torch.float16)


def _super(num_bits: int) -> QuantizationArgs:
    return QuantizationArgs(num_bits=num_bits, symmetric=False, group_size=32, scale_bits=6)


ARGS = {
    "Q4_0": _legacy(4),
    "Q4_1": _legacy(4, symmetric=False),
    "Q5_0": _legacy(5),
    "Q5_1": _legacy(5, symmetric=False),
    "Q8_0": _legacy(8),
    "Q4_K": _super(4),
    "Q5_K": _super(5),
    "Q6_K": QuantizationArgs(num_bits=6, group_size=16, scale_bits=8),
}
"""Type to what it is in our words."""

MIXES = {"Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"}
"""Mix to the type of most layers."""

_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_SUPER_BLOCK = 256

FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7},
    **{"Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "MXFP4": 38, "NVFP4": 39},
}
"""What a file is called by the type of most of its layers: a label, by which nothing is read."""


def __getattr__(name: str) -> Scheme:
    """A scheme by its name, for the entry points of presets."""
    if name in ARGS:
        return Scheme(targets=("Linear",), weights=ARGS[name])
    if name in MIXES:
        return Scheme(targets=("Linear",), weights=ARGS[MIXES[name]], format=name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mixed(schemes: Mapping[str, Scheme], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
    """The schemes, with that of its own for each layer that has a mix.

    Args:
        schemes: layer name to scheme.
        shapes: of the weights, (O, I).

    Raises:
        SchemeError: the weights of a mix were changed, which has types of its own.
    """
    count = 1 + max((_block_of(name) or 0 for name in shapes), default=0)
    return {
        name: _of_layer(scheme, name, shapes[name], count) if scheme.format in MIXES else scheme
        for name, scheme in schemes.items()
    }


def label_of(types: Iterable[str], dtype: torch.dtype) -> int:
    """What a file with layers of these types is called."""
    counts = Counter(types)
    plain = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(dtype, "F32")
    return FILE_TYPES[counts.most_common(1)[0][0] if counts else plain]


def _of_layer(scheme: Scheme, name: str, shape: tuple[int, int], count: int) -> Scheme:
    mix = str(scheme.format)
    kind = _kind(mix, name, count)
    kind = _FALLBACK[kind] if shape[1] % _SUPER_BLOCK else kind
    given: Any = scheme.weights
    _check_unchanged(mix, name, given)
    args = evolve(ARGS[kind], observer=given.observer, observer_kwargs=given.observer_kwargs, actorder=given.actorder)
    return evolve(scheme, weights=args, format=None)


def _check_unchanged(mix: str, name: str, given: Any) -> None:
    usual = ARGS[MIXES[mix]]
    for setting in ("type", "num_bits", "symmetric", "strategy", "group_size", "scale_bits", "scale_dtype", "zp_dtype"):
        value, own = getattr(given, setting, None), getattr(usual, setting)
        if value != own:
            raise SchemeError(f"{name}: {mix} has {setting} {own!r} by definition, {value!r} is not {mix}")


def _kind(mix: str, name: str, count: int) -> str:
    """The type of a layer, before it is known whether blocks fit."""
    role, block = _role(name), _block_of(name) or 0
    if role in ("output", "token_embd"):
        return "Q6_K"
    if role not in ("attn_v", "ffn_down"):
        return MIXES[mix]
    if mix.endswith("_M"):
        return "Q6_K" if _matters(block, count) else MIXES[mix]
    few = 4 if role == "attn_v" else count // 8
    return "Q5_K" if mix == "Q4_K_S" and block < few else MIXES[mix]


def _matters(block: int, count: int) -> bool:
    return block < count // 8 or block >= 7 * count // 8 or (block - count // 8) % 3 == 2


def _block_of(name: str) -> int | None:
    """The number of the block that a layer is in."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else None


def _role(name: str) -> str | None:
    """What a layer does, in the words of ggml; None of what no mix asks for."""
    return next((role for role, pattern in _roles().items() if pattern.fullmatch(name)), None)


@lru_cache
def _roles() -> dict[str, "re.Pattern[str]"]:
    """Role to what layers are called that have it, in all architectures."""
    from gguf.constants import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    wanted = {
        "attn_v": [MODEL_TENSOR.ATTN_V],
        "ffn_down": [MODEL_TENSOR.FFN_DOWN, MODEL_TENSOR.FFN_DOWN_EXP],
        "output": [MODEL_TENSOR.OUTPUT],
        "token_embd": [MODEL_TENSOR.TOKEN_EMBD],
    }
    every = {**TensorNameMap.mappings_cfg, **TensorNameMap.block_mappings_cfg}
    found = {}
    for role, tensors in wanted.items():
        names = [name for tensor in tensors for name in every.get(tensor, ())]
        expressions = (re.escape(name).replace(r"\{bid\}", r"\d+") for name in names)
        experts = (one.replace(r"\.experts\.", r"\.experts\.(?:\d+\.)?") for one in expressions)
        found[role] = re.compile("|".join(experts))
    return found
