"""Queries, keys and values, quantized where attention runs: the scales, the simulation, the checkpoint, its readers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from coldpress import SchemeError, TargetError, load_model, oneshot
from coldpress.plugin import CheckpointReader
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_quantization import QuantizationModifier

FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "observer": "static_minmax"}
HEADS = FP8 | {"strategy": "attn_head"}
INT8 = FP8 | {"type": "int"}
ATTENTION = "model.layers.1.self_attn"
INT8_LINEAR = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}


def attention(args=FP8, *, targets="LlamaAttention", **groups):
    group = {"targets": [targets], "input_activations": args}
    return QuantizationModifier(config_groups={"attention": group, **groups}, ignore=["lm_head"])


def compress(modifier, *, data=None, **arguments):
    return oneshot(
        tiny_llama(),
        modifier,
        dataset=data or batches(rows=4),
        tokenizer=tiny_tokenizer(),
        quiet=True,
        **{"pipeline": "basic", **arguments},
    )


def seen_by_attention(model, data):
    """Queries, keys and values that the attention function of a plain model is called with, [rows, H, S, D] each."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen, sdpa = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def look(module, query, key, value, *rest, **more):
        if module is model.get_submodule(ATTENTION):
            seen.append((query, key, value))
        return sdpa(module, query, key, value, *rest, **more)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", look)
    try:
        logits(model, data)
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


@pytest.mark.parametrize(("args", "top"), [(FP8, 448.0), (INT8, 127.5)], ids=["FP8", "INT8"])
def test_scales_are_those_of_what_attention_is_called_with(args, top):
    data = batches(rows=4)
    seen = seen_by_attention(tiny_llama(), data)

    module = compress(attention(args), data=data).get_submodule(ATTENTION)

    for name, x in zip(("q_scale", "k_scale", "v_scale"), seen, strict=True):
        torch.testing.assert_close(getattr(module, name), x.abs().max().reshape(1) / top)


def test_every_head_may_have_its_own_scale_and_queries_have_heads_of_their_own():
    data = batches(rows=4)
    seen = seen_by_attention(tiny_llama(), data)

    module = compress(attention(HEADS), data=data).get_submodule(ATTENTION)

    assert module.q_scale.shape[0] > module.k_scale.shape[0]
    for name, x in zip(("q_scale", "k_scale", "v_scale"), seen, strict=True):
        torch.testing.assert_close(getattr(module, name), x.abs().amax(dim=(0, 2, 3)).reshape(-1, 1, 1) / 448)


def test_padding_is_not_seen():
    data = batches(rows=2, batch_size=2)
    padded = [{name: torch.nn.functional.pad(value, (0, 5), value=0) for name, value in one.items()} for one in data]

    without, with_padding = (compress(attention(), data=some).get_submodule(ATTENTION) for some in (data, padded))

    torch.testing.assert_close(with_padding.q_scale, without.q_scale)


def test_queries_are_rounded_beside_keys_and_values():
    data = batches(rows=2)
    plain, cache, whole = (
        logits(model, data)
        for model in (
            tiny_llama(),
            compress(QuantizationModifier(kv_cache_scheme=INT8, ignore=["lm_head"])),
            compress(attention(INT8)),
        )
    )

    assert not torch.equal(cache, plain)
    assert not torch.equal(whole, cache)


@pytest.mark.parametrize("args", [FP8, HEADS, INT8], ids=["FP8", "heads", "INT8"])
@pytest.mark.parametrize("groups", [{}, {"linear": INT8_LINEAR}], ids=["alone", "W8A16"])
@pytest.mark.parametrize("pipeline", ["basic", "sequential"])
def test_what_is_saved_is_loaded_again_by_us_and_by_transformers(args, groups, pipeline, tmp_path):
    returned = compress(attention(args, **groups), pipeline=pipeline, output_dir=tmp_path / "out")
    data = batches(rows=2)

    ours = load_model(tmp_path / "out", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    assert torch.equal(logits(ours, data), logits(returned, data))
    torch.testing.assert_close(logits(theirs, data), logits(returned, data), rtol=1e-4, atol=1e-4)
    for name in ("q_scale", "k_scale", "v_scale"):
        scale = getattr(theirs.get_submodule(ATTENTION), name).detach()
        assert torch.equal(scale, getattr(returned.get_submodule(ATTENTION), name))


def test_the_configuration_is_what_the_library_writes(tmp_path):
    compress(attention(HEADS), output_dir=tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]

    (group,) = config["config_groups"].values()
    assert group["targets"] == ["LlamaAttention"]  # one target that ends so: what vLLM takes for attention
    assert group["weights"] is None
    assert group["input_activations"] == config["kv_cache_scheme"]
    assert {f"{ATTENTION}.{part}_scale" for part in "qkv"} <= set(CheckpointReader(tmp_path / "out").names())


def test_a_run_that_was_interrupted_gives_the_same_scales(tmp_path):
    def run(folder):
        return compress(attention(HEADS, linear=INT8_LINEAR), pipeline="sequential", output_dir=tmp_path / folder)

    whole = run("whole")
    with interrupted():
        run("out")
    resumed = run("out")

    one, other = (CheckpointReader(tmp_path / name) for name in ("whole", "out"))
    assert all(torch.equal(one.get(name), other.get(name)) for name in one.names())
    assert torch.equal(logits(resumed, batches(rows=2)), logits(whole, batches(rows=2)))


def test_a_class_that_the_model_does_not_have_is_named():
    with pytest.raises(TargetError, match="no module of this model is a 'QwenAttention'; its attention is LlamaAttent"):
        compress(attention(targets="QwenAttention"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"dynamic": True, "strategy": "token"}, "dynamic=True"),
        ({"strategy": "channel"}, "strategy 'channel'"),
        (None, "needs input_activations"),
    ],
)
def test_what_attention_cannot_have_is_refused(args, said):
    with pytest.raises(SchemeError, match=said):
        attention(args)


def test_a_cache_that_differs_from_attention_is_refused():
    group = {"targets": ["LlamaAttention"], "input_activations": FP8}
    with pytest.raises(SchemeError, match="differ: keys and values are quantized in one way"):
        QuantizationModifier(config_groups={"attention": group}, kv_cache_scheme=HEADS)
