"""`quantization_config`: schemes of layers to the table that vLLM, transformers and the library read, and back.

    {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
     "config_groups": {"group_0": {"targets": ["Linear"], "weights": {...}, "input_activations": null, ...}},
     "ignore": ["lm_head"], ...}

A reader finds the group of a layer by its name (exact or `re:`), else by its class; `ignore` comes first.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from coldpress.plugin import (
    Attached,
    CheckpointError,
    KVCache,
    QuantizationArgs,
    Scheme,
    SchemeError,
    matches_name,
    preset,
)
from coldpress_compressed_tensors.layout import DENSE, choose

QUANT_METHOD = "compressed-tensors"
# The release whose layout this is, and against which the tests compare.  Only this number tells the bit streams
# without gaps of 3, 5, 6 and 7 bits from the padded words of early releases, so it must not be an earlier one.
VERSION = "0.20.0"
_MIXED = "mixed-precision"


def write_config(schemes: Mapping[str, Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """The table.

    Args:
        schemes: layer name to scheme, `format` filled in, in model order; at least one.
        ignore: names of layers that a target could mean and that are not quantized.
    """
    groups = _groups({name: _in_table(scheme) for name, scheme in schemes.items()})
    layouts = sorted({str(group.format) for group in groups if group.format != DENSE})
    return {
        "config_groups": {f"group_{number}": group.to_dict() for number, group in enumerate(groups)},
        "format": (layouts[0] if layouts else DENSE) if len(layouts) < 2 else _MIXED,
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": QUANT_METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }


def _in_table(scheme: Scheme) -> Scheme:
    """The scheme as the table tells it: which signs scales may have is seen in the scales."""
    args = scheme.weights
    return scheme if args is None else evolve(scheme, weights=evolve(args, signed_scales=False))


def write_cache(config: dict[str, Any], attachments: Sequence[Attached]) -> dict[str, Any]:
    """The table with what is done to keys and values, and to the queries of some classes of attention.

    As the library writes it: attention whose queries are quantized is a group of its class beside `kv_cache_scheme`.
    vLLM takes a group for attention by its one target, whose name must end so.
    """
    caches = [(one.class_names[0], one.attachment) for one in attachments if isinstance(one.attachment, KVCache)]
    if not caches:
        return config
    groups, args = dict(config["config_groups"]), caches[0][1].args
    for name in sorted({name for name, cache in caches if cache.queries}):
        scheme = Scheme(targets=(name,), input_activations=args)
        groups[f"group_{len(groups)}"] = scheme.to_dict()
    return {**config, "config_groups": groups, "kv_cache_scheme": args.to_dict()}


@frozen
class ConfigLookup:
    """The schemes of a configuration, found as the library finds them.

    Attributes:
        groups: target to scheme; a name or pattern before a class, else in alphabetical order.
        ignore: names, patterns and classes that are not quantized.
    """

    groups: Mapping[str, Scheme]
    ignore: "Patterns"

    def __call__(self, name: str, class_names: Sequence[str]) -> Scheme | None:
        """The scheme of a layer, None when it is not quantized."""
        if self.ignore.means(name, class_names):
            return None
        if name in self.groups:
            return self.groups[name]
        by_name = (target for target in self.groups if matches_name(target, name))
        by_class = (target for target in self.groups if target in class_names)
        target = next(by_name, None) or next(by_class, None)
        return self.groups[target] if target is not None else None


@frozen
class Patterns:
    """Names and classes, which are looked up, and expressions, which are tried.

    Attributes:
        exact: names of layers or classes.
        expressions: with `re:`.
    """

    exact: frozenset[str]
    expressions: tuple[str, ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> "Patterns":
        """Sort patterns by kind."""
        patterns = list(patterns)
        return cls(
            frozenset(pattern for pattern in patterns if not pattern.startswith("re:")),
            tuple(pattern for pattern in patterns if pattern.startswith("re:")),
        )

    def means(self, name: str, class_names: Sequence[str]) -> bool:
        """Whether one of them means this layer."""
        if name in self.exact or not self.exact.isdisjoint(class_names):
            return True
        return any(matches_name(expression, name) for expression in self.expressions)


def read_config(config: Mapping[str, Any]) -> ConfigLookup:
    """Read a table that we or the library wrote.

    Raises:
        CheckpointError: it contradicts itself, or says what cannot be read yet.
    """
    if config.get("sparsity_config"):
        raise CheckpointError(
            "quantization_config: sparsity_config is set; the sparse layouts of old releases cannot be read yet"
        )
    groups = config.get("config_groups", {} if config.get("transform_config") else None)
    if not isinstance(groups, Mapping):
        raise CheckpointError("quantization_config has no config_groups, the table of schemes")
    schemes = [_read_group(name, group, config) for name, group in groups.items()]
    targets = {target: scheme for scheme in schemes for target in scheme.targets}
    ignore = config.get("ignore") or []
    if not isinstance(ignore, list | tuple):
        raise CheckpointError(f"quantization_config: ignore must be a list of names and patterns, got {ignore!r}")
    for pattern in (*targets, *ignore):
        _check_pattern(pattern)
    # A later group takes a target from an earlier one; patterns come after names.
    ordered = {target: targets[target] for target in sorted(targets, key=lambda text: ("re:" in text, text))}
    return ConfigLookup(ordered, Patterns.of(ignore))


@frozen
class CacheLookup:
    """What a configuration says of keys and values; the scales that an attention has tell the rest.

    Attributes:
        args: of all of them; None where they are not quantized.
    """

    args: QuantizationArgs | None

    def __call__(self, name: str, class_names: Sequence[str], tensors: Collection[str]) -> Sequence[KVCache]:
        """The rounding of an attention that has scales."""
        if self.args is None or not {"k_scale", "v_scale", "q_scale"}.intersection(tensors):
            return ()
        return (KVCache(args=self.args, queries="q_scale" in tensors),)


def read_cache(config: Mapping[str, Any]) -> CacheLookup:
    """How keys and values are quantized.

    Raises:
        CheckpointError: `kv_cache_scheme` is not understood.
    """
    found = config.get("kv_cache_scheme")
    try:
        return CacheLookup(QuantizationArgs.from_dict(found) if found else None)
    except SchemeError as error:
        raise CheckpointError(f"quantization_config.kv_cache_scheme: {error}") from error


def _groups(schemes: Mapping[str, Scheme]) -> list[Scheme]:
    """One scheme for all layers that are quantized alike, with targets from which every reader finds the right one."""
    members: dict[Scheme, list[str]] = {}
    targets: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        kind = evolve(scheme, targets=())
        members.setdefault(kind, []).append(name)
        known = targets.setdefault(kind, [])
        known += [target for target in scheme.targets if target not in known]
    found = targets if _unambiguous(members, targets) else members
    return [evolve(kind, targets=tuple(found[kind])) for kind in members]


def _unambiguous(members: Mapping[Scheme, Sequence[str]], targets: Mapping[Scheme, Sequence[str]]) -> bool:
    """Whether each layer is meant by targets of its own group only, as names if there is one, else as classes.

    Classes of layers are not known here, so two groups with a class among their targets count as a conflict.
    """
    names = {name for layers in members.values() for name in layers}
    by_class = {kind for kind, found in targets.items() if any(_is_class(target, names) for target in found)}
    for kind, layers in members.items():
        for name in layers:
            by_name = {other for other, found in targets.items() if any(matches_name(t, name) for t in found)}
            if (by_name or by_class) != {kind}:
                return False
    return True


def _is_class(target: str, names: set[str]) -> bool:
    return not target.startswith("re:") and target not in names


def _read_group(name: str, group: Any, config: Mapping[str, Any]) -> Scheme:
    try:
        # A list is short for a preset: {"W4A16": ["Linear"]}.
        scheme = evolve(preset(name), targets=group) if isinstance(group, list) else Scheme.from_dict(group)
    except SchemeError as error:
        raise CheckpointError(f"quantization_config.config_groups.{name}: {error}") from error
    if config.get("quantization_status", "compressed") != "compressed":
        return evolve(scheme, format=DENSE)  # saved before it was compressed: the weights are whole
    layout = scheme.format or config.get("format")
    return evolve(scheme, format=choose(scheme) if layout in (None, _MIXED) else layout)


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise CheckpointError(f"quantization_config: {pattern!r} is not the name of a layer or class")
    try:
        re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
    except re.error as error:
        raise CheckpointError(f"quantization_config: {pattern!r} is not a regular expression: {error}") from error
