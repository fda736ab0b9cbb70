"""`Scheme`, the presets and what is supported."""

import warnings

import pytest

from coldpress.errors import SchemeError
from coldpress.schemes import QuantizationArgs, Scheme, check_supported, preset, preset_names

E8M0 = {"scale_dtype": "torch.uint8"}
E4M3 = {"scale_dtype": "torch.float8_e4m3fn"}


def test_all_names_of_the_field_are_known():
    assert len(preset_names()) == 33


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_reads_back(name):
    scheme = preset(name.lower())

    assert Scheme.from_dict(scheme.to_dict()).to_dict() == scheme.to_dict()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_quantized(name):
    check_supported(preset(name))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Scheme(targets="Linear", weights=QuantizationArgs(dynamic=True)), "weights: dynamic=True is not"),
        (Scheme(targets="Linear", weights=QuantizationArgs(num_bits=9)), "no number format is called 'int9'; did you"),
        (
            Scheme(targets="Linear", weights=QuantizationArgs(type="float", symmetric=False)),
            "weights: asymmetric float8 is not quantized yet",
        ),
        (
            Scheme(targets="Linear", input_activations=QuantizationArgs(strategy="attn_head")),
            "input_activations: strategy 'attn_head' is not",
        ),
        (
            Scheme(targets="Linear", input_activations=QuantizationArgs(group_size=32)),
            "input_activations: static strategy 'group' is not",
        ),
        (Scheme(targets="Linear", output_activations=QuantizationArgs()), "output_activations: the output"),
        (
            Scheme(targets="Linear", weights=QuantizationArgs(num_bits=4, type="float", group_size=64, **E8M0)),
            "weights: float4 with powers of two as scales of group 64 is not",
        ),
        (
            Scheme(
                targets="Linear",
                weights=QuantizationArgs(num_bits=8, type="float", strategy="tensor_group", group_size=16, **E4M3),
            ),
            "weights: float8 with strategy 'tensor_group' and scales in torch.float8_e4m3fn is not",
        ),
        (
            Scheme(targets="Linear", weights=QuantizationArgs(type="float", strategy="channel", **E4M3)),
            "weights: float8 with scales in torch.float8_e4m3fn is not",
        ),
    ],
)
def test_what_is_not_quantized_yet_is_named(scheme, message):
    with pytest.raises(SchemeError) as caught:
        check_supported(scheme)

    assert str(caught.value).startswith(message)


def test_another_group_size_changes_the_weights_only():
    scheme = preset("w4a8", group_size=64)

    assert scheme.weights == QuantizationArgs(num_bits=4, strategy="group", group_size=64)
    assert scheme.input_activations == preset("W4A8").input_activations


@pytest.mark.parametrize("name", ["W4A16", "FP8", "FP8_BLOCK", "W8A8"])
def test_group_size_minus_one_is_one_scale_a_channel(name):
    weights = preset(name, group_size=-1).weights

    assert weights is not None
    assert (weights.strategy, weights.group_size, weights.block_structure) == ("channel", None, None)


def test_any_field_of_the_weights_can_be_overridden():
    weights = preset("W4A16", symmetric=False, observer="mse", observer_kwargs={"grid": 50}).weights

    assert weights is not None
    assert (weights.symmetric, weights.observer, weights.observer_kwargs) == (False, "mse", {"grid": 50})


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("W4A61", {}, "no preset scheme is called 'W4A61'; did you mean 'W4A16'?"),
        ("w4a16", {"group": 64}, "W4A16: weights have no setting 'group'; did you mean 'group_size'?"),
        ("w4a16", {"group_size": 0}, "W4A16: weights: group_size must be a positive integer"),
        ("MXFP4", {"group_size": 64}, "MXFP4 has groups of 32 by definition"),
        ("Q4_K_M", {"group_size": 64}, "Q4_K_M has groups of 32 by definition"),
        ("UNQUANTIZED", {"group_size": 64}, "UNQUANTIZED quantizes no weights"),
    ],
)
def test_a_mistaken_preset_is_answered_with_what_to_do(name, overrides, message):
    with pytest.raises(SchemeError) as caught:
        preset(name, **overrides)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": None}, "targets is missing"),
        ({"targets": ["Linear"], "weight": {}}, "'weight' is not a field of Scheme; did you mean 'weights'?"),
        ({"targets": ["Linear"], "weights": {"bits": 4}}, "weights: 'bits' is not a field of QuantizationArgs"),
        ({"targets": 3}, "targets must be a list"),
        ({"targets": [], "format": "mixed-precision"}, "format 'mixed-precision' belongs to a whole checkpoint"),
        ({"targets": [], "input_activations": {"strategy": "channel"}}, "input_activations: strategy 'channel'"),
        ({"targets": [], "input_activations": {"actorder": "weight"}}, "input_activations: actorder"),
        ({"targets": [], "output_activations": {"actorder": "weight"}}, "output_activations: actorder"),
        ([], "expected the fields of Scheme, got []"),
    ],
)
def test_a_mistaken_scheme_is_answered_with_its_place(data, message):
    with pytest.raises(SchemeError) as caught:
        Scheme.from_dict(data)

    assert str(caught.value).startswith(message)


def test_schemes_are_hashable_and_equal_by_value():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schemes = {preset(name) for name in preset_names()}

    assert len(schemes) == 32  # W8A8 and INT8 are two names of one scheme
