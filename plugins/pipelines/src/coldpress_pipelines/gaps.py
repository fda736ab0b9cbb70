"""What lies between two lists of blocks: modules that are observed, or that batches run through, are like blocks."""

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from coldpress.plugin import Stage

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)


def with_gaps(parts: Mapping[str, Stage], wanted: Collection[str]) -> dict[str, Stage]:
    """The parts of a model, in which modules between two lists of blocks that hold certain modules stand alone.

    Args:
        parts: of the model, by name; what lies between two lists is called `after` a block.
        wanted: names of these modules, such as layers that are observed.
    """
    found: dict[str, Mapping[str, nn.Module]] = {}
    for name, part in parts.items():
        rest = dict(part.modules)
        for path in [*_largest(part, wanted)] if name.startswith("after ") else ():
            found[path] = {n: rest.pop(n) for n in list(rest) if n == path or n.startswith(f"{path}.")}
        if rest:
            found[name] = rest
    return {name: Stage(name, index, modules) for index, (name, modules) in enumerate(found.items())}


def gaps_of(parts: Mapping[str, Stage]) -> list[str]:
    """Names of the modules of `with_gaps` that stand alone between lists of blocks."""
    return [
        name for name, part in parts.items() if name in part.modules and name not in ("prologue", "epilogue", "model")
    ]


def with_parameters(model: nn.Module) -> set[str]:
    """Names of the modules that have parameters of their own."""
    return {name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None}


def _largest(part: Stage, wanted: Collection[str]) -> Iterator[str]:
    """The largest modules that lie in the part, are called as a whole, and hold wanted ones."""
    last = None
    for path, module in part.modules.items():
        if (last is not None and path.startswith(f"{last}.")) or isinstance(module, _NEVER_CALLED):
            continue
        inside = {name for name, _ in module.named_modules(prefix=path)}
        if inside <= part.modules.keys() and not inside.isdisjoint(wanted):
            last = path
            yield path
