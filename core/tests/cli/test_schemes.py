"""`coldpress schemes` and `coldpress datasets`: what can be named."""

import json

import pytest

from coldpress.registry import available
from coldpress.schemes import preset_names


def test_every_preset_has_a_line_with_bits_and_an_engine(coldpress):
    found = {one["name"]: one for one in json.loads(coldpress("schemes", "--json").out)["schemes"]}

    assert set(preset_names()) <= set(found)
    assert found["W4A16"]["bits_per_weight"] == 4 + 16 / 128
    assert found["NVFP4"]["bits_per_weight"] == pytest.approx(4 + 16 / 16, abs=1e-5)
    assert [one["loads"] for one in found["W4A16"]["engines"]] == [True] * 4


def test_the_table_fits_80_columns(coldpress):
    answer = coldpress("schemes")

    assert answer.code == 0, answer.err
    assert max(len(line.rstrip()) for line in answer.out.splitlines()) <= 80
    assert "int4 group 128" in answer.out


def test_one_scheme_is_shown_with_the_settings_of_a_recipe(coldpress):
    answer = coldpress("schemes", "nvfp4")

    assert answer.code == 0, answer.err
    for words in ("num_bits: 4, type: float, group_size: 16", "dynamic: local", "vLLM 0.32 on a CPU"):
        assert words in answer.out


def test_a_scheme_that_is_not_there_has_a_near_name(coldpress):
    answer = coldpress("schemes", "W4A17")

    assert answer.code == 2
    assert "did you mean 'W4A16'" in answer.err


def test_data_sets_are_listed_with_their_place_and_split(coldpress):
    found = {one["name"]: one for one in json.loads(coldpress("datasets", "--json").out)["datasets"]}

    assert set(found) == {plugin.name for plugin in available("datasets")}
    assert found["wikitext"]["repo_id"] == "Salesforce/wikitext"
    assert found["ultrachat_200k"]["split"] == "train_sft"
    assert "coldpress/short" in coldpress("datasets").out
