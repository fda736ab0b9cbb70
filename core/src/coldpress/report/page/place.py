"""Where a layer stands: its block and its kind, by its name."""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen


@frozen
class Place:
    """The place of a layer.

    Attributes:
        stack: what its block belongs to, `model.layers`; empty for a layer of no block.
        block: number of the block; None for a layer of no block.
        kind: its name in the block; `*` for the number of an expert.
    """

    stack: str
    block: int | None
    kind: str


def place_of(name: str) -> Place:
    """The place of a layer: the first number in its name is that of its block."""
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at == len(parts) - 1:
        return Place("", None, name)
    kind = ".".join("*" if part.isdigit() else part for part in parts[at + 1 :])
    return Place(".".join(parts[:at]), int(parts[at]), kind)


@frozen
class Cell:
    """The layers of one kind in one block, with the number of the worst of them.

    Attributes:
        kind: of the layers, with its stack where a model has several.
        block: number of the block.
        value: the largest.
        name: of the layer that has it.
        count: of layers.
    """

    kind: str
    block: int
    value: float
    name: str
    count: int

    def words(self) -> str:
        """What the cell says when it is pointed at."""
        more = f", the largest of {self.count}" if self.count > 1 else ""
        return f"{self.name}: {self.value:.4g}{more}"


def cells_of(values: Mapping[str, float]) -> list[Cell]:
    """Cells of all layers that are in blocks, kind by kind in model order, blocks ascending.

    Args:
        values: name of each layer to its number.
    """
    places = {name: place_of(name) for name in values}
    several = len({place.stack for place in places.values() if place.block is not None}) > 1
    found: dict[tuple[str, int], list[str]] = {}
    for name, place in places.items():
        if place.block is not None:
            kind = f"{place.stack}: {place.kind}" if several else place.kind
            found.setdefault((kind, place.block), []).append(name)
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    cells = []
    for (kind, block), names in found.items():
        worst = max(names, key=lambda name: values[name])
        cells.append(Cell(kind, block, values[worst], worst, len(names)))
    return sorted(cells, key=lambda cell: (kinds.index(cell.kind), cell.block))


def values_of(lines: Iterable[Mapping[str, Any]], number: str) -> dict[str, float]:
    """Name of each layer to a number of its line, or of its notes; only what was measured and is finite."""
    found = {str(line["name"]): line.get(number, line.get("notes", {}).get(number)) for line in lines}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    }
