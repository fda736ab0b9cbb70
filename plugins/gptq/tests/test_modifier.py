"""GPTQModifier: what shares a Gram matrix, what falls back and says so, and what is refused."""

import json
import logging
import tempfile
from pathlib import Path

import pytest
import torch

import coldpress
from coldpress import CalibrationError, SchemeError, testing
from coldpress.calibration.statistics import Gram
from coldpress.registry import find
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress_gptq import GPTQModifier, modifier
from coldpress_gptq.cross import Cross

DOWN, V = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"


def run(*modifiers, pipeline="sequential", model=None, data=None, **settings):
    chosen = find("pipelines", pipeline)(**settings)
    return testing.run(*modifiers, model=model, data=batches() if data is None else data, pipeline=chosen)


def gptq(**settings):
    return GPTQModifier(**({"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"]} | settings))


def test_every_layer_is_quantized_and_has_its_error_in_the_report():
    state = run(gptq())

    lines = [line for line in state.report.values() if line.status == "quantized"]
    assert len(lines) == 14
    assert all(line.notes["output_error"] > 0 and line.notes["tokens"] > 0 for line in lines)


def test_layers_that_share_an_input_share_a_gram_matrix_and_a_factor(monkeypatch):
    tokens, factors = [], []
    update, prepare = Gram.update, modifier.prepare

    def counting(self, value, x):
        tokens.append(len(x))
        return update(self, value, x)

    monkeypatch.setattr(Gram, "update", counting)
    monkeypatch.setattr(modifier, "prepare", lambda *args, **kw: factors.append(1) or prepare(*args, **kw))
    run(gptq())

    assert len(tokens) == 2 * 4 * len(batches())  # two blocks; q/k/v, o, gate/up, down
    assert len(factors) == 2 * 4


def test_the_output_of_a_layer_is_closer_than_with_rounding():
    target = {"scheme": "W4A16", "group_size": 32, "targets": [DOWN], "ignore": []}
    ours = run(gptq(**target))
    plain = run(find("modifiers", "QuantizationModifier")(**target))
    inputs = seen_by(DOWN)
    before = tiny_llama().get_submodule(DOWN).weight

    changes = [(state.model.get_submodule(DOWN).weight - before) @ inputs.t() for state in (ours, plain)]
    assert changes[0].norm() < 0.9 * changes[1].norm()


def seen_by(name, model=None):
    model, seen = model or tiny_llama(), []
    model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    return torch.cat(seen)


@pytest.mark.parametrize("order", ["static", "weight", None])
def test_orders_have_the_fields_words(order):
    assert gptq(actorder=order).actorder == ("static" if order else None)


@pytest.mark.parametrize("order", ["group", "dynamic", "activation"])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match="actorder"):
        gptq(actorder=order)


