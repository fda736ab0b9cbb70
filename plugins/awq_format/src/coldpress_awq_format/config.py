"""`quantization_config` of AWQ: one scheme for all linear layers but those that are named.

    {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": true,
     "modules_to_not_convert": ["lm_head"]}

A name that is left out is looked for anywhere in the name of a layer, so it also means the layers below a module.
The output layer is dense, named or not, where `lm_head` is not true.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from coldpress.plugin import CheckpointError, QuantizationArgs, Scheme, SchemeError
from coldpress_awq_format.algorithm import NUM_BITS

QUANT_METHOD, VERSION = "awq", "gemm"
HEAD = "lm_head"


def write_config(schemes: Mapping[str, Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """The table.

    Args:
        schemes: layer name to scheme, all alike; at least one.
        ignore: names of layers that a target could mean and that are not quantized.
    """
    args = next(iter(schemes.values())).weights
    assert args is not None
    return {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        "bits": args.num_bits,
        "group_size": args.group_size if args.strategy == "group" else -1,
        "zero_point": True,
        "modules_to_not_convert": list(ignore) or None,
    }


@frozen
class ConfigLookup:
    """The scheme of a configuration.

    Attributes:
        scheme: of all layers.
        dense: parts of the names of those that are dense.
        head: whether the output layer is quantized.
    """

    scheme: Scheme
    dense: tuple[str, ...]
    head: bool = False

    def __call__(self, name: str, class_names: Sequence[str]) -> Scheme | None:
        """The scheme of a layer, None when it is dense."""
        if "Linear" not in class_names or any(_means(part, name) for part in self.dense):
            return None
        return None if is_head(name) and not self.head else self.scheme


def is_head(name: str) -> bool:
    """Whether a layer is the output layer, by its name."""
    return name.rpartition(".")[2] == HEAD


def read_config(config: Mapping[str, Any]) -> ConfigLookup:
    """Read a table that we or another tool wrote.

    Raises:
        CheckpointError: a value is not understood, or of another layout.
    """
    version = str(config.get("version", VERSION)).lower()
    if version != VERSION or config.get("bits", NUM_BITS) != NUM_BITS:
        raise CheckpointError(
            f"quantization_config: version {version!r} with {config.get('bits')} bits cannot be read; {VERSION!r} with "
            f"{NUM_BITS} can"
        )
    if config.get("zero_point", True) is not True:
        raise CheckpointError("quantization_config: zero_point is false, and this layout has zero points")
    size = config.get("group_size", config.get("q_group_size", 128))
    try:
        groups = {"strategy": "channel"} if size == -1 else {"group_size": size, "strategy": "group"}
        args = QuantizationArgs.from_dict(
            {"num_bits": NUM_BITS, "symmetric": False, "scale_dtype": torch.float16, **groups}
        )
    except SchemeError as error:
        raise CheckpointError(f"quantization_config: {error}") from error
    dense = config.get("modules_to_not_convert") or []
    if not isinstance(dense, list | tuple):
        raise CheckpointError(f"quantization_config: modules_to_not_convert must be a list of names, got {dense!r}")
    scheme, head = Scheme(targets=("Linear",), weights=args), bool(config.get(HEAD))
    return ConfigLookup(scheme, tuple(str(part) for part in dense), head)


def _means(part: str, name: str) -> bool:
    """Whether a part is in a name, from one dot to another."""
    return f".{part}." in f".{name}."
