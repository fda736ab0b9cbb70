"""AutoRoundModifier: what it learns and keeps, which tokens count, what falls back and says so, what is refused."""

import json

import pytest
import torch

import coldpress
from coldpress import CalibrationError, NumericsError
from coldpress.calibration.batch import CalibrationBatch
from coldpress.checkpoint import CheckpointReader
from coldpress.plugin import State
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job
from coldpress.testing.interrupt import interrupted
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress_autoround import AutoRoundModifier, block

DOWN, V = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"
SETTINGS = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"]}
QUICK = {**SETTINGS, "iters": 4, "lr": 0.02, "batch_size": 2}


def run(*modifiers, model=None, pipeline="sequential", data=None, **settings):
    model = tiny_llama() if model is None else model
    state = State(model=model, batches=batches(rows=4, batch_size=2) if data is None else data)
    Job(recipe=Recipe(modifiers), state=state, pipeline=find("pipelines", pipeline)(**settings)).run()
    return state


def autoround(**settings):
    return AutoRoundModifier(**{**QUICK, **settings})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W2A16", "W8A16", "FP8_DYNAMIC", "MXFP4", "NVFP4A16"])
def test_no_steps_are_rounding_to_nearest_bit_for_bit(scheme):
    size = {"group_size": 32} if scheme.startswith("W") else {}
    settings = {"scheme": scheme, "ignore": ["lm_head"], **size}
    ours = run(AutoRoundModifier(**settings, iters=0), model=tiny_llama(dtype=torch.bfloat16))
    plain = run(find("modifiers", "QuantizationModifier")(**settings), model=tiny_llama(dtype=torch.bfloat16))

    assert same(weights(ours.model), weights(plain.model))
    for name, quantized in plain.quantized.items():
        assert torch.equal(ours.quantized[name].codes.float(), quantized.codes.float())
        assert torch.equal(ours.quantized[name].scale, quantized.scale)


@pytest.mark.parametrize("start", ["rtn", "searched", "gptq"])
def test_outputs_of_each_block_come_closer_than_at_the_start(start):
    state = run(autoround(start=start, iters=12))

    notes = [line.notes for line in state.report.values() if line.status == "quantized"]
    assert len(notes) == 14
    most = 0.9 if start != "gptq" else 1.0  # which has less to gain
    assert all(note["block_error"] <= most * note["block_error_at_start"] for note in notes)
    assert start == "gptq" or all(0 < note["codes_moved"] < 0.7 for note in notes)


def test_steps_that_lead_nowhere_leave_the_start():
    state = run(autoround(lr=50.0, minmax_lr=50.0, start="rtn"))
    plain = run(find("modifiers", "QuantizationModifier")(**SETTINGS))

    assert same(weights(state.model), weights(plain.model))
    assert state.report[DOWN].notes["codes_moved"] == 0


@pytest.mark.parametrize("scheme", ["W4A16_ASYM", "W2A16", "W8A8", "FP8", "MXFP4", "NVFP4"])
def test_every_kind_of_scheme_is_learned_and_read_back(tmp_path, scheme):
    size = {"group_size": 32} if scheme.startswith("W") and scheme != "W8A8" else {}
    given = {**QUICK, "scheme": scheme, "group_size": None, **size}
    model = coldpress.oneshot(
        tiny_llama(dtype=torch.bfloat16),
        json.dumps({"modifiers": [{"AutoRoundModifier": given}]}),
        tokenizer=tiny_tokenizer(),
        dataset=["some text to calibrate with", "and some more of it"],
        output_dir=str(tmp_path / "out"),
        quiet=True,
    )
    again = coldpress.load_model(str(tmp_path / "out"), dtype=torch.bfloat16, device="cpu")

    for name in (DOWN, V):
        assert torch.equal(again.get_submodule(name).weight, model.get_submodule(name).weight)
    if scheme == "W4A16_ASYM":
        assert CheckpointReader(tmp_path / "out").read(f"{DOWN}.weight_zero_point").any()


def test_inputs_that_are_rounded_are_learned_with():
    assert not same(weights(run(autoround(scheme="W4A16")).model), weights(run(autoround(scheme="W4A4")).model))


def test_the_same_seed_gives_the_same_bits_and_another_one_others():
    def found(seed):
        state = State(model=tiny_llama(), batches=batches(rows=6, batch_size=1), seed=seed)
        Job(recipe=Recipe([autoround()]), state=state, pipeline=find("pipelines", "sequential")()).run()
        return weights(state.model)

    first = found(0)
    assert same(first, found(0))
    assert not same(first, found(1))


@pytest.mark.parametrize("stream", [True, False])
def test_a_run_that_was_interrupted_gives_the_same_bytes(tmp_path, stream):
    tiny_llama().save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")

    def compress(output, stream):
        coldpress.oneshot(
            str(tmp_path / "source"),
            json.dumps({"modifiers": [{"AutoRoundModifier": QUICK}]}),
            dataset=["some text to calibrate with", "and some more of it", "one more", "and a last one"],
            output_dir=str(tmp_path / output),
            stream_weights=stream,
            quiet=True,
        )
        return (tmp_path / output / "model.safetensors").read_bytes()

    whole = compress("whole", False)
    with interrupted(2):
        compress("out", stream)
    assert compress("out", stream) == whole