@pytest.mark.parametrize("settings", [{"dampening_frac": -0.1}, {"block_size": 0}, {"magr_alpha": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        gptq(**settings)


def test_a_named_observer_is_used_instead_of_the_search():
    searched, ranged = run(gptq()), run(gptq(weight_observer="memoryless_minmax"))
    plain = run(find("modifiers", "QuantizationModifier")(scheme="W4A16", group_size=32, ignore=["lm_head"]))

    assert torch.equal(ranged.quantized[DOWN].scale, plain.quantized[DOWN].scale)
    assert not torch.equal(searched.quantized[DOWN].scale, plain.quantized[DOWN].scale)


def test_zeros_of_a_pruned_layer_stay():
    model = tiny_llama()
    weight = model.get_submodule(DOWN).weight.data
    weight[:, ::2] = 0
    state = run(gptq(scheme="W4A16_ASYM"), model=model)

    assert not state.model.get_submodule(DOWN).weight[:, ::2].any()


def test_few_tokens_are_said_and_used(caplog):
    with caplog.at_level(logging.WARNING):
        state = run(gptq(), data=[{"input_ids": torch.arange(5)[None]}])

    said = [line.split(";")[0] for line in caplog.messages if "tokens for" in line]
    first = "model.layers.0.self_attn.q_proj"
    assert said == [f"{first}: 5 tokens for 128 columns", f"{DOWN}: 5 tokens for 256 columns"]  # others are like these
    assert state.report[DOWN.replace("0", "1")].notes["tokens"] == 5
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_what_cannot_be_factorized_is_rounded_and_said(monkeypatch):
    prepare = modifier.prepare

    def broken(*args, **settings):
        return prepare(*args, **settings)._replace(factor=None)

    monkeypatch.setattr(modifier, "prepare", broken)
    state = run(gptq())

    line = state.report[DOWN]
    assert line.status == "fallback"
    assert "not positive definite" in line.reason
    assert state.quantized[DOWN].codes is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["W4A16", "FP8_DYNAMIC"])
def test_outliers_in_half_precision_stay_finite(dtype, scheme):
    model, up = tiny_llama(dtype=dtype), DOWN.replace("down", "up")
    for name in (up, DOWN):
        model.get_submodule(name).weight.data[0, 0] = 6e4 if dtype is torch.float16 else 1e30
    model.model.layers[0].post_attention_layernorm.weight.data[3] = 300
    group = {"group_size": 32} if scheme == "W4A16" else {"group_size": None}

    state = run(gptq(scheme=scheme, targets=[up], ignore=[], **group), model=model)

    rounded = state.model.get_submodule(up).weight
    assert torch.isfinite(rounded).all()
    assert rounded.dtype == dtype
    assert rounded[0, 0] > 1e4
    assert rounded[1:].any()


def test_no_data_is_an_error():
    with pytest.raises(CalibrationError, match="GPTQModifier needs calibration data"):
        run(gptq(), data=[])


def test_conv1d_is_a_linear_layer():
    state = run(gptq(ignore=["lm_head"]), model=tiny_conv1d())

    assert any(line.status == "quantized" and line.kind == "Conv1D" for line in state.report.values())


def test_experts_without_tokens_are_rounded_and_said():
    model = tiny_mixture("qwen3_moe")
    state = report_of_moe(model)

    lines = [line for name, line in state.items() if ".experts." in name]
    assert lines
    assert all(line["status"] in ("quantized", "fallback") for line in lines)
    assert all("no token" in line["reason"] for line in lines if line["status"] == "fallback")


def report_of_moe(model, *, all_experts=False):
    with tempfile.TemporaryDirectory() as folder:
        coldpress.oneshot(
            model,
            gptq(),
            dataset=[{"input_ids": [1, 2, 3, 4]}],
            moe_calibrate_all_experts=all_experts,
            output_dir=Path(folder) / "out",
            quiet=True,
        )
        report = json.loads((Path(folder) / "out/report.json").read_text())
    return {line["name"]: line for line in report["layers"]}


def run_mixture(monkeypatch, size):
    """Experts with tokens of their own; codes by layer, and how many inputs were solved at once."""
    model, sizes = tiny_mixture("qwen3_moe"), []
    solve = modifier.gptq
    monkeypatch.setattr(
        modifier, "gptq", lambda problems, *a, **kw: sizes.append(len(problems)) or solve(problems, *a, **kw)
    )
    steps = gptq(batched_quantization=size)
    data = [{"input_ids": [*range(start, start + 60)]} for start in (1, 61, 121)]
    model = coldpress.oneshot(model, steps, dataset=data, moe_calibrate_all_experts=False, quiet=True)
    monkeypatch.setattr(modifier, "gptq", solve)
    return {name: value for name, value in model.state_dict().items() if ".experts." in name}, sizes


def test_experts_are_solved_together_and_become_the_same(monkeypatch):
    together, sizes = run_mixture(monkeypatch, "auto")
    pairs, sizes_of_pairs = run_mixture(monkeypatch, 2)
    alone, sizes_alone = run_mixture(monkeypatch, None)

    assert set(sizes_alone) == {1}
    assert max(sizes_of_pairs) == 2
    assert max(sizes) > 2
    assert sum(sizes) == sum(sizes_of_pairs) == sum(sizes_alone)
    assert together.keys() == pairs.keys() == alone.keys() != set()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, msg=name)
        torch.testing.assert_close(pairs[name], weight, msg=name)


def test_an_expert_that_cannot_be_factorized_leaves_the_others_to_the_solver(monkeypatch):
    prepare, calls = modifier.prepare, []

    def broken_once(gram, **settings):
        calls.append(len(gram))
        found = prepare(gram, **settings)
        return found._replace(factor=None) if len(calls) == 10 else found  # an expert's, by then

    monkeypatch.setattr(modifier, "prepare", broken_once)
    report = report_of_moe(tiny_mixture("qwen3_moe"), all_experts=True)

    lines = [line for line in report.values() if "not positive definite" in (line["reason"] or "")]
    assert lines
    assert all(line["status"] == "fallback" and ".experts." in line["name"] for line in lines)
    experts = [line for name, line in report.items() if ".experts." in name and line not in lines]
    assert all(line["status"] == "quantized" for line in experts)
    assert len(experts) > len(lines)


@pytest.mark.parametrize("size", [0, -1, True, "all", 1.5])
def test_other_sizes_of_batches_are_refused(size):
    with pytest.raises(ValueError, match="batched_quantization must be 'auto', a number from 1 on, or null"):
        gptq(batched_quantization=size)


def test_w8a8_has_dynamic_inputs_too():
    state = run(gptq(scheme="W8A8", group_size=None))

    assert state.schemes[DOWN].input_activations.dynamic
    assert state.quantized[DOWN].scale.shape == (128, 1)


@pytest.mark.parametrize("scheme", ["NVFP4A16", "MXFP4A16", "FP8_DYNAMIC", "FP8_BLOCK", "W4A16_ASYM", "W8A8"])
@pytest.mark.parametrize("observer", [None, "mse"])
def test_every_kind_of_weight_is_solved_and_closer_than_rounded(scheme, observer):
    settings = {"scheme": scheme, "group_size": None, "weight_observer": observer, "targets": ["Linear"]}
    ours = run(gptq(**settings))
    plain = run(find("modifiers", "QuantizationModifier")(scheme=scheme, ignore=["lm_head"], weight_observer="mse"))
    name = "model.layers.0.self_attn.q_proj"  # its inputs are those of the original in both
    inputs, before = seen_by(name), tiny_llama().get_submodule(name).weight

    changes = [(state.model.get_submodule(name).weight - before) @ inputs.t() for state in (ours, plain)]
    assert ours.report[name].status == "quantized"
    assert changes[0].norm() < changes[1].norm()
    kept = ours.quantized[name]
    if scheme == "NVFP4A16":  # layers that engines fuse have one global scale
        assert torch.equal(kept.global_scale, ours.quantized["model.layers.0.self_attn.k_proj"].global_scale)


def test_scales_that_are_fitted_again_leave_less_error():
    fitted, plain = run(gptq(targets=[DOWN], refit_scales=True)), run(gptq(targets=[DOWN]))

    assert torch.equal(fitted.quantized[DOWN].codes, plain.quantized[DOWN].codes)
    assert fitted.report[DOWN].notes["output_error"] < plain.report[DOWN].notes["output_error"]
    assert "rounding_ratio" in plain.report[DOWN].notes
    assert "rounding_ratio" not in fitted.report[DOWN].notes  # rounding had other scales


@pytest.mark.parametrize("scheme", ["NVFP4A16", "MXFP4A16", "FP8_BLOCK"])
def test_scales_that_cannot_be_fitted_are_refused(scheme):
    with pytest.raises(SchemeError, match="refit_scales"):
        gptq(scheme=scheme, group_size=None, refit_scales=True)


@pytest.mark.parametrize("scheme", ["W4A16", "NVFP4A16", "FP8_BLOCK"])
def test_magr_makes_ranges_smaller_before_they_are_rounded(scheme):
    settings = {"scheme": scheme, "group_size": None, "targets": [DOWN], "weight_observer": "memoryless_minmax"}
    shrunk, plain = run(gptq(**settings, magr_alpha=0.01)), run(gptq(**settings))

    means = [state.quantized[DOWN].scale.float().mean() for state in (shrunk, plain)]
    assert means[0] < 0.9 * means[1]


def test_the_error_that_is_reported_is_that_of_the_weights_as_they_were():
    state = run(gptq(targets=[DOWN], magr_alpha=0.01, dampening_frac=1e-5))
    weights, x = [model.get_submodule(DOWN).weight.detach() for model in (state.model, tiny_llama())], seen_by(DOWN)

    assert state.report[DOWN].notes["output_error"] == pytest.approx(
        float(((weights[0] - weights[1]) @ x.t()).square().sum()) / len(x), rel=0.01
    )


def test_magr_keeps_the_zeros_of_a_pruned_layer():
    model = tiny_llama()
    model.get_submodule(DOWN).weight.data[:, ::2] = 0
    state = run(gptq(magr_alpha=0.01, refit_scales=True), model=model)

    assert not state.model.get_submodule(DOWN).weight[:, ::2].any()


@pytest.mark.parametrize("correction", ["gptaq", "qronos"])
def test_a_correction_changes_what_comes_after_compressed_layers_and_nothing_else(correction):
    plain, corrected = run(gptq()), run(gptq(correction=correction))

    for name, kept in plain.quantized.items():
        first = name.startswith("model.layers.0.self_attn.") and "o_proj" not in name
        assert torch.equal(corrected.quantized[name].codes, kept.codes) is first, name


@pytest.mark.parametrize("correction", ["gptaq", "qronos"])
def test_a_corrected_layer_puts_out_what_is_closer_to_the_original(correction):
    """Of the second block, whose inputs the first has changed, in 2 bits so that it is much."""
    weights = {"num_bits": 2, "group_size": 32}
    scheme = {"scheme": None, "group_size": None, "config_groups": {"all": {"targets": ["Linear"], "weights": weights}}}
    errors = []
    for more in ({}, {"correction": correction}):
        state = run(gptq(**scheme, **more))
        wanted, found = (
            seen_by(V, model=model) @ model.get_submodule(V).weight.detach().t()
            for model in (tiny_llama(), state.model)
        )
        errors.append(float((wanted - found).square().sum()))

    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("correction", ["gptaq", "qronos"])
def test_a_correction_keeps_the_zeros_of_a_pruned_layer(correction):
    model, name = tiny_llama(), DOWN.replace("0", "1")
    model.get_submodule(name).weight.data[:, ::2] = 0
    state = run(gptq(correction=correction, magr_alpha=0.001, refit_scales=True), model=model)

    assert not state.model.get_submodule(name).weight[:, ::2].any()


def test_a_correction_follows_scales_that_move(monkeypatch):
    """What is compared is carried along, which is the same as to look once more, but for rounding."""

    def smoothed():
        smooth = find("modifiers", "SmoothQuantModifier")(smoothing_strength=0.5)
        return run(smooth, gptq(correction="qronos")).quantized

    carried = smoothed()
    monkeypatch.setattr(Cross, "supports", frozenset())
    again = smoothed()

    assert len(carried) == 14
    for name, kept in carried.items():
        assert (kept.codes != again[name].codes).float().mean() < 0.02, name


@pytest.mark.parametrize("correction", [None, "gptaq"])
def test_a_correction_sees_what_eight_bits_have_changed_too(correction):
    assert gptq(scheme="W8A16", group_size=None, correction=correction).needs().propagated_error is (
        correction is not None
    )


def corrected_mixture(*, all_experts):
    model, data = tiny_mixture("qwen3_moe"), [{"input_ids": [*range(1, 30)]}, {"input_ids": [*range(40, 90)]}]
    modifier = gptq(correction="gptaq")
    coldpress.oneshot(model, modifier, dataset=data, moe_calibrate_all_experts=all_experts, quiet=True)
    return model


def test_experts_that_see_every_token_can_be_corrected():
    assert all(torch.isfinite(weight).all() for weight in corrected_mixture(all_experts=True).parameters())


def test_experts_that_see_other_tokens_than_in_the_original_cannot():
    with pytest.raises(CalibrationError, match=r"experts\.1\.gate_proj sees other tokens than in the original"):
        corrected_mixture(all_experts=False)


def test_a_correction_needs_a_pipeline_that_shows_the_original():
    with pytest.raises(CalibrationError, match="choose sequential"):
        run(gptq(correction="gptaq"), pipeline="basic")


def test_other_corrections_are_refused():
    with pytest.raises(ValueError, match="correction"):
        gptq(correction="nonsense")


def test_an_order_of_columns_that_is_turned_off_and_given_to_a_group_is_refused():
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "actorder": "static"}}

    with pytest.raises(SchemeError, match="actorder is null"):
        GPTQModifier(config_groups={"group_0": group}, actorder=None)
    assert GPTQModifier(config_groups={"group_0": group}).actorder == "static"


