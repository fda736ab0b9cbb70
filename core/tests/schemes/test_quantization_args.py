"""`QuantizationArgs`, held against the library compressed-tensors."""

import json
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs as LibraryArgs
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.errors import SchemeError
from coldpress.schemes import QuantizationArgs

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "num_bits": st.sampled_from([2, 3, 4, 8]),
    "symmetric": st.booleans(),
    "group_size": st.sampled_from([None, -2, -1, 0, 1, 32, 128]),
    "strategy": st.sampled_from(
        [None, "tensor", "channel", "group", "Group", "block", "token", "tensor_group", "attn_head", "grup"]
    ),
    "block_structure": st.sampled_from([None, [128, 128], (2, 4), "2x4", "2 x 4", "2x", [1], [0, 4], [2, "4"], 3]),
    "dynamic": st.sampled_from([False, True, "local", "LOCAL", "global"]),
    "actorder": st.sampled_from([None, False, True, "weight", "static", "group", "dynamic", "sorted"]),
    "scale_dtype": st.sampled_from([None, torch.uint8, "torch.float8_e4m3fn", "uint8", "torch.nothing"]),
    "zp_dtype": st.sampled_from([None, torch.int8, "torch.int8"]),
    "observer": st.sampled_from([None, "minmax"]),
    "observer_kwargs": st.sampled_from([{}, {"grid": 50}]),
}


def attempt(make: Any, data: dict[str, Any], refusal: type[Exception]) -> Any:
    try:
        return make(**data)
    except refusal:
        return None


@given(st.fixed_dictionaries({}, optional=FIELDS))
@settings(max_examples=1500, deadline=None)
def test_what_the_library_accepts_we_accept_and_write_the_same(data):
    ours = attempt(QuantizationArgs, data, SchemeError)
    theirs = attempt(LibraryArgs, {name: value for name, value in data.items() if value is not None}, ValueError)

    assert (ours is None) == (theirs is None)
    if ours is not None:
        expected = theirs.model_dump()
        if expected.get("actorder"):
            expected["actorder"] = "weight"  # 'static' is the library's other word for it
        assert ours.to_dict() == expected


@given(st.fixed_dictionaries({}, optional=FIELDS))
@settings(max_examples=300, deadline=None)
def test_the_written_form_reads_back_as_the_same_arguments(data):
    ours = attempt(QuantizationArgs, data, SchemeError)
    if ours is None:
        return
    written = json.loads(json.dumps(ours.to_dict()))

    again = QuantizationArgs.from_dict(written)

    assert again.to_dict() == ours.to_dict()
    assert LibraryArgs.model_validate(written).strategy == ours.strategy


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
        ({"symmetric": "yes"}, "symmetric must be true or false, got 'yes'"),
        (None, "expected the fields of QuantizationArgs, got None"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(data, message):
    with pytest.raises(SchemeError) as caught:
        QuantizationArgs.from_dict(data)

    assert message in str(caught.value)
