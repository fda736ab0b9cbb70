"""Before a run: which layers a modifier claims, how they will be quantized, and what cannot begin."""

import pytest
import torch
from attrs import evolve, frozen

from coldpress.errors import CalibrationError, ModelError, SchemeError, TargetError
from coldpress.modifier import RUNS_LAST, TRANSFORMS, Modifier, Needs, expanded
from coldpress.run.needs import check_needs
from coldpress.run.outcome import reason_untouched
from coldpress.run.preflight import (
    check_devices,
    claims_of,
    plan_of,
    planned_only,
    shortened,
)
from coldpress.state import State
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import Parts, claimed


def test_claims_are_in_recipe_order_and_model_order():
    first, second = Modifier(targets=["lm_head"]), Modifier(ignore=["re:.*mlp", "lm_head"])
    claims = claims_of([first, second], tiny_llama())

    assert [claim.modifier for claim in claims] == [first, second]
    assert [layer.name for layer in claims[0].layers] == ["lm_head"]
    assert [layer.name.split(".")[-1] for layer in claims[1].layers] == ["q_proj", "k_proj", "v_proj", "o_proj"] * 2


def test_targets_that_are_empty_are_told(caplog):
    claims_of([Rounding(scheme="W8A16", targets=[])], tiny_llama())

    assert "Rounding: targets is empty, so it changes no layer" in caplog.text


@pytest.mark.parametrize("value", [None, 3, ["lm_head", 3]])
def test_patterns_that_are_no_text_are_refused(value):
    with pytest.raises(TargetError, match="take names, classes and 're:' patterns, as text, got"):
        Modifier(ignore=value)


class Keeper(Modifier):
    """Runs last."""

    traits = frozenset({RUNS_LAST})


class Moving(Modifier):
    """Moves scales."""

    traits = frozenset({TRANSFORMS})


@frozen(kw_only=True, eq=False)
class Adopting(Rounding):
    """Takes the schemes of the quantizers before it."""

    def needs_no_scheme(self):
        return True

    def adopts(self, layer):
        return not self.schemes()


def test_what_runs_last_does_so_wherever_a_recipe_has_it():
    keeper, plain, other = Keeper(), Modifier(), Modifier()

    assert expanded([keeper, plain, other]) == [plain, other, keeper]


def test_the_schemes_of_an_earlier_quantizer_are_adopted_layer_by_layer():
    first, second = Rounding(scheme="W8A16", ignore=["lm_head"]), Adopting(ignore=["re:.*o_proj"])
    claims = claims_of([first, second], tiny_llama())

    plan = plan_of(claims)

    owners = {name.rpartition(".")[2]: one.quantizer for name, one in plan.items()}
    assert owners["q_proj"] is owners["down_proj"] is second
    assert owners["o_proj"] is first
    assert "lm_head" not in owners
    assert {one.scheme.weights.num_bits for one in plan.values()} == {8}
    kept, adopted = planned_only(claims, plan)
    assert {layer.name.rpartition(".")[2] for layer in kept.layers} == {"o_proj"}
    assert "lm_head" not in {layer.name for layer in adopted.layers}


def test_to_adopt_a_scheme_there_must_be_one():
    with pytest.raises(SchemeError, match="Adopting has no scheme of its own, and no modifier before it"):
        plan_of(claims_of([Adopting()], tiny_llama()))


def test_a_transformation_may_come_between_quantizers_where_layers_are_left_for_it():
    attention, mlp = Rounding(scheme="W8A16", targets=["re:.*proj$"]), Rounding(scheme="W4A16", targets=["re:.*mlp"])
    early = evolve(attention, targets=["re:.*self_attn"])

    assert len(plan_of(claims_of([early, Moving(), mlp], tiny_llama()))) == 14
    with pytest.raises(SchemeError, match="Moving moves scales between layers, and Rounding quantizes all of its"):
        plan_of(claims_of([attention, Moving(targets=["re:.*mlp"])], tiny_llama()))


def test_modifiers_that_quantize_nothing_have_no_schemes():
    assert plan_of(claims_of([Modifier()], tiny_llama())) == {}


def test_every_quantized_layer_has_its_scheme():
    modifier = Rounding(scheme={"W8A16": ["re:.*mlp"], "W4A16": ["lm_head"]}, group_size=64)
    plan = plan_of(claims_of([modifier], tiny_llama()))

    assert {name: one.scheme.weights.num_bits for name, one in plan.items() if "layers.1" not in name} == {
        "model.layers.0.mlp.gate_proj": 8,
        "model.layers.0.mlp.up_proj": 8,
        "model.layers.0.mlp.down_proj": 8,
        "lm_head": 4,
    }


