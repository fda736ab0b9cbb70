"""The blocks of a model, found without names, and which of them are alike.

model ── the ModuleList that weighs most (classes in `no_split_modules` first) ──> model.layers.0, .1, ...
"""

from collections.abc import Iterable, Sequence

from attrs import frozen
from torch import nn

from coldpress.errors import ModelError, TargetError
from coldpress.spelling import suggest
from coldpress.stage import class_names, matches

REPEATED = (nn.ModuleList, nn.Sequential)


@frozen(eq=False)
class Block:
    """One decoder block.

    Attributes:
        name: path in the model.
        module: the block itself.
        kind: index of the kind; blocks of one kind have the same classes and shapes inside.
    """

    name: str
    module: nn.Module
    kind: int


def find_blocks(model: nn.Module, targets: Sequence[str] | None = None) -> list[Block]:
    """The blocks of a model in the order of its modules.

    Args:
        model: any module; may be on the meta device.
        targets: class names, module names or "re:" patterns of module names that say what a block is;
            None takes the first of `block_lists`.

    Raises:
        TargetError: `targets` match nothing.
        ModelError: nothing in the model is repeated.
    """
    return _with_kinds(_named_blocks(model, targets)) if targets else block_lists(model)[0]


def block_lists(model: nn.Module) -> list[list[Block]]:
    """Every list of blocks that the model has, the likeliest first.

    That is the list with most parameters, where a list of a class that the model says must not be split
    (`_no_split_modules`) beats any other.  Lists inside a better list's blocks (experts) are left out.

    Raises:
        ModelError: nothing in the model is repeated.
    """
    hints: Iterable[str] = getattr(model, "_no_split_modules", None) or ()
    unsplit = set(hints)
    lists: list[tuple[tuple[bool, int], list[tuple[str, nn.Module]]]] = []
    for name, module in model.named_modules():
        if not isinstance(module, REPEATED):
            continue
        members = [(f"{name}.{n}" if name else n, m) for n, m in module.named_children()]
        weight = sum(p.numel() for p in module.parameters())
        if members and weight:
            hinted = any(type(m).__name__ in unsplit for _, m in members)
            lists.append(((hinted, weight), members))
    found: list[list[tuple[str, nn.Module]]] = []
    for _, members in sorted(lists, key=lambda entry: entry[0], reverse=True):
        if not any(members[0][0].startswith(outer + ".") for better in found for outer, _ in better):
            found.append(members)
    if not found:
        raise ModelError(
            f"no list of blocks in {type(model).__name__}: no module is repeated; "
            "name the class of a block with sequential_targets"
        )
    return [_with_kinds(members) for members in found]


def _with_kinds(found: list[tuple[str, nn.Module]]) -> list[Block]:
    kinds: dict[object, int] = {}
    return [Block(name, module, kinds.setdefault(signature(module), len(kinds))) for name, module in found]


def signature(module: nn.Module) -> object:
    """What two blocks of one kind have in common: classes, shapes and switches (bool or str) of all modules inside."""
    classes = tuple((n, type(m).__qualname__, _switches(m)) for n, m in module.named_modules())
    shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
    return classes, shapes


def _switches(module: nn.Module) -> tuple[tuple[str, object], ...]:
    fields = vars(module).items()
    return tuple(sorted((k, v) for k, v in fields if isinstance(v, bool | str) and k != "training" and k[0] != "_"))


def _named_blocks(model: nn.Module, targets: Sequence[str]) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer, _ in found)
        if not inside and any(matches(target, name, class_names(module)) for target in targets):
            found.append((name, module))
    if not found:
        known = {type(m).__name__ for m in model.modules()}
        wanted = ", ".join(map(repr, targets))
        raise TargetError(f"no module is a block named {wanted}{suggest(targets[0], known)}")
    return found
