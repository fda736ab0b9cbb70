"""REAPPruningModifier on tiny mixtures: which experts go, and that what is left is a model of its own."""

import json

import pytest
import torch

import coldpress
from coldpress import load_model, oneshot
from coldpress.errors import ColdpressError, RecipeError
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
