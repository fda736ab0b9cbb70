"""`QuantizationArgs`: what is read, what is refused and with which words."""

import pytest
import torch

from coldpress.errors import SchemeError
from coldpress.schemes import QuantizationArgs


def test_the_older_form_with_every_key_written_is_read():
    old = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "group_size": 128,
        "strategy": "group",
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "scale_dtype": None,
        "zp_dtype": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }

    assert QuantizationArgs.from_dict(old) == QuantizationArgs(num_bits=4, group_size=128, observer="minmax")


@pytest.mark.parametrize(("num_bits", "given", "dtype"), [(4, None, torch.float8_e4m3fn), (8, None, None),
                                                          (4, "uint8", torch.uint8)])  # fmt: skip
def test_scales_of_nvfp4_are_float8_where_nothing_else_is_given(num_bits, given, dtype):
    args = QuantizationArgs(
        num_bits=num_bits, type="float", strategy="tensor_group", group_size=16, dynamic="local", scale_dtype=given
    )

    assert args.scale_dtype == dtype


def test_equal_arguments_have_equal_hashes():
    a, b = (QuantizationArgs(group_size=64, observer_kwargs={"grid": 10}) for _ in range(2))

    assert a == b
    assert hash(a) == hash(b)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"group_sise": 128}, "'group_sise' is not a field of QuantizationArgs; did you mean 'group_size'?"),
        ({"strategy": "chanel"}, "did you mean 'channel'?"),
        ({"type": "flaot"}, "type must be one of int, float; got 'flaot'; did you mean 'float'?"),
        ({"strategy": "token"}, "set dynamic=true"),
        ({"strategy": "group"}, "needs a positive group_size, got None; 128 is usual"),
        ({"strategy": "channel", "group_size": 64}, "group_size=64 contradicts strategy 'channel'"),
        ({"strategy": "block"}, "needs block_structure, for example [128, 128]"),
        ({"block_structure": [1, 2]}, "block_structure contradicts strategy 'tensor'"),
        ({"strategy": "channel", "dynamic": True}, "dynamic=True contradicts strategy 'channel'"),
        ({"dynamic": "local"}, "dynamic='local' needs strategy 'tensor_group'"),
        ({"actorder": "group"}, "use actorder='weight'"),
        ({"num_bits": True}, "num_bits must be an integer of at least 1, got True"),
        ({"num_bits": 0}, "num_bits must be an integer of at least 1, got 0"),
        ({"group_size": "128"}, "group_size must be a positive integer"),
        ({"zp_dtype": "integer"}, "zp_dtype must be the name of a torch dtype"),
        ({"observer": 3}, "observer must be the name of an observer"),
        ({"observer_kwargs": [1]}, "observer_kwargs must map"),
        ({"signed_scales": True, "symmetric": False}, "signed_scales is for symmetric integers"),
        ({"signed_scales": True, "type": "float"}, "signed_scales is for symmetric integers"),
        ({"signed_scales": True, "strategy": "token", "dynamic": True}, "signed_scales is for symmetric integers"),
        ({"signed_scales": 1}, "signed_scales must be true or false, got 1"),
        ({"symmetric": "yes"}, "symmetric must be true or false, got 'yes'"),
        (None, "expected the fields of QuantizationArgs, got None"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(data, message):
    with pytest.raises(SchemeError) as caught:
        QuantizationArgs.from_dict(data)

    assert message in str(caught.value)
