"""`QuantizationArgs`, `Scheme` and the presets, held against the library compressed-tensors."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("compressed_tensors", minversion="0.20", reason="0.20, whose fields are ours, needs Python 3.11")

from compressed_tensors.quantization import QuantizationArgs as LibraryArgs
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from coldpress.errors import SchemeError
from coldpress.schemes import QuantizationArgs, Scheme, preset, preset_names

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


def test_the_presets_are_the_librarys():
    assert set(preset_names()) >= set(PRESET_SCHEMES)


@pytest.mark.parametrize("name", sorted(PRESET_SCHEMES))
def test_a_preset_is_written_as_the_library_writes_it(name):
    assert preset(name).to_dict() == preset_name_to_scheme(name, ["Linear"]).model_dump()


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_validates_in_the_library(name):
    written = preset(name).to_dict()

    assert QuantizationScheme.model_validate(written).model_dump() == written


@pytest.mark.parametrize("name", sorted(PRESET_SCHEMES))
def test_an_object_of_the_library_is_read_as_what_it_says(name):
    theirs = preset_name_to_scheme(name, ["Linear"])
    parts = {"targets": ["Linear"], **PRESET_SCHEMES[name]}  # a mapping with objects in it

    assert Scheme.from_dict(theirs) == Scheme.from_dict(parts) == preset(name)


@given(st.fixed_dictionaries({}, optional=FIELDS))
@settings(max_examples=200, deadline=None)
def test_arguments_of_the_library_are_read_as_ours(data):
    theirs = attempt(LibraryArgs, {name: value for name, value in data.items() if value is not None}, ValueError)
    if theirs is not None:
        assert QuantizationArgs.from_dict(theirs).to_dict() == QuantizationArgs.from_dict(theirs.model_dump()).to_dict()
