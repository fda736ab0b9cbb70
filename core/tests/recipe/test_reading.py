import json
import re
from pathlib import Path

import pytest

from coldpress import registry
from coldpress.errors import BrokenPluginError, RecipeError
from coldpress.recipe import Recipe, read_recipe

TYPO = """\
# a recipe with one mistake
pipeline: basic

modifiers:
  - SolveModifier:
      block_size: 4
      dampning_frac: 0.1
"""


def test_objects_are_recipes(read, solve_modifier, round_modifier):
    one, two = solve_modifier(), round_modifier()
    recipe = Recipe((one,))

    assert read(recipe) is recipe
    assert read(one).modifiers == (one,)
    assert read([one, [two, (one,)]]).modifiers == (one, two, one)


@pytest.mark.parametrize("kind", [str, None])
@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_a_file_is_read_by_path_or_by_its_name(read, tmp_path, suffix, kind):
    path = tmp_path / f"w8a8.{suffix}"
    path.write_text(json.dumps({"modifiers": [{"SolveModifier": {"block_size": 4}}]}, indent="\t"))

    assert read(kind(path) if kind else path).modifiers[0].block_size == 4


CARD = """\
---
license: apache-2.0
tags: [small]
one_stage:
  some_modifiers:
    SolveModifier: {block_size: 4}
---
# A model card

modifiers: not these
---
"""


@pytest.mark.parametrize(("above", "fence"), [("", "---"), ("\ufeff", "+++"), ("# title\n\n", "---")])
def test_the_front_matter_of_a_markdown_file_is_a_recipe(read, tmp_path, above, fence):
    path = tmp_path / "README.md"
    path.write_text(above + CARD.replace("---", fence), encoding="utf-8")

    assert [modifier.block_size for modifier in read(path).modifiers] == [4]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("block_size", "blok_size", "6:21: one_stage.some_modifiers.SolveModifier.blok_size: unknown setting"),
        ("license:", "modifers:", "2:1: modifers: unknown key; did you mean 'modifiers'?"),
        ("---", "--", " no front matter: a Markdown file holds its recipe between two lines '---'"),
        (CARD, "---\nlicense: mit\n---\n", "2:1: the recipe has no modifiers"),
    ],
)
def test_a_mistake_in_front_matter_has_its_place_in_the_file(problems, tmp_path, old, new, problem):
    path = tmp_path / "README.md"
    path.write_text(CARD.replace(old, new))

    assert problems(path)[0].startswith(f"{path}:{problem}")


def test_a_mistake_in_a_file_has_its_line_and_column(problems, tmp_path):
    path = tmp_path / "w8a8.yaml"
    path.write_text(TYPO)

    assert problems(path) == [
        f"{path}:7:7: modifiers[0].SolveModifier.dampning_frac: unknown setting; did you mean 'dampening_frac'?"
    ]


def test_a_mistake_in_text_has_its_line_and_column(problems):
    assert problems(TYPO)[0].startswith("<recipe>:7:7: modifiers[0].SolveModifier.dampning_frac: ")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_text(problems):
    found = problems("""\
modifiers:
  - SolveModifier:
      dampening_frac: 3
      block_size: "64"
      symmetric: yes
      sparsity: true
      order: wieght
      observer: nothing
      file: /etc/passwd
      ignore: [a, 3]
      mappings:
        a: [1]
      window: {sise: 2}
  - RoundModifier:
      scheme: {targets: [Linear], weights: {num_bits: 4, symetric: true}}
      config_groups:
        group_0: {targets: [Linear], weights: {num_bits: four}}
  - RundModifier: {}
unknown: 1
""")

    assert [problem.removeprefix("<recipe>:").split(": ")[:2] for problem in found] == [
        ["3:23", "modifiers[0].SolveModifier.dampening_frac"],
        ["4:19", "modifiers[0].SolveModifier.block_size"],
        ["5:18", "modifiers[0].SolveModifier.symmetric"],
        ["6:17", "modifiers[0].SolveModifier.sparsity"],
        ["7:14", "modifiers[0].SolveModifier.order"],
        ["8:17", "modifiers[0].SolveModifier.observer"],
        ["9:13", "modifiers[0].SolveModifier.file"],
        ["10:19", "modifiers[0].SolveModifier.ignore[1]"],
        ["12:13", "modifiers[0].SolveModifier.mappings.a[0]"],
        ["13:16", "modifiers[0].SolveModifier.window.sise"],
        ["15:58", "modifiers[1].RoundModifier.scheme.weights.symetric"],
        ["17:58", "modifiers[1].RoundModifier.config_groups.group_0.weights.num_bits"],
        ["18:5", "modifiers[2].RundModifier"],
        ["19:1", "unknown"],
    ]


def test_a_mistake_behind_two_aliases_is_one_mistake(problems):
    text = "modifiers:\n  - &a\n    SolveModifier: {blok: 1}\n  - *a\n"

    assert len(problems(text)) == 2  # two modifiers
    assert len({problem.split(": ")[0] for problem in problems(text)}) == 1  # one place


