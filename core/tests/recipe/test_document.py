import time

import pytest

from coldpress.errors import RecipeError
from coldpress.recipe.document import MAX_LENGTH, MAX_NODES, parse, scalar
from coldpress.recipe.problem import Problems, locate, plain


def read(text):
    problems = Problems("<recipe>")
    root = parse(text, problems)
    problems.check()
    return plain(root)


def refused(text):
    with pytest.raises(RecipeError) as caught:
        read(text)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64), ("-3", -3), ("012", 12), ("0x1f", 31), ("0o17", 15), ("1_000", 1000), ("1.5", 1.5), ("1e-4", 1e-4),
        (".inf", float("inf")), ("-.inf", float("-inf")), ("true", True), ("False", False), ("yes", "yes"), ("~", None),
        ("null", None), ("2020-01-01", "2020-01-01"), ("'5'", "5"), ('"5"', "5"), ("W4A16", "W4A16"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text, value):
    read_value = read(f"a: {text}")["a"]

    assert read_value == value
    assert type(read_value) is type(value)


def test_json_is_read_with_tabs_escapes_and_characters_beyond_16_bits():
    assert read('{"a":\t1,\n\t"b": [1.5,\tnull, "\\ud83d\\ude00 \\/"]}') == {"a": 1, "b": [1.5, None, "\U0001f600 /"]}


def test_places_count_from_one_and_point_at_key_and_value():
    root = parse("a: 1\nb:\n  - c: x\n", Problems(""))

    key, value = locate(root, ("b", 0, "c"), key=True), locate(root, ("b", 0, "c"))

    assert (key.line, key.column) == (3, 5)
    assert (value.line, value.column) == (3, 8)


def test_aliases_and_merges_are_followed():
    assert read("a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 2},
        "e": {"b": 1, "c": 3},
    }


def test_merging_what_is_no_mapping_is_a_problem():
    assert refused("a: {<<: 3}") == ["<recipe>:1:9: `<<` merges mappings only"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!custom", "!!str", "!"])
def test_every_explicit_tag_is_refused(tag):
    (problem,) = refused(f"a:\n  b: {tag} [x]")

    assert problem.startswith(f"<recipe>:2:6: the tag {tag} is refused")


SENTINEL = "!!python/object/apply:llmcompressor.sentinel.Sentinel"


def test_the_python_tags_of_llm_compressor_are_read_as_plain_data():
    enum = "!!python/object/apply:compressed_tensors.quantization.quant_args.QuantizationType"
    text = f"""\
a: !!python/tuple
- [q, k]
- !!python/tuple [x, 1]
b: {enum} [
  float]
c: {SENTINEL} [static, /x/sentinel.py]
d: {SENTINEL} [not_provided, /x/sentinel.py]
e: !!python/object/apply:torch.device [cpu]
"""

    assert read(text) == {"a": [["q", "k"], ["x", 1]], "b": "float", "c": "static", "e": "cpu"}


@pytest.mark.parametrize("value", ["[]", "[[a]]", "[{a: b}]"])
def test_a_python_tag_without_a_plain_value_is_a_problem(value):
    assert "Sentinel holds no plain value" in refused(f"a: {SENTINEL} {value}")[0]


@pytest.mark.parametrize("value", ["x", "{x: y}"])
def test_a_python_tag_on_something_that_is_no_list_is_refused(value):
    assert "is refused" in refused(f"a: {SENTINEL} {value}")[0]
    assert "the tag !!python/tuple is refused" in refused(f"a: !!python/tuple {value}")[0]


def test_every_tag_is_named_and_not_only_the_first():
    assert [problem.split(":")[1] for problem in refused("a: !x 1\nb: !y 2")] == ["1", "2"]


def test_an_alias_bomb_is_refused_at_once():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 200))
    start = time.process_time()

    (problem,) = refused(bomb)

    assert "once aliases are expanded" in problem
    assert time.process_time() - start < 2


def test_a_value_inside_itself_is_refused():
    assert "endlessly many values" in refused("a: &a [*a]")[0]
    assert "endlessly many values" in refused("a: &a {b: {c: *a}}")[0]


def test_what_is_too_long_is_refused():
    assert "longer than" in refused("a: " + "x" * MAX_LENGTH)[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 10_000])
def test_what_is_too_deep_is_refused_at_once(text):
    start = time.process_time()

    assert "nested deeper than" in refused(text)[0]
    assert time.process_time() - start < 2


def test_too_many_values_are_refused():
    assert f"more than {MAX_NODES} values" in refused("- 1\n" * (MAX_NODES + 1))[0]


def test_a_duplicate_key_names_the_line_of_the_first():
    assert refused("a: 1\nb: {c: 1}\na: 2") == ["<recipe>:3:1: the key 'a' is already set in line 1"]


def test_a_key_must_be_one_value():
    assert refused("? [a, b]\n: 1") == ["<recipe>:1:3: a key must be a single value"]


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: [1, 2", "1:9"), ("a: 1\n  b: 2", "2:4"), ("a: *b", "1:4"), ("--- 1\n--- 2", "2:1"), ("a: '\x01'", "1:5"),
     ("a:\n\tb: 1", "2:1"), ("a: @x", "1:4")],
)  # fmt: skip
def test_what_is_no_yaml_is_one_problem_with_its_place(text, place):
    (problem,) = refused(text)

    assert problem.startswith(f"<recipe>:{place}: ")


def test_an_unquoted_placeholder_in_a_flow_mapping_gets_a_hint():
    assert refused("a: {b: ${c}}")[0].endswith('quote a placeholder inside { } or [ ]: "${name}"')


def test_a_number_too_large_to_read_is_a_problem():
    assert "not a value that a recipe can hold" in refused(f"a: {'9' * 5000}")[0]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_document_without_content_is_empty(text):
    assert refused(text) == ["<recipe>:1:1: the recipe is empty"]


def test_a_byte_order_mark_is_not_content():
    assert read("\ufeffa: 1") == {"a": 1}


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("true", True), ("", None), ("a: b", "a: b"), ("!x", "!x")])
def test_an_argument_is_read_as_one_plain_scalar(text, value):
    assert scalar(text) == value
