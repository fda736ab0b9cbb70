"""What a name that is not there may have meant."""

import pytest

from coldpress import SchemeError, load_model, preset, preset_names
from coldpress.errors import ArgumentError, SettingError
from coldpress.registry import available
from coldpress.spelling import _ELSEWHERE, _VALUES, near, suggest
from coldpress.testing.rounding import Rounding


def test_what_looks_like_it_comes_first_and_case_does_not_matter():
    assert near("IGNROE", ["targets", "ignore", "scheme"]) == ["ignore"]
    assert suggest("xyz", ["targets"]) == ""


@pytest.mark.parametrize(
    ("name", "ours"),
    [("percdamp", "dampening_frac"), ("desc_act", "actorder"), ("W_BIT", "num_bits"), ("sym", "symmetric")],
)
def test_names_of_other_tools_are_known(name, ours):
    assert suggest(name, ["targets", ours, "scheme"]) == f"; did you mean {ours!r}?"
    assert suggest(name, ["targets", "scheme"]) == ""


def test_every_name_of_ours_is_that_of_a_setting_or_argument():
    from attrs import fields

    from coldpress import QuantizationArgs, registry
    from coldpress.arguments import PRECISIONS
    from coldpress.arguments.keywords import OneshotKeywords

    known = (
        {field.name for field in fields(QuantizationArgs)}
        | set(OneshotKeywords.__annotations__)
        | {"model", *PRECISIONS}
    )
    for plugin in registry.available("modifiers"):
        known |= {field.alias for field in fields(plugin.load())}

    assert set(_ELSEWHERE.values()) <= known
    named = {*preset_names(), "cuda", *(plugin.name for kind in ("formats", "datasets") for plugin in available(kind))}
    assert set(_VALUES.values()) <= named


def test_a_misspelt_setting_in_python_is_named_as_in_a_recipe():
    with pytest.raises(
        SettingError, match="Rounding has no setting 'q_group_size'; did you mean 'group_size'"
    ) as found:
        Rounding(scheme="W4A16", q_group_size=32)

    assert isinstance(found.value, TypeError)
    assert isinstance(found.value, ArgumentError)


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_short_names_of_dtypes_are_hinted_at(name):
    with pytest.raises(ArgumentError, match=f"did you mean '{name.replace('fp', 'float').replace('bf', 'bfloat')}'"):
        load_model("model", dtype=name)


@pytest.mark.parametrize("name", ["GPTQ", "awq"])
def test_an_algorithm_in_place_of_a_scheme_is_named(name):
    with pytest.raises(SchemeError, match=f"'{name}' is an algorithm, not a scheme: .* --algorithm {name.lower()}"):
        preset(name)
