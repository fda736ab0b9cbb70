from collections.abc import Iterable
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import Converter, Factory, field, frozen
from attrs.validators import ge

from coldpress.errors import BrokenPluginError, RecipeError, SchemeError
from coldpress.recipe import structure_settings


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@frozen
class Inner:
    size: int = field(default=1, validator=ge(1))


class Opaque:
    pass


@frozen
class Own:
    value: int

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Own":
        if set(data) != {"own"}:
            raise SchemeError(f"{next(iter(set(data) - {'own'}))!r} is not a field of Own")
        return cls(data["own"])

    def to_dict(self) -> dict[str, Any]:
        return {"own": self.value}


def as_list(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def made(annotation, value):
    cls = frozen(type("Made", (), {"__annotations__": {"x": annotation}}))
    return structure_settings(cls, {"x": value}, where="made").x


def refused(annotation, value):
    with pytest.raises(RecipeError) as caught:
        made(annotation, value)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (int, 5, 5), (float, 5, 5.0), (float, 0.5, 0.5), (bool, True, True), (str, "a", "a"), (None, None, None),
        (int | None, None, None), (int | float, 5, 5), (float | int, 5, 5), (float | int, 5.5, 5.5),
        (str | list[str], "a", "a"), (str | list[str], ["a"], ["a"]), (list, [1, "a"], [1, "a"]),
        (tuple[str, ...], ["a", "b"], ("a", "b")), (tuple[int, str], [1, "b"], (1, "b")), (set[int], [2, 1], {1, 2}),
        (Iterable[str], ["a"], ["a"]), (dict[str, int], {"a": 1}, {"a": 1}), (dict, {"a": [1]}, {"a": [1]}),
        (dict[str, str | list[str]] | None, {"a": ["b"], "c": "d"}, {"a": ["b"], "c": "d"}),
        (Literal["a", 1], "a", "a"), (Literal["a", 1], 1, 1), (Any, {"a": [None]}, {"a": [None]}),
        (Colour, "red", Colour.RED), (Level, 1, Level.LOW), (Path, "a/b", Path("a/b")),
        (Inner, {"size": 3}, Inner(3)), (Inner | None, {}, Inner()),
        (list[Inner], [{}, {"size": 2}], [Inner(), Inner(2)]),
        (Own, {"own": 3}, Own(3)), (str | Own, {"own": 3}, Own(3)), (str | Own, "own", "own"), (Own, Own(1), Own(1)),
        (Inner, Inner(4), Inner(4)),
    ],
)  # fmt: skip
def test_a_value_that_fits_is_taken(annotation, value, result):
    taken = made(annotation, value)

    assert taken == result
    assert type(taken) is type(result)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, "5", "x: must be an integer; got '5', text"),
        (int, 5.0, "x: must be an integer; got 5.0, a number"),
        (int, True, "x: must be an integer; got True, true or false"),
        (int, None, "x: must be an integer; got null"),
        (float, "0.5", "x: must be a number; got '0.5', text"),
        (float, True, "x: must be a number; got True, true or false"),
        (bool, 1, "x: must be true or false; got 1, an integer"),
        (bool, "yes", "x: must be true or false; got 'yes', text"),
        (str, 5, "x: must be text; got 5, an integer"),
        (list[str], "abc", "x: must be a list of text; got 'abc', text"),
        (list[str], {"a": 1}, "x: must be a list of text; got {'a': 1}, a mapping"),
        (tuple[int, int], [1], "x: must have 2 items, got 1"),
        (dict[str, int], [1], "x: must be a mapping; got [1], a list"),
        (Literal["weight", "group"], "wieght", "x: must be 'weight' or 'group'; got 'wieght'; did you mean 'weight'?"),
        (Literal[1], True, "x: must be 1; got True"),
        (Colour, "blue", "x: must be 'red'; got 'blue'"),
        (Level, True, "x: must be 1; got True"),
        (int | None, "a", "x: must be an integer or null; got 'a', text"),
        (str | list[str], 5, "x: must be text or a list of text; got 5, an integer"),
        (str | list[str], ["a", 5], "x[1]: must be text; got 5, an integer"),
        (dict[str, list[int]], {"a": [1, "b"]}, "x.a[1]: must be an integer; got 'b', text"),
        (Inner, {"size": 0}, "x.size: 'size' must be >= 1: 0"),
        (Inner | None, {"sise": 1}, "x.sise: unknown setting; did you mean 'size'?"),
        (Inner, 3, "x: must be the settings of Inner; got 3, an integer"),
        (str | Own, {"onw": 3}, "x.onw: 'onw' is not a field of Own"),
        (Opaque, "a", "x: must be a Opaque, which text cannot express; got 'a'"),
        (bytes, "a", "x: must be bytes; got 'a', text"),
        (str, "x" * 100, None),
        (int, "x" * 100, f"x: must be an integer; got '{'x' * 56}..., text"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(annotation, value, message):
    if message is None:
        assert made(annotation, value) == value
    else:
        assert refused(annotation, value) == [f"made: {message}"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "C:\\x", "..\\x", "~/x", "\\\\host\\x", "a\0b"])
