"""Learned rotations: the loss falls, the function is kept, the same bits in every run, bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file

from coldpress import CalibrationError, ModelError, load_model, oneshot
from coldpress.layer_report import LayerReport
from coldpress.numerics import Rotation, random_orthogonal
from coldpress.plugin import QuantizationArgs, Stage, State
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import Parts
from coldpress_spinquant import SpinQuantModifier
from coldpress_spinquant.algorithm import rounded_rotated
from coldpress_spinquant.learning import _samples, from_text, to_text

TOKENS = {"num_bits": 3, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": TOKENS}
W8A3 = {"config_groups": {"group_0": GROUP}, "ignore": ["lm_head"]}


def without(*layers):
    """W8A3 of all layers but these."""
    return {**W8A3, "ignore": ["lm_head", *(f"re:.*{name}" for name in layers)]}


def run(model, *modifiers, pipeline=None):
    state = State(model=model, batches=batches(rows=8, batch_size=8))
    Job(recipe=Recipe(modifiers), state=state, pipeline=pipeline or Parts()).run()
    return state


def losses(state):
    return [entry["loss"] for entry in state.log if "learning" in entry]


def test_the_loss_falls_and_every_run_gives_the_same_bits():
    modifier = SpinQuantModifier(learnable=True, num_steps=24)
    first, again = (run(tiny_llama(), modifier, Rounding(**W8A3)) for _ in range(2))

    found = losses(first)
    assert sum(found[-8:]) < sum(found[:8])  # of the same eight samples
    assert losses(again) == found
    weights = again.model.state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in first.model.state_dict().items())


@pytest.mark.parametrize("scheme", ["W8A8", "FP8", "NVFP4", "MXFP4"])
def test_inputs_of_every_kind_of_scheme_can_be_learned_for(scheme):
    modifier = SpinQuantModifier(learnable=True, num_steps=1, rotations=["R1"])

    state = run(tiny_llama(layers=1), modifier, Rounding(scheme=scheme, ignore=["lm_head"]))

    assert state.decision(modifier).keys() == {"R1"}


def test_learned_rotations_keep_the_function():
    model, data = tiny_llama(), batches(rows=8, batch_size=8)
    before = logits(model, data)
    off = {**TOKENS, "num_bits": 8}
    fine = {"config_groups": {"group_0": {**GROUP, "input_activations": off}}, "ignore": ["lm_head"]}

    run(model, SpinQuantModifier(learnable=True, num_steps=2, rotations=["R1", "R2", "R4"]), Rounding(**fine))

    assert (logits(model, data) - before).norm() < 0.05 * before.norm()  # what rounding to 8 bits costs


@pytest.mark.parametrize(
    ("ignored", "learned"),
    [
        ("o_proj", {"R1"}),
        ("layers.0.self_attn.o_proj", {"R1", "R2 model.layers.1"}),
        ("(q|k|v|gate|up)_proj", {"R2 model.layers.0", "R2 model.layers.1"}),
    ],
)
def test_only_rotations_that_a_layer_with_quantized_inputs_reads_are_learned(ignored, learned):
    modifier = SpinQuantModifier(learnable=True, num_steps=1)

    state = run(tiny_llama(), modifier, Rounding(**without(ignored)))

    assert state.decision(modifier).keys() == learned
    assert state.report["model.layers.0.self_attn.v_proj"].notes["rotated"] == "fused"


@pytest.mark.parametrize("gain", [None, 2 * torch.arange(1.0, 33).sqrt().double()])
def test_gradients_are_those_of_rotations_through_which_rounding_is_passed_straight(gain):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(6, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(True)
    rotation, turn = random_orthogonal(16, generator), torch.zeros(16, 16, dtype=torch.float64, requires_grad=True)
    args = QuantizationArgs(**TOKENS)

    y = rounded_rotated(x, Rotation(32, 16, block=rotation), gain, args, turn)
    of_x, of_turn = torch.autograd.grad((y.sin() * weight).sum(), [x, turn])

    exponential = torch.matrix_exp(turn - turn.t())  # of a skew matrix, so that it is orthogonal
    turned = Rotation(32, 16, block=rotation @ exponential)
    inner = turned.apply(x if gain is None else x / gain)
    error = rounded_rotated(inner.detach(), None, None, args) - inner.detach()
    plain = turned.apply_transposed(inner + error) * (1.0 if gain is None else gain)
    expected_x, expected = torch.autograd.grad((plain.sin() * weight).sum(), [x, turn])
    assert 0 < (y - x).norm() < 0.5 * x.norm()
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(of_x, expected_x)
    torch.testing.assert_close(of_turn - of_turn.t(), expected)


@pytest.mark.parametrize("build", [tiny_llama, tiny_conv1d], ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [None, 32])
def test_a_learned_online_rotation_is_stored_once_and_keeps_the_function(build, size):
    """Whatever matrix it is, and though bfloat16 rounds it."""
    model, data = build().double(), batches(rows=2)
    before, state = logits(model, data), State(model=model)
    modifier = SpinQuantModifier(learnable="R4", rotations="R4", transform_block_size=size)
    width = model.config.intermediate_size if build is tiny_llama else 4 * model.config.n_embd
    matrix = random_orthogonal(size or width, torch.Generator().manual_seed(0))
    state.note_decision(modifier, to_text({f"R4 {width}": matrix}))
    state.report.update(
        {one.name: LayerReport(one.name, "Linear", tuple(one.weight.shape)) for one in Stage.whole(model).every_layer}
    )

    modifier.initialize(state, Stage.whole(model))

    layers = [module for module in model.modules() if hasattr(module, "R4_input")]
    assert len(layers) == 2
    assert layers[0].R4_input is layers[1].R4_input
    torch.testing.assert_close(layers[0].R4_input, (matrix * len(matrix) ** 0.5).to(torch.bfloat16))
    assert (logits(model, data) - before).norm() < 1e-6 * before.norm()


@pytest.mark.parametrize("rotations", [["R4"], ["R1", "R2", "R4"]])
def test_the_loss_falls_by_learning_online_rotations_alone(rotations):
    modifier = SpinQuantModifier(rotations=rotations, learnable=["R4"], num_steps=24)

    state = run(tiny_llama(), modifier, Rounding(**W8A3))

    assert state.decision(modifier).keys() == {"R4 256"}
    assert sum(losses(state)[-8:]) < sum(losses(state)[:8])


@pytest.mark.parametrize("names", [["R3"], ["R2"], ["R5"]])
def test_rotations_that_are_not_learned_are_refused(names):
    with pytest.raises(ValueError, match=f"some of R1, R2, R4; got '{names[0]}'|rotations does not have"):
        SpinQuantModifier(rotations=["R1", "R3", "R4"], learnable=names)


def test_samples_without_a_token_to_predict_are_left_out_and_refused_where_there_is_no_other():
    ids = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}

    (sample,) = _samples([batch])

    assert sample.labels.tolist() == [[2, 3, 4]]
    assert sample.arguments["input_ids"].tolist() == [[1, 2, 3, 4]]
    with pytest.raises(CalibrationError, match="use longer samples"):
        _samples([{name: value[1:] for name, value in batch.items()}])


def test_matrices_survive_json_exactly():
    matrix = random_orthogonal(5, torch.Generator().manual_seed(0))

    assert torch.equal(from_text(to_text({"R1": matrix}), "R1"), matrix)


@pytest.mark.parametrize(
    ("model", "modifiers", "message"),
    [
        (tiny_llama, [SpinQuantModifier(learnable=True)], "no later modifier quantizes inputs"),
        (
            tiny_llama,
            [SpinQuantModifier(learnable=True, rotations=["R4"]), Rounding(**W8A3)],
            "rotations has neither.*learns R4",
        ),
        (tiny_conv1d, [SpinQuantModifier(learnable=True), Rounding(**W8A3)], "learn R2 alone"),
        (
            tiny_llama,
            [SpinQuantModifier(learnable=True, rotations=["R2"]), Rounding(**without("o_proj"))],
            "no layer whose inputs are quantized reads what R2 rotates",
        ),
        (
            tiny_llama,
            [SpinQuantModifier(learnable=["R4"], rotations=["R1", "R4"]), Rounding(**without("down_proj"))],
            "no layer whose inputs are quantized reads what R4 rotates",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(model, modifiers, message):
    with pytest.raises(ModelError, match=message):
        run(model(), *modifiers)


def test_a_pipeline_that_suspends_batches_learns_the_same():
    modifier = SpinQuantModifier(learnable=True, num_steps=2)
    first = run(tiny_llama(), modifier, Rounding(**W8A3))
    second = run(tiny_llama(), modifier, Rounding(**W8A3), pipeline=find("pipelines", "sequential")())

    assert losses(first) == losses(second)


def test_a_model_that_is_streamed_learns_the_same_bytes_also_when_it_is_interrupted(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    learn = {"learnable": ["R1", "R2", "R4"], "num_steps": 2, "rotations": ["R1", "R2", "R4"]}
    recipe = json.dumps({"modifiers": [{"SpinQuantModifier": learn}, {"QuantizationModifier": W8A3}]})
    data = [{"input_ids": row.tolist()} for batch in batches(rows=4) for row in batch["input_ids"]]

    def compress(name, model):
        settings = {"tokenizer": str(tmp_path / "model"), "dataset": data, "max_seq_length": 16, "quiet": True}
        oneshot(model, recipe, output_dir=str(tmp_path / name), **settings)
        return (tmp_path / name / "model.safetensors").read_bytes()

    with interrupted(2):
        compress("killed", str(tmp_path / "model"))
    in_memory = compress("in memory", model := tiny_llama())
    there = load_file(tmp_path / "in memory" / "model.safetensors")
    expected, found = (logits(m, batches(rows=2)) for m in (model, load_model(str(tmp_path / "in memory"))))

    report = json.loads((tmp_path / "in memory" / "report.json").read_text())
    assert report["predicted"]["size"]["bytes_after"] == report["measured"]["bytes_after"]
    assert [name for name in there if "R4" in name] == ["model.layers.0.mlp.down_proj.R4_input.weight"]
    torch.testing.assert_close(found, expected)
    assert compress("streamed", str(tmp_path / "model")) == in_memory
    assert compress("killed", str(tmp_path / "model")) == in_memory
