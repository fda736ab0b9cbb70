"""Parameters that a block shares with the rest of the model (zamba's shared attention, tied layers).

A scale folded into a shared parameter reaches every module that owns it, so a pair is sound only
if everybody in it is shared with the same places: then all of these are folded at once.
"""

from collections.abc import Mapping

from torch import nn

from coldpress.dataflow.pair import Pair

Shared = Mapping[str, frozenset[str]]


def shared_parameters(model: nn.Module, block: str) -> Shared:
    """Parameters of a block that also live elsewhere in the model.

    Returns:
        Name in the block -> where else: the part of the other name before the shared suffix.
    """
    head = block + "."
    places: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(p), []).append(name)
    found: dict[str, frozenset[str]] = {}
    for names in places.values():
        for inside in (n for n in names if n.startswith(head)):
            others = [n for n in names if not n.startswith(head)]
            if others:
                found[inside.removeprefix(head)] = frozenset(_place(inside, o) for o in others)
    return found


def unsound(pair: Pair, shared: Shared) -> str | None:
    """Why a pair cannot be folded although its block would not notice; None if it can."""
    names = [s.parameter for s in pair.sites] + [m.site.parameter for m in pair.members]
    places = {n: shared.get(n, frozenset()) for n in names}
    if len(set(places.values())) == 1:
        return None
    first = next(n for n, where in places.items() if where)
    return f"{first} is shared with {', '.join(sorted(places[first]))}, others of the pair are not"


def _place(inside: str, other: str) -> str:
    """What is left of `other` without the longest suffix that it has in common with `inside`."""
    a, b = inside.split("."), other.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(b)
