"""Keys and values, quantized where attention runs: the scales, the simulation, the checkpoint and its readers."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from coldpress import SchemeError, load_model, oneshot
from coldpress.evaluation import perplexity
from coldpress.plugin import CheckpointReader
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_awq import AWQModifier
from coldpress_gptq import GPTQModifier
from coldpress_quantization import QuantizationModifier
from coldpress_smoothquant import SmoothQuantModifier

FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "observer": "static_minmax"}
HEADS = FP8 | {"strategy": "attn_head"}
INT8 = FP8 | {"type": "int"}
INT4 = {"num_bits": 4, "group_size": 32}
ATTENTION = "model.layers.1.self_attn"
PIPELINES = ["basic", "sequential", "layer_sequential"]


def only_cache(args=FP8, **settings):
    return QuantizationModifier(kv_cache_scheme=args, ignore=["lm_head"], **settings)


def compress(modifier, *, model=None, data=None, **arguments):
    return oneshot(
        model or tiny_llama(),
        modifier,
        dataset=data or batches(rows=4),
        tokenizer=tiny_tokenizer(),
        quiet=True,
        **{"pipeline": "basic", **arguments},
    )


def cached(model, data, layer):
    """Keys and values that the model's own cache holds after it ran, [rows, heads, tokens, D] each."""
    with torch.no_grad():
        caches = [model(**batch, use_cache=True).past_key_values.layers[layer] for batch in data]
    return torch.cat([cache.keys for cache in caches]), torch.cat([cache.values for cache in caches])


def seen_by_attention(model, name, data):
    """Queries, keys and values that the attention function of a module is called with, [rows, H, S, D] each."""
    seen, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def look(module, query, key, value, *rest, **more):
        if module is model.get_submodule(name):
            seen.append((query, key, value))
        return sdpa(module, query, key, value, *rest, **more)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", look)
    try:
        logits(model, data)
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


