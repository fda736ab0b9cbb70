"""Where bits lie, configurations, refusals, and whole checkpoints that are read again."""

import json

import pytest
import torch
from safetensors.torch import load_file

from coldpress import CheckpointError, SchemeError, load_model, oneshot
from coldpress.schemes import preset
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_llama, tiny_tokenizer
from coldpress_awq_format import AWQFormat
from coldpress_awq_format.algorithm import pack, unpack


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (24, 64), generator=generator, dtype=torch.int8)
    points = torch.randint(-8, 8, (24, 2), generator=generator, dtype=torch.int8)
    return codes, torch.rand(24, 2, generator=generator).half(), points


def compress(output, *, recipe="W4A16_ASYM", size=32, ignore="[lm_head]", model=None, **settings):
    recipe = f"QuantizationModifier: {{scheme: {recipe}, group_size: {size}, ignore: {ignore}}}\n"
    model = model or tiny_llama(hidden=64)
    return oneshot(model, recipe, output_dir=output, tokenizer=tiny_tokenizer(), quiet=True, format="awq", **settings)


def test_eight_outputs_share_a_word_in_the_order_of_the_kernel(layer):
    codes, _, points = layer

    packed = pack(*layer)

    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        assert torch.equal((packed.qweight[:, 1] >> (4 * place)) & 15, codes[8 + output].int() + 8)
        assert torch.equal((packed.qzeros[:, 2] >> (4 * place)) & 15, points[16 + output].int() + 8)


def test_what_is_packed_is_unpacked(layer):
    assert all(torch.equal(one, other) for one, other in zip(unpack(pack(*layer)), layer, strict=True))


@pytest.mark.parametrize("size", [32, -1])
def test_a_checkpoint_is_read_as_it_was_in_memory(tmp_path, size):
    model = compress(tmp_path / "out", size=size)

    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"], config["group_size"]) == ("awq", "gemm", size)
    assert "lm_head" in config["modules_to_not_convert"]


def test_a_streamed_run_gives_the_files_of_one_in_memory(tmp_path):
    tiny_llama(hidden=64, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")

    compress(tmp_path / "streamed", model=str(tmp_path / "model"), return_model=False)
    compress(tmp_path / "memory", model=load_model(tmp_path / "model"))

    streamed, memory = (load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "memory"))
    assert streamed.keys() == memory.keys()
    assert all(torch.equal(tensor, memory[name]) for name, tensor in streamed.items())


def test_an_interrupted_run_gives_the_same_files(tmp_path):
    compress(tmp_path / "whole")

    with interrupted(2):
        compress(tmp_path / "resumed")
    compress(tmp_path / "resumed")

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


@pytest.mark.parametrize(
    ("scheme", "shape", "words"),
    [
        ("W4A16", (64, 128), "choose W4A16_ASYM, or the format gptq"),
        ("W8A16", (64, 128), "not int8"),
        ("W4A16_ASYM", (36, 128), "36 outputs do not fill words"),
        ("W8A8", (64, 128), "leaves inputs as they are"),
        ("Q4_K", (64, 256), "scales of 6 bits, as in Q4_K, are for the format gguf"),
        ("Q6_K", (64, 256), "not int6"),
    ],
)
def test_what_its_readers_cannot_read_is_refused(scheme, shape, words):
    form = AWQFormat()
    scheme = form.complete({"x.up": preset(scheme)}, {"x.up": shape})["x.up"]

    with pytest.raises(SchemeError, match=words) as caught:
        form.check(scheme, "x.up", shape)
    assert "x.up" in str(caught.value)


def test_two_schemes_in_one_model_are_refused():
    schemes = {"a": preset("W4A16_ASYM", group_size=32), "b": preset("W4A16_ASYM", group_size=64)}

    with pytest.raises(SchemeError, match="b and a have different schemes"):
        AWQFormat().complete(schemes, dict.fromkeys(schemes, (64, 64)))


CHANGES = [
    *({"version": "gemv"}, {"bits": 8}, {"zero_point": False}, {"group_size": 0}),
    {"modules_to_not_convert": 5},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_configuration_that_cannot_be_read_is_told(change):
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}

    with pytest.raises(CheckpointError, match="quantization_config"):
        AWQFormat().read({**config, **change})


def test_a_quantized_head_is_refused_before_the_run(tmp_path):
    with pytest.raises(SchemeError, match="lm_head, .* take the output layer for dense; ignore it"):
        compress(tmp_path / "out", ignore="[]")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "dense"), [({}, True), ({"lm_head": True}, False)])
def test_the_head_of_other_tools_files_is_dense_unless_they_say_otherwise(more, dense):
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": None, **more}

    lookup = AWQFormat().read(config)

    assert (lookup("lm_head", ("Linear",)) is None) == dense
    assert lookup("model.layers.1.mlp.up_proj", ("Linear",)) is not None


def test_names_that_are_left_out_mean_whole_parts_of_names():
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": ["layers.1", "lm_head"]}

    lookup = AWQFormat().read(config)

    assert lookup("model.layers.1.mlp.up_proj", ("Linear",)) is None
    assert lookup("model.layers.11.mlp.up_proj", ("Linear",)) is not None
