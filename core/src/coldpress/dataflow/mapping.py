"""A user's own mappings, checked by the same certificate as what probing finds.

    mappings:
      - [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]     [who balances, who smooths]

A mapping is a claim: "these layers, and no others, read that producer".  It is accepted where probing agrees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import nn

from coldpress.dataflow.call import Call
from coldpress.dataflow.pair import Pair
from coldpress.dataflow.probe import Dataflow, probe
from coldpress.dataflow.sharing import Shared
from coldpress.dataflow.workbench import Workbench
from coldpress.errors import TargetError
from coldpress.spelling import suggest
from coldpress.stage import class_names, input_dim, is_linear, matches

_SIDES = ("balance_layers", "smooth_layer")


@frozen
class UserMapping:
    """One claim of a user.

    Attributes:
        consumers: patterns of the layers that take the scale ("balance layers").
        producer: pattern of the one that gives it ("smooth layer").
    """

    consumers: tuple[str, ...]
    producer: str

    def __str__(self) -> str:
        return f"[{list(self.consumers)}, {self.producer!r}]"


def plain_mapping(entry: Any) -> Any:
    """An object with `balance_layers` and `smooth_layer`, such as an `AWQMapping`, as a mapping of plain data."""
    if all(hasattr(entry, name) for name in _SIDES):
        return {name: getattr(entry, name) for name in _SIDES}
    return entry


def parse_mappings(value: object) -> tuple[UserMapping, ...]:
    """Mappings from a recipe: `[[consumers], producer]` or `{"balance_layers": ..., "smooth_layer": ...}` each.

    Raises:
        TargetError: an entry has another form.
    """
    if not isinstance(value, list | tuple):
        raise TargetError(f"mappings must be a list of [[consumers], producer], got {value!r}")
    return tuple(v if isinstance(v, UserMapping) else _parse(v) for v in value)


def resolve(
    block: nn.Module,
    call: Call,
    mappings: Sequence[UserMapping | object],
    *,
    prefix: str = "",
    shared: Shared | None = None,
) -> tuple[Pair, ...]:
    """The pairs that mappings claim, for one block.

    Args:
        block: probed, never touched.
        call: as captured.
        mappings: as a recipe has them.
        prefix: name of the block in the model; patterns may match full names or names in the block.
        shared: see `find_pairs`.

    Returns:
        One pair per producer that a mapping matches in this block; nothing for mappings whose producer and
        consumers are all elsewhere (`unmatched` finds those that match nowhere).

    Raises:
        TargetError: a claim is not true: consumers missing, shapes that do not fit, a reader that is not listed,
            or a producer whose scale cannot be taken back.
        ModelError: the block cannot be probed.
    """
    return resolve_in(block, probe(Workbench(block, call), shared or {}), mappings, prefix=prefix)


def resolve_in(
    block: nn.Module, flow: Dataflow, mappings: Sequence[UserMapping | object], *, prefix: str = ""
) -> tuple[Pair, ...]:
    """`resolve` for a block that was probed already, or one that is of its kind."""
    claims = [c for m in parse_mappings(list(mappings)) for c in _claims(block, m, prefix)]
    return tuple(_checked(block, flow, *claim) for claim in claims)


def unmatched(model: nn.Module, mappings: Sequence[UserMapping | object]) -> None:
    """Check that every mapping names something in the model.

    Raises:
        TargetError: a producer or a consumer pattern matches no module.
    """
    modules = dict(model.named_modules())
    for mapping in parse_mappings(list(mappings)):
        for pattern in (mapping.producer, *mapping.consumers):
            if not _matching(modules, pattern, ""):
                short = {n.rpartition(".")[2] for n in modules}
                hint = suggest(pattern.removeprefix("re:").strip("^$.*"), short)
                raise TargetError(f"mapping {mapping}: {pattern!r} matches no module of the model{hint}")


def _parse(entry: Any) -> UserMapping:
    if isinstance(entry, Mapping) and set(_SIDES) <= entry.keys():
        entry = tuple(entry[name] for name in _SIDES)
    if isinstance(entry, list | tuple) and len(entry) == 2:
        consumers, producer = entry
        consumers = [consumers] if isinstance(consumers, str) else consumers
        producer = producer[0] if isinstance(producer, list | tuple) and len(producer) == 1 else producer
        if isinstance(producer, str) and consumers and all(isinstance(c, str) for c in consumers):
            return UserMapping(tuple(consumers), producer)
    raise TargetError(f"a mapping is [[consumers], producer], all patterns; got {entry!r}")


def _matching(modules: Mapping[str, nn.Module], pattern: str, prefix: str) -> list[str]:
    """Names in the block that a pattern matches: exact name, "re:" from the start, or class name."""
    head = prefix + "." if prefix else ""
    return [
        name
        for name, module in modules.items()
        if name and (matches(pattern, name, class_names(module)) or matches(pattern, head + name, ()))
    ]


def _claims(block: nn.Module, mapping: UserMapping, prefix: str) -> list[tuple[UserMapping, str, list[str]]]:
    """(mapping, producer, consumers): every consumer goes to the producer whose name shares most with its own."""
    modules = dict(block.named_modules())
    producers = _matching(modules, mapping.producer, prefix)
    consumers = list(dict.fromkeys(n for c in mapping.consumers for n in _matching(modules, c, prefix)))
    if not producers and not consumers:
        return []
    if not producers or not consumers:
        side, pattern = ("producer", mapping.producer) if not producers else ("consumers", list(mapping.consumers))
        if producers or mapping.producer.startswith("re:") is False:
            raise TargetError(f"mapping {mapping}: {side} {pattern!r} match nothing in block {prefix or '(unnamed)'!r}")
        return []
    given: dict[str, list[str]] = {p: [] for p in producers}
    for name in consumers:
        given[max(producers, key=lambda p: _shared(p, name))].append(name)
    return [(mapping, p, names) for p, names in given.items() if names]


def _shared(a: str, b: str) -> int:
    count = 0
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        count += 1
    return count


def _checked(block: nn.Module, flow: Dataflow, mapping: UserMapping, producer: str, listed: list[str]) -> Pair:
    pair = next((p for p in flow.pairs if p.producer == producer), None)
    if pair is None:
        raise TargetError(f"mapping {mapping}: {producer}: {_why_not(block, flow, producer, listed)}")
    others = [n for n in listed if n not in pair.consumers]
    if others:
        raise TargetError(
            f"mapping {mapping}: {others[0]} does not read {producer} channel by channel"
            f"{_shapes(block, producer, others[0])}; the layers that do: {', '.join(pair.consumers)}"
        )
    missing = [n for n in pair.consumers if n not in listed]
    if missing:
        raise TargetError(
            f"mapping {mapping}: {producer} also feeds {', '.join(missing)}, which the mapping does not list; "
            "folding would change the model: list them, or leave the mapping out"
        )
    return pair


def _why_not(block: nn.Module, flow: Dataflow, producer: str, listed: list[str]) -> str:
    if producer in flow.refused:
        return flow.refused[producer]
    return f"no input is scaled by its channels{_shapes(block, producer, listed[0])}"


def _shapes(block: nn.Module, producer: str, consumer: str) -> str:
    """A remark where the widths cannot fit."""
    gives = block.get_submodule(producer)._parameters.get("weight")
    reads = block.get_submodule(consumer)
    if gives is None or not is_linear(reads):
        return ""
    width = (
        gives.shape[1 - input_dim(block.get_submodule(producer))]
        if is_linear(block.get_submodule(producer))
        else len(gives)
    )
    wanted = reads.get_parameter("weight").shape[input_dim(reads)]
    return "" if wanted == width else f" ({producer} gives {width} channels, {consumer} reads {wanted})"
