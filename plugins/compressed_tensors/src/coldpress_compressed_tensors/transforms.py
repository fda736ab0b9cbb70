"""`transform_config`: online rotations as the library, vLLM and llm-compressor tell them, and back.

    {"config_groups": {"R4": {"type": "hadamard", "head_dim": null, "precision": "torch.bfloat16", ...,
        "apply": [{"targets": ["model.layers.0.mlp.down_proj", ...], "location": "input", "inverse": false, ...},
                  {"targets": [...], "location": "weight_input", "inverse": true, ...}]}}}

The second entry records what is in the weights already; readers do nothing for it.
Rotations of one group that are not by the same matrix are written as groups of their own: v, v_1, ...
The matrix, times the root of its order, is stored once for each group and order, under the first module that has it:
`model.layers.0.mlp.down_proj.R4_input.weight`, in bfloat16 where that holds it exactly, as it does 1 and -1.
One that is learned is of the type `random-hadamard` too, by which engines multiply by whatever is stored.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen
from torch import Tensor, bfloat16, empty, equal

from coldpress.plugin import (
    Attached,
    AttentionRotation,
    CheckpointError,
    InputRotation,
    OnlineRotation,
    OutputRotation,
    SchemeError,
    Weights,
    matches_name,
)

log = logging.getLogger(__name__)

_CLASSES: dict[str, type[OnlineRotation]] = {"input": InputRotation, "output": OutputRotation}
_KEYS = {"type", "apply", "randomize", "requires_grad", "head_dim", "precision"}
_ITEM_KEYS = {"targets", "location", "inverse", "ignore"}
_TYPES = ("hadamard", "random-hadamard")
_ONLINE_ATTENTION = ("q_attn", "k_cache")
_LARGEST = 1 << 15  # of the kernel that vLLM has for `hadamard`
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


def check_rotation(attached: Attached) -> None:
    """Refuse a rotation that vLLM would leave out, or compute wrongly, without saying so.

    Raises:
        SchemeError: says which layer, why, and what would do.
    """
    one = attached.attachment
    assert isinstance(one, OnlineRotation)
    reason = None
    if isinstance(one, AttentionRotation):
        reason = "vLLM does not rotate queries and keys, so that scales of its KV cache would be wrong: leave out R3"
    elif one.transform_type == "random-matrix":
        reason = "vLLM and the library scale and invert it wrongly: choose hadamard or random-hadamard"
    elif _EXPERT.search(attached.name):
        reason = "vLLM does not rotate inputs of experts, and says nothing: ignore them"
    elif attached.name.rpartition(".")[2] == "lm_head":
        reason = "vLLM does not rotate inputs of an output head, and says nothing: ignore it"
    elif "bias" in attached.shapes:
        reason = "vLLM does not load a rotated layer with a bias: ignore it"
    if reason is not None:
        raise SchemeError(f"{attached.name} cannot have the online rotation {one.group}: {reason}")


def write_transforms(config: dict[str, Any], attachments: Sequence[Attached]) -> dict[str, Any]:
    """The table with what is rotated online."""
    groups: dict[str, dict[str, list[Attached]]] = {}
    for one in _named(attachments):
        if isinstance(one.attachment, OnlineRotation):
            groups.setdefault(one.attachment.group, {}).setdefault(one.attachment.location, []).append(one)
    if not groups:
        return config
    schemes = {name: _scheme(found) for name, found in groups.items()}
    slow = [name for name, scheme in schemes.items() if scheme["type"] != "hadamard"]
    log.warning(
        "online rotations %s: vLLM runs none on a CPU, nor with tensor parallelism%s",
        ", ".join(groups),
        f"; {', '.join(slow)} has no kernel there, and is a product with a stored matrix" if slow else "",
    )
    return {**config, "transform_config": {"config_groups": schemes}}


def rotation_tensors(attachments: Sequence[Attached]) -> dict[str, Tensor]:
    """The matrices, by the names that they have in a checkpoint."""
    seen: set[tuple[str, str, int]] = set()
    tensors = {}
    for attached in _named(attachments):
        one = attached.attachment
        if isinstance(one, OnlineRotation):
            key = (one.group, one.location, _order(attached))
            if key not in seen:
                seen.add(key)
                tensors[f"{attached.name}.{one.group}_{one.location}.weight"] = _matrix(attached)
    return tensors


def _matrix(attached: Attached) -> Tensor:
    """What is stored of a rotation; without data where its matrix is not known yet."""
    one, found = attached.attachment, next(iter(attached.buffers.values()), None)
    assert isinstance(one, OnlineRotation)
    if not one.stored:
        matrix = one.matrix(_width(attached))
        return (matrix if one.transform_type == "random-matrix" else matrix.round()).to(bfloat16)
    if found is None:
        return empty(_order(attached), _order(attached), dtype=bfloat16, device="meta")
    short = found.to(bfloat16)
    return short if equal(short.to(found.dtype), found) else found


@frozen
class TransformLookup:
    """The online rotations of a configuration.

    Attributes:
        rotations: targets, what is ignored, and the rotation.
    """

    rotations: tuple[tuple[tuple[str, ...], tuple[str, ...], OnlineRotation], ...]

    def __call__(self, name: str, class_names: Sequence[str], tensors: Collection[str]) -> list[OnlineRotation]:
        """The rotations of a module."""
        return [
            rotation
            for targets, ignore, rotation in self.rotations
            if _means(targets, name, class_names) and not _means(ignore, name, class_names)
        ]


def read_transforms(config: Mapping[str, Any]) -> TransformLookup:
    """What is rotated online.

    Raises:
        CheckpointError: it is not understood.
    """
    table = config.get("transform_config") or {}
    where = "quantization_config.transform_config"
    if not isinstance(table, Mapping) or table.keys() - {"config_groups"}:
        raise CheckpointError(f"{where} is a table of config_groups; got {table!r}")
    found = []
    for name, scheme in (table.get("config_groups") or {}).items():
        if not isinstance(scheme, Mapping) or scheme.keys() - _KEYS or "type" not in scheme:
            raise CheckpointError(f"{where}: {name}: {scheme!r} is no table of {', '.join(sorted(_KEYS))}")
        for item in scheme.get("apply") or ():
            rotation = _read_item(f"{where}: {name}", name, scheme, item)
            if rotation is not None:
                found.append((tuple(_listed(item["targets"])), tuple(_listed(item.get("ignore") or ())), rotation))
    return TransformLookup(tuple(found))


def read_matrix(attached: Attached, weights: Weights) -> dict[str, Tensor] | None:
    """The matrix of a rotation that is stored, wherever the checkpoint has it; None for what is no such rotation.

    Raises:
        CheckpointError: it is not there.
    """
    one = attached.attachment
    if not isinstance(one, OnlineRotation) or not one.stored:
        return None
    size, suffix = _order(attached), f".{one.group}_{one.location}.weight"
    place = next((n for n in weights.names() if n.endswith(suffix) and weights.shape(n) == (size, size)), None)
    if place is None:
        raise CheckpointError(f"{attached.name} is rotated by a matrix of order {size}, and no tensor *{suffix} has it")
    return {one.buffers()[0]: weights.read(place)}


@frozen(eq=False)
class _Group:
    """Rotations by one matrix of each order.

    Attributes:
        settings: what a matrix follows from that is not stored.
        stored: matrices that are stored, by their order.
    """

    settings: tuple[Any, ...]
    stored: dict[int, Tensor] = field(factory=dict)

    def takes(self, settings: tuple[Any, ...], order: int, matrix: Tensor | None) -> bool:
        """Whether a rotation is one of them; from here on it is."""
        known = self.stored if matrix is None else {order: matrix, **self.stored}
        if settings != self.settings or (matrix is not None and not equal(known[order], matrix)):
            return False
        self.stored.update(known)
        return True


def _named(attachments: Sequence[Attached]) -> Iterator[Attached]:
    """The online rotations, those of one group that are not by the same matrix under names of their own."""
    groups: dict[str, list[_Group]] = {}
    for attached in attachments:
        one = attached.attachment
        if isinstance(one, OnlineRotation):
            known = groups.setdefault(one.group, [])
            settings = (one.block_size, one.transform_type, one.seed, one.stored)
            matrix = next(iter(attached.buffers.values()), None)
            number = next((n for n, g in enumerate(known) if g.takes(settings, _order(attached), matrix)), len(known))
            if number == len(known):
                known.append(_Group(settings))
                known[number].takes(settings, _order(attached), matrix)
            yield evolve(attached, attachment=evolve(one, group=f"{one.group}_{number}")) if number else attached


def _scheme(locations: Mapping[str, Sequence[Attached]]) -> dict[str, Any]:
    first = next(iter(locations.values()))[0].attachment
    assert isinstance(first, OnlineRotation)
    apply = []
    for location, found in locations.items():
        targets, back = [one.name for one in found], location == "output"
        apply.append({"targets": targets, "location": location, "inverse": back, "ignore": []})
        apply.append({"targets": targets, "location": f"weight_{location}", "inverse": not back, "ignore": []})
    sizes = [_order(one) for found in locations.values() for one in found]
    kernel = first.transform_type == "hadamard" and all(n & (n - 1) == 0 and n <= _LARGEST for n in sizes)
    return {
        "type": "hadamard" if kernel else "random-hadamard",
        "apply": apply,
        "randomize": False,
        "requires_grad": False,
        "head_dim": first.block_size,
        "precision": "torch.bfloat16",
    }


def _order(attached: Attached) -> int:
    """Channels that are mixed with each other."""
    one = attached.attachment
    assert isinstance(one, OnlineRotation)
    return one.block_size or _width(attached)


def _width(attached: Attached) -> int:
    """Channels that are rotated: inputs or outputs of the layer."""
    rows, columns = attached.shapes["weight"]
    outputs = isinstance(attached.attachment, OutputRotation) != ("Conv1D" in attached.class_names)
    return rows if outputs else columns


def _read_item(where: str, name: str, scheme: Mapping[str, Any], item: Any) -> OnlineRotation | None:
    if not isinstance(item, Mapping) or item.keys() - _ITEM_KEYS or not {"targets", "location"} <= item.keys():
        raise CheckpointError(f"{where}: {item!r} is no table of {', '.join(sorted(_ITEM_KEYS))}")
    location, kind, inverse = item["location"], scheme["type"], bool(item.get("inverse", False))
    if location in ("weight_input", "weight_output"):
        return None
    if location in _ONLINE_ATTENTION:
        return _read_attention(where, name, scheme, location)
    if location not in _CLASSES:
        raise CheckpointError(f"{where}: there is no location {location!r}")
    if kind not in _TYPES or scheme.get("randomize") or inverse != (location == "output"):
        raise CheckpointError(
            f"{where}: a transform of type {kind!r}, randomize={scheme.get('randomize')!r}, inverse={inverse} at "
            f"{location!r} cannot be read; Hadamard matrices can"
        )
    stored = kind != "hadamard"
    return _CLASSES[location](group=name, block_size=scheme.get("head_dim"), transform_type=kind, stored=stored)


def _read_attention(where: str, name: str, scheme: Mapping[str, Any], location: str) -> OnlineRotation | None:
    """Queries and keys are rotated together, so that one entry stands for both."""
    if scheme["type"] != "hadamard":
        raise CheckpointError(f"{where}: queries and keys rotated by {scheme['type']!r} cannot be read; 'hadamard' can")
    return AttentionRotation(group=name, block_size=scheme.get("head_dim")) if location == "q_attn" else None


def _listed(value: Any) -> Iterable[str]:
    return [value] if isinstance(value, str) else value


def _means(patterns: Sequence[str], name: str, class_names: Sequence[str]) -> bool:
    return any(matches_name(pattern, name) or pattern in class_names for pattern in patterns)
