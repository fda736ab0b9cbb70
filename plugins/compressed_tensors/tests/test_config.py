"""`quantization_config`: the library and transformers accept what we write, and find the scheme that we meant."""

import json
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("compressed_tensors", reason="what we write is held against this library")

from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from coldpress import CheckpointError, QuantizationArgs, Scheme, preset
from coldpress.checkpoint import CheckpointWriter
from coldpress.numerics import calculate_qparams, group, quantize
from coldpress.plugin import CheckpointReader, Layer, Quantized
from coldpress_compressed_tensors import CompressedTensorsFormat

FORMAT = CompressedTensorsFormat()
INT8_TOKEN = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
FP8_TOKEN = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)


def scheme(inputs=None, *, targets=("Linear",), **weights):
    return Scheme(targets=targets, weights=QuantizationArgs(**weights), input_activations=inputs)


def quantized_layer(scheme, shape, *, dtype, seed):
    """A random layer, rounded to nearest as the scheme says."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)  # [O, I]
    grouped = group(weight, scheme.weights)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
    codes = quantize(weight, scale, zero_point, scheme.weights)
    return Quantized(scheme, codes=codes, scale=scale, zero_point=zero_point)


def same(a, b):
    """Bit for bit, -0.0 included."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


LINEAR = ("Linear", "Module", "object")
W4 = scheme(num_bits=4, group_size=32)
ASYMMETRIC = scheme(num_bits=4, group_size=32, symmetric=False)
W8A8 = scheme(INT8_TOKEN, strategy="channel")


def targeted(scheme, *targets):
    return Scheme.from_dict({**scheme.to_dict(), "targets": list(targets)})


def written(schemes, ignore=()):
    """Our table, as it comes back from a JSON file, accepted by the library and by transformers."""
    config = json.loads(json.dumps(FORMAT.config(schemes, list(ignore))))
    QuantizationConfig.model_validate(config)
    CompressedTensorsConfig(**config)
    return config


def test_one_scheme_is_one_group_with_the_targets_of_the_user():
    config = written({"a": W4, "b": W4}, ["lm_head"])

    assert list(config["config_groups"]) == ["group_0"]
    group = config["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert group["format"] == config["format"] == "pack-quantized"
    assert group["weights"]["group_size"] == 32
    assert config["ignore"] == ["lm_head"]


def test_the_rest_of_the_table_is_what_the_library_writes():
    config = written({"a": W4})

    del config["config_groups"], config["version"]
    assert config == {
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": [],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
    }


def test_nothing_quantized_is_a_plain_model():
    assert FORMAT.config({}, ["a"]) is None


def test_groups_of_two_layouts_are_mixed_precision():
    config = written({"a.down": targeted(W4, "re:.*down"), "a.up": targeted(W8A8, "re:.*up")})

    assert config["format"] == "mixed-precision"
    assert [group["format"] for group in config["config_groups"].values()] == ["pack-quantized", "int-quantized"]


def test_schemes_that_differ_in_targets_only_share_a_group():
    config = written({"a.q": targeted(W4, "re:.*q"), "a.k": targeted(W4, "re:.*k")})

    assert [group["targets"] for group in config["config_groups"].values()] == [["re:.*q", "re:.*k"]]


def test_a_name_or_pattern_beside_a_class_is_kept():
    config = written({"a.down": targeted(W4, "re:.*down"), "a.up": W8A8, "lm_head": targeted(W4, "lm_head")})

    assert [group["targets"] for group in config["config_groups"].values()] == [["re:.*down", "lm_head"], ["Linear"]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (W4, W8A8),
        (targeted(W4, "re:.*"), targeted(W8A8, "b")),
        (targeted(W4, "re:.*"), W8A8),
        (W4, targeted(W8A8, "Embedding")),
    ],
)
def test_targets_that_could_mean_a_layer_of_another_group_become_names(first, second):
    config = written({"a": first, "b": second})

    assert [group["targets"] for group in config["config_groups"].values()] == [["a"], ["b"]]
    lookup = FORMAT.read(config)
    assert lookup("a", LINEAR).weights == first.weights
    assert lookup("b", LINEAR).weights == second.weights