def test_every_quantized_layer_has_its_quantizer():
    first, second = Rounding(scheme="W8A16", targets=["re:.*mlp"]), Rounding(scheme="W8A16", targets=["lm_head"])
    found = plan_of(claims_of([Modifier(), first, second], tiny_llama()))

    assert {one.quantizer for one in found.values()} == {first, second}
    assert found["lm_head"].quantizer is second
    assert len(found) == 7


@pytest.mark.parametrize(
    ("scheme", "observer", "matter"),
    [("W8A16", "minmax", False), ("W8A8", "minmax", False), ("FP8", "minmax", True), ("FP8", "static_minmax", False)],
)
def test_batch_boundaries_matter_where_ranges_are_averaged_over_batches(scheme, observer, matter):
    assert Rounding(scheme=scheme, input_observer=observer).needs().batch_boundaries is matter


def test_batch_boundaries_do_not_matter_to_second_moments():
    needs = Rounding(scheme="W8A16", weight_observer="imatrix_mse").needs()

    assert needs.data
    assert not needs.batch_boundaries


def test_layers_that_a_scheme_does_not_fit_share_a_line_if_they_are_alike():
    with pytest.raises(SchemeError) as caught:
        plan_of(claims_of([Rounding(scheme="W4A16", group_size=48)], tiny_llama()))

    first, second = str(caught.value).splitlines()
    assert first.startswith("model.layers.0.self_attn.q_proj: weights: group_size 48 does not divide the 128 columns")
    assert first.endswith("or ignore the layer (12 more like it)")
    assert second.startswith("model.layers.0.mlp.down_proj: weights: group_size 48 does not divide the 256 columns")


def test_many_problems_are_counted_and_not_all_listed():
    lines = shortened([f"{number}" for number in range(15)]).splitlines()

    assert len(lines) == 9
    assert lines[-1] == "... and 7 more of this kind"


def test_few_problems_are_all_listed():
    assert shortened(["a", "b"]) == "a\nb"


def test_the_reason_names_who_ignores():
    one, two = Rounding(scheme="W8A16", ignore=["lm_head"]), Modifier(targets=["re:.*mlp"])
    model = tiny_llama()
    (head,) = claimed(Modifier(targets=["lm_head"]), model)
    (query, _) = claimed(Modifier(targets=["re:.*q_proj"]), model)

    assert reason_untouched(head, claims_of([one, two], model)) == "ignored by Rounding"
    assert reason_untouched(query, claims_of([two], model)) == "no target of the recipe matches it"
    assert reason_untouched(query, claims_of([one, two], model)) == "left as it was by Rounding"


def test_a_model_whose_weights_are_not_there_is_refused_unless_they_are_streamed():
    model = tiny_llama().to("meta")

    with pytest.raises(ModelError, match="no weights in memory"):
        check_devices(model, streamed=False)
    check_devices(model, streamed=True)


def test_a_model_on_several_devices_is_refused_by_name():
    model = tiny_llama()
    model.lm_head.to("meta")

    with pytest.raises(ModelError, match=r"embed_tokens.weight is on cpu and lm_head.weight is on meta.*device_map"):
        check_devices(model, streamed=False)


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": torch.ones(0, 4)},
        {"input_ids": torch.ones(2, 0)},
        {"input_ids": torch.ones(2, 4), "attention_mask": torch.zeros(2, 4)},
        {"inputs_embeds": torch.ones(2, 0, 8)},
    ],
    ids=["no rows", "no columns", "padding only", "no vectors"],
)
def test_batches_without_a_token_are_named_if_somebody_reads_them(batch):
    state = State(model=tiny_llama(), batches=[*batches(rows=2), batch])

    with pytest.raises(CalibrationError, match="1 of 3 batches hold no token: 2; leave them out"):
        check_needs([Reader()], Parts(), state)
    check_needs([Modifier()], Parts(), state)


def test_batches_of_which_nobody_can_say_what_they_hold_are_taken():
    check_needs([Reader()], Parts(), State(model=tiny_llama(), batches=[{"x": torch.ones(0, 4)}]))


class Reader(Modifier):
    """Reads data."""

    def needs(self):
        return Needs(data=True)
