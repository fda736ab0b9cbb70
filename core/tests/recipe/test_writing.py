import math
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import Factory, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldpress.errors import RecipeError
from coldpress.modifier import Modifier
from coldpress.recipe import Choice, Recipe, read_recipe, write_recipe
from coldpress.schemes import QuantizationArgs, Scheme


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@frozen
class Window:
    size: int = 4
    label: str | None = None


@frozen(kw_only=True, eq=False)
class WideModifier(Modifier):
    count: int = 1
    share: float = 0.5
    flag: bool = True
    either: int | float | bool | str = 1
    text: str = ""
    word: Literal["a", "b"] | None = "a"
    pair: tuple[int, float] = (1, 2.0)
    names: tuple[str, ...] = ()
    mappings: dict[str, str | list[str]] | None = None
    nested: list[Window] = Factory(list)
    colour: Colour = Colour.RED
    file: Path | None = None
    scheme: str | Scheme | None = "W8A8"
    extra: Any = None
    twice: int = field(default=Factory(lambda self: 2 * self.count, takes_self=True))


@frozen(kw_only=True, eq=False)
class BareModifier(Modifier):
    pass


CLASSES = {cls.__name__: cls for cls in (WideModifier, BareModifier)}


def replayed(recipe):
    return read_recipe(write_recipe(recipe), find=lambda kind, name: CLASSES[name])


def content(value):
    """Everything in a recipe, in a form that tells 1 from True and 0.0 from -0.0."""
    if attrs.has(type(value)):
        return type(value).__name__, [(a.name, content(getattr(value, a.name))) for a in attrs.fields(type(value))]
    if isinstance(value, list | tuple):
        return type(value).__name__, [content(item) for item in value]
    if isinstance(value, dict):
        return [(content(key), content(item)) for key, item in value.items()]
    return type(value).__name__, repr(value)


odd_words = (
    "null", "~", "true", "yes", "1e5", "0x1F", "012", "1_0", ".inf", "2020-01-01", "=", "<<", "- a", "a: b", "#", "'",
    '"', "${x}", "$${x}", "re:.*\\.mlp$", "a\nb\n", " a ", "\t", "\x85\u2028", "&a", "*a", "!x", "%", "@", "{", "?0",
)  # fmt: skip
words = (st.text(max_size=12) | st.sampled_from(odd_words)).filter(lambda word: "eval" not in word)
numbers = st.integers() | st.floats()
plain = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
schemes = st.builds(
    Scheme,
    targets=st.lists(words, min_size=1, max_size=2).map(tuple),
    weights=st.builds(
        QuantizationArgs,
        num_bits=st.sampled_from([4, 8]),
        symmetric=st.booleans(),
        group_size=st.sampled_from([None, 32, 128]),
    ),
)
paths = st.sampled_from(["a", "a/b.txt", "b c/d"]).map(Path)
modifiers = st.builds(BareModifier, targets=words | st.lists(words, max_size=2)) | st.builds(
    WideModifier,
    targets=st.lists(words, max_size=2),
    ignore=st.lists(words, max_size=2),
    count=st.integers(),
    share=st.floats(),
    flag=st.booleans(),
    either=numbers | st.booleans() | words,
    text=words,
    word=st.sampled_from(["a", "b", None]),
    pair=st.tuples(st.integers(), st.floats()),
    names=st.lists(words, max_size=2).map(tuple),
    mappings=st.none() | st.dictionaries(words, words | st.lists(words, max_size=2), max_size=2),
    nested=st.lists(st.builds(Window, size=st.integers(), label=st.none() | words), max_size=2),
    colour=st.sampled_from(Colour),
    file=st.none() | paths,
    scheme=st.none() | words | schemes,
    extra=plain,
)
names = st.text(alphabet="abcXYZ_-.", min_size=1, max_size=8)


@st.composite
def recipes(draw):
    steps = draw(st.lists(modifiers, min_size=1, max_size=3))
    stages = draw(st.lists(st.none() | names, min_size=len(steps), max_size=len(steps)))
    choice = st.builds(Choice, names, st.dictionaries(words, plain, max_size=2))
    return Recipe(steps, draw(st.none() | names), draw(st.none() | choice), stages=stages)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recipes())
def test_what_is_written_replays_to_the_same_recipe(recipe):
    again = replayed(recipe)

    assert content(again) == content(recipe)
    assert write_recipe(again) == write_recipe(recipe)


def test_only_what_differs_from_the_defaults_is_written():
    recipe = Recipe([WideModifier(share=0.25, twice=2), BareModifier(), WideModifier(twice=2, ignore="lm_head")])

    assert (
        write_recipe(recipe)
        == """\
modifiers:
  - WideModifier: {share: 0.25, twice: 2}
  - BareModifier
  - WideModifier:
      ignore: [lm_head]
      twice: 2
"""
    )


def test_pipeline_format_and_stages_are_kept():
    stages = ["one_stage", None]
    recipe = Recipe([BareModifier(), BareModifier()], "basic", Choice("packed", {"level": 3}), stages=stages)

    again = replayed(recipe)

    assert (again.pipeline, again.format, again.stages) == (recipe.pipeline, recipe.format, ("one_stage", None))


def test_placeholders_are_written_filled():
    text = "args: {n: 3}\nmodifiers: [WideModifier: {count: '${n}', names: ['a${n}']}]"
    recipe = read_recipe(text, arguments={"n": 5}, find=lambda kind, name: CLASSES[name])

    assert "$" not in write_recipe(recipe)
    assert (replayed(recipe).modifiers[0].count, replayed(recipe).modifiers[0].names) == (5, ("a5",))


def test_a_default_that_follows_another_field_is_written():
    assert replayed(Recipe(WideModifier(count=5))).modifiers[0].twice == 10
    assert replayed(Recipe(WideModifier(count=5, twice=2))).modifiers[0].twice == 2


def test_numbers_that_compare_equal_stay_apart():
    (modifier,) = replayed(Recipe(WideModifier(either=True, share=-0.0))).modifiers

    assert modifier.either is True
    assert math.copysign(1, modifier.share) == -1


def test_what_text_cannot_express_is_refused_with_its_path():
    with pytest.raises(RecipeError, match=r"modifiers\[1\]\.WideModifier\.extra\.a\[0\]: object cannot be written"):
        write_recipe(Recipe([BareModifier(), WideModifier(extra={"a": [object()]})]))


@pytest.mark.parametrize("setting", [{"count": "5"}, {"text": "eval(1)"}, {"file": Path("/etc")}, {"extra": "\ud800"}])
def test_what_would_not_replay_is_refused(setting):
    with pytest.raises(RecipeError):
        write_recipe(Recipe(WideModifier(**setting)))


def test_two_classes_of_one_name_are_refused():
    other = frozen(kw_only=True, eq=False)(type("BareModifier", (Modifier,), {}))

    with pytest.raises(RecipeError, match="would not replay"):
        write_recipe(Recipe([BareModifier(), other()]))


def test_a_whole_number_where_a_number_is_meant_is_written_as_one():
    recipe = Recipe([WideModifier(share=1, pair=(1, 2), either=1, count=2)])

    text = write_recipe(recipe)

    assert "share: 1.0" in text
    assert "pair" not in text  # (1, 2.0) is the default
    assert write_recipe(replayed(recipe)) == text
