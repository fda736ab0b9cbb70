"""SpinQuantModifier: the function of models is kept, outliers are spread, and what cannot be rotated is refused."""

from copy import deepcopy

import pytest
import torch
import transformers
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaMLP

from coldpress import ModelError, RecipeError, TargetError, oneshot
from coldpress.plugin import State
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.testing.families import tiny_family
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import VOCABULARY, batches, filled, logits, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import Parts
from coldpress_spinquant import SpinQuantModifier

ALL = ["R1", "R2", "R3", "R4"]
DOWN = "model.layers.0.mlp.down_proj"


def tiny_opt():
    """Norms are declared before the blocks and run after them; everything has a bias."""
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return filled(transformers.OPTForCausalLM(config), torch.float32, 0)


def tiny_moe():
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        moe_intermediate_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    config._experts_implementation = "eager"  # grouped kernels have no float64
    return filled(transformers.Qwen3MoeForCausalLM(config), torch.float32, 0)


def run(model, *modifiers):
    state = State(model=model, batches=batches(rows=2, batch_size=2))
    Job(recipe=Recipe(modifiers), state=state, pipeline=Parts()).run()
    return state


def change(model, modifier):
    data, model = batches(rows=2), model.double()
    before = logits(model, data)
    run(model, modifier)
    return float((logits(model, data) - before).norm() / before.norm())


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d, tiny_opt, tiny_moe], ids=lambda f: f.__name__)
def test_the_function_is_kept_by_all_rotations(build):
    """Float32 angles of positions and norms that compute in float32 leave 1e-7."""
    assert change(build(), SpinQuantModifier(rotations=ALL, randomize=True)) < 1e-6


@pytest.mark.parametrize("kind", ["hadamard", "random-hadamard", "random-matrix"])
def test_the_function_is_kept_by_every_type_in_blocks(kind):
    modifier = SpinQuantModifier(rotations=["R1", "R4"], transform_type=kind, transform_block_size=16)

    assert change(tiny_llama(tied=True), modifier) < 1e-6


def test_a_layer_whose_weight_alone_is_read_is_not_rotated_online():
    """LongCat's router multiplies by the weight of a layer that it never calls."""

    class Direct(LlamaMLP):
        def forward(self, x):
            return functional.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)

    model = tiny_llama()
    model.model.layers[0].mlp.__class__ = Direct

    assert change(model, SpinQuantModifier(rotations=["R2", "R4"])) < 1e-6


def test_a_model_whose_experts_were_not_all_reached_is_rotated_whole():
    model = tiny_moe()
    before = deepcopy(model.state_dict())

    run(model, SpinQuantModifier(rotations=["R1"]))

    same = [n for n, t in model.state_dict().items() if torch.equal(t, before[n]) and "q_norm" not in n]
    assert [name for name in same if "k_norm" not in name] == []


def test_sandwich_norms_refuse_r1_and_take_the_others():
    model = tiny_family("gemma3")
    with pytest.raises(ModelError, match=r"R1: .*post_attention_layernorm .*rotations=\['R2', 'R4'\]"):
        run(model.model.language_model, SpinQuantModifier())


def test_blocks_that_run_on_images_need_not_be_probed_where_their_layers_are_ignored():
    modifier = SpinQuantModifier(rotations=["R2", "R4"], ignore=["re:.*vision_tower.*", "lm_head"])

    with pytest.raises(ModelError, match=r"vision_tower.* never called; if R2 and R4 need not .* ignore its layers"):
        run(tiny_family("gemma3"), SpinQuantModifier(rotations=["R2", "R4"]))
    state = run(tiny_family("gemma3"), modifier)

    rotated = [name for name, line in state.report.items() if "rotated" in line.notes]
    assert len(rotated) == 6
    assert not [name for name in rotated if "vision_tower" in name]
    assert change(tiny_family("gemma3"), modifier) < 1e-6


def test_a_tied_head_is_untied():
    model = tiny_llama(tied=True)

    state = run(model, SpinQuantModifier(rotations=["R1"]))

    assert model.lm_head.weight is not model.model.embed_tokens.weight
    notes = state.report["lm_head"].notes
    assert (notes["untied_from"], notes["untied_bytes"]) == ("model.embed_tokens", 4 * model.lm_head.weight.numel())
    assert model.config.tie_word_embeddings is False


def test_outliers_of_inputs_are_spread():
    model, data = tiny_llama(), batches(rows=4)
    model.model.embed_tokens.weight.data[:, 3] *= 50
    model.model.layers[0].mlp.up_proj.weight.data[5] *= 50
    seen = {}

    def peak(module, args):
        x = args[0].float().flatten(0, -2)
        seen.setdefault(module, []).append(float((x.abs().amax(1) / x.square().mean(1).sqrt()).median()))

    layers = [model.get_submodule(name) for name in ("model.layers.0.self_attn.q_proj", DOWN)]
    handles = [layer.register_forward_pre_hook(peak) for layer in layers]
    logits(model, data)
    for handle in handles:
        handle.remove()
    run(model, SpinQuantModifier(rotations=ALL))
    handles = [layer.register_forward_pre_hook(peak) for layer in layers]
    logits(model, data)

    for layer in layers:
        assert seen[layer][-1] < 0.5 * seen[layer][0]


def test_a_norm_of_zeros_is_folded():
    model = tiny_llama()
    model.model.layers[0].input_layernorm.weight.data[::7] = 0

    assert change(model, SpinQuantModifier()) < 1e-6


