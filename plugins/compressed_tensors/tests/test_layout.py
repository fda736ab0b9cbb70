"""Against the library compressed-tensors: what we write, it reads; what it writes, we read; bit for bit."""

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("compressed_tensors", reason="what we write is held against this library")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationScheme

from coldpress import CheckpointError, QuantizationArgs, Scheme, SchemeError, preset, preset_names
from coldpress.plugin import Quantized, Stored
from coldpress.testing.rounding import rounded_weight
from coldpress_compressed_tensors import CompressedTensorsFormat, DenseFormat
from coldpress_compressed_tensors.layout import LAYOUTS, choose

FORMAT = CompressedTensorsFormat()
INT8_TOKEN = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
FP8_TOKEN = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
INT8_STATIC = QuantizationArgs(num_bits=8, strategy="tensor")
INT8_STATIC_ASYMMETRIC = QuantizationArgs(num_bits=8, strategy="tensor", symmetric=False)
FP8_STATIC = QuantizationArgs(num_bits=8, type="float", strategy="tensor")


def scheme(inputs=None, *, targets=("Linear",), format=None, **weights):
    return Scheme(
        targets=targets,
        weights=QuantizationArgs(**weights),
        input_activations=inputs,
        format=format,
    )


def quantized_layer(scheme, shape, *, dtype=torch.bfloat16, seed=0):
    """A random layer, rounded to nearest as the scheme says."""
    return rounded_weight(random_weight(shape, dtype, seed), scheme)


def random_weight(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)  # [O, I]