def test_an_unknown_modifier_gets_the_message_of_the_registry(problems):
    assert problems("modifiers: [SolvModifier]") == [
        "<recipe>:1:13: modifiers[0].SolvModifier: no modifier is called 'SolvModifier'; did you mean 'SolveModifier'?"
    ]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "evil.py", "os:system", "a..b", "module:Class", "./x", "a/b/c"]
)
def test_a_modifier_named_by_a_path_or_an_import_is_refused(name):
    with pytest.raises(RecipeError, match="is not a plugin name|no modifier is called"):
        read_recipe(f"modifiers: ['{name}']", find=registry.find)


def test_a_plugin_that_is_no_modifier_is_a_problem():
    with pytest.raises(RecipeError, match="1:1: Thing: the plugin 'Thing' is not a Modifier class"):
        read_recipe("Thing: {}", find=lambda kind, name: dict)


def test_a_broken_plugin_is_one_problem_among_others(solve_modifier):
    def find(kind, name):
        if name == "Broken":
            raise BrokenPluginError("the modifier 'Broken' cannot be imported")
        return solve_modifier

    with pytest.raises(RecipeError) as caught:
        read_recipe("modifiers: [Broken, {SolveModifier: {blok: 1}}]", find=find)

    assert len(caught.value.problems) == 2


def test_only_modifiers_of_the_chosen_stage_are_looked_up(solve_modifier):
    asked = []

    def find(kind, name):
        asked.append((kind, name))
        return solve_modifier

    read_recipe("a_stage: {x_modifiers: {Other: {}}}\nb_stage: {x_modifiers: {Wanted: {}}}", stage="b", find=find)

    assert asked == [("modifiers", "Wanted")]


def test_a_file_that_is_not_there_is_told_with_near_names(problems, tmp_path):
    (tmp_path / "w8a8.yaml").touch()
    missing = tmp_path / "w8a9.yaml"

    assert problems(missing) == [
        f"there is no recipe file {str(missing)!r}; did you mean {str(tmp_path / 'w8a8.yaml')!r}?"
    ]


@pytest.mark.parametrize(
    "text", ["no_such_recipe.yaml", "recipes/nothing", "a\\b", "nowhere/x.json", "Some Recipe.YML"]
)
def test_one_line_that_looks_like_a_path_is_a_path(problems, text):
    assert problems(text)[0].startswith(f"there is no recipe file {text!r}")


@pytest.mark.parametrize(
    "text", ["modifiers: [SolveModifier: {names: [a/b]}]", "{modifiers: [SolveModifier: {names: [a/b]}]}"]
)
def test_one_line_of_yaml_with_a_slash_in_it_is_no_path(read, text):
    assert read(text).modifiers[0].names == ("a/b",)


def test_a_folder_and_a_binary_file_are_told(problems, tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")

    assert "cannot be read" in problems(tmp_path)[0]
    assert "not UTF-8 text" in problems(tmp_path / "x.yaml")[0]


@pytest.mark.parametrize("source", [3, None, {"modifiers": []}, b"modifiers: []", object])
def test_what_is_no_recipe_is_told(problems, source):
    assert problems(source)[0].startswith("a recipe is a modifier, a list of them, a file or text, not ")


@pytest.mark.parametrize(
    ("source", "message"), [("", "empty"), ("  \n# nothing\n", "empty"), ("{}", "has no modifiers")]
)
def test_an_empty_recipe_is_told(problems, source, message):
    assert message in problems(source)[0]


def test_a_list_that_holds_something_else_is_told(problems, solve_modifier):
    assert problems([solve_modifier(), solve_modifier, "x.yaml"]) == [
        "modifiers[1]: expected a Modifier, got the class SolveModifier; call it",
        "modifiers[2]: expected a Modifier, got str",
    ]


def test_stages_must_be_as_many_as_modifiers(solve_modifier):
    with pytest.raises(RecipeError, match="2 stages are named for 1 modifiers"):
        Recipe(solve_modifier(), stages=["a", "b"])


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_expanded(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("wrong")

    with pytest.raises(RecipeError, match=re.escape(str(tmp_path / "recipe.yaml"))):
        read_recipe(kind("~/recipe.yaml"))


KWARGS = """modifiers:
  - QuantizationModifier:
      config_groups:
        all:
          targets: [Linear]
          weights:
            num_bits: 8
            observer: percentile
            observer_kwargs:
              {setting}
"""


@pytest.mark.parametrize(
    ("setting", "place", "said"),
    [
        ("percentilez: 99.0", "10:15: ", "'percentile' has no 'percentilez'; did you mean 'percentile'?"),
        ("percentile: 300.0", "9:13: ", "observer_kwargs of 'percentile': "),
    ],
)
def test_observer_kwargs_that_the_observer_does_not_take_are_told_with_their_place(setting, place, said):
    with pytest.raises(RecipeError) as error:
        read_recipe(KWARGS.replace("{setting}", setting))

    (problem,) = error.value.problems
    assert problem.startswith(
        f"<recipe>:{place}modifiers[0].QuantizationModifier.config_groups.all.weights.observer_kwargs"
    )
    assert said in problem