@pytest.mark.parametrize(("args", "top"), [(FP8, 448.0), (INT8, 127.5)], ids=["FP8", "INT8"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_scales_are_those_of_what_the_cache_would_hold(args, top, implementation):
    plain, data = tiny_llama(), batches(rows=4)
    keys, values = cached(plain, data, 1)
    model = tiny_llama()
    model.set_attn_implementation(implementation)

    attention = compress(only_cache(args), model=model, data=data).get_submodule(ATTENTION)

    assert attention.k_scale.shape == attention.v_scale.shape == (1,)
    torch.testing.assert_close(attention.k_scale, keys.abs().max().reshape(1) / top)
    torch.testing.assert_close(attention.v_scale, values.abs().max().reshape(1) / top)


def test_every_head_may_have_its_own_scale():
    keys, values = cached(tiny_llama(), batches(rows=4), 1)

    attention = compress(only_cache(HEADS)).get_submodule(ATTENTION)

    for scale, x in ((attention.k_scale, keys), (attention.v_scale, values)):
        torch.testing.assert_close(scale, x.abs().amax(dim=(0, 2, 3)).reshape(-1, 1, 1) / 448)


def test_attention_sees_rounded_keys_and_values():
    first = "model.layers.0.self_attn"  # what comes before it is the same in both models
    data = batches(rows=2, seed=3)
    model = compress(only_cache())
    plain, rounded = (seen_by_attention(one, first, data) for one in (tiny_llama(), model))

    attention = model.get_submodule(first)

    for x, seen, scale in zip(plain[1:], rounded[1:], (attention.k_scale, attention.v_scale), strict=True):
        assert torch.equal(seen, (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)
    assert torch.equal(plain[0], rounded[0])  # queries are as they are


def test_generating_with_a_cache_is_reading_without_one():
    model, ids = compress(only_cache()), batches(rows=1, length=12)[0]["input_ids"]

    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        first = model(input_ids=ids[:, :6], use_cache=True)
        last = model(input_ids=ids[:, 6:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]

    torch.testing.assert_close(last, whole)


def test_padding_is_not_seen():
    data = batches(rows=2, batch_size=2)
    padded = [{name: torch.nn.functional.pad(value, (0, 5), value=0) for name, value in one.items()} for one in data]

    without, with_padding = (compress(only_cache(), data=some).get_submodule(ATTENTION) for some in (data, padded))

    torch.testing.assert_close(with_padding.k_scale, without.k_scale)
    torch.testing.assert_close(with_padding.v_scale, without.v_scale)


@pytest.mark.parametrize("pipeline", [*PIPELINES, "independent"])
@pytest.mark.parametrize("scheme", [None, "W8A8"])
def test_what_is_saved_is_loaded_again(pipeline, scheme, tmp_path):
    returned = compress(only_cache(scheme=scheme), pipeline=pipeline, output_dir=tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())

    loaded = load_model(tmp_path / "out", device="cpu")

    assert torch.equal(logits(loaded, batches(rows=2)), logits(returned, batches(rows=2)))
    assert loaded.state_dict().keys() == returned.state_dict().keys()
    found = config["quantization_config"]["kv_cache_scheme"]
    assert (found["num_bits"], found["type"], found["strategy"], found["dynamic"]) == (8, "float", "tensor", False)
    assert "coldpress" not in json.dumps(config)
    assert {f"{ATTENTION}.k_scale", f"{ATTENTION}.v_scale"} <= set(CheckpointReader(tmp_path / "out").names())
    assert perplexity(loaded, tiny_tokenizer(), "oil and stone" * 9, window=16).value == pytest.approx(
        perplexity(returned, tiny_tokenizer(), "oil and stone" * 9, window=16).value
    )


@pytest.mark.parametrize("args", [FP8, HEADS], ids=["tensor", "attn_head"])
def test_transformers_loads_the_scales_and_says_the_same(args, tmp_path):
    returned = compress(only_cache(args, scheme="W8A8"), output_dir=tmp_path / "out")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    data = batches(rows=2)
    torch.testing.assert_close(logits(loaded, data), logits(returned, data), rtol=1e-4, atol=1e-4)
    for name in ("k_scale", "v_scale"):
        theirs = getattr(loaded.get_submodule(ATTENTION), name)
        assert torch.equal(theirs.detach(), getattr(returned.get_submodule(ATTENTION), name))


def test_the_recipe_reads_back(tmp_path):
    recipe = "modifiers: [QuantizationModifier: {kv_cache_scheme: {num_bits: 8, type: float}, ignore: [lm_head]}]"
    compress(recipe, output_dir=tmp_path / "first")
    compress(tmp_path / "first/recipe.yaml", output_dir=tmp_path / "second")

    first, second = (CheckpointReader(tmp_path / name) for name in ("first", "second"))
    assert torch.equal(first.get(f"{ATTENTION}.k_scale"), second.get(f"{ATTENTION}.k_scale"))


def test_layers_are_left_alone_with_a_reason(tmp_path):
    compress(only_cache(), output_dir=tmp_path / "out")
    layers = json.loads((tmp_path / "out/report.json").read_text())["layers"]

    assert {line["reason"] for line in layers if "layers" in line["name"]} == {"no target of the recipe matches it"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"dynamic": True, "strategy": "token"}, "dynamic=True"),
        ({"symmetric": False}, "symmetric=false"),
        ({"strategy": "channel"}, "strategy 'channel'"),
        ({"num_bits": 9}, "no number format is called 'int9'"),
    ],
)
def test_what_a_cache_cannot_have_is_refused(args, said):
    with pytest.raises(SchemeError, match=said):
        only_cache(args)


def test_a_dense_checkpoint_is_refused_before_the_run(tmp_path):
    model = tiny_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))

    with pytest.raises(SchemeError, match=r"CacheQuantizer: model.layers.0.self_attn .*'kv_cache'.* DenseFormat"):
        compress(only_cache(), model=model, format="dense", output_dir=tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_attention_has_scales_whatever_layers_are_targeted(pipeline):
    every = compress(only_cache())

    one = compress(only_cache(targets=["re:.*layers.0.*q_proj"]), pipeline=pipeline)

    for name in (ATTENTION, "model.layers.0.self_attn"):
        assert torch.equal(one.get_submodule(name).k_scale, every.get_submodule(name).k_scale)


COUNTED = FP8 | {"observer": "kl"}  # of a histogram, in which a batch that is seen twice counts twice


def scales(model, name):
    attention = model.get_submodule(name)
    return torch.cat([attention.k_scale, attention.v_scale])


def test_every_batch_counts_once_for_the_scales():
    layers = {"weights": INT4, "input_activations": {"num_bits": 8, "strategy": "tensor"}}
    groups = {"mlp": {"targets": ["re:.*mlp.*"], **layers}}  # which lead through a block layer by layer
    by_model, by_layer, by_block = (
        compress(only_cache(COUNTED, config_groups=groups), **arguments)
        for arguments in (
            {},
            {"pipeline": "sequential", "true_sequential": True},
            {"pipeline": "sequential", "true_sequential": False, "propagate_error": True},
        )
    )

    first = "model.layers.0.self_attn"  # before which nothing is rounded
    assert torch.equal(scales(by_layer, first), scales(by_model, first))
    assert torch.equal(scales(by_block, first), scales(by_model, first))
    assert not torch.equal(scales(by_layer, ATTENTION), scales(by_model, ATTENTION))


def test_layers_of_another_quantizer_are_left_to_it():
    gptq = "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"
    cache = "QuantizationModifier: {kv_cache_scheme: {num_bits: 8, type: float}, ignore: [lm_head]}"

    both, alone = (compress(f"modifiers: [{steps}]", pipeline="sequential") for steps in (f"{cache}, {gptq}", gptq))

    first = "model.layers.0.self_attn.q_proj"  # nothing is rounded before it
    assert torch.equal(both.get_submodule(first).weight, alone.get_submodule(first).weight)
    assert hasattr(both.get_submodule(ATTENTION), "k_scale")


def test_the_original_models_batches_do_not_count_for_the_scales():
    correction = "GPTQModifier: {scheme: W4A16, group_size: 32, correction: gptaq, ignore: [lm_head]}"
    cache = "QuantizationModifier: {kv_cache_scheme: {num_bits: 8, type: float}, ignore: [lm_head]}"
    compared, plain = (
        compress(f"modifiers: [{cache}, {correction.replace('gptaq', kind)}]", pipeline="sequential")
        for kind in ("gptaq", "null")
    )

    first = "model.layers.0.self_attn"  # whose inputs are the same in both
    assert torch.equal(compared.get_submodule(first).v_scale, plain.get_submodule(first).v_scale)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_attention_that_never_runs_is_left_alone_and_named(pipeline, caplog):
    model = tiny_llama()
    model.model.unused = torch.nn.ModuleList(copy.deepcopy(block) for block in model.model.layers)

    compressed = compress(only_cache(), model=model, pipeline=pipeline)

    assert hasattr(compressed.get_submodule(ATTENTION), "k_scale")
    assert not hasattr(compressed.model.unused[0].self_attn, "k_scale")
    assert "model.unused.0.self_attn ran for no batch" in caplog.text


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("scheme", [{"scheme": "W8A8"}, {"scheme": "W4A16", "group_size": 32}], ids=["W8A8", "W4A16"])
def test_a_run_that_was_interrupted_gives_the_same_scales(streamed, scheme, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "source")

    def run(folder):
        model = str(tmp_path / "source") if streamed else tiny_llama()
        modifier = only_cache(FP8 | {"observer": "minmax"}, **scheme)
        return compress(modifier, model=model, pipeline="sequential", output_dir=tmp_path / folder)

    whole = run("whole")
    with interrupted():
        run("out")
    resumed = run("out")

    one, other = (CheckpointReader(tmp_path / name) for name in ("whole", "out"))
    assert sorted(one.names()) == sorted(other.names())
    assert all(torch.equal(one.get(name), other.get(name)) for name in one.names())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "out")]
    assert configs[0] == configs[1]
    assert torch.equal(logits(resumed, batches(rows=2)), logits(whole, batches(rows=2)))