def tiny(dtype=torch.float32):
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def linears(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


MIXES = {
    "W4A16": lambda name: W4,
    "W3A16": lambda name: scheme(num_bits=3, strategy="channel"),
    "W4A8": lambda name: scheme(INT8_TOKEN, num_bits=4, group_size=32),
    "W8A8": lambda name: W8A8,
    "FP8_DYNAMIC": lambda name: scheme(FP8_TOKEN, type="float", strategy="channel"),
    "FP8 alone": lambda name: scheme(type="float", strategy="tensor"),
    "mixed": lambda name: targeted(W8A8, "re:.*mlp") if "mlp" in name else W4,
    "named": lambda name: W8A8 if "mlp" in name else W4,
}


def compressed(folder, choose, dtype):
    """A tiny Llama, written by us; and the weights that its codes stand for."""
    model = tiny(dtype)
    layers = {
        name: quantized_layer(choose(name), module.weight.shape, dtype=dtype, seed=seed)
        for seed, (name, module) in enumerate(linears(model))
        if name != "lm_head"
    }
    with CheckpointWriter(folder) as writer:
        for name, tensor in model.state_dict().items():
            layer = name.removesuffix(".weight")
            tensors = {name: tensor}
            if layer in layers:
                tensors = {f"{layer}.{suffix}": t for suffix, t in FORMAT.tensors(layers[layer]).items()}
            writer.add(tensors)
        config = FORMAT.config({name: layer.scheme for name, layer in layers.items()}, ["lm_head"])
        writer.write_json("config.json", {**json.loads(model.config.to_json_string()), "quantization_config": config})
        writer.finish()
    return layers


@pytest.mark.parametrize("mix", MIXES)
def test_transformers_loads_our_checkpoint_with_the_weights_bit_for_bit(tmp_path, mix):
    layers = compressed(tmp_path / "out", MIXES[mix], torch.bfloat16)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    model(torch.arange(5).unsqueeze(0))  # decompresses

    loaded = dict(linears(model))
    weights = {name: layer.weight(torch.bfloat16) for name, layer in layers.items()}
    assert [name for name, weight in weights.items() if not same(loaded[name].weight.data, weight)] == []
    assert not hasattr(loaded["lm_head"], "quantization_scheme")
    for name, layer in layers.items():
        theirs = loaded[name].quantization_scheme
        assert (
            theirs.weights.model_dump()
            == QuantizationConfig.model_validate({"config_groups": {"x": layer.scheme.to_dict()}})
            .config_groups["x"]
            .weights.model_dump()
        )


def test_transformers_loads_packed_zero_points_when_it_is_told_to_dequantize(tmp_path):
    # By default transformers 5.23 makes room for zero points that are not packed, and drops ours as of a wrong shape.
    layers = compressed(tmp_path / "out", lambda name: ASYMMETRIC, torch.bfloat16)

    wanted = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16, quantization_config=wanted)

    loaded = dict(linears(model))
    weights = {name: layer.weight(torch.bfloat16) for name, layer in layers.items()}
    assert [name for name, weight in weights.items() if not same(loaded[name].weight.data, weight)] == []


@pytest.mark.parametrize("choose", [lambda name: ASYMMETRIC, MIXES["mixed"]], ids=["asymmetric", "mixed"])
def test_our_reader_takes_our_checkpoint(tmp_path, choose):
    layers = compressed(tmp_path / "out", choose, torch.bfloat16)

    reader = CheckpointReader(tmp_path / "out")
    lookup = FORMAT.read(reader.config()["quantization_config"])

    for layer, quantized in layers.items():
        tensors = {name[len(layer) + 1 :]: reader.get(name) for name in reader.names() if name.startswith(f"{layer}.")}
        assert same(FORMAT.restore(tensors, lookup(layer, LINEAR)).codes, quantized.codes)
    assert lookup("lm_head", LINEAR) is None


class LibraryCheckpoint(NamedTuple):
    """What the library makes of a tiny Llama."""

    config: dict
    tensors: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]  # of each linear layer, before it is packed