def test_rotated_models_say_what_was_done():
    state = run(tiny_llama(), SpinQuantModifier(rotations=["R1", "R4"]))

    assert state.report[DOWN].notes["rotated"] == "fused, online"
    assert state.report["lm_head"].notes["rotated"] == "fused"
    assert all("folded_norms" not in line.notes for line in state.report.values())


def test_ignored_layers_have_no_online_rotation():
    state = run(tiny_llama(), SpinQuantModifier(rotations=["R4"], ignore=[DOWN]))

    assert "rotated" not in state.report[DOWN].notes
    assert state.report[DOWN.replace("0", "1")].notes["rotated"] == "fused, online"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotations": ["R5"]}, "must be some of R1, R2, R3, R4"),
        ({"rotations": []}, "must be some of"),
        ({"transform_type": "fourier"}, "fourier"),
        ({"transform_block_size": 1}, "2 at least"),
        ({"precision": "int8"}, "floating-point"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises((ValueError, RecipeError), match=message):
        SpinQuantModifier(**settings)


def test_blocks_that_do_not_divide_are_refused_before_the_run():
    model = tiny_llama()
    before = deepcopy(model.state_dict())

    with pytest.raises(ModelError, match="blocks of 48 columns do not divide a width of 128"):
        run(model, SpinQuantModifier(transform_block_size=48))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def sized(**sizes):
    """A small model with other sizes; no Hadamard matrix of order 92 is known."""
    config = transformers.LlamaConfig(**{**tiny_llama(layers=1).config.to_dict(), **sizes})
    return filled(transformers.LlamaForCausalLM(config), torch.float32, 0)


def test_what_a_width_is_checked_with_is_the_rotation_that_will_be_used():
    with pytest.raises(ModelError, match=r"R4: .*down_proj: .*blocks of 4, 2; .*'random-matrix'"):
        run(sized(intermediate_size=92), SpinQuantModifier(rotations=["R4"]))
    modifier = SpinQuantModifier(rotations=["R4"], transform_type="random-matrix")
    assert change(sized(intermediate_size=92), modifier) < 1e-6


def test_a_width_of_which_no_block_can_be_rotated_is_refused_as_that():
    with pytest.raises(ModelError, match=r"order 67 is known here; no blocks would do either; .*'random-matrix'"):
        run(sized(intermediate_size=67), SpinQuantModifier(rotations=["R4"]))


@pytest.mark.parametrize(("rotation", "where"), [("R2", "v_proj"), ("R3", "self_attn")])
def test_heads_without_a_hadamard_matrix_are_refused_before_the_run(rotation, where):
    model = sized(head_dim=92)
    before = deepcopy(model.state_dict())

    with pytest.raises(ModelError, match=rf"{rotation}: .*{where}: .*heads of 92 channels; .*leave {rotation} out"):
        run(model, SpinQuantModifier(rotations=["R1", rotation]))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert change(model, SpinQuantModifier(rotations=[rotation], transform_type="random-matrix")) < 1e-6


TRUE = {
    "embedding": "re:.*embed_tokens$",
    "attn": "re:.*self_attn$",
    "attn_q": "re:.*q_proj$",
    "attn_k": None,
    "attn_o": "re:.*o_proj$",
    "attn_head_dim": 32,
    "mlp_in": ["re:.*up_proj$", "re:.*gate_proj$"],
    "mlp_out": ["re:.*down_proj$"],
    "lm_head": "lm_head",
}


def test_a_true_mapping_is_taken():
    norms = [{"norm": "re:.*input_layernorm$", "linears": ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]}]

    run(tiny_llama(), SpinQuantModifier(mappings=TRUE, norm_mappings=norms))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mappings": {**TRUE, "mlp_in": ["re:.*down_proj$"]}}, "down_proj does not read the residual stream"),
        ({"mappings": {**TRUE, "attn_o": "re:.*v_proj$"}}, "v_proj does not add to the residual stream"),
        ({"mappings": {**TRUE, "lm_head": "head"}}, "'head' matches no module"),
        ({"mappings": {**TRUE, "attn": "re:.*mlp$"}}, "mlp has no value heads in it"),
        ({"mappings": {**TRUE, "attn_head_dim": 64}}, "value heads have 32"),
        ({"mappings": {"mlp": "up"}}, "a table with some of"),
        ({"norm_mappings": {"norm": "re:.*input_layernorm$", "linears": ["re:.*q_proj$"]}}, "is not listed and reads"),
    ],
)
def test_a_false_mapping_is_refused(settings, message):
    with pytest.raises(TargetError, match=message):
        run(tiny_llama(layers=1), SpinQuantModifier(**settings))


def test_after_a_modifier_that_acts_later_it_is_refused_when_the_recipe_is_read():
    with pytest.raises(RecipeError, match="put SpinQuantModifier before Rounding"):
        Recipe([Rounding(scheme="W8A8"), SpinQuantModifier()])


def test_a_run_that_is_killed_resumes_with_the_same_bytes_though_a_norm_and_its_reader_are_in_two_stages(tmp_path):
    tiny_opt().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    recipe = "modifiers: [SpinQuantModifier: {rotations: [R1, R2]}]"

    def compress(name):
        oneshot(str(tmp_path / "model"), recipe, output_dir=str(tmp_path / name), quiet=True)
        return (tmp_path / name / "model.safetensors").read_bytes()

    with interrupted(2):
        compress("killed")

    assert compress("killed") == compress("whole")
