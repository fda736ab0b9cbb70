import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.recipe.placeholder import escape, fill
from coldpress.recipe.problem import Node, Problems

RECIPE = """\
args: {size: 64, prefix: model}
modifiers:
  - SolveModifier:
      block_size: ${size}
      ignore: ["re:${prefix}.*", "x-${size}"]
"""


def settings(recipe):
    (modifier,) = recipe.modifiers
    return modifier.block_size, modifier.ignore


def test_defaults_fill_placeholders_and_keep_their_type(read):
    assert settings(read(RECIPE)) == (64, ["re:model.*", "x-64"])


@pytest.mark.parametrize("arguments", [{"size": 32, "prefix": "m"}, ["size=32", "prefix=m"], ("size= 32", " prefix=m")])
def test_arguments_win_over_defaults(read, arguments):
    assert settings(read(RECIPE, arguments=arguments)) == (32, ["re:m.*", "x-32"])


def test_a_whole_placeholder_takes_any_value(read, round_modifier):
    text = "modifiers: [{SolveModifier: {mappings: '${m}', ignore: '${i}', extra: '${e}'}}]"

    (modifier,) = read(text, arguments={"m": {"a": ["b"]}, "i": ("x", "y"), "e": round_modifier}).modifiers

    assert (modifier.mappings, modifier.ignore, modifier.extra) == ({"a": ["b"]}, ["x", "y"], round_modifier)


def test_a_default_may_be_a_list(read):
    (modifier,) = read("args: {skip: [a, b]}\nmodifiers: [SolveModifier: {ignore: '${skip}'}]").modifiers

    assert modifier.ignore == ["a", "b"]


def test_arguments_are_inserted_and_not_read_again(read):
    (modifier,) = read("modifiers: [SolveModifier: {ignore: '${a}'}]", arguments={"a": "${b}"}).modifiers

    assert modifier.ignore == ["${b}"]


def test_names_of_modifiers_and_settings_may_be_placeholders(read):
    text = "args: {who: SolveModifier, what: block_size}\nmodifiers: [{'${who}': {'${what}': 5}}]"

    assert read(text).modifiers[0].block_size == 5


def test_a_doubled_dollar_is_a_literal_one(read):
    assert read("modifiers: [SolveModifier: {ignore: 'a$${b}$'}]").modifiers[0].ignore == ["a${b}$"]


@given(st.text(alphabet="${}ab", max_size=12))
def test_escaped_text_holds_no_placeholder(text):
    problems = Problems("")

    assert fill(Node(escape(text), 1, 1), None, problems).value == text
    assert not problems.found


def test_a_placeholder_without_value_is_a_problem_and_hides_no_other(problems):
    found = problems(
        "args: {size: 1}\nmodifiers:\n  - SolveModifier:\n      block_size: ${sise}\n      shape: ${size}\n"
    )

    assert found == [
        "<recipe>:4:19: modifiers[0].SolveModifier.block_size: the placeholder ${sise} has no value; "
        "did you mean 'size'?; declare a default in `args:` or pass it",
        "<recipe>:5:14: modifiers[0].SolveModifier.shape: must be a list of an integer; got 1, an integer",
    ]


def test_an_argument_that_nothing_uses_is_a_problem(problems):
    assert problems(RECIPE, arguments={"sise": 3}) == [
        "<recipe>: argument 'sise': no placeholder ${sise} uses it; did you mean 'size'?"
    ]


def test_a_default_that_nothing_uses_is_a_problem(problems):
    assert problems("args: {size: 1}\nmodifiers: [SolveModifier]") == [
        "<recipe>:1:8: args.size: no placeholder ${size} uses it"
    ]


@pytest.mark.parametrize("text", ["${}", "${a b}", "x${1}", "${a"])
def test_a_broken_placeholder_is_a_problem(problems, text):
    (problem,) = problems(f"modifiers: [SolveModifier: {{observer: '{text}'}}]")

    assert "a placeholder is ${name}" in problem


@pytest.mark.parametrize(("value", "kind"), [(True, "true or false"), (None, "nothing"), ([1], "a list")])
def test_only_text_and_numbers_fit_inside_text(problems, value, kind):
    (problem,) = problems("modifiers: [SolveModifier: {observer: 'a${x}'}]", arguments={"x": value})

    assert f"${{x}} is {kind}, which does not fit inside text" in problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["size"], "'size' is not of the form 'name=value'"),
        (["=3"], "'=3' is not of the form 'name=value'"),
        (["size=1", "size=2"], "'size' is given twice"),
    ],
)
def test_pairs_must_be_name_and_value(problems, arguments, message):
    assert problems(RECIPE, arguments=arguments) == [f"<recipe>: argument {message}"]


@pytest.mark.parametrize("call", ["eval(1 + 1)", " eval (x)", "eval(__import__('os'))"])
def test_nothing_is_evaluated(problems, call):
    (problem,) = problems(f'modifiers: [SolveModifier: {{dampening_frac: "{call}"}}]')

    assert "modifiers[0].SolveModifier.dampening_frac: nothing is evaluated in a recipe" in problem


@pytest.mark.parametrize("default", ["${b}", "eval(2)", "[x, '${b}']"])
def test_a_default_holds_no_placeholder_and_no_call(problems, default):
    (problem,) = problems(f"args:\n  a: {default}\nmodifiers: [SolveModifier: {{extra: '${{a}}'}}]")

    assert problem == "<recipe>:2:6: args.a: a default cannot hold a placeholder or a call"


def test_args_must_be_a_mapping_of_names(problems):
    assert problems("args: [a]\nmodifiers: [SolveModifier]") == [
        "<recipe>:1:7: args: must map names to defaults, not be a list"
    ]
    assert problems("args: {1: a}\nmodifiers: [SolveModifier]") == ["<recipe>:1:8: args: 1 is not a name"]


def test_two_keys_that_are_filled_alike_are_a_problem(problems):
    text = "args: {k: block_size}\nmodifiers:\n  - SolveModifier:\n      block_size: 1\n      ${k}: 2\n"

    assert problems(text) == ["<recipe>:5:7: modifiers[0].SolveModifier: the key 'block_size' is set twice"]


def test_arguments_cannot_fill_objects(problems, solve_modifier):
    (problem,) = problems(solve_modifier(), arguments={"a": 1})

    assert "arguments fill the placeholders of a file or text" in problem