def same(a, b):
    """Bit for bit, NaN and -0.0 included."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(signed), b.view(signed))


# Name -> scheme, shape of a layer: every kind that this release writes.
INT4_SHAPES = {"group 32": (7, 96), "group 64": (130, 192)}
SCHEMES = {
    **{
        f"int4 g{size} {'sym' if symmetric else 'asym'}": (
            scheme(num_bits=4, group_size=size, symmetric=symmetric),
            INT4_SHAPES[f"group {size}"],
        )
        for size in (32, 64)
        for symmetric in (True, False)
    },
    **{
        f"int4 {strategy} {'sym' if symmetric else 'asym'}": (
            scheme(num_bits=4, strategy=strategy, symmetric=symmetric),
            (7, 33),
        )
        for strategy in ("channel", "tensor")
        for symmetric in (True, False)
    },
    **{f"W{bits}A16 channel": (scheme(num_bits=bits, strategy="channel"), (5, 67)) for bits in range(2, 9)},
    **{f"W{bits}A16 g8 asym": (scheme(num_bits=bits, group_size=8, symmetric=False), (11, 40)) for bits in range(2, 9)},
    "W4A8": (scheme(INT8_TOKEN, num_bits=4, group_size=32), (7, 96)),
    "W4AFP8": (scheme(FP8_TOKEN, num_bits=4, group_size=32), (7, 96)),
    "W8A8": (scheme(INT8_TOKEN, strategy="channel"), (7, 33)),
    "W8A8 asym": (scheme(INT8_TOKEN, strategy="channel", symmetric=False), (7, 33)),
    "W8A8 static": (scheme(INT8_STATIC, strategy="channel"), (7, 33)),
    "W8A8 static asym": (scheme(INT8_STATIC_ASYMMETRIC, strategy="tensor"), (7, 33)),
    "FP8 static": (scheme(FP8_STATIC, type="float", strategy="tensor"), (7, 33)),
    "FP8_DYNAMIC": (scheme(FP8_TOKEN, type="float", strategy="channel"), (7, 33)),
    "FP8_BLOCK": (
        scheme(
            QuantizationArgs(type="float", group_size=128, dynamic=True),
            type="float",
            strategy="block",
            block_structure=(128, 128),
        ),
        (130, 70),
    ),
    **{name: (preset(name), (40, 256)) for name in ("NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP4XFP8")},
    **{name: (preset(name), (40, 256)) for name in ("MXFP6A16", "MXFP6A8", "MXFP8A16", "MXFP8")},
    "FP8 weights alone": (scheme(type="float", strategy="channel"), (7, 33)),
    "FP8 blocks alone": (scheme(type="float", strategy="block", block_structure=(4, 8)), (9, 33)),
}


@pytest.fixture(params=SCHEMES, ids=lambda name: name.replace(" ", "_"))
def kind(request):
    return SCHEMES[request.param]


def library_scheme(scheme):
    return QuantizationScheme.model_validate(scheme.to_dict())


def library_restores(tensors, scheme, layout):
    """The weight that the library makes of our tensors."""
    return BaseCompressor.get_value_from_registry(layout).decompress(tensors, library_scheme(scheme))["weight"]


def library_writes(quantized, layout):
    """The tensors that the library makes of our scales, and of the weights that our codes stand for.

    Where codes have a sign of zero, which the library does not read off a weight that is rounded, of those before.
    """
    rounded = quantized.weight(quantized.scale.dtype)
    signed = quantized.scheme.weights.scale_dtype is not None
    state = {
        "weight": random_weight(rounded.shape, rounded.dtype) if signed else rounded,
        "weight_global_scale": quantized.global_scale,
        "input_global_scale": quantized.input_global_scale,
        "weight_scale": quantized.scale,
        "weight_zero_point": quantized.zero_point,
        "input_scale": quantized.input_scale,
        "input_zero_point": quantized.input_zero_point,
    }
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    return BaseCompressor.get_value_from_registry(layout).compress(state, library_scheme(quantized.scheme))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_library_unpacks_the_weights_of_our_model_bit_for_bit(kind, dtype):
    scheme, shape = kind
    quantized = quantized_layer(scheme, shape, dtype=dtype)
    dtype = dtype if scheme.weights.scale_dtype is None else torch.bfloat16  # in which the library unpacks these

    FORMAT.check(scheme, "layer", shape)
    restored = library_restores(FORMAT.tensors(quantized), scheme, choose(scheme))

    assert same(restored, quantized.weight(dtype))


def test_our_tensors_are_those_of_the_library(kind):
    scheme, shape = kind
    quantized = quantized_layer(scheme, shape, dtype=torch.float32)

    ours, theirs = FORMAT.tensors(quantized), library_writes(quantized, choose(scheme))

    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if not same(ours[name], theirs[name])] == []


def test_what_we_write_we_read_again(kind):
    scheme, shape = kind
    quantized = quantized_layer(scheme, shape)

    restored = FORMAT.restore({**FORMAT.tensors(quantized), "bias": torch.zeros(3)}, scheme)

    assert_same(restored, quantized)


def test_what_the_library_writes_we_read(kind):
    scheme, shape = kind
    quantized = quantized_layer(scheme, shape, dtype=torch.float32)

    assert_same(FORMAT.restore(library_writes(quantized, choose(scheme)), scheme), quantized)


def assert_same(a: Quantized, b: Quantized):
    if a.scheme.weights.scale_dtype is not None:  # stored in that dtype, whatever the model's is
        a = evolve(a, scale=a.scale.to(b.scale.dtype))
    fields = ("codes", "scale", "zero_point", "global_scale", "input_scale", "input_zero_point", "input_global_scale")
    assert [name for name in fields if not same(getattr(a, name), getattr(b, name))] == []


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    num_bits=st.integers(2, 8),
    symmetric=st.booleans(),
    strategy=st.sampled_from(["tensor", "channel", "group"]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_of_any_width_is_unpacked_by_the_library(rows, columns, num_bits, symmetric, strategy, seed):
    args = {"num_bits": num_bits, "symmetric": symmetric, "strategy": strategy}
    wanted = scheme(**args, group_size=8 if strategy == "group" else None)
    shape = (rows, columns * 8 if strategy == "group" else columns)
    quantized = quantized_layer(wanted, shape, seed=seed)

    tensors = FORMAT.tensors(quantized)

    assert same(library_restores(tensors, wanted, "pack-quantized"), quantized.weight(torch.bfloat16))
    assert_same(FORMAT.restore(tensors, wanted), quantized)


def test_shapes_and_dtypes_are_those_of_the_card():
    asymmetric = FORMAT.tensors(quantized_layer(scheme(num_bits=3, group_size=32, symmetric=False), (20, 96)))
    static = FORMAT.tensors(quantized_layer(*SCHEMES["W8A8 static asym"]))

    assert {name: (tuple(t.shape), t.dtype) for name, t in asymmetric.items()} == {
        "weight_packed": ((20, 9), torch.int32),
        "weight_shape": ((2,), torch.int64),
        "weight_scale": ((20, 3), torch.bfloat16),
        "weight_zero_point": ((2, 3), torch.int32),
    }
    assert {name: (tuple(t.shape), t.dtype) for name, t in static.items()} == {
        "weight": ((7, 33), torch.int8),
        "weight_scale": ((1,), torch.bfloat16),
        "input_scale": ((1,), torch.bfloat16),
        "input_zero_point": ((1,), torch.int8),
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_the_layout_is_the_librarys_but_for_narrow_weights_with_inputs(name):
    wanted, _ = SCHEMES[name]
    theirs = infer_module_format(torch.nn.Linear, library_scheme(wanted)).value

    narrow = wanted.weights.type == "int" and wanted.weights.num_bits < 8 and wanted.input_activations is not None
    assert choose(wanted) == ("pack-quantized" if narrow else theirs)


def test_narrow_weights_with_inputs_take_half_of_the_peers_bytes():
    quantized = quantized_layer(*SCHEMES["W4A8"])

    ours = FORMAT.tensors(quantized)["weight_packed"]
    theirs = CompressedTensorsFormat(quantization_format="int-quantized").tensors(quantized)["weight"]

    assert ours.nbytes * 2 == theirs.nbytes


@pytest.mark.parametrize("layout", ["int-quantized", "dense"])
@pytest.mark.parametrize("by", ["setting", "scheme"])
def test_the_layout_can_be_chosen(layout, by):
    wanted = scheme(num_bits=4, group_size=32, symmetric=False, format=layout if by == "scheme" else None)
    chosen = CompressedTensorsFormat(quantization_format=layout if by == "setting" else None)
    quantized = quantized_layer(wanted, (7, 96))

    chosen.check(wanted, "layer", (7, 96))
    tensors = chosen.tensors(quantized)
    group = chosen.config({"layer": wanted}, [])["config_groups"]["group_0"]

    assert sorted(tensors) == ["weight", "weight_scale", "weight_zero_point"]
    assert group["format"] == layout
    assert_same(chosen.restore(tensors, wanted), quantized)
    unpacked = library_restores(tensors, wanted, layout)
    assert same(unpacked, quantized.weight(torch.bfloat16))


def test_a_layout_that_does_not_exist_is_refused():
    with pytest.raises(SchemeError, match=r"'pack'; there are pack-quantized, int-quantized"):
        CompressedTensorsFormat(quantization_format="pack")


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"UNQUANTIZED"}))
def test_every_preset_is_written(name):
    FORMAT.check(preset(name), "lm_head", (128, 128))


def test_a_group_that_does_not_divide_names_the_layer_and_what_would():
    with pytest.raises(
        SchemeError, match=r"^blocks\.3\.up, 48 x 96: 96 columns .* groups of 128 \(16, 32, 48, 96 would\)"
    ):
        FORMAT.check(preset("W4A16"), "blocks.3.up", (48, 96))


TENSOR = QuantizationArgs(strategy="tensor")


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Scheme(targets=("Linear",), input_activations=TENSOR), "quantizes no weights"),
        (Scheme(targets=("Linear",), weights=TENSOR, output_activations=TENSOR), "output_activations"),
        (scheme(type="float", symmetric=False), "no zero point"),
        (scheme(num_bits=12), "int12 weights"),
        (scheme(dynamic=True), "cannot be dynamic"),
        (scheme(QuantizationArgs(group_size=32)), "static inputs with strategy 'group'"),
        (scheme(QuantizationArgs(strategy="attn_head")), "strategy 'attn_head'"),
        (scheme(format="float-quantized"), "holds float weights, not int8"),
        (scheme(type="float", format="pack-quantized"), "holds int weights, not float8"),
        (scheme(format="nvfp4-pack-quantized"), "does not hold int8 weights"),
        (evolve(preset("MXFP4A16"), format="pack-quantized"), "does not hold float4 weights"),
        (scheme(num_bits=4, type="float"), "float4 weights"),
        (scheme(type="float", strategy="channel", scale_dtype="float8_e4m3fn"), "scales in torch.float8_e4m3fn"),
        (scheme(format="gguf"), "no layout 'gguf'"),
        (preset("Q4_K"), "scales of 6 bits, as in Q4_K, are for the format gguf"),
        (preset("Q4_K_M"), "scales of 6 bits"),
        (preset("Q6_K"), "scales of 8 bits"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_reason(wanted, reason):
    with pytest.raises(SchemeError, match=f"^lm_head cannot be written.*{reason}"):
        FORMAT.check(wanted, "lm_head", (128, 256))


@pytest.mark.parametrize("missing", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"])
def test_a_layer_without_one_of_its_tensors_is_refused(missing):
    wanted, shape = SCHEMES["int4 g32 asym"]
    tensors = FORMAT.tensors(quantized_layer(wanted, shape))
    del tensors[missing]

    with pytest.raises(CheckpointError, match=f"lacks '{missing}'; it has "):
        FORMAT.restore(tensors, wanted)


@pytest.mark.parametrize(
    ("suffix", "tensor", "reason"),
    [
        ("weight_packed", torch.zeros(7, 13, dtype=torch.int32), "not a stream of 4-bit codes"),
        ("weight_shape", torch.tensor([7]), "not a stream of 4-bit codes"),
        ("weight_scale", torch.ones(7, 2), r"the shape \(7, 2\) where the scheme needs \(7, 3\)"),
        ("weight_zero_point", torch.zeros(2, 3, dtype=torch.int32), "not a stream of 4-bit codes"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_refused(suffix, tensor, reason):
    wanted, shape = SCHEMES["int4 g32 asym"]
    tensors = FORMAT.tensors(quantized_layer(wanted, shape))

    with pytest.raises(CheckpointError, match=reason):
        FORMAT.restore({**tensors, suffix: tensor}, wanted)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([-7, -96]),
        torch.tensor([7 * 10**9, 96 * 10**9]),
        torch.tensor([7, 9600]),
        torch.tensor([7, 96, 1]),
        torch.tensor([7.0, float("nan")]),
    ],
)
def test_a_shape_that_the_codes_do_not_have_is_refused_before_anything_is_made_of_it(tensor):
    wanted, shape = SCHEMES["int4 g32 asym"]
    tensors = {**FORMAT.tensors(quantized_layer(wanted, shape)), "weight_shape": tensor}
    stored = {suffix: Stored(one.dtype, tuple(one.shape), lambda one=one: one) for suffix, one in tensors.items()}

    for read in (FORMAT.shape, FORMAT.count_weights):
        with pytest.raises(CheckpointError, match="'weight_shape' is"):
            read(stored, wanted)


def test_codes_of_the_wrong_dtype_are_refused():
    wanted, shape = SCHEMES["FP8_DYNAMIC"]
    tensors = FORMAT.tensors(quantized_layer(wanted, shape))

    with pytest.raises(CheckpointError, match=r"dtype torch\.int8, which is not that of float8 codes"):
        FORMAT.restore({**tensors, "weight": torch.zeros(shape, dtype=torch.int8)}, wanted)


def test_a_scale_without_dimensions_is_read_as_early_releases_wrote_it():
    wanted, shape = SCHEMES["FP8 static"]
    quantized = quantized_layer(wanted, shape)
    tensors = FORMAT.tensors(quantized)

    old = {name: t.reshape(()) if name.endswith("scale") else t for name, t in tensors.items()}

    assert_same(FORMAT.restore(old, wanted), quantized)


def test_dense_writes_the_weights_of_the_model_and_nothing_else(kind):
    wanted, shape = kind
    quantized = quantized_layer(wanted, shape)
    dense = DenseFormat()

    dense.check(wanted, "layer", shape)

    assert list(dense.tensors(quantized)) == ["weight"]
    assert same(dense.tensors(quantized)["weight"], quantized.weight(torch.bfloat16))
    assert dense.config({"layer": wanted}, []) is None


def test_dense_cannot_be_read_as_quantized():
    with pytest.raises(CheckpointError, match="plain model"):
        DenseFormat().read({})
    with pytest.raises(CheckpointError, match="plain model"):
        DenseFormat().restore({}, preset("W4A16"))
    with pytest.raises(SchemeError, match="keeps weights only"):
        DenseFormat().check(Scheme(targets=("Linear",), input_activations=TENSOR), "lm_head", (2, 2))


def test_every_layout_is_one_that_the_library_knows():
    assert all(BaseCompressor.get_value_from_registry(layout) for layout in LAYOUTS)
