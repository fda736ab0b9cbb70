"""Modifiers that exist only here, and readers that know them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import field, frozen
from attrs.validators import ge, in_, lt

from coldpress.errors import RecipeError, UnknownPluginError
from coldpress.modifier import Modifier
from coldpress.recipe import Recipe, read_recipe
from coldpress.schemes import QuantizationArgs, Scheme
from coldpress.spelling import suggest


@frozen
class Window:
    size: int = 4
    stride: float = 1.0


@frozen(kw_only=True, eq=False)
class RoundModifier(Modifier):
    scheme: str | Scheme | None = None
    config_groups: dict[str, Scheme] | None = None
    kv_cache: QuantizationArgs | None = None


@frozen(kw_only=True, eq=False)
class SolveModifier(Modifier):
    dampening_frac: float = field(default=0.01, validator=[ge(0.0), lt(1.0)])
    block_size: int = 128
    sparsity: float = field(default=0.5, validator=ge(0.0))
    order: Literal["weight", "group"] | None = None
    symmetric: bool = True
    mappings: dict[str, str | list[str]] | None = None
    window: Window | None = None
    shape: tuple[int, int] = (1, 1)
    names: tuple[str, ...] = ()
    file: Path | None = None
    observer: str = field(default="minmax", validator=in_(("minmax", "mse")))
    extra: Any = None

    @sparsity.validator
    def _check_order(self, attribute: Any, value: float) -> None:
        if self.order == "group" and value > 0:
            raise ValueError("order 'group' does not prune; set sparsity to 0")


MODIFIERS = {cls.__name__: cls for cls in (RoundModifier, SolveModifier)}


def find(kind: str, name: str) -> type[Modifier]:
    assert kind == "modifiers"
    if name not in MODIFIERS:
        raise UnknownPluginError(f"no modifier is called {name!r}{suggest(name, MODIFIERS)}")
    return MODIFIERS[name]


@pytest.fixture
def read() -> Callable[..., Recipe]:
    """`read_recipe` that knows RoundModifier and SolveModifier."""
    return lambda source, **options: read_recipe(source, find=find, **options)


@pytest.fixture
def problems(read: Callable[..., Recipe]) -> Callable[..., list[str]]:
    """The problems that reading must find."""

    def found(source: object, **options: Any) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            read(source, **options)
        return list(caught.value.problems)

    return found


@pytest.fixture
def round_modifier() -> type[RoundModifier]:
    return RoundModifier


@pytest.fixture
def solve_modifier() -> type[SolveModifier]:
    return SolveModifier
