"""MagnitudePruningModifier: structures and settings; ConstantPruningModifier: zeros that outlive other modifiers."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen

from coldpress import SchemeError, read_recipe, testing
from coldpress.errors import RecipeError
from coldpress.numerics import quantize
from coldpress.plugin import QUANTIZES, Modifier, Quantizer, State, hookimpl, weight_qparams
from coldpress.registry import find
from coldpress.testing.models import tiny_conv1d, tiny_llama
from coldpress.testing.trial import claimed
from coldpress_magnitude import ConstantPruningModifier, MagnitudePruningModifier
from coldpress_magnitude.algorithm import prune_weights

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
LINEAR = {"ignore": ["lm_head"]}


run = partial(testing.run, data=(), pipeline="data_free")


def weight(state, name):
    return state.model.get_submodule(name).weight.detach()


def zeros(state, name):
    return (weight(state, name) == 0).float().mean().item()


def half_zero(**settings):
    """A model whose layers have a zero in every second column."""
    model = tiny_llama(**settings)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data[:, ::2] = 0
    return model


# --- magnitude


def test_each_layer_loses_its_smallest_weights():
    plain = tiny_llama()

    state = run(MagnitudePruningModifier(sparsity=0.7, **LINEAR))

    for name, line in state.report.items():
        if line.status == "changed":
            assert torch.equal(weight(state, name), prune_weights(weight(State(model=plain), name), sparsity=0.7))
    assert zeros(state, "lm_head") == 0
    assert state.report[UP].sparsity == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("structure", ["2:4", "1:4", "4:8"])
def test_n_of_m(structure):
    kept, size = map(int, structure.split(":"))

    state = run(MagnitudePruningModifier(mask_structure=structure, **LINEAR))

    assert ((weight(state, DOWN).unflatten(1, (-1, size)) != 0).sum(-1) == kept).all()


def test_columns_rows_and_blocks():
    columns = run(MagnitudePruningModifier(sparsity=0.25, mask_structure="channel", targets=[UP]))
    rows = run(MagnitudePruningModifier(sparsity=0.25, mask_structure="filter", targets=[UP]))
    blocks = run(MagnitudePruningModifier(sparsity=0.25, mask_structure="block_4,8", targets=[UP]))

    assert (weight(columns, UP) == 0).all(0).sum() == 32
    assert (weight(rows, UP) == 0).all(1).sum() == 64
    whole = weight(blocks, UP).view(64, 4, 16, 8).abs().sum((1, 3))
    assert (whole == 0).sum() == 256
    assert zeros(blocks, UP) == zeros(rows, UP) == zeros(columns, UP) == 0.25


def test_conv1d_is_pruned_along_its_inputs():
    state = run(MagnitudePruningModifier(mask_structure="2:4", **LINEAR), model=tiny_conv1d())

    assert ((weight(state, "transformer.h.0.mlp.c_fc").t().unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_final_sparsity_is_the_peers_word_and_the_schedule_has_no_effect():
    (modifier,) = read_recipe(
        "modifiers:\n"
        "  - MagnitudePruningModifier:\n"
        "      init_sparsity: 0.05\n"
        "      final_sparsity: 0.5\n"
        "      update_scheduler: cubic\n"
        "      scheduler_args: {}\n"
        "      mask_structure: unstructured\n"
        "      leave_enabled: false\n"
        "      targets: Linear\n"
    ).modifiers

    assert zeros(run(modifier), UP) == 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1"),
        ({"final_sparsity": -0.5}, "final_sparsity must be at least 0 and below 1"),
        ({"sparsity": 0.5, "final_sparsity": 0.5}, "give either"),
        ({"sparsity": 0.5, "mask_structure": "channels"}, "there are unstructured"),
        ({"sparsity": 0.5, "mask_structure": "block_0,4"}, "there are unstructured"),
        ({"sparsity": 0.5, "mask_structure": "1:4"}, "a sparsity of 0.75"),
        ({"mask_structure": "channel"}, "sparsity is missing"),
        ({"sparsity": 0.5, "init_sparsity": 1.5}, "init_sparsity must be at least 0"),
        ({"sparsity": 0.5, "update_scheduler": "calc(p)"}, "code that a recipe runs"),
        ({"sparsity": 0.5, "scheduler_args": {"exponent": 2}}, "cubic has no 'exponent'"),
        ({"sparsity": 0.5, "update_scheduler": "polynomial", "scheduler_args": {"exponent": 0}}, "above 0"),
        ({"sparsity": 0.5, "update_scheduler": "multi_step"}, "needs values"),
        ({"sparsity": 0.5, "start": 2.0, "end": 1.0}, "comes before start"),
        ({"sparsity": 0.5, "update": -1}, "update counts epochs"),
        ({"sparsity": 0.5, "update": 0}, "update must be above 0"),
        ({"sparsity": 0.5, "init_sparsity": 0.8}, r"init_sparsity: 0\.8 is above the final sparsity, 0\.5"),
        (
            {"sparsity": 0.5, "update_scheduler": "multi_step", "scheduler_args": {"values": [0.2, 0.7]}},
            r"values: 0\.7 is above",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        MagnitudePruningModifier(**settings)


def test_in_a_recipe_such_settings_have_a_place():
    with pytest.raises(RecipeError, match=r":3:.*comes before start"):
        read_recipe("modifiers:\n  - MagnitudePruningModifier:\n      {end: 0.5, start: 1.0, sparsity: 0.5}\n")


@pytest.mark.parametrize(
    ("setting", "said"), [("leave_enabled", "name ConstantPruningModifier"), ("apply_globally", "one after the other")]
)
def test_what_acts_in_training_is_refused_in_one_shot(setting, said):
    with pytest.raises(SchemeError, match=said):
        run(MagnitudePruningModifier(sparsity=0.5, **{setting: True}, **LINEAR))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mask_structure": "2:5"}, "128 columns do not split into groups of 5"),
        ({"mask_structure": "block_3,4", "sparsity": 0.5}, "128 x 128 weights do not split into blocks of 3 x 4"),
    ],
)
def test_a_structure_that_does_not_divide_names_the_layer_before_anything_is_done(settings, said):
    model = tiny_llama()

    with pytest.raises(SchemeError, match=said):
        run(MagnitudePruningModifier(**settings, **LINEAR), model=model)
    assert not any((p == 0).any() for p in model.parameters() if p.ndim == 2)


# --- zeros that are kept


@frozen(kw_only=True, eq=False)
class Shift(Modifier):
    """Adds to every weight, which leaves no zero."""

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight + 0.125)


@frozen(kw_only=True, eq=False)
class Shifted(Quantizer):
    """StageRun weights that it has moved away from zero."""

    traits: ClassVar[frozenset[str]] = frozenset({QUANTIZES})

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            quantized = self.quantized(state, layer)
            args, moved = quantized.scheme.weights, layer.weight + 0.125
            scale, point = weight_qparams(moved, args)
            codes = quantize(moved, scale, point, args)
            state.set_quantized(layer, evolve(quantized, codes=codes, scale=scale, zero_point=point))


def test_what_was_zero_is_zero_again_and_the_rest_is_left():
    state = run(Shift(**LINEAR), ConstantPruningModifier(**LINEAR), model=half_zero())
    without = run(Shift(**LINEAR), model=half_zero())

    assert (weight(state, UP)[:, ::2] == 0).all()
    assert torch.equal(weight(state, UP)[:, 1::2], weight(without, UP)[:, 1::2])
    assert state.report[UP].notes["zeros_put_back"] == 256 * 64
    assert (state.report[UP].status, state.report[UP].sparsity) == ("changed", 0.5)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC"])
def test_codes_are_put_back_too_symmetric_or_not(scheme):
    state = run(Shifted(scheme=scheme, **LINEAR), ConstantPruningModifier(**LINEAR), model=half_zero())

    quantized = state.quantized[UP]
    assert (weight(state, UP)[:, ::2] == 0).all()
    assert torch.equal(weight(state, UP), quantized.weight(torch.float32))
    assert state.report[UP].status == "quantized"


def test_after_rounding_there_is_nothing_to_put_back():
    quantizer = find("modifiers", "QuantizationModifier")
    state = run(quantizer(scheme="W4A16", **LINEAR), ConstantPruningModifier(**LINEAR), model=half_zero())

    assert state.report[UP].notes["zeros_put_back"] == 0
    assert (weight(state, UP)[:, ::2] == 0).all()


def test_a_grid_without_zero_is_refused(monkeypatch):
    from coldpress_magnitude import constant

    monkeypatch.setattr(constant, "codes_with_zeros", lambda *args: None)
    with pytest.raises(SchemeError, match=r"q_proj is quantized on a grid without an exact zero"):
        run(Shifted(scheme="W4A16", **LINEAR), ConstantPruningModifier(**LINEAR), model=half_zero())


def test_it_runs_last_wherever_it_is_named():
    state = run(ConstantPruningModifier(**LINEAR), Shift(**LINEAR), model=half_zero())

    assert zeros(state, UP) == 0.5
    assert state.report[UP].notes["zeros_put_back"] == weight(state, UP).numel() // 2


@pytest.mark.parametrize("kind", [MagnitudePruningModifier, ConstantPruningModifier])
@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("__ALL_PRUNABLE__", 15),
        ("model.layers.0", 7),
        ("re:.*layers.1$", 7),
        ("LlamaMLP", 6),
        ("re:.*[qk]_proj.weight", 4),
        ("model.layers.0.mlp.up_proj.weight", 1),
        (["re:.*weight"], 16),
    ],
)
def test_a_target_is_a_layer_its_weight_or_what_holds_it(kind, targets, count):
    settings = {"sparsity": 0.5} if kind is MagnitudePruningModifier else {}

    assert len(claimed(kind(targets=targets, **settings), tiny_llama())) == count


def test_alone_it_changes_nothing_and_says_why():
    state = run(ConstantPruningModifier(**LINEAR), model=half_zero())
    plain = run(ConstantPruningModifier(**LINEAR))

    assert (state.report[UP].status, state.report[UP].reason) == ("untouched", "its zeros are still zero")
    assert plain.report[UP].reason == "no weight of it is zero"
    assert not state.scratch
