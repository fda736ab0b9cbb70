"""SparseGPTModifier: which layer gets which sparsity, what is shared, what it falls back to, and what it refuses."""

import logging
from functools import partial

import pytest
import torch

from coldpress import SchemeError, oneshot, read_recipe, testing
from coldpress.errors import RecipeError
from coldpress.plugin import State, block_names
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.trial import inputs_of
from coldpress_sparsegpt import SparseGPTModifier
from coldpress_sparsegpt.algorithm import prepare, sparsegpt

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"
QKV = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
LINEAR = {"ignore": ["lm_head"]}


run = partial(testing.run, pipeline="sequential")


def weight(state, name):
    found = state.model.get_submodule(name).weight.detach()
    return found.t() if "Conv1D" in type(state.model.get_submodule(name)).__name__ else found


def zeros(state, name):
    return (weight(state, name) == 0).float().mean().item()


def reasons(state):
    return {name: line.reason for name, line in state.report.items() if line.status == "fallback"}


# --- what it does


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "layer_sequential"])
def test_every_layer_but_the_ignored_is_two_of_four(pipeline):
    state = run(SparseGPTModifier(mask_structure="2:4", **LINEAR), pipeline=pipeline)

    changed = [name for name, line in state.report.items() if line.status == "changed"]
    assert len(changed) == 14
    for name in changed:
        assert ((weight(state, name).unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()
    assert zeros(state, "lm_head") == 0


def test_weights_are_those_of_the_algorithm_on_all_tokens():
    plain, data = tiny_llama(), batches(batch_size=4)
    x = inputs_of(plain, data)[QKV[0]]
    weights = [plain.get_submodule(name).weight.detach().clone() for name in QKV]

    state = run(SparseGPTModifier(sparsity=0.6, block_size=32, **LINEAR), data=data)

    solutions = sparsegpt(
        weights,
        prepare(x.t() @ x, dampening_frac=0.01),
        sparsities=[0.6] * 3,
        structure=None,
        block_size=32,
        keep_zeros=False,
    )
    for name, old, solution in zip(QKV, weights, solutions, strict=True):
        assert ((weight(state, name) == 0) != (solution.weight == 0)).float().mean() < 0.005
        x_error = (x @ (weight(state, name) - old).t()).square().sum() / len(x)
        assert state.report[name].notes["output_error"] == pytest.approx(float(x_error), rel=0.01)


def test_layers_that_share_an_input_are_solved_as_if_alone():
    together = run(SparseGPTModifier(sparsity=0.5, targets=QKV))
    apart = run(*(SparseGPTModifier(sparsity=0.5, targets=[name]) for name in QKV))

    for name in QKV:
        torch.testing.assert_close(weight(together, name), weight(apart, name), rtol=1e-4, atol=1e-5)


def test_what_comes_later_sees_the_same_statistics():
    """Pruning does not move the signal: a second modifier reads what the first one read, in one sweep."""
    data = batches(batch_size=4)
    twice = run(
        SparseGPTModifier(mask_structure="2:4", **LINEAR),
        SparseGPTModifier(mask_structure="2:4", preserve_sparsity_mask=True, **LINEAR),
        pipeline="basic",
        data=data,
    )
    once = run(SparseGPTModifier(mask_structure="2:4", **LINEAR), pipeline="basic", data=data)

    for name in [*QKV, UP, DOWN]:  # what is gone stays gone, so there is nothing left to make up for
        torch.testing.assert_close(weight(twice, name), weight(once, name))


def test_conv1d_is_pruned_along_its_inputs():
    state = run(SparseGPTModifier(mask_structure="2:4", **LINEAR), model=tiny_conv1d())

    name = "transformer.h.0.mlp.c_fc"
    assert weight(state, name).shape == (256, 64)
    assert ((weight(state, name).unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_zeros_that_are_there_stay_and_count():
    model = tiny_llama()
    before = {}
    for name in [*QKV, UP]:
        tensor = model.get_submodule(name).weight.data
        tensor[:, ::3] = 0
        before[name] = tensor == 0

    state = run(SparseGPTModifier(sparsity=0.5, preserve_sparsity_mask=True, **LINEAR), model=model)

    for name, mask in before.items():
        assert (weight(state, name)[mask] == 0).all()
        assert zeros(state, name) == pytest.approx(0.5, abs=0.01)


def test_the_report_says_how_it_went():
    state = run(SparseGPTModifier(sparsity=0.5, **LINEAR))

    line = state.report[UP]
    assert (line.status, line.sparsity) == ("changed", pytest.approx(0.5, abs=0.001))
    assert line.notes["tokens"] == 128
    assert line.notes["dampening"] == pytest.approx(0.01)
    assert line.notes["output_error"] > 0
    assert line.seconds > 0


# --- one sparsity for each block


def test_a_list_has_one_sparsity_for_each_block():
    state = run(SparseGPTModifier(sparsity=[0.25, 0.75], **LINEAR))

    assert zeros(state, UP) == pytest.approx(0.25, abs=0.001)
    assert zeros(state, DOWN) == pytest.approx(0.75, abs=0.001)
    assert state.report[DOWN].notes["sparsity_asked"] == 0.75


@pytest.mark.parametrize(
    "targets", [["model.layers.1", "model.layers.0.mlp"], ["re:.*layers.1$", "re:.*layers.0.mlp$"]]
)
def test_a_list_may_have_one_sparsity_for_each_module_that_targets_match(targets):
    state = run(SparseGPTModifier(sparsity=[0.25, 0.75], targets=targets))

    assert zeros(state, UP) == pytest.approx(0.25, abs=0.001)  # in model.layers.0, which comes first in the model
    assert zeros(state, DOWN) == pytest.approx(0.75, abs=0.001)
    assert not zeros(state, "model.layers.0.self_attn.o_proj")


def test_a_list_counts_blocks_that_have_layers_to_prune():
    targets = ["re:model.layers.1.*"]

    assert zeros(run(SparseGPTModifier(sparsity=[0.75], targets=targets)), DOWN) == pytest.approx(0.75, abs=0.001)


def test_a_list_of_the_wrong_length_is_refused_before_anything_is_done():
    state = State(model=tiny_llama(), batches=batches())

    with pytest.raises(SchemeError, match=r"3 numbers; 2 blocks .* 14 modules"):
        run(SparseGPTModifier(sparsity=[0.5] * 3, **LINEAR), model=state.model)
    assert not (weight(state, UP) == 0).any()


def test_a_layer_outside_of_the_blocks_has_no_place_in_a_list():
    with pytest.raises(SchemeError, match=r"lm_head is in none of the model's blocks.*ignore it"):
        run(SparseGPTModifier(sparsity=[0.5, 0.5]))


# --- outlier weighed layerwise sparsity


OWL = {"sparsity": 0.5, "sparsity_profile": "owl", "owl_m": 2.0, "owl_lmbda": 0.1, **LINEAR}


def test_owl_spares_the_block_with_outliers_and_keeps_the_mean():
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        if name.startswith("model.layers.1.") and parameter.ndim == 2:
            parameter.data[:, :2] *= 20
    state = run(SparseGPTModifier(**OWL | {"owl_m": 5.0}), model=model, pipeline="basic")

    asked = [state.report[name].notes["sparsity_asked"] for name in (UP, DOWN)]
    assert asked == [pytest.approx(0.6), pytest.approx(0.4)]
    assert zeros(state, UP) == pytest.approx(0.6, abs=0.001)
    assert zeros(state, DOWN) == pytest.approx(0.4, abs=0.001)


def test_owl_is_what_the_paper_says():
    """The shares of |w| |x| above M times its mean, slowly."""
    plain, data = tiny_llama(), batches(batch_size=4)
    inputs, shares = inputs_of(plain, data), []
    for block in block_names(plain):
        names = [name for name in inputs if name.startswith(block)]
        scores = [plain.get_submodule(n).weight.abs() * inputs[n].double().square().sum(0).sqrt() for n in names]
        flat = torch.cat([one.flatten() for one in scores])
        shares.append((flat > 2 * flat.mean()).double().mean().item())
    scaled = [(one - min(shares)) / (max(shares) - min(shares)) * 2 * 0.1 for one in shares]
    expected = [0.5 - one + sum(scaled) / 2 for one in scaled]

    state = run(SparseGPTModifier(**OWL), model=plain, pipeline="basic", data=data)

    asked = [state.report[f"{block}.mlp.up_proj"].notes["sparsity_asked"] for block in block_names(plain)]
    assert asked == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential"])
def test_owl_looks_at_all_blocks_before_the_first_is_pruned(pipeline):
    asked = [
        [run(SparseGPTModifier(**OWL), pipeline=name).report[layer].notes["sparsity_asked"] for layer in (UP, DOWN)]
        for name in (pipeline, "basic")
    ]

    assert asked[0] == pytest.approx(asked[1], abs=1e-4)


# --- bad input


def test_fewer_tokens_than_columns_are_said_with_numbers(caplog):
    with caplog.at_level(logging.WARNING):
        state = run(SparseGPTModifier(sparsity=0.5, **LINEAR), data=batches(rows=2, length=16))

    said = [line.split(";")[0] for line in caplog.messages if "tokens for" in line]
    wide = DOWN.replace("1", "0")
    assert said == [f"{QKV[0]}: 32 tokens for 128 columns", f"{wide}: 32 tokens for 256 columns"]  # others are alike
    assert state.report[DOWN].notes["tokens"] == 32
    assert zeros(state, UP) == pytest.approx(0.5, abs=0.001)


def test_experts_are_pruned_on_their_own_tokens_and_without_any_by_magnitude():
    arguments = {"recipe": SparseGPTModifier(mask_structure="2:4", **LINEAR), "tokenizer": tiny_tokenizer()}
    model = oneshot(
        tiny_mixture("qwen3_moe"), dataset=[{"text": "ab"}], moe_calibrate_all_experts=False, quiet=True, **arguments
    )

    experts = [module for name, module in model.named_modules() if ".experts." in name and hasattr(module, "weight")]
    assert len(experts) == 24
    assert all(((one.weight.unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all() for one in experts)


def test_a_single_token_will_do():
    state = run(SparseGPTModifier(mask_structure="2:4", **LINEAR), data=batches(rows=1, length=1))

    assert zeros(state, UP) == 0.5
    assert torch.isfinite(weight(state, DOWN)).all()


def constant(model):
    """Every token gives the same activations."""
    model.model.embed_tokens.weight.data[:] = model.model.embed_tokens.weight.data[7]
    return model


def test_constant_activations_will_do():
    state = run(SparseGPTModifier(mask_structure="2:4", **LINEAR), model=constant(tiny_llama()))

    assert not reasons(state)
    assert torch.isfinite(weight(state, DOWN)).all()


def test_inputs_that_are_always_zero_leave_magnitude():
    model = tiny_llama()
    model.model.layers[0].input_layernorm.weight.data.zero_()
    old = model.get_submodule(QKV[0]).weight.detach().clone()

    state = run(SparseGPTModifier(mask_structure="2:4", targets=[QKV[0]]), model=model)

    assert reasons(state) == {QKV[0]: "pruned by magnitude: its inputs are zero for all of the calibration data"}
    smallest = old.abs().unflatten(1, (-1, 4)).argsort(-1)[..., :2]
    assert (weight(state, QKV[0]).unflatten(1, (-1, 4)).gather(2, smallest) == 0).all()


def test_a_layer_that_no_token_reached_is_pruned_by_magnitude_and_says_so():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    state = run(
        SparseGPTModifier(mask_structure="2:4"), model=Idle(), pipeline="basic", data=[{"x": torch.randn(1, 64, 8)}]
    )

    assert reasons(state) == {"idle": "pruned by magnitude: no token of the calibration data reached it"}
    assert zeros(state, "idle") == 0.5


def test_what_cannot_be_factorized_is_pruned_by_magnitude_and_norm(monkeypatch):
    from coldpress_sparsegpt import modifier

    monkeypatch.setattr(modifier, "prepare", lambda gram, dampening_frac: None)
    state = run(SparseGPTModifier(sparsity=0.5, targets=[UP]))

    assert "magnitude times input norm: the Gram matrix of its inputs is not positive definite" in reasons(state)[UP]
    assert zeros(state, UP) == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outliers_in_half_precision_stay_finite(dtype):
    model = tiny_llama(dtype=dtype)
    for name in (UP, DOWN):
        model.get_submodule(name).weight.data[0, 0] = 6e4 if dtype is torch.float16 else 1e30
    model.model.layers[0].post_attention_layernorm.weight.data[3] = 300

    state = run(SparseGPTModifier(mask_structure="2:4", targets=[UP]), model=model)

    assert torch.isfinite(weight(state, UP)).all()
    assert weight(state, UP).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"sparsity": -0.1}, "at least 0 and below 1, got -0.1"),
        ({"sparsity": [0.5, 1.5]}, "at least 0 and below 1, got 1.5"),
        ({"sparsity": 0.5, "mask_structure": "2"}, "it is n:m with 0 < n < m"),
        ({"sparsity": 0.5, "mask_structure": "4:4"}, "it is n:m with 0 < n < m"),
        ({"sparsity": 0.4, "mask_structure": "2:4"}, "a sparsity of 0.5, and sparsity is 0.4"),
        ({"sparsity": 0.25, "mask_structure": "1:4"}, "leave sparsity out, or write 3:4 to keep 3"),
        ({"sparsity": [0.5, 0.5], "mask_structure": "2:4"}, "a sparsity of 0.5, and sparsity is"),
        ({"sparsity": 0.5, "owl_m": 5.0}, "belong to sparsity_profile: owl"),
        ({"sparsity": 0.5, "sparsity_profile": "owl"}, "needs owl_m and owl_lmbda"),
        ({**OWL, "sparsity": [0.5, 0.5]}, "must be one number"),
        ({**OWL, "sparsity": 0.9}, "0.2, so sparsity must be one number at least that far from 0 and 1; got 0.9"),
        ({**OWL, "mask_structure": "2:4"}, "choose one"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        SparseGPTModifier(**settings)


def test_in_a_recipe_such_settings_have_a_place():
    with pytest.raises(RecipeError, match=r":3:.*sparsity must be at least 0"):
        read_recipe("modifiers:\n  - SparseGPTModifier:\n      sparsity: 1.5\n")


def test_a_structure_that_does_not_divide_names_the_layer_before_anything_is_done():
    model = tiny_llama()

    with pytest.raises(SchemeError, match=r"q_proj: 128 columns do not split into groups of 5"):
        run(SparseGPTModifier(mask_structure="2:5", **LINEAR), model=model)


def test_the_peers_words_are_understood():
    (modifier,) = read_recipe(
        "modifiers:\n"
        "  - SparseGPTModifier:\n"
        "      sparsity: 0.5\n"
        '      mask_structure: "2:4"\n'
        "      block_size: 128\n"
        "      dampening_frac: 0.01\n"
        "      preserve_sparsity_mask: false\n"
        "      offload_hessians: true\n"
        "      targets: Linear\n"
        "      ignore: ['re:.*lm_head']\n"
    ).modifiers

    assert modifier.structure() == (2, 4)
