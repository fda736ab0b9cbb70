r"""`quantization_config` of GPTQ: one scheme for all linear layers, and rules for those that have another or none.

    {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false,
     "lm_head": false, "dynamic": {"-:^model\.layers\.0\.mlp\.[^.]+$": {}, "+:^...$": {"bits": 8}}, ...}

A reader takes the first rule whose expression matches the beginning of a layer's name; `-:` means that it is dense.
Engines match names of layers that they have fused, such as `qkv_proj`: a rule is for all of a module where it can be.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from coldpress.plugin import CheckpointError, QuantizationArgs, Scheme, SchemeError, TargetError, matches_name

QUANT_METHOD = "gptq"
V1, V2 = "gptq", "gptq_v2"
VERSIONS = (V1, V2)
HEAD = "lm_head"

_Kind = tuple[int, int, bool]  # bits, group size, symmetric


def write_config(schemes: Mapping[str, Scheme], ignore: Sequence[str], version: str) -> dict[str, Any]:
    """The table.

    Args:
        schemes: layer name to scheme, in model order; at least one.
        ignore: names of layers that a target could mean and that are not quantized.
        version: how zero points are stored.
    """
    kinds = {name: kind_of(scheme) for name, scheme in schemes.items()}
    (bits, group_size, symmetric), _ = Counter(kinds.values()).most_common(1)[0]
    return {
        "quant_method": QUANT_METHOD,
        "checkpoint_format": version,
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": any(_is_head(name) for name in schemes),
        "pack_dtype": "int32",
        "dynamic": _rules(kinds, ignore, (bits, group_size, symmetric)),
        "meta": {"quantizer": ["coldpress"]},
    }


def kind_of(scheme: Scheme) -> _Kind:
    """What a rule says of a layer: bits, group size, symmetric."""
    args = scheme.weights
    assert args is not None
    return args.num_bits, args.group_size if args.strategy == "group" and args.group_size else -1, args.symmetric


def _rules(kinds: Mapping[str, _Kind], ignore: Sequence[str], usual: _Kind) -> dict[str, dict[str, Any]]:
    """Expression to settings, of layers that are not as usual."""
    every: dict[str, _Kind | None] = {**kinds, **dict.fromkeys(ignore)}
    modules: dict[str, list[str]] = {}
    for name in every:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    rules: dict[str, dict[str, Any]] = {}
    for module, names in modules.items():
        together = module and len(names) > 1 and len({every[name] for name in names}) == 1
        for name in names[:1] if together else names:
            kind = every[name]
            if kind == usual or (kind is None and _is_head(name)):
                continue
            expression = rf"^{re.escape(module)}\.[^.]+$" if together else f"^{re.escape(name)}$"
            if kind is None:
                rules[f"-:{expression}"] = {}
            else:
                rules[f"+:{expression}"] = dict(zip(("bits", "group_size", "sym"), kind, strict=True))
    return rules


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == HEAD


@frozen
class ConfigLookup:
    """The schemes of a configuration.

    Attributes:
        usual: of layers that no rule means; bits, group size, symmetric.
        rules: pattern to what its layers have; None for layers that are dense.
        head: whether the output layer is quantized.
        version: how zero points are stored.
    """

    usual: _Kind
    rules: Sequence[tuple[str, _Kind | None]]
    head: bool
    version: str

    def __call__(self, name: str, class_names: Sequence[str]) -> Scheme | None:
        """The scheme of a layer, None when it is dense."""
        if "Linear" not in class_names:
            return None
        found = next((kind for pattern, kind in self.rules if matches_name(pattern, name)), self.usual)
        if found is None or (_is_head(name) and not self.head):
            return None
        return scheme_of(found, self.version)


def scheme_of(kind: _Kind, version: str) -> Scheme:
    """The scheme that a rule means."""
    bits, group_size, symmetric = kind
    groups = {"strategy": "channel"} if group_size == -1 else {"group_size": group_size, "strategy": "group"}
    args = QuantizationArgs.from_dict(
        {"num_bits": bits, "symmetric": symmetric, "scale_dtype": torch.float16, **groups}
    )
    return Scheme(targets=("Linear",), weights=args, format=version)


def read_config(config: Mapping[str, Any]) -> ConfigLookup:
    """Read a table that we or another tool wrote.

    Raises:
        CheckpointError: a value is missing, not understood, or of another layout.
    """
    version = config.get("checkpoint_format") or V1
    if version not in VERSIONS:
        raise CheckpointError(
            f"quantization_config: checkpoint_format {version!r} cannot be read; {' and '.join(VERSIONS)} can"
        )
    if config.get("pack_dtype", "int32") != "int32":
        raise CheckpointError(f"quantization_config: pack_dtype {config['pack_dtype']!r} cannot be read; int32 can")
    usual = _kind(config, {}, "quantization_config")
    rules, dynamic = [], config.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise CheckpointError(f"quantization_config: dynamic must be a table of patterns, got {dynamic!r}")
    for text, settings in dynamic.items():
        where = f"quantization_config.dynamic[{text!r}]"
        pattern = "re:" + text.removeprefix("-:").removeprefix("+:")
        if not isinstance(settings, Mapping | None):
            raise CheckpointError(f"{where} must be a table of settings, got {settings!r}")
        try:
            matches_name(pattern, "")
        except TargetError as error:
            raise CheckpointError(f"{where}: {error}") from error
        rules.append((pattern, None if text.startswith("-:") else _kind(config, settings or {}, where)))
    return ConfigLookup(usual, rules, bool(config.get("lm_head")), version)


def _kind(config: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> _Kind:
    both = {**config, **settings}
    kind = both.get("bits"), both.get("group_size", -1), both.get("sym", True)
    try:
        scheme_of(kind, V1)  # type: ignore[arg-type]
    except SchemeError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return kind  # type: ignore[return-value]
