"""REAPPruningModifier on tiny mixtures: which experts go, and that what is left is a model of its own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import coldpress
from coldpress import load_model, oneshot
from coldpress.errors import ColdpressError, RecipeError
from coldpress.experts import linear_experts
from coldpress.testing.interrupt import interrupted
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer
from coldpress_autobits import AutoBitsModifier
from coldpress_gptq import GPTQModifier
from coldpress_quantization import QuantizationModifier
from coldpress_reap import REAPPruningModifier


def logits(model, data=None):
    with torch.no_grad():
        return model.eval()(**(data or batches(rows=2, batch_size=2)[0]))[0]


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def mixtures_of(folder):
    lines = json.loads((folder / "report.json").read_text(encoding="utf-8"))["layers"]
    return [line for line in lines if line["kind"] == "Mixture"]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_transformers_loads_what_is_left_and_it_says_the_same(kind, tmp_path):
    found = oneshot(
        tiny_mixture(kind, experts=8), REAPPruningModifier(keep=4), dataset=batches(), output_dir=tmp_path / "out"
    )

    again, info = type(found).from_pretrained(tmp_path / "out", output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(again), logits(found), atol=1e-5, rtol=1e-5)
    assert all(len(line["notes"]["kept"]) == 4 for line in mixtures_of(tmp_path / "out"))


def test_experts_that_nobody_is_sent_to_go_and_nothing_changes(tmp_path):
    """Rows of the router in pairs r and -r win against rows of zeros, whatever the token."""
    model = tiny_mixture("mixtral", experts=8)
    for block in model.model.layers:
        rows = block.mlp.gate.weight.data
        rows[[2, 7]] = -rows[[0, 5]]
        rows[[1, 3, 4, 6]] = 0
    before = logits(model)

    found = oneshot(model, REAPPruningModifier(keep=4), dataset=batches(), output_dir=tmp_path / "out")

    assert (logits(found) - before).abs().max() <= 1e-6 * before.abs().max()
    for line in mixtures_of(tmp_path / "out"):
        assert line["notes"]["kept"] == [0, 2, 5, 7]
        assert line["notes"]["router_minds_others"] is False


def test_a_planted_dead_expert_goes(tmp_path):
    model = tiny_mixture("qwen3_moe")
    for block, dead in zip(model.model.layers, (2, 1), strict=True):
        block.mlp.experts.down_proj.data[dead] = 0

    expected = [[one for one in range(4) if one != dead] for dead in (2, 1)]
    oneshot(model, REAPPruningModifier(keep=3, report_path=str(tmp_path / "kept.json")), dataset=batches())

    assert list(json.loads((tmp_path / "kept.json").read_text(encoding="utf-8")).values()) == expected
    for block in model.model.layers:
        assert not any(bool((one.down_proj.weight == 0).all()) for one in block.mlp.experts.experts())


def test_planted_duplicates_that_their_router_never_prefers_go_and_nothing_changes(tmp_path):
    """Of rows in pairs r and -r the largest logit is positive; those of the duplicates are a little shorter."""
    model = tiny_mixture("mixtral", experts=8)
    model.config.num_experts_per_tok = 1
    for block in model.model.layers:
        block.mlp.gate.top_k = block.mlp.top_k = 1
        rows = block.mlp.gate.weight.data
        rows[[2, 7]] = -rows[[0, 5]]
        rows[[1, 3, 4, 6]] = 0.99 * rows[[0, 2, 5, 7]]
        for tensor in (block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
            tensor.data[[1, 3, 4, 6]] = tensor.data[[0, 2, 5, 7]]
    before = logits(model)

    found = oneshot(model, REAPPruningModifier(keep=4), dataset=batches(), output_dir=tmp_path / "out")

    assert all(line["notes"]["kept"] == [0, 2, 5, 7] for line in mixtures_of(tmp_path / "out"))
    assert (logits(found) - before).abs().max() <= 1e-6 * before.abs().max()


def never_sent_to_half(kind="olmoe"):
    """Its softmax gives all of eight experts nearly the same, and tokens are sent to two of the first four."""
    model = tiny_mixture(kind, experts=8)
    for block in model.model.layers:
        rows = block.mlp.gate.weight.data
        rows[[0, 2]] *= 1e-3
        rows[[1, 3]] = -rows[[0, 2]]
        rows[4:] = 0
    return model


@pytest.mark.parametrize("streamed", [False, True])
def test_gates_that_grow_without_the_others_are_scaled_back(streamed, tmp_path):
    """Without renormalisation gates of 1/8 become 1/4."""
    model = never_sent_to_half()
    before = logits(model)
    subject = saved(model, tmp_path / "source") if streamed else model
    settings = {"dataset": batches(), "output_dir": tmp_path / "out", "quiet": True, "stream_weights": streamed}
    oneshot(subject, REAPPruningModifier(keep=4, rescale=True), **settings)

    found = type(model).from_pretrained(tmp_path / "out")

    assert (logits(found) - before).abs().max() <= 2e-3 * before.abs().max()
    for line in mixtures_of(tmp_path / "out"):
        assert line["notes"]["kept"] == [0, 1, 2, 3]
        torch.testing.assert_close(torch.tensor(line["notes"]["rescaled_by"]), torch.full((4,), 0.5), atol=1e-3, rtol=0)


def test_without_scaling_they_are_larger():
    before = logits(never_sent_to_half())

    found = oneshot(never_sent_to_half(), REAPPruningModifier(keep=4), dataset=batches(), quiet=True)

    assert (logits(found) - before).abs().max() > 0.05 * before.abs().max()


def test_scaled_experts_are_quantized_as_they_are_then():
    steps = [REAPPruningModifier(keep=4, rescale=True), GPTQModifier(scheme="W8A16", group_size=32, ignore=["lm_head"])]
    before = logits(never_sent_to_half())

    found = oneshot(never_sent_to_half(), steps, dataset=batches(), quiet=True)

    assert (logits(found) - before).abs().median() <= 0.01 * before.abs().max()  # a token may be sent elsewhere


def test_a_router_that_renormalises_needs_no_scaling(tmp_path):
    settings = {"dataset": batches(), "quiet": True}
    plain = oneshot(tiny_mixture("mixtral"), REAPPruningModifier(keep=2), **settings)

    found = oneshot(
        tiny_mixture("mixtral"), REAPPruningModifier(keep=2, rescale=True), output_dir=tmp_path / "out", **settings
    )

    assert torch.equal(logits(found), logits(plain))
    assert all("rescaled_by" not in line["notes"] for line in mixtures_of(tmp_path / "out"))


def test_scaling_of_what_is_not_known_is_refused_before_the_run():
    with pytest.raises(ColdpressError, match="what its router gives to all experts is not known, so leave rescale out"):
        oneshot(tiny_mixture("llama4"), REAPPruningModifier(keep=2, rescale=True), dataset=batches())


def test_experts_that_are_all_worth_the_same_are_warned_of(caplog):
    model = tiny_mixture("mixtral")
    for block in model.model.layers:
        block.mlp.experts.down_proj.data.zero_()

    oneshot(model, REAPPruningModifier(keep=2), dataset=batches(), quiet=True)

    assert "all experts are worth the same on the calibration data; the first 2 stay" in caplog.text


def test_experts_that_are_judged_by_few_tokens_are_named(caplog):
    settings = {"dataset": batches(), "quiet": True, "moe_min_tokens": 10000}

    oneshot(tiny_mixture("mixtral"), REAPPruningModifier(keep=2), **settings)
    assert "experts 0, 1, 2, 3 saw fewer tokens than moe_min_tokens=10000: what they are worth" in caplog.text

    with pytest.raises(ColdpressError, match=r"model\.layers\.0\.mlp\.experts: .* calibrate with more data"):
        oneshot(tiny_mixture("mixtral"), REAPPruningModifier(keep=2), moe_few_tokens="refuse", **settings)


def test_experts_whose_tokens_are_sorted_are_refused_and_shared_ones_stay(monkeypatch):
    monkeypatch.setattr(REAPPruningModifier, "measure", lambda *_: pytest.fail("it is refused before anything runs"))
    with pytest.raises(ColdpressError, match="none of them can be dropped"):
        oneshot(tiny_mixture("jetmoe"), REAPPruningModifier(keep=2), dataset=batches())
    with pytest.raises(ColdpressError, match="which part of it belongs to which expert is not known"):
        oneshot(tiny_mixture("inkling", experts=8), REAPPruningModifier(keep=4), dataset=batches())


@pytest.mark.parametrize("kind", ["dbrx", "inkling2"])
def test_experts_of_other_shapes_are_dropped_and_transformers_loads_the_rest(kind, tmp_path):
    model = tiny_mixture(kind, experts=8)
    found = oneshot(model, REAPPruningModifier(keep=4), dataset=batches(), output_dir=tmp_path / "out", quiet=True)

    again, info = type(found).from_pretrained(tmp_path / "out", output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(part.count == 4 for part in linear_experts(found).values())
    torch.testing.assert_close(logits(again), logits(found), atol=1e-5, rtol=1e-5)


def test_experts_beside_the_model_are_refused(tmp_path):
    """Multi-token prediction would keep all of its experts, and the configuration has one number for all."""
    folder = saved(tiny_mixture("qwen3_moe"), tmp_path / "source")
    tensors = load_file(f"{folder}/model.safetensors")
    extra = {"model.layers.2.mlp.experts.0.up_proj.weight": torch.zeros(32, 64)}
    save_file({**tensors, **extra}, f"{folder}/model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ColdpressError, match=r"model\.layers\.2\.mlp\.experts.* remove these tensors"):
        oneshot(folder, REAPPruningModifier(keep=2), dataset=batches())


def test_streamed_it_writes_the_same_bytes_and_goes_on_where_it_was_interrupted(tmp_path):
    source = saved(tiny_mixture("qwen3_moe", experts=8), tmp_path / "source")
    recipe = [REAPPruningModifier(sparsity=0.5), GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])]
    settings = {"dataset": batches(), "return_model": False}
    oneshot(tiny_mixture("qwen3_moe", experts=8), recipe, output_dir=tmp_path / "memory", dataset=batches())

    oneshot(source, recipe, output_dir=tmp_path / "streamed", stream_weights=True, **settings)
    with interrupted(stages=2):
        oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=True, **settings)
    oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=True, **settings)

    memory, *others = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "streamed", "out"))
    assert all(other == memory for other in others)
    assert mixtures_of(tmp_path / "out") == mixtures_of(tmp_path / "streamed") != []
    assert load_model(tmp_path / "out", device="cpu").config.num_experts == 4


def test_what_stays_is_written_where_it_was_asked_for(tmp_path):
    path = tmp_path / "kept" / "experts.json"

    oneshot(tiny_mixture("mixtral"), REAPPruningModifier(keep=2, report_path=str(path)), dataset=batches())

    kept = json.loads(path.read_text(encoding="utf-8"))
    assert [len(one) for one in kept.values()] == [2, 2]


REFUSED = {
    "all would stay": (tiny_mixture, {"keep": 4}, "all 4 experts would stay"),
    "fewer than a token is sent to": (tiny_mixture, {"keep": 1}, "1 of 4 experts would stay, and a token is sent to 2"),
    "no mixture": (lambda kind: tiny_llama(), {"keep": 2}, "no mixture of experts"),
    "ignored": (tiny_mixture, {"keep": 2, "ignore": ["re:.*layers.0.*"]}, "ignore means model.layers.0.mlp.experts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_the_run(case):
    build, settings, message = REFUSED[case]

    with pytest.raises(ColdpressError, match=message):
        oneshot(build("mixtral"), REAPPruningModifier(**settings), dataset=batches())


def test_groups_of_a_router_lose_as_many_each_or_none():
    with pytest.raises(ColdpressError, match="3 experts cannot be divided among the 2 groups"):
        oneshot(tiny_mixture("deepseek_v3"), REAPPruningModifier(keep=3), dataset=batches())


def test_data_that_reach_too_few_experts_of_one_group_are_refused():
    model = tiny_mixture("deepseek_v3", experts=8)
    model.model.layers[1].mlp.gate.e_score_correction_bias.data[4:] = -100  # so that the second group is never chosen

    with pytest.raises(ColdpressError, match=r"reach \d of 8 experts, and 4 are to stay, as many of each of 2 groups"):
        oneshot(model, REAPPruningModifier(keep=4), dataset=batches())


def test_layers_with_other_numbers_of_experts_are_refused_before_the_run():
    model, other = tiny_mixture("mixtral", experts=8), tiny_mixture("mixtral", experts=4)
    model.model.layers[1].mlp = other.model.layers[1].mlp

    with pytest.raises(ColdpressError, match="layers of a MixtralForCausalLM have 4 or 8 experts"):
        oneshot(model, REAPPruningModifier(keep=3), dataset=batches())


def test_data_that_reach_too_few_experts_are_refused():
    with pytest.raises(ColdpressError, match="reach 2 of 16 experts, and 12 are to stay"):
        oneshot(
            tiny_mixture("mixtral", experts=16),
            REAPPruningModifier(keep=12),
            dataset=[{"input_ids": torch.tensor([[5]])}],
        )


def test_two_that_drop_experts_are_refused():
    with pytest.raises(RecipeError, match="REAPPruningModifier and REAPPruningModifier drop experts"):
        oneshot(tiny_mixture("mixtral"), [REAPPruningModifier(keep=3), REAPPruningModifier(keep=2)], dataset=batches())


def test_schemes_that_are_chosen_for_the_whole_model_are_refused_beside_it():
    bits = AutoBitsModifier(target_bits=6, candidates=["W4A16", "W8A16"], group_size=32, ignore=["lm_head"])
    recipe = [REAPPruningModifier(keep=2), bits, GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])]

    with pytest.raises(RecipeError, match="AutoBitsModifier has chosen schemes for layers of experts"):
        oneshot(tiny_mixture("mixtral"), recipe, dataset=batches())


def test_a_quantized_model_is_refused():
    model = oneshot(tiny_mixture("mixtral"), QuantizationModifier(scheme="W8A16", group_size=-1, ignore=["lm_head"]))

    with pytest.raises(ColdpressError, match="is quantized already: drop experts first"):
        oneshot(model, REAPPruningModifier(keep=2), dataset=batches())


@pytest.mark.parametrize("settings", [{}, {"keep": 2, "sparsity": 0.5}, {"sparsity": 1.0}, {"keep": 0}])
def test_settings_that_say_nothing_or_too_much_are_refused(settings):
    with pytest.raises((ColdpressError, ValueError)):
        REAPPruningModifier(**settings)


def test_the_saliencies_of_a_first_layer_are_those_that_its_own_forward_has(tmp_path):
    """Against the fused module: its router's weights, and each expert computed by hand from the fused tensors."""
    model, data = tiny_mixture("qwen3_moe", experts=8), batches()
    block, seen = model.model.layers[0].mlp, []
    handle = block.experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    for batch in data:
        logits(model, batch)
    handle.remove()
    sums, counts = torch.zeros(8, dtype=torch.float64), torch.zeros(8)
    for hidden, index, weights in seen:
        for expert in range(8):
            token, place = torch.where(index == expert)
            gate, up = (hidden[token] @ block.experts.gate_up_proj.data[expert].T).chunk(2, dim=-1)
            said = (torch.nn.functional.silu(gate) * up) @ block.experts.down_proj.data[expert].T
            sums[expert] += (weights[token, place].double() * said.double().norm(dim=-1)).sum()
            counts[expert] += len(token)

    oneshot(model, REAPPruningModifier(keep=4), dataset=data, output_dir=tmp_path / "out")

    notes = mixtures_of(tmp_path / "out")[0]["notes"]
    assert notes["tokens_of_experts"] == counts.int().tolist()
    torch.testing.assert_close(
        torch.tensor(notes["saliency"], dtype=torch.float64), sums / counts.clamp(min=1), rtol=1e-4, atol=1e-6
    )


def test_a_plan_says_that_its_sizes_are_those_before_experts_go(tmp_path):
    folder, out = saved(tiny_mixture("mixtral"), tmp_path / "model"), tmp_path / "out"
    planned = coldpress.plan(folder, REAPPruningModifier(sparsity=0.5), dataset=batches(rows=2), quiet=True)

    oneshot(folder, REAPPruningModifier(sparsity=0.5), dataset=batches(rows=2), output_dir=out, quiet=True)

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["measured"]["bytes_after"] < planned.after
    note = "REAPPruningModifier decides after it has seen data: sizes are those before its decision"
    assert note in planned.notes
    assert report["predicted"]["notes"] == list(planned.notes)
