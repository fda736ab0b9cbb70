"""Scratch: what modifiers remember between hooks."""

from typing import Any

from coldpress.stage import Layer


class Scratch:
    """What modifiers remember between hooks, by modifier and layer."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], Any] = {}

    def __setitem__(self, key: tuple[Any, Layer], value: Any) -> None:
        self._values[id(key[0]), key[1].name] = value

    def __getitem__(self, key: tuple[Any, Layer]) -> Any:
        return self._values[id(key[0]), key[1].name]

    def __contains__(self, key: tuple[Any, Layer]) -> bool:
        return (id(key[0]), key[1].name) in self._values

    def __len__(self) -> int:
        return len(self._values)

    def pop(self, modifier: Any, layer: Layer) -> Any:
        """The value, which is forgotten."""
        return self._values.pop((id(modifier), layer.name))