def test_a_model_in_memory_is_saved_later_with_its_scales(tmp_path):
    returned = compress(only_cache(scheme="W8A8"))
    returned.save_pretrained(tmp_path / "out")

    loaded = load_model(tmp_path / "out", device="cpu")

    assert torch.equal(logits(loaded, batches(rows=2)), logits(returned, batches(rows=2)))


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "independent"])
def test_scales_are_those_of_the_values_after_smoothing(pipeline):
    smooth = SmoothQuantModifier(smoothing_strength=0.9)
    together = compress(
        [smooth, QuantizationModifier(scheme="W8A16", group_size=-1, kv_cache_scheme=FP8)], pipeline=pipeline
    )
    apart = compress(only_cache(), model=compress(smooth, pipeline=pipeline), pipeline=pipeline)

    for one, other in zip(together.model.layers, apart.model.layers, strict=True):
        torch.testing.assert_close(one.self_attn.v_scale, other.self_attn.v_scale, rtol=0.02, atol=0)
        torch.testing.assert_close(one.self_attn.k_scale, other.self_attn.k_scale, rtol=0.02, atol=0)


def keeps_scales(modifier, *before):
    return sum(name.endswith("k_scale") for name, _ in compress([*before, modifier]).named_buffers()) == 2


def test_every_quantizer_has_a_scheme_of_keys_and_values():
    settings = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], "kv_cache_scheme": FP8}
    bare = GPTQModifier(kv_cache_scheme=FP8)

    assert keeps_scales(GPTQModifier(**settings))
    assert keeps_scales(AWQModifier(**settings))
    assert keeps_scales(bare, QuantizationModifier(scheme="W4A16", group_size=32, ignore=["lm_head"]))