def test_padding_and_tokens_outside_of_the_loss_mask_teach_nothing():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (4, 12), generator=draw)
    counts = torch.ones(4, 12, dtype=torch.bool)
    counts[:, 7:] = False  # later tokens do not change what earlier ones see
    other = ids.clone()
    other[:, 7:] = torch.randint(3, 50, (4, 5), generator=draw)

    def learned(ids):
        data = [CalibrationBatch({"input_ids": part}, (counts[:2],)) for part in ids.split(2)]
        return weights(run(autoround(start="rtn"), data=data).model)

    assert same(learned(ids), learned(other))
    whole = [{"input_ids": part} for part in ids.split(2)]
    assert not same(learned(ids), weights(run(autoround(start="rtn"), data=whole).model))


def test_experts_that_no_token_reached_are_rounded_and_said(tmp_path):
    coldpress.oneshot(
        tiny_mixture("qwen3_moe"),
        json.dumps({"modifiers": [{"AutoRoundModifier": {**QUICK, "ignore": ["lm_head", "re:.*gate$"]}}]}),
        tokenizer=tiny_tokenizer(),
        dataset=[{"input_ids": [5, 6]}],
        output_dir=str(tmp_path / "out"),
        quiet=True,
    )
    lines = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    experts = [line for line in lines if ".experts." in line["name"]]
    fallen = [line for line in experts if line["status"] == "fallback"]

    assert 0 < len(fallen) < len(experts)
    assert all("no token" in line["reason"] for line in fallen)
    assert all("block_error" in line["notes"] for line in experts if line not in fallen)


def test_experts_that_no_step_saw_are_told_apart(tmp_path):
    draw = torch.Generator().manual_seed(0)
    settings = {**QUICK, "iters": 1, "batch_size": 1, "ignore": ["lm_head", "re:.*gate$"]}
    coldpress.oneshot(
        tiny_mixture("qwen3_moe"),
        json.dumps({"modifiers": [{"AutoRoundModifier": settings}]}),
        tokenizer=tiny_tokenizer(),
        dataset=[{"input_ids": torch.randint(3, 50, (2,), generator=draw).tolist()} for _ in range(12)],
        output_dir=str(tmp_path / "out"),
        quiet=True,
        batch_size=1,
        moe_calibrate_all_experts=False,
    )
    lines = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]

    reasons = {line["reason"] for line in lines if ".experts." in line["name"] and line["status"] == "fallback"}
    unlearned = "rounded to nearest in searched ranges and not learned"
    assert f"{unlearned}: no token of the samples that were learned from reached it" in reasons


@pytest.mark.parametrize(
    ("start", "what"),
    [
        ("rtn", "rounded to nearest and"),
        ("searched", "rounded to nearest in searched"),
        ("gptq", "solved as GPTQ does"),
    ],
)
def test_of_the_head_it_is_said_what_it_is(start, what):
    state = run(autoround(ignore=[], start=start))

    assert state.report["lm_head"].status == "fallback"
    assert state.report["lm_head"].reason.startswith(what)
    assert "no block" in state.report["lm_head"].reason


def test_weights_that_are_stored_transposed_are_learned():
    state = run(autoround(), model=tiny_conv1d(hidden=64))

    notes = [line.notes for line in state.report.values() if line.status == "quantized"]
    assert notes
    assert all(note["block_error"] < note["block_error_at_start"] for note in notes)


def test_zeros_of_a_pruned_layer_stay():
    model = tiny_llama()
    model.get_submodule(DOWN).weight.data[:, ::2] = 0
    state = run(autoround(scheme="W4A16_ASYM"), model=model)

    assert not state.model.get_submodule(DOWN).weight[:, ::2].any()


def test_nothing_is_left_on_the_model_when_a_block_cannot_be_differentiated(monkeypatch):
    def refuse(*args, **settings):
        raise RuntimeError("derivative is not implemented")

    model = tiny_llama()
    parameters = dict(model.named_parameters())
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with pytest.raises(CalibrationError, match=r"model.layers.0 cannot be differentiated in batch \d.*GPTQModifier"):
        run(autoround(), model=model)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_is_an_error_that_names_block_and_batch(monkeypatch):
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: [part * float("nan") for part in grad(*a, **k)])
    with pytest.raises(NumericsError, match=r"model.layers.0: the gradient of .* is not finite in batch \d"):
        run(autoround())


def test_inference_mode_is_refused_before_anything_is_done():
    model = tiny_llama()
    before = weights(model)
    with torch.inference_mode(), pytest.raises(CalibrationError, match="inference_mode"):
        run(autoround(), model=model)
    assert same(before, weights(model))


@pytest.mark.parametrize("pipeline", ["basic", "data_free", "layer_sequential"])
def test_pipelines_that_do_not_hold_what_it_needs_are_refused(pipeline):
    with pytest.raises(CalibrationError, match="AutoRoundModifier"):
        run(autoround(), pipeline=pipeline)


@pytest.mark.parametrize("settings", [{"iters": -1}, {"batch_size": 0}, {"lr": 0}, {"minmax_lr": -1}, {"start": "awq"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        autoround(**settings)


def test_the_peers_settings_are_understood():
    autoround(enable_torch_compile=False, device_ids="0", disable_opt_rtn=True)


def test_targets_wait_on_the_cpu():
    seen = []

    class Look(block.Block):
        @classmethod
        def of(cls, *args):
            found = super().of(*args)
            seen.append(found)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coldpress_autoround.modifier.Block", Look)
        run(autoround())
    assert [one.stage.name for one in seen] == ["model.layers.0", "model.layers.1"]
    assert all(target.output.device.type == "cpu" for one in seen for target in one.targets.values())