def by_the_library(folder, scheme):
    model = tiny()
    config = QuantizationConfig(config_groups={"g": scheme.to_dict()}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for seed, (name, module) in enumerate(linears(model)):
        if name != "lm_head":
            quantized = quantized_layer(scheme, module.weight.shape, dtype=torch.float32, seed=seed)
            module.weight.data = quantized.weight(torch.float32)
            module.weight_scale.data, module.weight_zero_point.data = quantized.scale, quantized.zero_point
    weights = {name: module.weight.data.clone() for name, module in linears(model)}
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    (folder / "config.json").write_text("{}")
    compressor.update_config(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return LibraryCheckpoint(config, model.state_dict(), weights)


PRESETS = ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "W8A16"]


@pytest.mark.parametrize("preset_name", PRESETS)
def test_what_the_library_compresses_we_read_bit_for_bit(tmp_path, preset_name):
    theirs = by_the_library(tmp_path, grouped_preset(preset_name))

    lookup = FORMAT.read(theirs.config)

    assert lookup("lm_head", LINEAR) is None
    for name in theirs.weights.keys() - {"lm_head"}:
        tensors = {key[len(name) + 1 :]: tensor for key, tensor in theirs.tensors.items() if key.startswith(f"{name}.")}
        assert same(FORMAT.restore(tensors, lookup(name, LINEAR)).weight(torch.float32), theirs.weights[name])


@pytest.mark.parametrize("preset_name", PRESETS)
def test_the_table_is_the_librarys(tmp_path, preset_name):
    pytest.importorskip("compressed_tensors", minversion="0.20", reason="0.20, whose keys are ours, needs Python 3.11")
    scheme = grouped_preset(preset_name)

    theirs = by_the_library(tmp_path, scheme)

    ours = written({name: scheme for name in theirs.weights if name != "lm_head"}, ["lm_head"])
    assert {**ours, "moe_sparsity_config": None, "config_groups": None} == {**theirs.config, "config_groups": None}
    assert QuantizationConfig.model_validate(ours) == QuantizationConfig.model_validate(theirs.config)


def grouped_preset(name):
    return preset(name, group_size=32) if "A16" in name else preset(name)


def test_the_lookup_agrees_with_our_own_matching_where_one_target_fits():
    lookup = FORMAT.read(written({"a.q_proj": targeted(W4, "re:.*q_proj"), "b": W8A8}, ["c", "lm_head"]))

    for name, expected in [("a.q_proj", W4), ("b", W8A8), ("c", None), ("lm_head", None), ("d", W8A8)]:
        found = lookup(name, LINEAR)
        assert (found and found.weights) == (expected and expected.weights)
    assert lookup("embed", ("Embedding", "Module")) is None
    layer = Layer("a.q_proj", torch.nn.Linear(1, 1), LINEAR)
    assert layer.matches(["re:.*q_proj"])


def test_names_come_before_patterns_and_patterns_before_classes():
    lookup = FORMAT.read(
        {
            "config_groups": {
                "class": scheme(num_bits=2, targets=["Linear"], strategy="channel").to_dict(),
                "pattern": scheme(num_bits=3, targets=["re:.*a"], strategy="channel").to_dict(),
                "name": scheme(num_bits=4, targets=["x.a"], strategy="channel").to_dict(),
            }
        }
    )

    assert [lookup(name, LINEAR).weights.num_bits for name in ("x.a", "y.a", "z")] == [4, 3, 2]


def test_ignore_takes_names_patterns_and_classes():
    groups = {"g": scheme(num_bits=4, targets=["re:.*"], strategy="channel").to_dict()}
    lookup = FORMAT.read({"config_groups": groups, "ignore": ["lm_head", "re:.*router", "Embedding"]})

    assert lookup("lm_head", LINEAR) is None
    assert lookup("a.router", LINEAR) is None
    assert lookup("embed", ("Embedding",)) is None
    assert lookup("a.up", LINEAR) is not None


def test_a_preset_by_name_is_understood():
    assert FORMAT.read({"config_groups": {"W4A16": ["Linear"]}})("a", LINEAR).format == "pack-quantized"


def test_weights_that_were_never_compressed_are_dense():
    config = {**written({"a": W4}), "quantization_status": "frozen"}

    assert FORMAT.read(config)("a", LINEAR).format == "dense"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config_groups": None}, "no config_groups"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse layouts"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": "x"}}}},
            r"config_groups\.g.*num_bits",
        ),
        ({"config_groups": {"g": {"weights": None}}}, "targets is missing"),
        ({"config_groups": {"W3A3": ["Linear"]}}, "W3A3"),
        ({"ignore": ["re:("]}, "not a regular expression"),
        ({"ignore": [3]}, "3 is not the name"),
        ({"ignore": 3}, "ignore must be a list of names and patterns, got 3"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(change, reason):
    with pytest.raises(CheckpointError, match=reason):
        FORMAT.read({**written({"a": W4}), **change})


@pytest.mark.parametrize(
    ("scheme", "more", "found"),
    [
        ("W4A16_ASYM", {}, True),
        ("W4A16", {}, None),
        ("W8A8", {}, None),
        ("W4A16_ASYM", {"kv_cache_scheme": {"num_bits": 8}}, None),
        ("W4A16_ASYM", {"transform_config": {"config_groups": {}}}, None),
    ],
)
def test_zero_points_are_read_dense_where_that_leaves_nothing_out(scheme, more, found):
    form, schemes = CompressedTensorsFormat(), {"x": preset(scheme)}

    config = form.config_for({**form.config(schemes, []), **more}, lambda: None, schemes)

    assert config.get("dequantize") is found