def test_a_path_that_leads_outside_is_refused(path):
    assert "leads outside" in refused(Path | None, path)[0]


def test_an_object_that_text_cannot_express_is_taken_as_it_is():
    opaque = Opaque()

    assert made(Opaque, opaque) is opaque


def test_every_mistake_is_found():
    @frozen
    class Many:
        a: int
        b: list[int] = Factory(list)
        c: float = field(default=1.0, validator=ge(0))
        d: float = field(default=1.0, validator=ge(0))

    with pytest.raises(RecipeError) as caught:
        structure_settings(Many, {"b": ["x", 1, "y"], "c": -1, "d": -2, "e": 3}, where="many")

    assert caught.value.problems == (
        "many: e: unknown setting; Many has: a, b, c, d",
        "many: the setting 'a' is required",
        "many: b[0]: must be an integer; got 'x', text",
        "many: b[2]: must be an integer; got 'y', text",
        "many: c: 'c' must be >= 0: -1.0",
        "many: d: 'd' must be >= 0: -2.0",
    )


def test_what_a_converter_takes_is_what_a_setting_takes():
    @frozen
    class Converted:
        a: list[str] = field(factory=list, converter=as_list)
        b: tuple[str, ...] = field(default=(), converter=tuple)
        c: int = field(default=0, converter=Converter(lambda value, self: value + len(self.a), takes_self=True))

    converted = structure_settings(Converted, {"a": "x", "b": ["y"], "c": 1}, where="")

    assert (converted.a, converted.b, converted.c) == (["x"], ("y",), 2)
    with pytest.raises(RecipeError, match="a: must be text or a list of text; got 3"):
        structure_settings(Converted, {"a": 3}, where="")


def test_a_mistake_told_by_a_converter_has_the_place_of_its_field():
    def even(value: int) -> int:
        if value % 2:
            raise SchemeError(f"{value} is odd")
        return value

    @frozen
    class Converted:
        a: int = field(default=0, converter=even)
        b: int = field(default=0, converter=even)

    with pytest.raises(RecipeError) as caught:
        structure_settings(Converted, {"a": 1, "b": 3}, where="")

    assert caught.value.problems == ("a: 1 is odd", "b: 3 is odd")


def test_relations_are_checked_with_defaults_in_place(solve_modifier):
    with pytest.raises(RecipeError, match="sparsity: order 'group' does not prune; set sparsity to 0"):
        structure_settings(solve_modifier, {"order": "group"}, where="")


def test_a_field_with_an_underscore_is_set_by_its_alias_and_an_internal_one_not_at_all():
    @frozen
    class Aliased:
        _a: int = 1
        b: int = field(default=2, init=False)

    assert structure_settings(Aliased, {"a": 3}, where="")._a == 3
    with pytest.raises(RecipeError, match="b: unknown setting; Aliased has: a"):
        structure_settings(Aliased, {"b": 3}, where="")


def test_a_validator_that_crashes_is_a_fault_of_the_plugin():
    def crash(instance: object, attribute: object, value: object) -> None:
        raise ZeroDivisionError("oops")

    @frozen
    class Crashing:
        a: int = field(default=1, validator=crash)

    with pytest.raises(BrokenPluginError, match="Crashing fails while checking its settings: ZeroDivisionError: oops"):
        structure_settings(Crashing, {}, where="")


def test_a_class_without_settings_is_a_fault_of_the_plugin():
    with pytest.raises(BrokenPluginError, match="Opaque is not an attrs class"):
        structure_settings(Opaque, {}, where="")


def test_an_annotation_that_names_nothing_is_a_fault_of_the_plugin():
    cls = frozen(type("Lost", (), {"__annotations__": {"x": "NoSuchType"}}))

    with pytest.raises(BrokenPluginError, match="an annotation of Lost cannot be read"):
        structure_settings(cls, {"x": 1}, where="")