# --- schemes of another modifier, and embeddings


def tensors(state):
    return {name: (q.codes, q.scale) for name, q in state.quantized.items()}


def test_without_a_scheme_it_solves_by_that_of_the_quantizer_before():
    rounding = find("modifiers", "QuantizationModifier")
    group = {"targets": ["Linear", "Embedding"], "weights": {"num_bits": 3, "group_size": 32, "symmetric": False}}
    settings = {"config_groups": {"a": group}, "ignore": ["lm_head", DOWN]}

    adopted = run(rounding(**settings), GPTQModifier(ignore=[V]))

    own = tensors(run(GPTQModifier(**settings)))
    rounded = tensors(run(rounding(**settings), pipeline="data_free", data=[]))
    found = tensors(adopted)
    assert found.keys() == own.keys() == rounded.keys()
    assert torch.equal(found["model.layers.0.mlp.up_proj"][0], own["model.layers.0.mlp.up_proj"][0])
    for name in (V, "model.embed_tokens"):
        assert torch.equal(found[name][0], rounded[name][0])
    assert adopted.report["model.embed_tokens"].status == "quantized"
    assert DOWN not in found


def test_without_any_scheme_it_is_refused():
    with pytest.raises(SchemeError, match="GPTQModifier has no scheme of its own, and no modifier before it"):
        run(GPTQModifier())


def test_an_embedding_is_rounded_and_the_report_says_so():
    state = run(GPTQModifier(scheme="W8A16", targets=["Linear", "Embedding"], ignore=["lm_head"]))

    line = state.report["model.embed_tokens"]
    assert (line.status, line.reason) == ("fallback", "rounded to nearest: an embedding is called with token ids")
    assert state.report[DOWN].status == "quantized"
