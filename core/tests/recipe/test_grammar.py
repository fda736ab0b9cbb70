import pytest


def steps(recipe):
    return [
        (type(modifier).__name__, getattr(modifier, "block_size", None), stage)
        for modifier, stage in zip(recipe.modifiers, recipe.stages, strict=True)
    ]


STAGED = """\
first_stage:
  smoothing_modifiers:
    SolveModifier: {block_size: 1}
  quantization_modifiers:
    SolveModifier: {block_size: 2, group: other}
    RoundModifier:
second_stage:
  quantization_modifiers:
    - SolveModifier: {block_size: 3}
    - SolveModifier: {block_size: 4}
"""


def test_our_grammar_reads_modifiers_in_order(read):
    recipe = read("""\
pipeline: data_free
format: compressed-tensors
modifiers:
  - SolveModifier: {block_size: 1}
  - RoundModifier
  - SolveModifier:
      block_size: 2
    stage: last
""")

    assert steps(recipe) == [("SolveModifier", 1, None), ("RoundModifier", None, None), ("SolveModifier", 2, "last")]
    assert (recipe.pipeline.name, recipe.format.name, recipe.format.settings) == ("data_free", "compressed-tensors", {})


def test_a_format_may_have_settings(read):
    recipe = read("format: {packed: {level: 3}}\nmodifiers: [SolveModifier]")

    assert (recipe.format.name, recipe.format.settings) == ("packed", {"level": 3})


def test_the_grammar_of_llm_compressor_reads_stages_and_groups_in_order(read):
    assert steps(read(STAGED)) == [
        ("SolveModifier", 1, "first_stage"),
        ("SolveModifier", 2, "first_stage"),
        ("RoundModifier", None, "first_stage"),
        ("SolveModifier", 3, "second_stage"),
        ("SolveModifier", 4, "second_stage"),
    ]


@pytest.mark.parametrize("stage", ["second", "second_stage", "s"])
def test_a_stage_is_chosen_by_the_beginning_of_its_name(read, stage):
    assert [block for _, block, _ in steps(read(STAGED, stage=stage))] == [3, 4]


def test_a_recipe_object_can_be_cut_to_a_stage(read):
    assert [block for _, block, _ in steps(read(read(STAGED), stage="second"))] == [3, 4]


def test_stages_that_are_left_out_are_named(read, caplog):
    read(STAGED)
    assert "leaves out" not in caplog.text
    read(STAGED, stage="second")
    assert "stage='second' leaves out of the recipe: first_stage" in caplog.text


def test_a_stage_that_is_not_there_is_an_error_with_the_names(problems, solve_modifier):
    assert problems(STAGED, stage="secnd_stage") == [
        "<recipe>: no stage begins with 'secnd_stage'; did you mean 'second_stage'? (stages: first_stage, second_stage)"
    ]
    assert problems("modifiers: [SolveModifier]", stage="a") == [
        "<recipe>: no stage begins with 'a': the recipe has no stages"
    ]
    assert problems(solve_modifier(), stage="a") == ["no stage begins with 'a': the recipe has no stages"]


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("SolveModifier: {block_size: 7}", None),
        ("- SolveModifier: {block_size: 7}", None),
        ("modifiers: {SolveModifier: {block_size: 7}}", None),
        ("quantization_modifiers: {SolveModifier: {block_size: 7}}", None),
        ("whatever: {SolveModifier: {block_size: 7}}", None),
        ("default_stage_0: {default_modifiers: {SolveModifier: {block_size: 7}}}", "default_stage_0"),
        ("one: {two: {SolveModifier: {block_size: 7}}}", "one"),
        ("one_stage: {two: {SolveModifier: {block_size: 7}}}", "one_stage"),
        ("one_stage: {SolveModifier: {block_size: 7}}", "one_stage"),
        ("one_stage: {modifiers: [SolveModifier: {block_size: 7}]}", "one_stage"),
        ('{"modifiers": [{"SolveModifier": {"block_size": 7}}]}', None),
        ("one_stage: {run_type: oneshot, two_modifiers: {SolveModifier: {block_size: 7}}}", "one_stage"),
        ("one: {run_type: oneshot, two_modifiers: {SolveModifier: {block_size: 7}}}", "one"),
    ],
)
def test_other_shapes_are_read_where_they_are_clear(read, text, stage):
    assert steps(read(text)) == [("SolveModifier", 7, stage)]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("modfiers: [SolveModifier]", "1:1: modfiers", "unknown key; did you mean 'modifiers'?"),
        ("solver: {block_size: 1}", "1:1: solver", "unknown key; a recipe has args, pipeline, format, modifiers"),
        ("a_stage: {b: {block_size: 1}}", "1:11: a_stage.b", "unknown key; a stage holds groups"),
        ("a_stage: 3", "1:10: a_stage", "a stage holds groups named <name>_modifiers; got an integer"),
        ("a_modifiers: x", "1:14: a_modifiers", "expected modifiers: a list"),
        ("modifiers: [3]", "1:13: modifiers[0]", "expected a modifier"),
        ("modifiers: [SolveModifier: 3]", "1:28: modifiers[0].SolveModifier", "settings must be a mapping; got"),
        ("modifiers: [{A: {}, B: {}}]", "1:13: modifiers[0]", "expected one modifier, got 2 keys"),
        ("modifiers: [{5: {}}]", "1:14: modifiers[0][5]", "a modifier is named by text"),
        ("modifiers: [{}]", "1:13: modifiers[0]", "expected one modifier, got 0 keys"),
        ("modifiers: [SolveModifier]\npipeline: [a]", "2:11: pipeline", "must be a name; got a list"),
        ("modifiers: [SolveModifier]\nformat: {a: 1, b: 2}", "2:9: format", "name one format"),
        ("modifiers: [SolveModifier]\nformat: {a: 1}", "2:13: format.a", "settings must be a mapping"),
        ("SolveModifier: {group: 3}", "1:24: SolveModifier.group", "must be a name"),
        ("modifiers: [{SolveModifier: {}, stage: 3}]", "1:40: modifiers[0].stage", "must be a name"),
        ("a_stage: {run_type: oneshot}", "1:1", "the recipe has no modifiers"),
        ("a_stage: {run_type: tune, b_modifiers: {}}", "1:21: a_stage.run_type", "must be oneshot or train; got text"),
        ("pipeline: basic", "1:1", "the recipe has no modifiers"),
        ("{}", "1:1", "the recipe has no modifiers"),
        ("null", "1:1", "the recipe is empty"),
        ("SolveModifier", "1:1", "a recipe is a mapping or a list of modifiers, not text"),
    ],
)
def test_what_has_no_meaning_is_a_problem_and_never_nothing(problems, text, place, message):
    (problem,) = problems(text)

    assert problem.startswith(f"<recipe>:{place}: {message}")


@pytest.mark.parametrize("text", ["[]", "modifiers: []", "default_stage: {}", "a_stage: {b_modifiers: {}}"])
def test_a_recipe_may_be_empty_on_purpose(read, text):
    assert read(text).modifiers == ()


def test_a_stage_of_training_is_read_with_a_warning(read, caplog):
    recipe = read("a_stage: {run_type: train, b_modifiers: {SolveModifier: {block_size: 7}}}")

    assert steps(recipe) == [("SolveModifier", 7, "a_stage")]
    assert "a_stage: nothing is trained" in caplog.text


HOUSEKEEPING = "{start: 0.0, end: 2, update: null, index: 3, group: a, requires_calibration_data: true, block_size: 7}"


def test_what_llm_compressor_keeps_beside_the_settings_of_modifiers_is_understood(read, solve_modifier):
    kept = {"start": 0.0, "end": 2, "update": None, "index": 3, "group": "a", "requires_calibration_data": True}

    assert steps(read(f"SolveModifier: {HOUSEKEEPING}")) == [("SolveModifier", 7, None)]
    assert solve_modifier(block_size=7, **kept).block_size == 7


def test_former_settings_of_modifiers_are_understood(read, solve_modifier, caplog):
    former = "{sequential_update: true, sequential_targets: null, num_calibration_steps: null, block_size: 7}"

    assert steps(read(f"SolveModifier: {former}")) == [("SolveModifier", 7, None)]
    assert not caplog.records
    assert solve_modifier(block_size=7, sequential_targets=["Block"]).block_size == 7
    assert "sequential_targets is an argument of the run" in caplog.text


def test_housekeeping_of_another_form_is_a_problem(problems):
    assert problems("SolveModifier: {start: soon}") == ["<recipe>:1:24: SolveModifier.start: must be a number"]


def test_settings_beside_their_modifier_get_a_hint(problems):
    (problem,) = problems("modifiers:\n  - SolveModifier:\n    block_size: 3\n")

    assert problem.endswith("got 2 keys; indent the settings of SolveModifier further than its name")


def test_every_step_is_checked(problems):
    found = problems("a_stage:\n  b_modifiers: 3\nc: 4\nmodifiers: [SolveModifer, {SolveModifier: {blok: 1}}]\n")

    assert [problem.split(": ")[0] for problem in found] == [
        "<recipe>:2:16", "<recipe>:3:1", "<recipe>:4:13", "<recipe>:4:44"
    ]  # fmt: skip
